"""Base models on the hub: what a revision is, and its files."""

import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatch
from pathlib import Path
from typing import Final

from engine.errors import SystemFailure
from engine.hub import HubToken, hub_error
from engine.model_folder import Described, check_shapes, no_model, no_safetensors, read_json, refuse_unfit
from engine.model_names import BUILT_IN

COMMIT: Final = re.compile(r"[0-9a-f]{40}")
_DESCRIPTIVE: Final = ("*.json", "*.txt", "*.jinja", "*.model")
# Subfolders contain other formats; consolidated*.safetensors repeats the weights.
_NOT_NEEDED: Final = ("*/*", "consolidated*")


@dataclass(frozen=True)
class OnHub:
    """A revision of a model on the hub."""

    commit: str
    license: str
    sizes: Mapping[str, int]
    """Bytes of its files, by path."""
    public: bool
    """True if everybody may read it."""


def resolve(hub_id: str, revision: str | None, token: HubToken) -> OnHub:
    """Asks the hub what a revision is; None for the default branch. Raises JobError MODEL_GATED, MODEL_NOT_FOUND,
    NO_SAFETENSORS and HUB_TOKEN_REFUSED, SystemFailure HUB_UNREACHABLE."""
    from huggingface_hub import HfApi

    try:
        info = HfApi(token=token).model_info(hub_id, revision=revision, timeout=30, files_metadata=True)
    except Exception as error:
        raise _hub_error(hub_id, error) from error
    if not COMMIT.fullmatch(str(info.sha)):
        # It becomes the name of a folder.
        raise SystemFailure("HUB_UNREACHABLE", f"The hub names {str(info.sha)[:80]!r} as the commit of {hub_id}.", "")
    names = [file.rfilename for file in info.siblings or []]
    if not any(name.endswith(".safetensors") and "/" not in name for name in names):
        raise no_safetensors(hub_id)
    license_ = getattr(info.card_data, "license", None) if info.card_data else None
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    # The hub tells everybody about a gated model; it is the files that it keeps. What it does not say is not public.
    public = info.private is False and info.gated is False
    return OnHub(str(info.sha), license_ if isinstance(license_, str) else "", sizes, public)


def check_right(hub_id: str, token: HubToken) -> None:
    """Asks the hub whether the token may read the model. Raises JobError MODEL_GATED, MODEL_NOT_FOUND and
    HUB_TOKEN_REFUSED, SystemFailure HUB_UNREACHABLE."""
    from huggingface_hub import HfApi

    try:
        HfApi().auth_check(hub_id, token=token)
    except Exception as error:
        found = _hub_error(hub_id, error)
        if isinstance(found, SystemFailure):
            raise SystemFailure(
                found.reason,
                f"{hub_id} is not public, and the hub could not be asked whether you may use it.",
                "Try again later. Operators who let all callers use downloaded models set FTF_HUB_CACHE_SHARED=true.",
            ) from error
        raise found from error


def download_bytes(found: OnHub, *, tokenizer_only: bool) -> int:
    """Returns the size of the files that `download` fetches."""
    patterns = _patterns(tokenizer_only)

    def is_fetched(name: str) -> bool:
        return any(fnmatch(name, each) for each in patterns) and not any(fnmatch(name, each) for each in _NOT_NEEDED)

    return sum(size for name, size in found.sizes.items() if is_fetched(name))


def download(hub_id: str, commit: str, token: HubToken, folder: Path, *, tokenizer_only: bool) -> None:
    """Downloads a model, or its files without the weights, into a folder; files that are complete there are not fetched
    again. Raises what `resolve` raises."""
    from huggingface_hub import snapshot_download

    try:
        snapshot_download(
            hub_id,
            revision=commit,
            token=token,
            local_dir=folder,
            allow_patterns=_patterns(tokenizer_only),
            ignore_patterns=list(_NOT_NEEDED),
        )
    except Exception as error:
        raise _hub_error(hub_id, error) from error


def describe(hub_id: str, commit: str, token: HubToken) -> Described:
    """Reads the configuration of a model and the headers of its weights. Raises JobError: those of `resolve`,
    NOT_A_MODEL, and those of `refuse_unfit`. SystemFailure HUB_UNREACHABLE."""
    from huggingface_hub import HfApi, errors, hf_hub_download

    with tempfile.TemporaryDirectory() as folder:
        try:
            hf_hub_download(hub_id, "config.json", revision=commit, token=token, local_dir=folder)
            headers = HfApi(token=token).get_safetensors_metadata(hub_id, revision=commit).files_metadata
        except errors.NotASafetensorsRepoError as error:
            raise no_safetensors(hub_id) from error
        except errors.EntryNotFoundError as error:
            raise no_model(hub_id) from error
        except Exception as error:
            raise _hub_error(hub_id, error) from error
        refuse_unfit(hub_id, Path(folder), tokenizer_only=True)
        config = read_json(Path(folder) / "config.json")
    tensors = [tensor for header in headers.values() for tensor in header.tensors.items()]
    size = sum(tensor.data_offsets[1] - tensor.data_offsets[0] for _, tensor in tensors)
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors}
    check_shapes(shapes, hub_id)
    return Described(config, shapes, missing_bytes=size)


def _patterns(tokenizer_only: bool) -> list[str]:
    return [*_DESCRIPTIVE] if tokenizer_only else [*_DESCRIPTIVE, "*.safetensors"]


def _hub_error(hub_id: str, error: Exception) -> Exception:
    instead = f"use a model that is on the node, such as {BUILT_IN}"
    return hub_error(error, "model", hub_id, "spec.base_model", instead)
