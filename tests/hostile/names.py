"""Names and ids that callers give: of files, models, datasets, and paths of the artifact store."""

import errno
import re
from collections.abc import Callable
from pathlib import Path

from tests.hostile.artifact import ACCEPTED, Artifact, Family, home_of

_LONG = "a" * 1000
_NAMES: dict[str, str] = {
    "empty": "",
    "dot": ".",
    "two-dots": "..",
    "three-dots": "...",
    "parent": "../secret",
    "parents": "../../../../etc/passwd",
    "parent-inside": "a/../../secret",
    "parent-at-end": "a/..",
    "absolute": "/etc/passwd",
    "double-slash": "//etc/passwd",
    "slash-at-end": "a/",
    "slash-twice": "a//b",
    "current": "a/./b",
    "backslash": "..\\..\\secret",
    "drive": "C:\\Windows\\win.ini",
    "share": "\\\\server\\share",
    "reserved": "CON",
    "stream": "a.txt::$DATA",
    "home": "~/.ssh/id_rsa",
    "variable": "$HOME/a",
    "url": "https://example.com/a",
    "file-url": "file:///etc/passwd",
    "s3-url": "s3://bucket/a",
    "chained-url": "simplecache::file:///etc/passwd",
    "percent": "%2e%2e%2fsecret",
    "percent-twice": "%252e%252e%252fsecret",
    "nul": "a\0b",
    "nul-at-end": "a\0",
    "newline": "a\nb",
    "newline-at-end": "a\n",
    "return": "a\r\nb: c",
    "tab": "a\tb",
    "escape": "\x1b[2Ja",
    "delete": "a\x7f",
    "right-to-left": "a\u202egpj.exe",
    "zero-width": "a\u200bb",
    "line-separator": "a\u2028b",
    "byte-order-mark": "\ufeffa",
    "full-width-dots": "\uff0e\uff0e/secret",
    "one-dot-leaders": "\u2024\u2024/secret",
    "division-slash": "..\u2215secret",
    "surrogate": "a\ud800",
    "bytes-above": "a\udcff",
    "long": _LONG,
    "long-in-bytes": "\U0001f469" * 64,
    "many-parts": "a/" * 5000 + "a",
    "million": "a" * (1 << 20),
    "space": " ",
    "spaces-around": " a ",
    "star": "*",
    "question": "a?b=c",
    "quote": "a'; DROP TABLE datasets; --",
    "shell": "$(touch a)",
    "option": "--help",
    "wildcards": "ftf.v1.>",
    "template": "{{ 7 * 7 }}",
}


def _named(
    kind: str, make: Callable[[str], str], use: Callable[[str, Path], object], refused: str, expected: dict[str, str]
) -> list[Artifact]:
    """Returns an artifact for each name; `expected` has those that are not refused for the reason `refused`."""

    def artifact(label: str, name: str) -> Artifact:
        return Artifact(
            f"{kind}-{label}",
            lambda folder: None,
            lambda folder: use(make(name), home_of(folder)),
            expected.get(label, refused),
        )

    ordinary = Artifact(
        f"{kind}-ordinary", lambda folder: None, lambda folder: use(make("a"), home_of(folder)), ACCEPTED
    )
    return [ordinary, *(artifact(label, name) for label, name in _NAMES.items())]


def _model(name: str, home: Path) -> None:
    from engine.catalogue import Catalogue

    Catalogue(home, {"a": home, "org/a": home}).check(name)


def _dataset(name: str, home: Path) -> None:
    from engine.config.job import job_config

    job_config({"base_model": "m", "training_data": [{"dataset": name}]})


def _upload(name: str, home: Path) -> None:
    from finetuneflow.v1.dataset_service_pb2 import UploadDatasetHeader
    from gateway.uploads import check_header

    try:
        header = UploadDatasetHeader(filename=name)
    except (ValueError, UnicodeError):
        # A message cannot hold a text that is not UTF-8, so none arrives.
        from chassis.errors import InvalidArgument

        raise InvalidArgument("INVALID_HEADER", "not UTF-8", []) from None
    found = check_header(header, 1 << 30).filename
    assert not re.search(r"[/\\\x00-\x1f]", found)
    assert found not in ("", ".", "..")
    assert len(found.encode()) <= 255
    # As the gateway and the probe use it.
    (home / found).write_text("")
    assert (home / found).parent.samefile(home)


def _store(name: str, home: Path) -> None:
    from chassis.store.artifact_store import ArtifactStore

    store = ArtifactStore((home / "store").as_uri())
    try:
        writer = store.begin_write(f"tenant/{name}")
        with writer:
            writer.write(b"a")
            writer.commit()
    except (UnicodeEncodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.ENAMETOOLONG:
            raise
        raise ValueError(str(error)) from error
    assert {path.name for path in home.iterdir()} == {"store"}
    with store.open_read(f"tenant/{name}") as file:
        assert file.read() == b"a"


_STORED = ("three-dots", "home", "variable", "percent", "percent-twice", "newline", "newline-at-end", "return", "tab")
_STORED += ("escape", "delete", "right-to-left", "zero-width", "line-separator", "byte-order-mark", "full-width-dots")
_STORED += ("one-dot-leaders", "division-slash", "space", "spaces-around", "star", "question", "quote", "shell")
_STORED += ("option", "wildcards", "template", "reserved", "stream")

# Parts of a path before the last are dropped, as browsers send them.
_HIDING = ("nul", "nul-at-end", "newline", "newline-at-end", "return", "tab", "escape", "delete", "right-to-left")
_HIDING += ("zero-width", "line-separator", "byte-order-mark", "surrogate", "bytes-above", "long", "long-in-bytes")
_HIDING += ("million",)
_UPLOADED = {label: ACCEPTED for label in _NAMES if label not in _HIDING}
_UNKNOWN = dict.fromkeys(("reserved", "long", "million", "option"), "MODEL_NOT_FOUND")

NAMES = Family(
    "names and ids",
    (
        *_named("model", str, _model, "INVALID_MODEL", _UNKNOWN),
        *_named("hub-model", "org/{}".format, _model, "INVALID_MODEL", {"reserved": ACCEPTED}),
        *_named(
            "hub-dataset", "hf://org/{}".format, _dataset, "INVALID_CONFIG", {"reserved": ACCEPTED, "long": ACCEPTED}
        ),
        *_named("upload", "{}.jsonl".format, _upload, "INVALID_HEADER", _UPLOADED),
        *_named("stored", str, _store, "ValueError", dict.fromkeys(_STORED, ACCEPTED)),
    ),
)
