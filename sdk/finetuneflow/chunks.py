"""Chunk messages encoded and decoded by hand, which saves the two copies of each chunk that a message makes.

UploadDatasetRequest and DownloadArtifactResponse both carry `bytes chunk = 2` in a oneof.
"""

from __future__ import annotations

CHUNK_BYTES = 1 << 20
"""Maximum size of a chunk in bytes."""

_TAG = b"\x12"  # field 2, length-delimited


def frame(chunk: bytes | memoryview) -> bytes:
    """Returns the serialised message with this chunk."""
    return b"".join((_TAG, _varint(len(chunk)), chunk))


def chunk_of(wire: bytes) -> memoryview | None:
    """Returns the chunk of a serialised message that contains only a chunk; None for any other message."""
    if not wire.startswith(_TAG):
        return None
    length, start = 0, 1
    for shift in range(0, 35, 7):
        if start >= len(wire):
            return None
        byte = wire[start]
        start += 1
        length |= (byte & 0x7F) << shift
        if byte < 0x80:
            return memoryview(wire)[start:] if start + length == len(wire) else None
    return None


def _varint(number: int) -> bytes:
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
