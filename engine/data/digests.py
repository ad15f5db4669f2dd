"""Rows by what they say: which of them are the same, and which are drawn. 16 bytes a row, never a Python object."""

import hashlib

import numpy
from numpy.typing import NDArray

Digests = NDArray[numpy.bytes_]
Rows = NDArray[numpy.int64]
"""Indices of rows."""
Chosen = NDArray[numpy.bool_]
"""Whether each row is."""

DIGEST_BYTES = 16


def digests_of(joined: bytes | bytearray) -> Digests:
    """Out of 16 bytes for each row."""
    return numpy.frombuffer(joined, dtype=f"S{DIGEST_BYTES}")


def first_of_each(digests: Digests) -> Rows:
    """Of every row the first one that says the same, which for most is the row itself."""
    order = numpy.argsort(digests, kind="stable")
    ordered = digests[order]
    new = numpy.ones(len(order), numpy.bool_)
    new[1:] = ordered[1:] != ordered[:-1]
    first = numpy.empty(len(order), numpy.int64)
    first[order] = order[new][numpy.cumsum(new) - 1]
    return first


def among(digests: Digests, others: Digests) -> Chosen:
    """Which rows say what one of the others says."""
    if not len(others):
        return numpy.zeros(len(digests), numpy.bool_)
    ordered = numpy.sort(others)
    at = numpy.minimum(numpy.searchsorted(ordered, digests), len(ordered) - 1)
    found: Chosen = ordered[at] == digests
    return found


def drawn(digests: Digests, count: int, seed: int, purpose: bytes = b"") -> Rows:
    """Indices of `count` of the rows, all different: the same ones whatever their order."""
    key = seed.to_bytes(8, "big") + purpose
    joined = digests.tobytes()
    lots = numpy.empty(len(digests), numpy.uint64)
    for index in range(len(digests)):
        digest = joined[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]
        lots[index] = int.from_bytes(hashlib.blake2b(digest, key=key).digest()[:8], "big")
    return numpy.sort(numpy.argsort(lots, kind="stable")[:count])
