"""Printed summaries of what a job left."""

import io

from finetuneflow.cli.console import SafeConsole
from finetuneflow.cli.outcome import show_forms, show_serving
from finetuneflow.resources.stage_result import ExportResult
from finetuneflow.v1 import stage_result_pb2 as pb
from finetuneflow.v1.fine_tuning_job_spec_pb2 import EXPORT_FORMAT_ADAPTER, EXPORT_FORMAT_GGUF_ADAPTER


def shown(message: pb.ExportResult) -> list[str]:
    console = SafeConsole(file=io.StringIO(), width=200)
    result = ExportResult.from_proto(message)
    show_forms(result, console)
    show_serving(result, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def test_command_of_the_longest_reader_stands_apart() -> None:
    """Copied from the terminal, `llama.cpp (gguf_adapter)llama-server` is no command."""
    message = pb.ExportResult()
    message.servable_by.add(reader="llama.cpp", format=EXPORT_FORMAT_GGUF_ADAPTER, command="llama-server -m base")
    message.servable_by.add(reader="peft", refusal="the package has no adapter")
    assert shown(message)[-2:] == [
        "  llama.cpp (gguf_adapter)  llama-server -m base",
        "  peft                      no: the package has no adapter",
    ]


def test_full_model_is_not_called_an_adapter() -> None:
    message = pb.ExportResult()
    message.forms.add(format=EXPORT_FORMAT_ADAPTER, dtype="float32")
    loaded = message.servable_by.add(reader="transformers", format=EXPORT_FORMAT_ADAPTER, command="from_pretrained")
    assert shown(message)[0].startswith("Model       ./, float32")
    loaded.command, loaded.refusal = "", "the top folder has an adapter"
    assert shown(message)[0].startswith("Adapter     ./, float32")
