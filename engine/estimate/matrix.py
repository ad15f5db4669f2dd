"""The decision matrix: which method for which model size on which GPU, beside the one this project was asked for."""

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
"""Title and the architecture that stands for it: the largest common one of its size."""

BANDS: Final = (("< 6", 4), ("6-8", 6), ("8-12", 8), ("12-16", 12), ("16-24", 16), ("24-48", 24), ("48+", 48))
"""Title and the free GiB a cell is judged with: the least of the band, so that it holds for every card in it (below 6,
a card of 4)."""

_NO = (None, "impossible")
# Seed 000, 2.2, row by row.
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
    """One model size on one band of GPUs."""

    band: str
    free_bytes: int
    column: str
    model: str
    recommendation: Recommendation
    seed_method: Method | None
    seed_verdict: Verdict
    difference: str
    """Why the two differ, in a sentence; empty where they agree."""

    @property
    def method(self) -> Method | None:
        return self.recommendation.method

    @property
    def verdict(self) -> Verdict:
        return self.recommendation.plan.verdict


def matrix(config: JobConfig | None = None) -> list[list[Cell]]:
    """Rows are bands, columns are model sizes. `config` says how is trained; the defaults (batch 4, 2,048 tokens a
    row, recomputation) where it is not given."""
    config = config or default_config()
    return [
        [_cell(row, column, config) for column in range(len(COLUMNS))]
        for row in range(len(BANDS))
    ]  # fmt: skip


def default_config() -> JobConfig:
    """The seed's defaults, which are the recipe `default`, with recomputation on as they have it."""
    config = JobConfig(base_model="matrix")
    hyper = config.hyperparameters.model_copy(update={"gradient_checkpointing": True})
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
        how = "" if found.plan.verdict == "comfortable" else " with the reductions"
        return f"{_TITLE[found.plan.method]}{how} needs {least:.1f} GiB free, and {gib:.0f} are."
    setup = Setup.of(config, on_gpu=True, length=config.hyperparameters.max_length, method=seed_method)
    weights = estimate_memory(architecture, setup)["weights"] / GIB
    reduced, whole = (size / GIB for size in smallest_free(architecture, machine, config, seed_method))
    name = _TITLE[seed_method]
    if seed_verdict == "tight" and whole <= gib:
        return f"{name} needs {whole:.1f} GiB free as it is, so nothing has to be reduced."
    if reduced > gib:
        return f"{name} needs {reduced:.1f} GiB free even when reduced ({weights:.1f} for the weights); {gib:.0f} are."
    if whole > gib:
        return f"{name} needs {whole:.1f} GiB free unless it is reduced (then {reduced:.1f}); {gib:.0f} are."
    better = _TITLE[found.plan.method]
    return f"{better} fits too, and comes first: {found.plan.memory.upper_bytes / GIB:.1f} of {gib:.0f} GiB."


_TITLE: Final[dict[Method, str]] = {"lora": "LoRA", "qlora": "QLoRA", "full": "Full fine-tuning"}
