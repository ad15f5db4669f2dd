"""Manifests of stored folders, such as checkpoints, that another process wrote into the artifact store."""

import hashlib
import json
from pathlib import Path
from typing import Any

from tests.hostile.artifact import ACCEPTED, Artifact, Family, home_of
from tests.hostile.model_files import Content

_MIB = 1 << 20
_CORRUPT = "ArtifactCorrupt"
_SHA = hashlib.sha256(b"weights").hexdigest()


def _files(*paths: Any, sha256: Any = _SHA) -> str:
    return json.dumps({"version": 1, "files": [{"path": path, "sha256": sha256, "size_bytes": 7} for path in paths]})


def _check(folder: Path) -> None:
    """Downloads a folder whose manifest has the hash that SQL knows."""
    from chassis.store.artifact_store import ArtifactStore

    local = home_of(folder) / "local" / "checkpoint"
    digest = hashlib.sha256((folder / "tenant" / "step-1" / "manifest.json").read_bytes()).hexdigest()
    try:
        ArtifactStore(folder.as_uri()).get_folder("tenant/step-1", local, digest)
    finally:
        written = {path.resolve() for path in home_of(folder).rglob("*") if path.is_file()}
        assert all(path.is_relative_to(local.resolve()) for path in written), written


def _manifest(name: str, manifest: Content, expected: str = _CORRUPT, **limits: Any) -> Artifact:
    def write(folder: Path) -> None:
        step = folder / "tenant" / "step-1"
        step.mkdir(parents=True)
        (step / "weights").write_bytes(b"weights")
        (folder / "tenant" / "other").write_bytes(b"weights")
        content = manifest() if callable(manifest) else manifest
        (step / "manifest.json").write_bytes(content.encode() if isinstance(content, str) else content)

    return Artifact(name, write, _check, expected, **limits)


_PATHS: dict[str, Any] = {
    "parent": "../other",
    "outside": "../../../outside/secret",
    "absolute": "/etc/passwd",
    "inside-and-out": "a/../../other",
    "dot": ".",
    "empty": "",
    "nul": "weights\0",
    "backslash": "..\\other",
    "url": "file:///etc/passwd",
    "chained": "simplecache::file:///etc/passwd",
    "itself": "manifest.json",
    "partial": ".partial/a",
    "number": 1,
    "null": None,
    "list": ["weights"],
    "object": {"a": "weights"},
    "surrogate": "\ud800",
    "million": "a" * _MIB,
    "missing": "missing",
    "folder": "weights/",
    "below-a-file": "weights/a",
}

MANIFESTS = Family(
    "manifests of checkpoints",
    (
        _manifest("ordinary", _files("weights"), ACCEPTED),
        *(_manifest(f"path-{name}", _files(path)) for name, path in _PATHS.items()),
        *(_manifest(f"path-{name}-beside", _files("weights", path)) for name, path in _PATHS.items()),
        _manifest("path-twice", _files("weights", "weights"), ACCEPTED),
        _manifest("hash-of-another", _files("weights", sha256="0" * 64)),
        _manifest("hash-number", _files("weights", sha256=1)),
        _manifest("hash-null", _files("weights", sha256=None)),
        _manifest("hash-list", _files("weights", sha256=[_SHA])),
        _manifest("hash-upper", _files("weights", sha256=_SHA.upper())),
        _manifest("hash-missing", '{"files": [{"path": "weights"}]}'),
        _manifest("no-files", _files()),
        _manifest("files-object", '{"files": {"path": "weights"}}'),
        _manifest("files-number", '{"files": 1}'),
        _manifest("files-null", '{"files": null}'),
        _manifest("files-missing", "{}"),
        _manifest("list", "[]"),
        _manifest("number", "1"),
        _manifest("empty", ""),
        _manifest("cut", _files("weights")[:-5]),
        _manifest("nul", bytes(1000)),
        _manifest("not-utf8", b"\xff\xfe\xfd"),
        _manifest("pickle", b"\x80\x04K\x01."),
        _manifest("deep", '{"files": ' * 100_000),
        _manifest("deep-lists", '{"files": ' + "[" * 100_000),
        _manifest("number-of-a-million-digits", '{"files": ' + "9" * _MIB + "}"),
        _manifest("files-200,000", lambda: _files(*(f"file-{number}" for number in range(200_000))), seconds=4),
        _manifest("hundred-megabytes", lambda: " " * (100 * _MIB)),
    ),
)
