"""GGUF files that llama.cpp's library makes: what an exporter offers, and that they are the trained model."""

import _ctypes
import platform
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest
from gguf import GGUFReader

from engine.errors import JobError, SystemFailure
from finetuneflow.v1.event_pb2 import ArtifactSaved
from services.exporter import quantizer
from services.exporter.gguf_types import GgufTypes
from services.exporter.quantizer import FILE_TYPES
from services.exporter.worker import gguf_files
from services.exporter.worker.child_input import ExportInput
from tests.services.exporter.conftest import random_adapter
from tests.services.exporter.test_gguf import export, text
from tests.services.exporter.test_package import RecordingSink
from tests.tiny_models import CHATML, make_tiny_llama

FOLDERS = sorted((Path(__file__).parents[3] / ".tools").glob("libllama-*/node_modules/@node-llama-cpp/*/bins/*"))


@pytest.fixture(scope="module")
def library() -> Path:
    if platform.libc_ver()[0] != "glibc" or tuple(map(int, platform.libc_ver()[1].split("."))) < (2, 34):
        pytest.skip("llama.cpp's library needs glibc 2.34 or newer")
    if not FOLDERS:
        pytest.skip("llama.cpp's library is not installed; `make test-long` installs it if there is npm")
    return FOLDERS[-1]


def model_of(export_input: ExportInput, folder: Path, hidden_size: int) -> ExportInput:
    """An export of a Llama whose rows have that many numbers."""
    base = make_tiny_llama(folder / "base", hidden_size=hidden_size, intermediate_size=512)
    adapter = random_adapter(base, folder / "adapter")
    model = export_input.model.model_copy(update={"path": base})
    return export_input.model_copy(update={"model": model, "adapter_dir": adapter})


def test_without_the_library_an_exporter_offers_what_the_converter_makes() -> None:
    types = GgufTypes(None)
    types.read()
    assert types.names == ["f32", "f16", "bf16", "q8_0"]
    assert types.problem == "FTF_EXPORTER_LIBLLAMA is not set"


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "there is no libllama.v0.5.0.so in"),
        ("text", "cannot be loaded: "),
        ("library", "undefined symbol: llama_version"),
    ],
)
def test_folder_without_the_library_is_named(tmp_path: Path, content: str | None, problem: str) -> None:
    """The operator reads it in the log; a library that is called as another one would write past its memory."""
    for name in ("libllama.so", "libggml.so") if content else ():
        if content == "text":
            (tmp_path / name).write_text("no library")
        else:
            (tmp_path / name).symlink_to(_ctypes.__file__)
    types = GgufTypes(tmp_path)
    types.read()
    assert problem in types.problem and str(tmp_path) in types.problem
    assert types.names == ["f32", "f16", "bf16", "q8_0"]


def test_export_without_the_library_is_tried_by_another_exporter(export_input: ExportInput, tmp_path: Path) -> None:
    with pytest.raises(SystemFailure) as error:
        export(export_input, tmp_path, export={"formats": ["gguf"], "gguf_types": ["q4_k_m"]})
    assert error.value.reason == "GGUF_QUANTIZER_MISSING" and "FTF_EXPORTER_LIBLLAMA" in error.value.advice


