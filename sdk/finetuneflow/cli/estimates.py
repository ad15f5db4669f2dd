"""`ftf recommend` and `ftf estimate`: asked of the server, or answered on this machine where it is installed.

Without `--address` a question that no server is there to answer is answered here, and so is one about a machine that
is only thought of; `--local` asks no server at all.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Protocol, TypeVar

import typer

from finetuneflow.cli.config import apply_setting, read_config
from finetuneflow.cli.console import error_console
from finetuneflow.cli.estimate_tables import print_estimate, print_matrix, print_recommendation
from finetuneflow.cli.exits import CommandFailed
from finetuneflow.cli.looking import Format, Map, Template, source_settings, sources
from finetuneflow.cli.refusals import Ask, every_refusal
from finetuneflow.cli.session import Json, Session, a_number, print_json, session
from finetuneflow.errors import Unavailable
from finetuneflow.fields import INT32_MAX, INT64_MAX
from finetuneflow.probe import MOST_GIB, estimate_request, recommend_request
from finetuneflow.resources.estimate import DecisionCell, Recommendation, ResourceEstimate
from finetuneflow.v1 import probe_service_pb2 as pb

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class Counted:
    """How much data there is."""

    num_examples: int
    mean_tokens: float
    longest_row: int
    held_out_tokens: int


class Here(Protocol):
    """Answers on this machine, without a server. Its methods raise InvalidArgument or CommandFailed."""

    def recommend(self, request: pb.RecommendMethodRequest) -> pb.RecommendMethodResponse: ...
    def estimate(self, request: pb.EstimateResourcesRequest) -> pb.EstimateResourcesResponse: ...
    def count(self, request: pb.EstimateResourcesRequest, data: Sequence[Mapping[str, Any]]) -> Counted: ...


def add_commands(app: typer.Typer, here: Here | None = None) -> None:
    """Adds what is not there yet; `here` is what the server distribution brings."""
    asking = _Asking(here)
    present = {info.name or getattr(info.callback, "__name__", "") for info in app.registered_commands}
    for command in (_recommend(asking), _estimate(asking)):
        if command.__name__ not in present:
            app.command()(command)


_Model = Annotated[str, typer.Option("--model", "-m", help="A catalogue alias, a Hugging Face id, or llama-3.1-8b.")]
_Node = Annotated[str, typer.Option(help="For this node's hardware.")]
_Vram = Annotated[
    float | None,
    typer.Option(min=1, max=MOST_GIB, callback=a_number, help="For a GPU with so many GiB free, not for a node."),
]
_Gpu = Annotated[str, typer.Option(help="Name of that GPU, such as 'RTX 4090': for speed and price.")]
_Longest = Annotated[
    int | None, typer.Option(min=8, max=INT32_MAX, help="Tokens of the longest row.", show_default="max_length")
]
_Set = Annotated[list[str] | None, typer.Option("--set", help="A setting of the job, such as lora.r=32; repeatable.")]
_Config = Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help="A job in a TOML file.")]
_Local = Annotated[bool, typer.Option("--local", help="Ask no server: answer for this machine.")]


class _Asking:
    """Finds out who answers."""

    def __init__(self, here: Here | None) -> None:
        self._here = here

    def answer(
        self,
        at: Session,
        remote: Callable[[], Answer],
        own: Callable[[Here], Answer],
        *,
        node: str,
        local: bool,
        imagined: bool,
    ) -> Answer:
        """`node` is the machine of the server's that the question names; `imagined`: it is about none of these."""
        if local and self._here is None:
            raise CommandFailed(
                "Answering without a server needs the server's package, which is not installed here.",
                advice='Install it: pip install "finetuneflow-server[standalone]"',
            )
        if self._here is not None and (local or (imagined and at.address is None)):
            return own(self._here)
        try:
            return remote()
        except Unavailable as error:
            if self._here is None or at.address is not None:
                raise
            if node:
                advice = f"--node {node} names a machine of a server's: leave it out for an answer for this machine."
                error.advice = "\n".join(filter(None, (error.advice, advice)))
                raise
            error_console().print("No server is up: this is the answer for this machine.", style="dim")
            return own(self._here)

    def settings(self, at: Session) -> Ask:
        """Whoever is to say what is wrong with the settings of a job."""
        return at.client.probe.ask_estimate if self._here is None or at.address is not None else self._here.estimate

    def counted(self, request: pb.EstimateResourcesRequest, data: Sequence[Mapping[str, Any]]) -> None:
        """Puts into the request what the files of these sources hold."""
        if self._here is None:
            raise CommandFailed(
                "Counting tokens needs the server's package, which is not installed here.",
                advice="Say how much data there is: --examples, --mean-tokens, --longest-row.",
            )
        found = self._here.count(request, data)
        request.num_examples, request.mean_tokens = found.num_examples, found.mean_tokens
        request.longest_row, request.held_out_tokens = found.longest_row, found.held_out_tokens


