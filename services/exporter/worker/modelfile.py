"""`Modelfile`: what Ollama needs beside a GGUF file, so that it asks the model as the model was trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from engine.data.tokenizer import Tokenizer
from engine.serving import export_of_base
from services.exporter.worker.child_input import ExportInput
from services.exporter.worker.go_template import GoTemplate, NotDerivable, Turn, go_template

_QUOTES: Final = '"""'


@dataclass(frozen=True)
class Modelfile:
    """A Modelfile and what it lacks."""

    text: str
    gaps: tuple[str, ...]
    """Lines that it should have and lacks, each with the reason: `TEMPLATE: …`."""


def modelfile(child_input: ExportInput, files: Sequence[str], base: str = "") -> Modelfile:
    """Returns the Modelfile of the first of the GGUF files, which lie beside it. `base`: they are adapters, for a file
    of the base model of this name, which has to be put beside it."""
    tokenizer = Tokenizer(child_input.model.path, child_input.config.chat_template)
    line = "ADAPTER" if base else "FROM"
    lines = []
    if base:
        made_by = export_of_base(child_input.model.id, child_input.model.revision)
        lines = [
            "# Copy this folder, because the package has to stay as it is, and add a GGUF file of the base model,",
            f"# which this makes: {made_by}",
            f"FROM ./{base}",
        ]
    lines += [f"{line} ./{files[0]}", *(f"# {line} ./{file}" for file in files[1:])]
    gaps, stops = [], [tokenizer.eos_token]

    def add(name: str, text: str) -> None:
        try:
            lines.append(f"{name} {_quoted(text)}")
        except NotDerivable as error:
            lack(name, error)

    def lack(name: str, error: NotDerivable) -> None:
        gaps.append(f"{name}: {' '.join(str(error).split())}")
        lines.append(f"# No {gaps[-1]}.")

    try:
        template = _template(child_input, tokenizer)
    except NotDerivable as error:
        lack("TEMPLATE", error)
    else:
        add("TEMPLATE", template.text)
        stops = [*tokenizer.control.findall(template.after_answer), *stops]
    if child_input.config.system_prompt:
        add("SYSTEM", child_input.config.system_prompt)
    lines += [f'PARAMETER stop "{stop}"' for stop in dict.fromkeys(stops)]
    return Modelfile("\n".join(lines) + "\n", tuple(gaps))


def _template(child_input: ExportInput, tokenizer: Tokenizer) -> GoTemplate:
    if "tool" in child_input.preflight.training_data.roles:
        raise NotDerivable("the rows call tools, whose form would be lost")
    if "strftime_now" in tokenizer.template:
        raise NotDerivable("it writes the date")

    def render(turns: Sequence[Turn], answered: bool) -> str:
        return tokenizer.render(turns, generation_prompt=answered)

    return go_template(render)


def _quoted(text: str) -> str:
    if _QUOTES in text or text.endswith('"'):
        raise NotDerivable(f"it contains {_QUOTES}, or ends with a quote, which a Modelfile cannot express")
    return f"{_QUOTES}{text}{_QUOTES}"
