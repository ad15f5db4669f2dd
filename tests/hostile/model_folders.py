"""Folders of models: pickles, links, pipes, devices, and files that are no model."""

import io
import os
import pickle
import shutil
import struct
import zipfile
from pathlib import Path
from typing import Any

from tests.hostile.artifact import ACCEPTED, Artifact, Family, Write, home_of, outside_of
from tests.hostile.model_checks import check_model
from tests.hostile.model_files import (
    CONFIG,
    INDEX,
    WEIGHTS,
    change,
    put,
    put_json,
    remove,
    spoiled,
    weights,
    write_ordinary,
)


class _Runs:
    """Creates a file when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("touch pickle-was-run",)


def _pickle() -> bytes:
    return pickle.dumps(_Runs())


def _torch_archive() -> bytes:
    """The format of torch.save."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        archive.writestr("archive/data.pkl", _pickle())
        archive.writestr("archive/version", "3\n")
    return data.getvalue()


def _instead(name: str, content: bytes) -> Write:
    return spoiled(remove(WEIGHTS), put(name, content))


def _beside(name: str, content: bytes) -> Write:
    return spoiled(put(name, content))


def _link(name: str, target: str) -> Write:
    """Replaces a file by a link; {outside} is the folder that nothing may open."""

    def write(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.unlink(missing_ok=True)
        path.symlink_to(target.format(outside=outside_of(folder)))

    return write


def _copied_outside(name: str) -> Write:
    """Moves a file outside and links to it."""

    def write(folder: Path) -> None:
        target = outside_of(folder) / name
        shutil.move(folder / name, target)
        (folder / name).symlink_to(target)

    return write


def _pipe(name: str) -> Write:
    def write(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mkfifo(folder / name)

    return write


def _socket(name: str) -> Write:
    def write(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        os.mknod(folder / name, 0o140600)

    return write


def _directory(name: str) -> Write:
    def write(folder: Path) -> None:
        (folder / name).unlink(missing_ok=True)
        (folder / name).mkdir()

    return write


def _hub_cache(folder: Path) -> None:
    """The layout in which huggingface_hub keeps a revision; the artifact is a link to it."""
    blobs = folder / "models--org--name" / "blobs"
    revision = folder / "models--org--name" / "snapshots" / "0123"
    revision.mkdir(parents=True)
    write_ordinary(revision)
    blobs.mkdir()
    for number, path in enumerate(list(revision.iterdir())):
        path.rename(blobs / str(number))
        path.symlink_to(f"../../blobs/{number}")


def _check_hub_cache(folder: Path) -> set[str]:
    return check_model(folder / "models--org--name" / "snapshots" / "0123", home_of(folder))


def _index(weight_map: Any) -> Write:
    return spoiled(put_json(INDEX, {"metadata": {}, "weight_map": weight_map}))


_UNSAFE, _NONE, _NO_MODEL = "UNSAFE_MODEL_FILE", "NO_SAFETENSORS", "NOT_A_MODEL"
_PICKLES = {"pytorch_model.bin": _torch_archive, "model.pt": _torch_archive, "model.pth": _pickle}
_PICKLES |= {"model.ckpt": _pickle, "weights.pkl": _pickle, "model.h5": _pickle, "flax_model.msgpack": _pickle}
_PICKLES |= {"adapter_model.bin": _torch_archive, "training_args.bin": _pickle, "optimizer.pt": _pickle}

_PICKLED = [
    *(Artifact(f"{name}-instead", _instead(name, make()), check_model, _NONE) for name, make in _PICKLES.items()),
    *(Artifact(f"{name}-beside", _beside(name, make()), check_model, ACCEPTED) for name, make in _PICKLES.items()),
    Artifact(
        "pickle-beside-a-decoy",
        spoiled(remove(WEIGHTS), put("pytorch_model.bin", _torch_archive()), put("decoy.safetensors", weights())),
        check_model,
        _NONE,
    ),
    Artifact(
        "pickle-beside-an-adapter",
        spoiled(remove(WEIGHTS), put("pytorch_model.bin", _pickle()), put("adapter_model.safetensors", weights())),
        check_model,
        _NONE,
    ),
    Artifact(
        "pickled-shards-beside-an-index",
        spoiled(remove(WEIGHTS), put("a.bin", _pickle()), put_json(INDEX, {"weight_map": {"a": "a.bin"}})),
        check_model,
        _NONE,
    ),
    Artifact("pickle-named-safetensors", spoiled(put(WEIGHTS, _torch_archive())), check_model, "BAD_WEIGHTS"),
    Artifact("index-of-pickles", spoiled(put(INDEX, '{"weight_map": {"a": "a.bin"}}')), check_model, "BAD_WEIGHTS"),
    Artifact(
        "transformers_weights-pickle",
        spoiled(change("config.json", transformers_weights="adapter_model.bin"), put("adapter_model.bin", _pickle())),
        check_model,
        "BAD_WEIGHTS",
    ),
]
_LINKED = [
    Artifact("hub-cache", _hub_cache, _check_hub_cache, ACCEPTED),
    Artifact("link-inside", spoiled(put("b", weights()), _link(WEIGHTS, "b")), check_model, ACCEPTED),
    *(
        Artifact(f"{name}-{kind}", spoiled(spoil(name)), check_model, expected)
        for name in (
            WEIGHTS,
            "tokenizer.json",
            "tokenizer_config.json",
            "chat_template.jinja",
            "generation_config.json",
        )
        for kind, spoil, expected in (
            ("linked-outside", lambda name: _link(name, "{outside}/secret"), _UNSAFE),
            ("linked-relative", lambda name: _link(name, "../outside/secret"), _UNSAFE),
            ("pipe", _pipe, _UNSAFE),
            ("zeros", lambda name: _link(name, "/dev/zero"), _UNSAFE),
        )
    ),
    *(
        Artifact(f"config.json-{kind}", spoiled(spoil), check_model, expected)
        for kind, spoil, expected in (
            ("moved-outside", _copied_outside("config.json"), _UNSAFE),
            ("pipe", _pipe("config.json"), _NO_MODEL),
            ("socket", _socket("config.json"), _NO_MODEL),
            ("folder", _directory("config.json"), _NO_MODEL),
            ("zeros", _link("config.json", "/dev/zero"), _NO_MODEL),
            ("memory-of-the-process", _link("config.json", "/proc/self/mem"), _UNSAFE),
            ("link-to-itself", _link("config.json", "config.json"), _NO_MODEL),
            ("missing", remove("config.json"), _NO_MODEL),
        )
    ),
    Artifact("weights-moved-outside", spoiled(_copied_outside(WEIGHTS)), check_model, _UNSAFE),
    Artifact("weights-socket", spoiled(_socket(WEIGHTS)), check_model, _UNSAFE),
    Artifact("weights-folder", spoiled(_directory(WEIGHTS)), check_model, _UNSAFE),
    Artifact("weights-terminal", spoiled(_link(WEIGHTS, "/dev/tty")), check_model, _UNSAFE),
    Artifact("weights-random", spoiled(_link(WEIGHTS, "/dev/urandom")), check_model, _UNSAFE),
    Artifact("second-weights-pipe", spoiled(_pipe("model-2.safetensors")), check_model, _UNSAFE),
    Artifact("second-weights-dangling", spoiled(_link("b.safetensors", "missing")), check_model, _UNSAFE),
    Artifact("environment", spoiled(_link("special_tokens_map.json", "/proc/self/environ")), check_model, _UNSAFE),
    Artifact("passwords", spoiled(_link("added_tokens.json", "/etc/passwd")), check_model, _UNSAFE),
    Artifact("links-in-a-circle", spoiled(_link("a", "b"), _link("b", "a")), check_model, _UNSAFE),
    Artifact("template-outside", spoiled(_link("additional_chat_templates", "{outside}")), check_model, _UNSAFE),
    Artifact(
        "template-file-outside",
        spoiled(_link("additional_chat_templates/default.jinja", "{outside}/secret")),
        check_model,
        _UNSAFE,
    ),
    Artifact(
        "template-pipe",
        spoiled(put("additional_chat_templates/a.jinja", ""), _pipe("additional_chat_templates/default.jinja")),
        check_model,
        _UNSAFE,
    ),
]
_INDEXED = [
    Artifact("index-ordinary", _index({"model.norm.weight": WEIGHTS}), check_model, ACCEPTED),
    *(
        Artifact(f"index-names-{kind}", _index({"a": name}), check_model, "BAD_WEIGHTS")
        for kind, name in {
            "parent": "../outside/model.safetensors",
            "secret": "../outside/secret",
            "absolute": "/etc/passwd",
            "absolute-weights": "/tmp/model.safetensors",
            "missing": "missing.safetensors",
            "config": "config.json",
            "nothing": "",
            "dot": ".",
            "two-dots": "..",
            "folder": "sub/model.safetensors",
            "backslash": "..\\outside\\model.safetensors",
            "nul": "model.safetensors\0.bin",
            "long": "a" * 5000 + ".safetensors",
            "url": "https://example.com/model.safetensors",
            "number": 1,
            "null": None,
            "list": ["model.safetensors"],
            "object": {"a": "b"},
        }.items()
    ),
    Artifact("index-list", spoiled(put(INDEX, "[]")), check_model, _NO_MODEL),
    Artifact("index-without-map", spoiled(put(INDEX, "{}")), check_model, "BAD_WEIGHTS"),
    Artifact("index-map-list", _index(["model.safetensors"]), check_model, "BAD_WEIGHTS"),
    Artifact("index-map-empty", _index({}), check_model, ACCEPTED),
    Artifact("index-deep", spoiled(put(INDEX, '{"weight_map": ' * 900 + "1" + "}" * 900)), check_model, _NO_MODEL),
    Artifact("index-linked", spoiled(_link(INDEX, "../outside/secret")), check_model, _UNSAFE),
    Artifact("index-alone", spoiled(remove(WEIGHTS), put_json(INDEX, {"weight_map": {}})), check_model, _NONE),
    Artifact(
        "index-of-a-million",
        _index({f"tensor.{number}": WEIGHTS for number in range(200_000)}),
        check_model,
        ACCEPTED,
        seconds=2,
    ),
]
_OTHER = [
    Artifact("no-files", lambda folder: None, check_model, _NO_MODEL),
    Artifact("config-alone", put_json("config.json", CONFIG), check_model, _NONE),
    Artifact("adapter", spoiled(put_json("adapter_config.json", {"peft_type": "LORA"})), check_model, "ADAPTER_IN_MODEL"),
    Artifact("adapter-empty", spoiled(put("adapter_config.json", "")), check_model, "ADAPTER_IN_MODEL"),
    Artifact("adapter-folder", spoiled(_directory("adapter_config.json")), check_model, "ADAPTER_IN_MODEL"),
    Artifact(
        "code-beside",
        spoiled(put("modeling_llama.py", "raise SystemExit"), put("tokenization.py", "raise SystemExit")),
        check_model,
        ACCEPTED,
    ),
    Artifact("generation-code-beside", spoiled(put("custom_generate/generate.py", "raise 1")), check_model, ACCEPTED),
    Artifact("gguf-instead", _instead("model.gguf", b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60)), check_model, _NONE),
    Artifact("gguf-beside", _beside("model.gguf", b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 1 << 60)), check_model, ACCEPTED),
    Artifact("gguf-named-safetensors", spoiled(put(WEIGHTS, b"GGUF" + b"\xff" * 100)), check_model, "BAD_WEIGHTS"),
    Artifact(
        "ten-thousand-files",
        spoiled(*(put(f"file-{number}", "") for number in range(10_000))),
        check_model,
        ACCEPTED,
    ),
]  # fmt: skip

MODEL_FOLDERS = Family(
    "model folders",
    (Artifact("ordinary", write_ordinary, check_model, ACCEPTED), *_PICKLED, *_LINKED, *_INDEXED, *_OTHER),
)