def _check_machine(vram: float | None, gpu: str, node: str, *, local: bool) -> None:
    if gpu and vram is None:
        raise typer.BadParameter("give --vram, too: that GPU's memory in GiB.", param_hint="--gpu")
    if node and vram is not None:
        raise typer.BadParameter(
            "it names a machine of yours, --vram one that is thought of: leave one out.", param_hint="--node"
        )
    if node and local:
        raise typer.BadParameter(
            "it names a machine of a server's, and --local asks none: leave one out.", param_hint="--node"
        )


def _recommend(asking: _Asking) -> Callable[..., None]:
    def recommend(
        ctx: typer.Context,
        model: _Model = "",
        matrix: Annotated[bool, typer.Option("--matrix", help="The matrix of model sizes and GPUs.")] = False,
        node: _Node = "",
        vram: _Vram = None,
        gpu: _Gpu = "",
        longest_row: _Longest = None,
        settings: _Set = None,
        config: _Config = None,
        local: _Local = False,
        json: Json = False,
    ) -> None:
        """Say how a model is best trained on a machine, and with which changes it fits."""
        spec = _spec(config, settings)
        _check_machine(vram, gpu, node, local=local)
        model = model or str(spec.pop("base_model", ""))
        if not model and not matrix:
            raise typer.BadParameter("name a model, or give --matrix.", param_hint="--model")
        at = session(ctx)
        with every_refusal(spec, asking.settings(at)):
            request = recommend_request(
                model,
                node_id=node,
                memory_gib=vram,
                gpu=gpu,
                longest_row=longest_row,
                matrix=matrix,
                spec=_no_data(spec),
            )
        answer: pb.RecommendMethodResponse = asking.answer(
            at,
            lambda: at.client.probe.ask_recommendation(request),
            lambda here: here.recommend(request),
            node=node,
            local=local,
            imagined=vram is not None or not model,
        )
        if json:
            print_json(answer)
            return
        if matrix:
            print_matrix(at.console, [DecisionCell.from_proto(cell) for cell in answer.matrix.cells])
        if model:
            print_recommendation(at.console, Recommendation.from_proto(answer.recommendation))

    return recommend


def _estimate(asking: _Asking) -> Callable[..., None]:
    def estimate(
        ctx: typer.Context,
        data: Annotated[list[Path] | None, typer.Argument(exists=True, dir_okay=False, help="Files of rows.")] = None,
        model: _Model = "",
        recipe: Annotated[str, typer.Option(help="Preset to start from.")] = "",
        examples: Annotated[
            int | None, typer.Option(min=1, max=INT64_MAX, help="Rows, where no file is given.")
        ] = None,
        mean_tokens: Annotated[
            float | None, typer.Option(min=1, max=INT32_MAX, callback=a_number, help="Mean tokens of a row.")
        ] = None,
        longest_row: _Longest = None,
        node: _Node = "",
        vram: _Vram = None,
        gpu: _Gpu = "",
        mapping: Map = None,
        template: Template = None,
        format_: Format = None,
        settings: _Set = None,
        config: _Config = None,
        local: _Local = False,
        json: Json = False,
    ) -> None:
        """Say what a training takes: memory by part, time and money."""
        spec = _spec(config, settings)
        spec |= {name: value for name, value in (("base_model", model), ("recipe", recipe)) if value}
        if not spec.get("base_model"):
            raise typer.BadParameter("name a model.", param_hint="--model")
        counts = {"--examples": examples, "--mean-tokens": mean_tokens, "--longest-row": longest_row}
        if data and (given := [option for option, value in counts.items() if value is not None]):
            raise typer.BadParameter("the files are counted: leave it out, or them.", param_hint=given[0])
        files = sources(list(map(str, data or [])), source_settings(mapping, template, format_))
        _check_machine(vram, gpu, node, local=local)
        at = session(ctx)
        with every_refusal(spec, asking.settings(at)):
            request = estimate_request(
                spec,
                node_id=node,
                memory_gib=vram,
                gpu=gpu,
                longest_row=longest_row,
                num_examples=examples,
                mean_tokens=mean_tokens,
            )
        if files:
            asking.counted(request, files)
        answer: pb.EstimateResourcesResponse = asking.answer(
            at,
            lambda: at.client.probe.ask_estimate(request),
            lambda here: here.estimate(request),
            node=node,
            local=local,
            imagined=vram is not None,
        )
        if json:
            print_json(answer)
        else:
            print_estimate(at.console, ResourceEstimate.from_proto(answer.estimate))

    return estimate


def _spec(config: Path | None, settings: list[str] | None) -> dict[str, Any]:
    values = read_config(config) if config else {}
    for setting in settings or []:
        apply_setting(values, setting)
    return values


def _no_data(spec: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in spec.items() if name not in ("training_data", "evaluation_data", "phases")}
