"""Finds duplicate rows and draws samples by digests: 16 bytes a row in arrays, no Python objects."""

import hashlib
import json
from typing import Any

import numpy
from numpy.typing import NDArray

from engine.data.formats import Example

Digests = NDArray[numpy.bytes_]
Rows = NDArray[numpy.int64]
"""Indices of rows."""
Chosen = NDArray[numpy.bool_]
"""One boolean per row."""

DIGEST_BYTES = 16


def digest_of(example: Example) -> bytes:
    """Returns the digest of what an example is trained with."""
    content: list[Any] = [*example.messages] or [example.prompt, example.completion, *example.input_ids]
    content += [example.tools, sorted(example.untrained), example.labels, example.continues]
    return hashlib.blake2b(json.dumps(content).encode(), digest_size=DIGEST_BYTES).digest()


def digests_of(joined: bytes | bytearray) -> Digests:
    """Returns the digests in a concatenation of 16 bytes per row."""
    return numpy.frombuffer(joined, dtype=f"S{DIGEST_BYTES}")


def first_of_each(digests: Digests) -> Rows:
    """Returns, for each row, the index of its first duplicate; its own index if it is unique."""
    order = numpy.argsort(digests, kind="stable")
    ordered = digests[order]
    new = numpy.ones(len(order), numpy.bool_)
    new[1:] = ordered[1:] != ordered[:-1]
    first = numpy.empty(len(order), numpy.int64)
    first[order] = order[new][numpy.cumsum(new) - 1]
    return first


def among(digests: Digests, others: Digests) -> Chosen:
    """Returns, for each row, True if its digest is among the others."""
    if not len(others):
        return numpy.zeros(len(digests), numpy.bool_)
    ordered = numpy.sort(others)
    at = numpy.minimum(numpy.searchsorted(ordered, digests), len(ordered) - 1)
    found: Chosen = ordered[at] == digests
    return found


def drawn(digests: Digests, count: int, seed: int, purpose: bytes = b"") -> Rows:
    """Returns the indices of `count` distinct rows, drawn by the seed; the same rows in any order of the rows."""
    return numpy.sort(shuffled(digests, seed, purpose)[:count])


def shuffled(digests: Digests, seed: int, purpose: bytes = b"") -> Rows:
    """Returns the indices of the rows in an order drawn by the seed; the same rows in any order of the rows."""
    key = seed.to_bytes(8, "big") + purpose
    joined = digests.tobytes()
    lots = numpy.empty(len(digests), numpy.uint64)
    for index in range(len(digests)):
        digest = joined[index * DIGEST_BYTES : (index + 1) * DIGEST_BYTES]
        lots[index] = int.from_bytes(hashlib.blake2b(digest, key=key).digest()[:8], "big")
    return numpy.argsort(lots, kind="stable")