@pytest.mark.long
def test_another_release_is_refused(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The layout of its parameters may be another one, and it would quantize with wrong ones without an error."""
    types = GgufTypes(library)
    types.read()
    assert not types.problem and {"q4_k_m", "q6_k", *FILE_TYPES} < set(types.names)
    monkeypatch.setattr(quantizer, "_RELEASE", ("0.4.0", "0.25.1", "0ad4a86"))
    with pytest.raises(
        quantizer.LibraryUnusable, match=r"is llama\.cpp 0\.5\.0-dev .*; llama\.cpp 0\.4\.0 .* is needed"
    ):
        quantizer.Quantizer(library)


@pytest.mark.long
@pytest.mark.parametrize(
    ("hidden_size", "q4_k_m", "q6_k"),
    [
        (256, {"F32": 5, "Q4_K": 13, "Q6_K": 3}, {"F32": 5, "Q6_K": 16}),
        (96, {"F32": 5, "Q4_K": 1, "Q5_0": 12, "Q6_K": 1, "Q8_0": 2}, {"F32": 5, "Q6_K": 2, "Q8_0": 14}),
    ],
)
def test_files_are_the_trained_model(
    export_input: ExportInput,
    library: Path,
    tmp_path: Path,
    hidden_size: int,
    q4_k_m: dict[str, int],
    q6_k: dict[str, int],
) -> None:
    """Most people run k-quants; where rows have another length the types of the tensors say what they got."""
    given = model_of(export_input, tmp_path, hidden_size).model_copy(update={"libllama": library})
    result = export(given, tmp_path, export={"formats": ["gguf"], "gguf_types": ["q4_k_m", "q6_k"]})
    four, six = result.forms
    assert [four.gguf.file, six.gguf.file] == ["gguf/docs-helper-q4_k_m.gguf", "gguf/docs-helper-q6_k.gguf"]
    assert (dict(four.gguf.tensor_types), dict(six.gguf.tensor_types)) == (q4_k_m, q6_k)
    assert six.comparison.mean_kl < four.comparison.mean_kl and six.size_bytes < four.size_bytes * 1.6
    assert not four.comparison.HasField("max_mean_kl") and not four.not_run
    reader = GGUFReader(given.out_dir / four.gguf.file)
    assert text(reader, "tokenizer.chat_template") == CHATML
    assert text(reader, "tokenizer.ggml.add_bos_token") is False
    lines = (given.out_dir / four.gguf.modelfile).read_text()
    assert lines.startswith("FROM ./docs-helper-q4_k_m.gguf\n# FROM ./docs-helper-q6_k.gguf\n")
    assert sorted(path.name for path in (given.out_dir / "gguf").iterdir()) == [
        "Modelfile", "docs-helper-q4_k_m.gguf", "docs-helper-q6_k.gguf",
    ]  # fmt: skip


@pytest.mark.long
def test_other_types_are_made_and_verified(
    export_input: ExportInput, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A bound that a correct file exceeds would refuse what people need."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=2**40, available=1000))
    given = model_of(export_input, tmp_path, 256).model_copy(update={"libllama": library})
    types = ["f32", "q2_k", "q3_k_l", "q4_0", "q5_0", "q5_k_m"]
    result = export(given, tmp_path, export={"formats": ["gguf"], "gguf_types": types})
    assert [form.gguf.type for form in result.forms] == types
    assert {form.not_run for form in result.forms} == {"the model does not fit into free memory"}


@pytest.mark.long
@pytest.mark.parametrize("fits", [True, False])
def test_file_with_a_wrong_row_is_not_published(
    export_input: ExportInput, library: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fits: bool
) -> None:
    """There is no bound of the probabilities that would show it."""
    quantize = gguf_files._quantize

    def corrupt(folder: Path, source: Path, target: Path, type_: str, on_line: Callable[[], None]) -> None:
        quantize(folder, source, target, type_, on_line)
        reader = GGUFReader(target, "r+")
        tensor = next(each for each in reader.tensors if each.name == "blk.1.attn_output.weight")
        tensor.data[3] = tensor.data[4]
        reader.data.flush()

    monkeypatch.setattr(gguf_files, "_quantize", corrupt)
    if not fits:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=2**40, available=1000))
    given = model_of(export_input, tmp_path, 256).model_copy(update={"libllama": library})
    sink = RecordingSink()
    with pytest.raises(JobError, match=r"a row of blk\.1\.attn_output\.weight \(Q3_K\) differs") as error:
        export(given, tmp_path, sink, export={"formats": ["gguf"], "gguf_types": ["q2_k"]})
    assert error.value.reason == "EXPORT_DIFFERS"
    assert not [event for event in sink.said if isinstance(event, ArtifactSaved)]
