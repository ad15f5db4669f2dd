"""Tables of estimates, recommendations and the decision matrix."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from rich.console import Console

from finetuneflow.cli.session import count, duration, print_rows, size, speed
from finetuneflow.resources.estimate import (
    Adjustment,
    DecisionCell,
    DiskEstimate,
    FitVerdict,
    Recommendation,
    ResourceEstimate,
    TrainingMethod,
)

_TITLES = {"LORA": "LoRA", "QLORA": "QLoRA", "FULL": "full"}
_SIGNS = {"COMFORTABLE": "✅", "TIGHT": "⚠️", "IMPOSSIBLE": "❌"}
_GIB = 2**30


def print_recommendation(console: Console, found: Recommendation) -> None:
    """Prints a recommendation: method, reason, changes, memory and speed."""
    estimate = found.estimate
    verdict = _word(found.verdict)
    console.print(f"{found.base_model} on {_hardware(estimate)}: {_method(found.method)}, {verdict}")
    console.print(found.reason)
    _print_parallelism(console, estimate)
    _print_changes(console, found.changes)
    console.print("")
    print_rows(console, ["MEMORY", "SIZE", "DESCRIPTION"], _memory(estimate))
    for title, lines in (("Warning", found.warnings), ("Alternative", found.alternatives)):
        for line in lines:
            console.print(f"{title}: {line}")
    console.print(f"Speed: {_speed(estimate)}")
    seed = found.seed
    uses = f", {seed.estimated_vram_usage_gb:.1f} GB" if seed.estimated_vram_usage_gb is not None else ""
    console.print(f"Simple rule by GPU size, for comparison: {_method(seed.method)}{uses}. {seed.reason}", style="dim")


def print_estimate(
    console: Console, estimate: ResourceEstimate, *, time_unknown: str = "name files, or set --examples"
) -> None:
    """Prints an estimate: changes, memory by component, speed, time, cost and disk. `time_unknown` says why there is no
    duration, or what to do about it."""
    console.print(f"{_method(estimate.method)} on {_hardware(estimate)}: {_word(estimate.verdict)}")
    _print_parallelism(console, estimate)
    if estimate.changes:
        console.print("The job fits only with these changes; the memory below is without them.")
        _print_changes(console, estimate.changes)
        console.print("")
    print_rows(console, ["MEMORY", "SIZE", "DESCRIPTION"], _memory(estimate))
    for warning in estimate.warnings:
        console.print(f"Warning: {warning}")
    console.print("")
    rows = [["Speed", _speed(estimate)]]
    if estimate.duration_seconds is not None:
        low, high = estimate.duration_low_seconds or 0.0, estimate.duration_high_seconds or 0.0
        span = f"{duration(low)} to {duration(high)}"
        rows.append(["Time", f"{duration(estimate.duration_seconds)} ({span}) for {estimate.num_tokens:,} tokens"])
    else:
        rows.append(["Time", f"unknown: {time_unknown}"])
    rows.append(["Cost", _cost(estimate)])
    if estimate.disk is not None:
        rows.append(["Disk", _disk(estimate.disk)])
    print_rows(console, ["ESTIMATE", "VALUE"], rows)


def _print_changes(console: Console, changes: Sequence[Adjustment]) -> None:
    if changes:
        console.print("")
        print_rows(console, ["CHANGE", "FROM", "TO"], ([c.field, c.before, c.after] for c in changes))


def print_matrix(console: Console, cells: Sequence[DecisionCell]) -> None:
    """Prints the matrix: rows are GPUs, columns are models; the simple rule's answer is in brackets if it differs."""
    bands = list(dict.fromkeys(cell.band for cell in cells))
    sizes = list(dict.fromkeys(cell.size for cell in cells))
    by_place = {(cell.band, cell.size): cell for cell in cells}
    rows = [[f"{band} GiB", *(_cell(by_place[band, size]) for size in sizes)] for band in bands]
    print_rows(console, ["FREE", *sizes], rows)
    stands = ", ".join(dict.fromkeys(f"{cell.size}: {cell.base_model}" for cell in cells))
    console.print("")
    console.print(
        "✅ fits  ⚠️ fits with smaller micro-batches or shorter rows  ❌ does not fit  (simple rule by GPU size)"
    )
    console.print(f"Each cell applies from the lower end of its row's memory. Models: {stands}")
    differing = [cell for cell in cells if cell.difference]
    if differing:
        console.print("")
        console.print("Differences from the simple rule:")
        print_rows(console, ["FREE", "MODEL", "REASON"], ([f"{c.band} GiB", c.size, c.difference] for c in differing))


