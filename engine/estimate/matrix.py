"""The decision matrix: the recommended method by model size and GPU memory, compared with the seed's matrix."""

from dataclasses import dataclass
from typing import Final

from engine.config.job import JobConfig
from engine.estimate.known_architectures import known
from engine.estimate.machine import Machine, gpu_machine
from engine.estimate.memory import GIB, Setup, estimate_memory
from engine.estimate.recommend import Recommendation, Verdict, recommend, smallest_free
from engine.estimate.saved_activations import Method

COLUMNS: Final = (
    ("≤ 3B", "llama-3.2-3b"), ("7-8B", "llama-3.1-8b"), ("13B", "llama-2-13b"), ("70B", "llama-3.1-70b"),
)  # fmt: skip
"""Title of each model size, and the architecture that represents it: the largest common one."""

BANDS: Final = (("< 6", 4), ("6-8", 6), ("8-12", 8), ("12-16", 12), ("16-24", 16), ("24-48", 24), ("48+", 48))
"""Title of each band of GPU memory, and the free GiB that its cells assume: the smallest of the band, so that a cell
holds for every card in it (below 6 GiB, a card of 4)."""

_NO = (None, "impossible")
# The matrix of the seed, by row.
_SEED: Final[tuple[tuple[tuple[Method | None, Verdict], ...], ...]] = (
    (_NO, _NO, _NO, _NO),
    (("qlora", "tight"), ("qlora", "tight"), _NO, _NO),
    (("qlora", "comfortable"), ("qlora", "tight"), _NO, _NO),
    (("lora", "comfortable"), ("qlora", "comfortable"), ("qlora", "tight"), _NO),
    (("lora", "comfortable"), ("lora", "comfortable"), ("qlora", "comfortable"), _NO),
    (("lora", "comfortable"), ("lora", "comfortable"), ("lora", "comfortable"), ("qlora", "tight")),
    (("lora", "comfortable"), ("lora", "comfortable"), ("lora", "comfortable"), ("qlora", "comfortable")),
)  # type: ignore[assignment]


@dataclass(frozen=True)
class Cell:
    """The recommendation for one model size on one band of GPU memory."""

    band: str
    free_bytes: int
    column: str
    model: str
    recommendation: Recommendation
    seed_method: Method | None
    seed_verdict: Verdict
    difference: str
    """The reason, in a sentence, if the recommendation differs from the seed's; otherwise empty."""

    @property
    def method(self) -> Method | None:
        return self.recommendation.method

    @property
    def verdict(self) -> Verdict:
        return self.recommendation.plan.verdict


def matrix(config: JobConfig | None = None) -> list[list[Cell]]:
    """Returns the matrix; rows are bands of GPU memory, columns are model sizes.

    Without `config` the defaults apply: batch 4, 2,048 tokens a row, gradient checkpointing.
    """
    config = config or default_config()
    return [
        [_cell(row, column, config) for column in range(len(COLUMNS))]
        for row in range(len(BANDS))
    ]  # fmt: skip


def default_config() -> JobConfig:
    """Returns the seed's defaults, with gradient checkpointing."""
    config = JobConfig(base_model="matrix")
    hyper = config.hyperparameters.with_usual_batches().model_copy(update={"gradient_checkpointing": True})
    return config.model_copy(update={"hyperparameters": hyper})


def _cell(row: int, column: int, config: JobConfig) -> Cell:
    band, gib = BANDS[row]
    title, model = COLUMNS[column]
    machine = gpu_machine("GPU", gib * GIB)
    found = recommend(known(model), machine, config)
    seed_method, seed_verdict = _SEED[row][column]
    same = (found.method, found.plan.verdict) == (seed_method, seed_verdict)
    difference = "" if same else _difference(model, machine, config, found, seed_method, seed_verdict)
    return Cell(band, gib * GIB, title, model, found, seed_method, seed_verdict, difference)


def _difference(
    model: str,
    machine: Machine,
    config: JobConfig,
    found: Recommendation,
    seed_method: Method | None,
    seed_verdict: Verdict,
) -> str:
    architecture, gib = known(model), machine.free_bytes / GIB
    if seed_method is None:
        reduced, whole = (size / GIB for size in smallest_free(architecture, machine, config, found.plan.method))
        least = whole if found.plan.verdict == "comfortable" else reduced
        how = "" if found.plan.verdict == "comfortable" else " with every reduction"
        return f"{_TITLE[found.plan.method]}{how} needs {least:.1f} GiB; only {gib:.0f} GiB are free."
    setup = Setup.of(config, on_gpu=True, length=config.hyperparameters.max_length, method=seed_method)
    weights = estimate_memory(architecture, setup)["weights"] / GIB
    reduced, whole = (size / GIB for size in smallest_free(architecture, machine, config, seed_method))
    name = _TITLE[seed_method]
    if seed_verdict == "tight" and whole <= gib:
        return f"{name} needs {whole:.1f} GiB free without any reduction, so none is needed."
    if reduced > gib:
        return (
            f"{name} needs {reduced:.1f} GiB even when reduced (weights: {weights:.1f}); only {gib:.0f} GiB are free."
        )
    if whole > gib:
        return (
            f"{name} needs {whole:.1f} GiB without reductions ({reduced:.1f} with them); only {gib:.0f} GiB are free."
        )
    better = _TITLE[found.plan.method]
    return f"{better} fits too and is preferred: up to {found.plan.memory.upper_bytes / GIB:.1f} of {gib:.0f} GiB."


_TITLE: Final[dict[Method, str]] = {"lora": "LoRA", "qlora": "QLoRA", "full": "Full fine-tuning"}
