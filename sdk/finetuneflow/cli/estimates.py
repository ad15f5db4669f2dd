"""`ftf recommend` and `ftf estimate`.

The server answers. If `--address` is not set and the server's package is installed, this machine answers with
`--local`, with `--vram`, and if no server can be reached.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from finetuneflow.cli.config import CONFIG_HELP, apply_setting, override, read_config, remove_field
from finetuneflow.cli.console import error_console
from finetuneflow.cli.data_options import Format, Map, MaxSamples, Template, source_settings, sources
from finetuneflow.cli.estimate_tables import print_estimate, print_matrix, print_recommendation
from finetuneflow.cli.exits import CommandFailed
from finetuneflow.cli.local_probe import LocalProbe
from finetuneflow.cli.refusals import Ask, every_refusal
from finetuneflow.cli.session import Json, Session, a_number, print_json, session
from finetuneflow.datasets import data_source
from finetuneflow.errors import ServerUnreachable
from finetuneflow.fields import INT32_MAX, INT64_MAX
from finetuneflow.probe import MOST_GIB, estimate_request, recommend_request
from finetuneflow.resources.estimate import DecisionCell, Recommendation, ResourceEstimate
from finetuneflow.setting_names import JOB_RULES, translate
from finetuneflow.v1 import probe_service_pb2 as pb

T = TypeVar("T")

_Model = Annotated[str, typer.Option("--model", "-m", help="Catalogue alias, Hugging Face id, or llama-3.1-8b.")]
_Node = Annotated[str, typer.Option(help="Id of the node to plan for.")]
_Vram = Annotated[
    float | None,
    typer.Option(min=1, max=MOST_GIB, callback=a_number, help="Plan for a GPU with this much free memory, in GiB."),
]
_Gpu = Annotated[str, typer.Option(help="Name of that GPU, such as 'RTX 4090'; sets speed and price.")]
_Longest = Annotated[
    int | None, typer.Option(min=8, max=INT32_MAX, help="Tokens in the longest row.", show_default="max_length")
]
_Set = Annotated[list[str] | None, typer.Option("--set", help="Field of the job, such as lora.r=32. Repeatable.")]
_Config = Annotated[Path | None, typer.Option(exists=True, dir_okay=False, help=CONFIG_HELP)]
_Local = Annotated[bool, typer.Option("--local", help="Plan for this machine, without a server.")]


def recommend(
    ctx: typer.Context,
    model: _Model = "",
    matrix: Annotated[bool, typer.Option("--matrix", help="Print the matrix of model sizes and GPUs.")] = False,
    node: _Node = "",
    vram: _Vram = None,
    gpu: _Gpu = "",
    longest_row: _Longest = None,
    settings: _Set = None,
    config: _Config = None,
    local: _Local = False,
    json: Json = False,
) -> None:
    """Recommend a training method for a model on a machine, and the changes with which it fits."""
    spec = _spec(config, settings)
    _check_machine(vram, gpu, node, local=local)
    model = model or _base_model(spec)
    remove_field(spec, "base_model")
    if not model and not matrix:
        raise typer.BadParameter("Set a model, or --matrix.", param_hint="--model")
    here = session(ctx)
    with every_refusal(spec, _checker(here)):
        request = recommend_request(
            model,
            node_id=node,
            memory_gib=vram,
            gpu=gpu,
            longest_row=longest_row,
            matrix=matrix,
            spec=_no_data(spec),
        )
    response = _ask(
        here,
        lambda: here.client.probe.ask_recommendation(request),
        lambda probe: probe.recommend(request),
        node=node,
        local=local,
        hypothetical=vram is not None or not model,
    )
    if json:
        print_json(response)
        return
    if matrix:
        print_matrix(here.console, [DecisionCell.from_proto(cell) for cell in response.matrix.cells])
    if model:
        print_recommendation(here.console, Recommendation.from_proto(response.recommendation))


def estimate(
    ctx: typer.Context,
    data: Annotated[list[Path] | None, typer.Argument(exists=True, dir_okay=False, help="Files of rows.")] = None,
    model: _Model = "",
    recipe: Annotated[str, typer.Option(help="Preset; see `ftf recipes list`.")] = "",
    examples: Annotated[
        int | None, typer.Option(min=1, max=INT64_MAX, help="Number of rows, instead of files.")
    ] = None,
    mean_tokens: Annotated[
        float | None, typer.Option(min=1, max=INT32_MAX, callback=a_number, help="Mean number of tokens per row.")
    ] = None,
    longest_row: _Longest = None,
    node: _Node = "",
    vram: _Vram = None,
    gpu: _Gpu = "",
    mapping: Map = None,
    template: Template = None,
    format_: Format = None,
    max_samples: MaxSamples = None,
    settings: _Set = None,
    config: _Config = None,
    local: _Local = False,
    json: Json = False,
) -> None:
    """Estimate the memory, time and cost of a training."""
    spec = _spec(config, settings)
    override(spec, {"base_model": model, "recipe": recipe})
    if not _base_model(spec):
        raise typer.BadParameter("Set a model.", param_hint="--model")
    counts = {"--examples": examples, "--mean-tokens": mean_tokens, "--longest-row": longest_row}
    if data and (given := [option for option, value in counts.items() if value is not None]):
        raise typer.BadParameter(f"{given[0]} and files cannot be combined; files are counted.", param_hint=given[0])
    files = sources(list(map(str, data or [])), source_settings(mapping, template, format_, max_samples))
    _check_machine(vram, gpu, node, local=local)
    here = session(ctx)
    with every_refusal(spec, _checker(here)):
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
        _count_tokens(here, request, files)
    response = _ask(
        here,
        lambda: here.client.probe.ask_estimate(request),
        lambda probe: probe.estimate(request),
        node=node,
        local=local,
        hypothetical=vram is not None,
    )
    if json:
        print_json(response)
    else:
        print_estimate(here.console, ResourceEstimate.from_proto(response.estimate))


def _ask(
    here: Session,
    ask_server: Callable[[], T],
    ask_local: Callable[[LocalProbe], T],
    *,
    node: str,
    local: bool,
    hypothetical: bool,
) -> T:
    """Asks the server or this machine. `hypothetical`: the question is about none of the server's machines."""
    if local:
        if here.installed_probe is None:
            raise CommandFailed(
                "--local needs the server's package, which is not installed.",
                advice='Install it: pip install "finetuneflow-server[standalone]"',
            )
        return ask_local(here.installed_probe)
    probe = here.local_probe
    if probe is not None and hypothetical:
        return ask_local(probe)
    try:
        return ask_server()
    except ServerUnreachable as error:
        if probe is None:
            raise
        if node:
            advice = f"--node {node} names a node of a server. Omit it to plan for this machine."
            error.advice = "\n".join(filter(None, (error.advice, advice)))
            raise
        error_console().print("No server can be reached; the answer is for this machine.", style="dim")
        return ask_local(probe)


