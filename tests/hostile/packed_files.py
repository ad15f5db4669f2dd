"""Compressed files of rows, and archives: bombs, damage, and formats that are not what their name says."""

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path

import pyarrow

from tests.hostile.artifact import Family, Write
from tests.hostile.data_checks import GOOD, LINE, TABLE, rows_file, written_file

_MIB = 1 << 20
_BOMB, _UNREADABLE, _UNSUPPORTED = "DECOMPRESSION_BOMB", "UNREADABLE_FILE", "UNSUPPORTED_FILE"


def _zstd(data: bytes) -> bytes:
    return bytes(pyarrow.compress(data, codec="zstd", asbytes=True))


def _gzip_of(filler: bytes, mib: int) -> Write:
    def write(path: Path) -> None:
        packer = zlib.compressobj(9, zlib.DEFLATED, 31)
        with path.open("wb") as file:
            for _ in range(mib):
                file.write(packer.compress(filler * (_MIB // len(filler))))
            file.write(packer.flush())

    return write


def _zstd_of(filler: bytes, mib: int) -> Write:
    def write(path: Path) -> None:
        with pyarrow.CompressedOutputStream(str(path), "zstd") as file:
            for _ in range(mib):
                file.write(filler * (_MIB // len(filler)))

    return write


def _members(number: int) -> Iterator[bytes]:
    for _ in range(number):
        yield gzip.compress(b"")


def _tar() -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        for name in ("../../outside/secret", "/etc/cron.d/a", "a\n"):
            member = tarfile.TarInfo(name)
            member.size = len(LINE)
            archive.addfile(member, io.BytesIO(LINE))
        link = tarfile.TarInfo("rows.jsonl")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    return data.getvalue()


def _zip(name: str, content: bytes = LINE) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return data.getvalue()


def _nested_zip() -> bytes:
    found = _zip("a", bytes(10 * _MIB))
    for _ in range(5):
        found = _zip("a.zip", found)
    return found


_GZIP = gzip.compress(GOOD)
_ZSTD = _zstd(GOOD)
_EMPTY_GZIP = b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03"
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"

_BOMBS = [
    # The first row is refused before the file is found to be a bomb; the report names both.
    written_file("spaces-1-gb.jsonl.gz", _gzip_of(b" ", 1024), f"{_BOMB} ROW_TOO_LONG", seconds=4, long=True),
    written_file("spaces-200-mb.jsonl.gz", _gzip_of(b" ", 200), "DECOMPRESSION_BOMB ROW_TOO_LONG"),
    written_file("spaces-200-mb.jsonl.zst", _zstd_of(b" ", 200), "DECOMPRESSION_BOMB ROW_TOO_LONG"),
    written_file("newlines-200-mb.jsonl.gz", _gzip_of(b"\n", 200), _BOMB, seconds=12),
    written_file("letters-200-mb.csv.gz", _gzip_of(b"a", 200), "BAD_HEADER"),
    written_file("letters-200-mb.json.gz", _gzip_of(b"a", 200), "NOT_JSON"),
    written_file("brackets-200-mb.json.zst", _zstd_of(b"[", 200), "NESTED_TOO_DEEPLY"),
    written_file("spaces-200-mb.json.zst", _zstd_of(b" ", 200), _BOMB),
    written_file("spaces-200-mb.json.gz", _gzip_of(b" ", 200), _BOMB),
    written_file("text-200-mb.txt.gz", _gzip_of(b"abc ", 200), _BOMB, seconds=60, mib=512, long=True),
    written_file("rows-200-mb.jsonl.zst", _zstd_of(LINE, 200), _BOMB, seconds=60, mib=512, long=True),
    written_file("letters-10-gb.txt.zst", _zstd_of(b"a", 10_240), _BOMB, seconds=60, mib=512, long=True),
    written_file("spaces-10-gb.json.gz", _gzip_of(b" ", 10_240), _BOMB, seconds=60, mib=512, long=True),
]
_DAMAGED = {
    "cut.jsonl.gz": _GZIP[:-20],
    "cut.jsonl.zst": _ZSTD[:-20],
    "header-only.jsonl.gz": _EMPTY_GZIP,
    "header-only.jsonl.zst": _ZSTD_MAGIC,
    "magic-only.csv.gz": b"\x1f\x8b",
    "checksum-wrong.jsonl.gz": _GZIP[:-8] + bytes(8),
    "length-wrong.jsonl.gz": _GZIP[:-4] + b"\xff" * 4,
    "method-unknown.jsonl.gz": b"\x1f\x8b\xff" + _GZIP[3:],
    "name-without-end.jsonl.gz": b"\x1f\x8b\x08\x08" + bytes(5) + b"\x03" + b"a" * _MIB,
    "extra-of-64-kb.jsonl.gz": b"\x1f\x8b\x08\x04" + bytes(4) + b"\x00\x03\xff\xff" + b"a" * 100,
    "garbage-behind.jsonl.gz": _GZIP + b"\xff" * 1000,
    "damaged.jsonl.gz": _GZIP[:30] + b"\xff" * 40 + _GZIP[70:],
    "damaged.jsonl.zst": _ZSTD[:30] + b"\xff" * 40 + _ZSTD[70:],
    "window-of-2-gb.jsonl.zst": _ZSTD_MAGIC + b"\x00\xa8" + b"\xff" * 100,
    "window-of-the-largest.jsonl.zst": _ZSTD_MAGIC + b"\x00\xff" + bytes(100),
    "size-of-2^63.jsonl.zst": _ZSTD_MAGIC + b"\xe0" + struct.pack("<Q", 1 << 63) + bytes(100),
    "frame-without-end.jsonl.zst": _ZSTD_MAGIC + b"\x00\x58" + b"\xfe\xff\xff" * 100,
    "twice.jsonl.gz": gzip.compress(_GZIP),
    "twice.jsonl.zst": _zstd(_ZSTD),
    "gzip-in-zstd.jsonl.zst": _zstd(_GZIP),
    "zstd-in-gzip.csv.gz": gzip.compress(_ZSTD),
    "not-packed.jsonl.gz": GOOD,
    "not-packed.csv.zst": TABLE,
    "zstd-named.jsonl.gz": _ZSTD,
    "gzip-named.jsonl.zst": _GZIP,
    "gzip-named.jsonl": _GZIP,
    "zstd-named.csv": _zstd(TABLE),
    "bzip2-named.json": bz2.compress(GOOD),
    "xz-named.txt": lzma.compress(GOOD),
    "pdf-named.txt": b"%PDF-1.7\n/JavaScript (app.alert(1))",
    "database-named.csv": b"SQLite format 3\0" + bytes(4096),
}  # fmt: skip
_ARCHIVES = {
    "archive.zip": _zip("a.jsonl"),
    "archive.tar": _tar(),
    "archive.tar.gz": gzip.compress(_tar()),
    "archive.tgz": gzip.compress(_tar()),
    "archive.7z": b"7z\xbc\xaf\x27\x1c" + bytes(100),
    "archive.rar": b"Rar!\x1a\x07" + bytes(100),
    "sheet.xlsx": _zip("xl/sharedStrings.xml", b'<!DOCTYPE a [<!ENTITY b "bb">]>'),
    "rows.pickle": b"\x80\x04K\x01.",
    "rows.npy": b"\x93NUMPY\x01\x00v\x00{'descr': '|O', 'fortran_order': False}",
    "rows.arrow": b"ARROW1\0\0" + bytes(100),
    "rows.h5": b"\x89HDF\r\n\x1a\n" + bytes(100),
    "rows.parquet.gz": _GZIP,
    "rows.jsonl.zip": _zip("rows.jsonl"),
    "rows.jsonl.xz": lzma.compress(GOOD),
    "rows.jsonl.gz.gz": gzip.compress(_GZIP),
    "rows.py": b"raise SystemExit",
    "rows": GOOD,
    "rows.jsonl.": GOOD,
    "rows.json\uff4c": GOOD,
}
_NAMED_OTHERWISE = {
    "zip-slip.jsonl": _zip("../../outside/secret"),
    "zip-of-zips.json": _nested_zip(),
    "zip.csv": _zip("a.csv"),
    "zip.txt": _zip("a.txt"),
    "zip.parquet": _zip("a.parquet"),
    "zip.jsonl.gz": gzip.compress(_zip("a.jsonl")),
    "zip.jsonl.zst": _zstd(_zip("a.jsonl")),
}

PACKED_FILES = Family(
    "compressed files and archives",
    (
        rows_file("ordinary.jsonl.gz", _GZIP),
        rows_file("ordinary.csv.zst", _zstd(TABLE)),
        *_BOMBS,
        *(rows_file(name, content, _UNREADABLE) for name, content in _DAMAGED.items()),
        rows_file("members-100,000.jsonl.gz", lambda: b"".join(_members(100_000)) + _GZIP, seconds=3),
        rows_file("nothing.jsonl.gz", gzip.compress(b""), "EMPTY_DATASET"),
        rows_file("zeros-behind.jsonl.gz", _GZIP + bytes(_MIB)),
        *(rows_file(name, content, _UNSUPPORTED) for name, content in _ARCHIVES.items()),
        *(rows_file(name, content, _UNREADABLE) for name, content in _NAMED_OTHERWISE.items()),
        rows_file("tar.jsonl", _tar(), "NOT_JSON NUL_CHARACTER"),
        rows_file("tar.jsonl.gz", gzip.compress(_tar()), "NOT_JSON NUL_CHARACTER"),
        rows_file("tar.txt", _tar(), "NUL_CHARACTER"),
    ),
)