def _cell(cell: DecisionCell) -> str:
    now, draft = _sign(cell.method, cell.verdict), _sign(cell.seed_method, cell.seed_verdict)
    return f"{now} ({draft})" if cell.difference else now


def _sign(method: TrainingMethod | None, verdict: FitVerdict | None) -> str:
    return f"{_method(method)} {_SIGNS.get(str(verdict), '')}" if method else "❌"


def _hardware(estimate: ResourceEstimate) -> str:
    return f"{estimate.world_size} × {estimate.hardware}" if estimate.world_size > 1 else estimate.hardware


def _print_parallelism(console: Console, estimate: ResourceEstimate) -> None:
    if estimate.world_size > 1:
        console.print(f"{estimate.world_size} processes, {estimate.parallelism}: {estimate.parallelism_reason}")


def _memory(estimate: ResourceEstimate) -> Iterator[list[str]]:
    for part in estimate.memory:
        yield [part.name, _gib(part.size_bytes), part.description]
    yield ["total", _gib(estimate.memory_total_bytes), f"peak, {_MOMENTS.get(estimate.moment, '')}"]
    yield ["at most", _gib(estimate.memory_upper_bytes), "upper bound; the verdict uses it"]
    each = " for each process; the memory above is that of one" if estimate.world_size > 1 else ""
    yield ["free", _gib(estimate.memory_free_bytes), f"on {estimate.hardware}{each}"]
    if estimate.host_memory_bytes:
        free = (
            f"{_gib(estimate.host_memory_free_bytes)} are free" if estimate.host_memory_free_bytes else "free: unknown"
        )
        most = f"at most {_gib(estimate.host_memory_upper_bytes)} for all processes; {free}"
        yield ["main memory", _gib(estimate.host_memory_bytes), most]


_MOMENTS = {
    "loss": "while the head computes logits",
    "backward": "in the backward pass",
    "step": "in the optimizer step",
    "loading": "while the weights are loaded",
}


def _speed(estimate: ResourceEstimate) -> str:
    if estimate.tokens_per_second is None:
        return "unknown"
    return f"about {speed(estimate.tokens_per_second)}: {estimate.speed_basis}"


def _cost(estimate: ResourceEstimate) -> str:
    if estimate.price_per_hour is None:
        return f"unknown; no price for {estimate.hardware}"
    each = f"{estimate.price_per_hour:.2f} {estimate.currency} per hour"
    if estimate.cost is None:
        return each
    span = f"{estimate.cost_low or 0:.2f} to {estimate.cost_high or 0:.2f}"
    return f"{estimate.cost:.2f} {estimate.currency} ({span}), at {each}"


def _disk(disk: DiskEstimate) -> str:
    need = f"{count(disk.num_checkpoints, 'checkpoint')} of {size(disk.checkpoint_bytes)} at once"
    if disk.download_bytes:
        need += f", {size(disk.download_bytes)} of weights to download, or to convert if the model is built in"
    if disk.corpus_bytes:
        need += f", {size(disk.corpus_bytes)} of files of the corpus at once"
    return f"{size(disk.needed_bytes)} ({need}) of {size(disk.free_bytes)} free: {_word(disk.verdict)}"


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / _GIB:.2f} GiB"


def _method(method: TrainingMethod | None) -> str:
    return _TITLES.get(str(method), str(method)) if method else "cannot be trained"


def _word(verdict: FitVerdict | None) -> str:
    return str(verdict).lower() if verdict else "no verdict"
