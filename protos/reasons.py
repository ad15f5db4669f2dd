"""Writes what is made of reason.proto besides its stub: the SDK's constants and docs/reasons.md.

`make protos` runs it as `python -m protos.reasons`.
"""

import re
import textwrap
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "protos" / "finetuneflow" / "v1" / "reason.proto"
CONSTANTS = ROOT / "sdk" / "finetuneflow" / "reasons.py"
PAGE = ROOT / "docs" / "reasons.md"

_WIDTH = 120


@dataclass(frozen=True)
class Group:
    """Reasons of one area, in the order of the file."""

    title: str
    summary: str
    reasons: dict[str, str] = field(default_factory=dict)
    """The comment of each reason, by its name without `REASON_`."""


def read_groups(source: str) -> list[Group]:
    """The values of the enum. A comment with an empty line after it begins a group."""
    body = source.partition("enum Reason {")[2].partition("\n}")[0]
    groups: list[Group] = []
    comment: list[str] = []
    for line in map(str.strip, body.splitlines()):
        if line.startswith("//"):
            comment.append(line.removeprefix("//").strip())
            continue
        text = " ".join(comment)
        comment = []
        if value := re.fullmatch(r"REASON_(\w+) = (\d+);", line):
            if value[2] != "0":
                groups[-1].reasons[value[1]] = text
        elif text:
            title, _, summary = text.partition(": ")
            groups.append(Group(title, summary[:1].upper() + summary[1:]))
    return groups


def constants(groups: list[Group]) -> str:
    """The SDK's module."""
    lines = [
        '"""Why something was refused, failed, warned of or changed its state, as constants.',
        "",
        "Made from protos/finetuneflow/v1/reason.proto by `make protos`; not to be edited.",
        '"""',
        "",
        "from finetuneflow.resources.convert import OpenEnum",
        "",
        "",
        "class Reason(OpenEnum):",
        '    """A reason. It equals the string `reason` of an exception, a job, an attempt, an event or a finding."""',
    ]
    for group in groups:
        lines += ["", *_wrapped(f"{group.title}: {group.summary}", "    # ", "    # ")]
        for name, text in group.reasons.items():
            lines += ["", f'    {name} = "{name}"', *_wrapped(f'"""{text}"""', "    ", "    ")]
    return "\n".join(lines) + "\n"


def page(groups: list[Group]) -> str:
    """The page of the documentation."""
    lines = [
        "# Reasons",
        "",
        "Every refusal, failure, warning and change of state has a machine-readable reason: `reason` of the SDK's",
        "exceptions, of jobs, attempts, events, findings and problems of rows; in gRPC, `google.rpc.ErrorInfo.reason`.",
        "A reason keeps its name and its meaning; messages may change. In Python they are constants:",
        "",
        "```python",
        "from finetuneflow import JobFailed, Reason",
        "",
        "try:",
        "    job = client.jobs.wait(job.id)",
        "except JobFailed as failure:",
        "    if failure.reason == Reason.CUDA_OUT_OF_MEMORY:",
        "        ...",
        "```",
        "",
        "Each entry says when the reason occurs, and then who acts: the *caller*, the *operator* of the installation,",
        "the *service* (a defect of ours, or tried again without anybody's help), or nobody.",
        "",
        "This page is made from `protos/finetuneflow/v1/reason.proto` by `make protos`.",
    ]
    for group in groups:
        lines += [
            "",
            f"## {group.title}",
            "",
            group.summary,
            "",
            "| reason | when it occurs, and who acts |",
            "|---|---|",
        ]
        lines += [f"| `{name}` | {text.replace('|', chr(92) + '|')} |" for name, text in group.reasons.items()]
    return "\n".join(lines) + "\n"


def _wrapped(text: str, first: str, following: str) -> list[str]:
    return textwrap.wrap(
        text, _WIDTH, initial_indent=first, subsequent_indent=following, break_long_words=False, break_on_hyphens=False
    )


if __name__ == "__main__":
    found = read_groups(SOURCE.read_text("utf-8"))
    CONSTANTS.write_text(constants(found), "utf-8")
    PAGE.write_text(page(found), "utf-8")
