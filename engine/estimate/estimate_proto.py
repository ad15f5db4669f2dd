"""Conversion of estimates, recommendations and the decision matrix to proto messages."""

from collections.abc import Iterable, Sequence

from pydantic import ValidationError

from engine.config.spec_proto import resolved_config
from engine.estimate.architecture import Architecture
from engine.estimate.cost import PriceTable, cost
from engine.estimate.disk import Disk
from engine.estimate.duration import (
    Calibration,
    Observation,
    Work,
    estimate_duration,
    predict_speed,
    work_per_token,
)
from engine.estimate.known_architectures import find_known
from engine.estimate.machine import Machine
from engine.estimate.matrix import Cell
from engine.estimate.memory import GIB, Estimator, Memory, Setup
from engine.estimate.recommend import Adjustment, Recommendation, Verdict
from engine.estimate.saved_activations import METHODS, Method
from engine.estimate.seed_formula import SeedRecommendation, recommend_method
from finetuneflow.v1 import estimate_pb2 as pb
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec, TrainingMethod
from finetuneflow.v1.stage_result_pb2 import PreflightResult, TrainingResult


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
    disk: Disk | None = None,
    changes: Sequence[Adjustment] = (),
    warnings: Sequence[str] = (),
    parallelism_reason: str = "",
) -> pb.ResourceEstimate:
    """Builds the message of an estimate; without `work` it has neither duration nor cost."""
    message = pb.ResourceEstimate(
        memory=[
            pb.MemoryComponent(
                name=c.name, size_bytes=c.size_bytes, description=c.description, uncertainty=c.uncertainty
            )
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
        disk=None if disk is None else _disk(disk),
        changes=_changes(changes),
        warnings=warnings,
        world_size=setup.world_size,
        parallelism=setup.parallelism if setup.world_size > 1 else "",
        parallelism_reason=parallelism_reason,
        host_memory_bytes=memory.host_bytes,
        host_memory_upper_bytes=memory.host_upper_bytes,
        host_memory_free_bytes=machine.host_free_bytes if memory.host_bytes else 0,
    )
    price, gpus = prices.of(machine), setup.world_size if machine.on_gpu else 1
    if price is not None:
        message.price_per_hour = gpus * price.per_hour
    speed = predict_speed(architecture, setup, machine, calibration)
    message.tokens_per_second = speed.tokens_per_second.likely
    message.speed_basis, message.num_observations = speed.basis, speed.num_observations
    if work is None:
        return message
    seconds = estimate_duration(architecture, setup, machine, work, calibration).seconds
    message.num_tokens = round(work.tokens)
    message.duration_seconds = seconds.likely
    message.duration_low_seconds, message.duration_high_seconds = seconds.low, seconds.high
    if price is not None:
        paid = cost(seconds, price, gpus)
        message.cost, message.cost_low, message.cost_high = paid.likely, paid.low, paid.high
    return message


def recommendation_message(
    found: Recommendation, base_model: str, architecture: Architecture, machine: Machine, estimate: pb.ResourceEstimate
) -> pb.Recommendation:
    """Builds the message of a recommendation, with the seed formula's answer for the same GPU and model size."""
    changes = found.plan.adjustments
    # A card sold as 24 GB has 24 GiB, and the seed formula's bands are sizes of cards.
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
        changes=_changes(changes),
        seed=_seed(seed),
        base_model=base_model,
    )


def matrix_message(rows: Sequence[Sequence[Cell]]) -> pb.DecisionMatrix:
    return pb.DecisionMatrix(cells=[_cell(cell) for row in rows for cell in row])


def calibration(observed: Iterable[pb.ObservedSpeed]) -> Calibration:
    """Builds a calibration from the observed speeds of a request; skips methods that only a newer version knows."""
    numbers = {TrainingMethod.Value(method_name(method)): method for method in METHODS}
    return Calibration(
        Observation(
            o.hardware, numbers[o.method], o.num_parameters, o.flops_per_token, o.tokens_per_second, o.world_size or 1
        )
        for o in observed
        if o.method in numbers
    )


def observed_speed(
    spec: FineTuningJobSpec, preflight: PreflightResult, training: TrainingResult
) -> pb.ObservedSpeed | None:
    """Returns the speed that a finished job reached on its hardware; None if it trained nothing, names no hardware, or
    was resolved by a version with other fields or ranges.

    Operations are counted from the architecture if its name is known, otherwise from the number of parameters.
    """
    try:
        config = resolved_config(spec)
    except ValidationError:
        return None
    if not preflight.HasField("hardware") or config.method == "auto" or training.train_tokens_per_second <= 0:
        return None
    machine = Machine.for_job(preflight.hardware, config)
    identity = preflight.base_model
    setup = Setup.of(config, on_gpu=machine.on_gpu, length=max(int(preflight.training_data.mean_tokens), 1))
    architecture = find_known(identity.id)
    passes = (4 if setup.trains_adapters else 6) + (2 if setup.checkpointing else 0)
    flops = work_per_token(architecture, setup) if architecture else passes * identity.num_parameters
    return pb.ObservedSpeed(
        hardware=machine.name,
        method=method_name(config.method),
        num_parameters=identity.num_parameters,
        flops_per_token=flops,
        tokens_per_second=training.train_tokens_per_second,
        world_size=config.world_size,
    )


def verdict_name(verdict: Verdict) -> str:
    return f"FIT_VERDICT_{verdict.upper()}"


def method_name(method: Method | None) -> str:
    return f"TRAINING_METHOD_{(method or 'unspecified').upper()}"


def _disk(disk: Disk) -> pb.DiskEstimate:
    return pb.DiskEstimate(
        checkpoint_bytes=disk.checkpoint_bytes,
        num_checkpoints=disk.num_checkpoints,
        needed_bytes=disk.needed_bytes,
        free_bytes=disk.free_bytes,
        holds_artifacts=disk.holds_artifacts,
        verdict=verdict_name(disk.verdict),
        download_bytes=disk.download_bytes,
        corpus_bytes=disk.corpus_bytes,
    )


def _changes(changes: Sequence[Adjustment]) -> list[pb.Adjustment]:
    return [pb.Adjustment(field=c.field, before=_text(c.before), after=_text(c.after)) for c in changes]


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