def _checker(here: Session) -> Ask:
    """Returns the function that checks the settings of a job."""
    return here.client.probe.ask_estimate if here.local_probe is None else here.local_probe.estimate


def _count_tokens(here: Session, request: pb.EstimateResourcesRequest, files: Sequence[Mapping[str, Any]]) -> None:
    """Counts the files on this machine and sets the counts in the request."""
    if here.installed_probe is None:
        raise CommandFailed(
            "Counting tokens needs the server's package, which is not installed.",
            advice="Set --examples, --mean-tokens and --longest-row instead of files.",
        )
    counted = pb.EstimateResourcesRequest()
    counted.CopyFrom(request)
    del counted.spec.training_data[:]
    counted.spec.training_data.extend(data_source(source) for source in files)
    paths = {source["dataset"]: Path(source["dataset"]) for source in files}
    report = here.installed_probe.count_tokens(counted, paths)
    request.num_examples = report.training_data.num_examples
    request.mean_tokens = report.training_data.mean_tokens
    request.longest_row = report.training_data.max_tokens
    request.held_out_tokens = report.evaluation_data.num_tokens


def _check_machine(vram: float | None, gpu: str, node: str, *, local: bool) -> None:
    if gpu and vram is None:
        raise typer.BadParameter("--gpu needs --vram: the GPU's free memory in GiB.", param_hint="--gpu")
    if node and vram is not None:
        raise typer.BadParameter("--node and --vram cannot be combined.", param_hint="--node")
    if node and local:
        raise typer.BadParameter("--node and --local cannot be combined.", param_hint="--node")


def _spec(config: Path | None, settings: list[str] | None) -> dict[str, Any]:
    values = read_config(config) if config else {}
    for setting in settings or []:
        apply_setting(values, setting)
    return values


def _base_model(spec: Mapping[str, Any]) -> str:
    return str(translate(spec, JOB_RULES).values.get("base_model") or "")


def _no_data(spec: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in spec.items() if name not in ("training_data", "evaluation_data", "phases")}
