"""Estimates, recommendations and the matrix as messages."""

from collections.abc import Sequence

from engine.estimate.architecture import Architecture
from engine.estimate.cost import PriceTable, cost
from engine.estimate.duration import Calibration, Work, estimate_duration, flops_per_token
from engine.estimate.kept import Method
from engine.estimate.machine import Machine
from engine.estimate.matrix import Cell
from engine.estimate.memory import GIB, Estimator, Memory, Setup
from engine.estimate.recommend import Adjustment, Recommendation, Verdict
from engine.estimate.seed_formula import SeedRecommendation, recommend_method
from finetuneflow.v1 import estimate_pb2 as pb
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec


def estimate_message(
    architecture: Architecture,
    machine: Machine,
    setup: Setup,
    memory: Memory,
    verdict: Verdict,
    *,
    work: Work | None,
    calibration: Calibration,
    prices: PriceTable,
) -> pb.ResourceEstimate:
    """`work` None: how much data there is is not known, and so neither are duration and cost."""
    message = pb.ResourceEstimate(
        memory=[
            pb.MemoryComponent(name=c.name, size_bytes=c.size_bytes, description=c.what, uncertainty=c.uncertainty)
            for c in memory.components
        ],
        memory_total_bytes=memory.total_bytes,
        memory_upper_bytes=memory.upper_bytes,
        verdict=verdict_name(verdict),
        moment=memory.moment,
        memory_free_bytes=machine.free_bytes,
        hardware=machine.name,
        method=method_name(setup.method),
        num_parameters=architecture.num_parameters,
        num_trained_parameters=Estimator(architecture, setup).num_trained_parameters,
        currency=prices.currency,
    )
    price = prices.of(machine)
    if price is not None:
        message.price_per_hour = price.per_hour
    flops = flops_per_token(architecture, setup)
    speed = calibration.predict(machine, setup.method, architecture.num_parameters, flops)
    message.tokens_per_second = speed.tokens_per_second.likely
    message.speed_basis, message.num_observations = speed.basis, speed.num_observations
    if work is None:
        return message
    seconds = estimate_duration(architecture, setup, machine, work, calibration).seconds
    message.num_tokens = round(work.tokens)
    message.duration_seconds = seconds.likely
    message.duration_low_seconds, message.duration_high_seconds = seconds.low, seconds.high
    if price is not None:
        paid = cost(seconds, price)
        message.cost, message.cost_low, message.cost_high = paid.likely, paid.low, paid.high
    return message


def recommendation_message(
    found: Recommendation, base_model: str, architecture: Architecture, machine: Machine, estimate: pb.ResourceEstimate
) -> pb.Recommendation:
    """With the seed's own answer for the same GPU and number of parameters."""
    changes = found.plan.adjustments
    # A card sold as 24 GB has 24 GiB, and the bands of the seed's rule mean cards.
    size = round(machine.total_bytes / GIB, 1)
    billions = round(architecture.num_parameters / 1e9, 2)
    seed = recommend_method(size, billions, machine.on_gpu, machine.quantises)
    return pb.Recommendation(
        method=method_name(found.method),
        reason=found.reason,
        verdict=verdict_name(found.plan.verdict),
        adjustments=_adjustments(changes) if found.method else None,
        warnings=found.warnings,
        alternatives=found.alternatives,
        estimate=estimate,
        changes=[pb.Adjustment(field=c.field, before=_text(c.before), after=_text(c.after)) for c in changes],
        seed=_seed(seed),
        base_model=base_model,
    )


def matrix_message(rows: Sequence[Sequence[Cell]]) -> pb.DecisionMatrix:
    return pb.DecisionMatrix(cells=[_cell(cell) for row in rows for cell in row])


def verdict_name(verdict: Verdict) -> str:
    return f"FIT_VERDICT_{verdict.upper()}"


def method_name(method: Method | None) -> str:
    return f"TRAINING_METHOD_{(method or 'unspecified').upper()}"


def _adjustments(changes: Sequence[Adjustment]) -> FineTuningJobSpec:
    spec = FineTuningJobSpec()
    for change in changes:
        setattr(spec.hyperparameters, change.field.rpartition(".")[2], change.after)
    return spec


def _seed(seed: SeedRecommendation) -> pb.SeedRecommendation:
    return pb.SeedRecommendation(
        method=method_name(seed.method),
        reason=seed.reason,
        can_train=seed.can_train,
        estimated_vram_usage_gb=seed.estimated_vram_usage_gb,
        suggestions=seed.suggestions,
        warnings=seed.warnings,
        alternative=seed.alternative,
    )


def _cell(cell: Cell) -> pb.DecisionCell:
    plan = cell.recommendation.plan
    return pb.DecisionCell(
        band=cell.band,
        memory_free_bytes=cell.free_bytes,
        size=cell.column,
        base_model=cell.model,
        method=method_name(cell.method),
        verdict=verdict_name(cell.verdict),
        memory_upper_bytes=plan.memory.upper_bytes,
        changes=map(str, plan.adjustments) if cell.method else (),
        seed_method=method_name(cell.seed_method),
        seed_verdict=verdict_name(cell.seed_verdict),
        difference=cell.difference,
    )


def _text(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
