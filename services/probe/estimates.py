"""Recommends methods and estimates resources, for this node or for a hypothetical machine. It reads no weights."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from engine.catalogue import Catalogue
from engine.config.job import JobConfig, job_config
from engine.config.spec_proto import spec_to_dict
from engine.config.steps import num_evaluations, steps_per_epoch, total_steps
from engine.errors import JobError, Violation
from engine.estimate.architecture import Architecture
from engine.estimate.cost import PriceTable
from engine.estimate.duration import Calibration, Work, evaluation_share
from engine.estimate.estimate_proto import calibration, estimate_message, matrix_message, recommendation_message
from engine.estimate.known_architectures import find_known, known
from engine.estimate.machine import Machine, gpu_hardware
from engine.estimate.matrix import matrix
from engine.estimate.memory import GIB, Setup
from engine.estimate.recommend import Plan, recommend
from engine.estimate.saved_activations import Method
from engine.model_names import is_on_hub
from engine.plan.batching import TrainingRows
from engine.plan.intervals import resolve_intervals
from engine.plan.resolve import resolve
from engine.plan.resolved import Resolved
from engine.random_reference import DEFAULT_TOKENIZER, RandomReference
from finetuneflow.v1 import probe_service_pb2 as api
from finetuneflow.v1.estimate_pb2 import ResourceEstimate
from finetuneflow.v1.fine_tuning_job_spec_pb2 import FineTuningJobSpec
from finetuneflow.v1.hardware_pb2 import Hardware
from services.hardware import read_hardware
from services.hub_access import HubAccess


class Estimates:
    """Implements RecommendMethod and EstimateResources. Its methods block: they read files, and the model hub for a
    model that is not on this machine."""

    def __init__(
        self,
        catalogue: Catalogue,
        disk: Path,
        *,
        node_id: str = "",
        hub: HubAccess | None = None,
        prices: Path | None = None,
    ) -> None:
        self._catalogue, self._disk = catalogue, disk
        self._node_id, self._hub = node_id, hub or HubAccess()
        self._prices = PriceTable.read(prices)

    def recommend(self, request: api.RecommendMethodRequest) -> api.RecommendMethodResponse:
        """Recommends a method, or returns the matrix of model sizes and GPUs, or both.

        Raises what `Catalogue.describe` raises, JobError INVALID_CONFIG and UNKNOWN_ARCHITECTURE.
        """
        if not request.base_model and not request.matrix:
            raise _invalid("base_model", "is required unless `matrix` is set.", "Name a model.")
        # The seed's matrix assumes the seed's defaults, recomputation included, unless the request has a spec.
        given = request.HasField("spec")
        config = _config(request.spec, request.base_model or "matrix")
        response = api.RecommendMethodResponse()
        if request.matrix:
            response.matrix.CopyFrom(matrix_message(matrix(config if given else None)))
        if request.base_model:
            architecture = self.architecture(request.base_model)
            hardware = self._hardware(request, config)
            machine = Machine.for_job(hardware, config)
            length = request.longest_row if request.HasField("longest_row") else None
            config, warnings = _within(config, architecture, length)
            if config.method == "auto" and RandomReference.parse(request.base_model):
                # As preflight: random weights have learned nothing that an adapter could build on.
                config = config.model_copy(update={"method": "full"})
            found = recommend(architecture, machine, config, length)
            if found.plan.verdict == "comfortable":
                resolved = _resolved(config, found.plan.method, hardware, architecture, length)
                found = recommend(architecture, machine, _with_batches(config, resolved), length)
            found = replace(found, warnings=(*warnings, *found.warnings))
            estimate = self._estimate(
                architecture, machine, found.plan, None, calibration(request.observed), reduced=True
            )
            response.recommendation.CopyFrom(
                recommendation_message(found, request.base_model, architecture, machine, estimate)
            )
        return response

    def estimate(self, request: api.EstimateResourcesRequest) -> api.EstimateResourcesResponse:
        """Estimates the spec as given; an automatic method becomes the recommended one. Raises as `recommend`."""
        if not request.spec.base_model:
            raise _invalid("spec.base_model", "is required.", "Name a model.")
        if not 0 <= request.mean_tokens <= _MOST_TOKENS:
            raise _invalid("mean_tokens", f"is {request.mean_tokens:g}.", "Give 0 to 1e15 tokens.")
        if request.HasField("longest_row") and request.mean_tokens > request.longest_row:
            above = f"is {request.mean_tokens:,.6g}, which exceeds longest_row = {request.longest_row:,}."
            raise _invalid("mean_tokens", above, "Correct one of them.")
        config = _config(request.spec, request.spec.base_model)
        architecture = self.architecture(config.base_model)
        hardware = self._hardware(request, config)
        machine = Machine.for_job(hardware, config)
        length = request.longest_row if request.HasField("longest_row") else None
        config, warnings = _within(config, architecture, length)
        found = recommend(architecture, machine, config, length)
        data = _data(request, config)
        resolved = _resolved(config, found.plan.method, hardware, architecture, length, data)
        found = recommend(architecture, machine, _with_batches(config, resolved), length)
        setup = found.plan.unreduced[0]
        work = None if data is None else _work(resolved, architecture, setup, data)
        speeds = calibration(request.observed)
        estimate = self._estimate(architecture, machine, found.plan, work, speeds, warnings, reduced=False)
        return api.EstimateResourcesResponse(estimate=estimate)

    def architecture(self, reference: str) -> Architecture:
        """Returns the architecture of a model in the catalogue, of a known one, or of one on the hub, in this order."""
        own = {entry.id for entry in self._catalogue.list() if entry.revision == "local"}
        named = RandomReference.parse(reference)
        if reference in own or (named and not self._has_known_size(named, own)):
            described = self._catalogue.describe(reference, self._hub.token)
            return Architecture.of_tensors(described.config, described.shapes)
        found = find_known(reference)
        if found is not None:
            return found
        if not is_on_hub(reference) and named is None:
            self._refuse_unknown(reference, own)
        described = self._catalogue.describe(reference, self._hub.token)
        return Architecture.of_tensors(described.config, described.shapes)

    def _has_known_size(self, named: RandomReference, own: set[str]) -> bool:
        """Returns True if the name says all that an estimate needs: the vocabulary is that of the shape."""
        usual = DEFAULT_TOKENIZER if named.is_inl else named.shape
        return named.tokenizer == usual and named.shape not in own

    def _refuse_unknown(self, reference: str, own: set[str]) -> None:
        try:
            known(reference)
        except JobError as error:
            more = f" The catalogue contains: {', '.join(sorted(own))}." if own else ""
            raise JobError(error.reason, error.message + more, error.advice, error.violations) from None

    def _hardware(
        self, request: api.RecommendMethodRequest | api.EstimateResourcesRequest, config: JobConfig
    ) -> Hardware:
        if request.HasField("memory_bytes"):
            if request.memory_bytes < GIB:
                raise _invalid(
                    "memory_bytes", f"is {request.memory_bytes:,}; the minimum is 1 GiB.", "Give the memory in bytes."
                )
            return gpu_hardware(request.gpu or "GPU", request.memory_bytes, count=config.world_size)
        if request.gpu:
            raise _invalid("memory_bytes", "is required with `gpu`: its free memory in bytes.", "Set both or neither.")
        hardware = request.hardware if request.HasField("hardware") else read_hardware(self._node_id, self._disk)
        usable = len(hardware.gpus) if hardware.cuda_available else 0
        if (config.resources.gpus or 0) > max(usable, 1) or (
            config.resources.gpus is None and usable and config.world_size > usable
        ):
            field = "resources.gpus" if config.resources.gpus else "resources.world_size"
            description = f"{config.world_size} given, but the node has {usable} usable GPUs."
            raise JobError(
                "NO_GPU", f"{field}: {description}", "Ask for fewer.", [Violation(f"spec.{field}", description)]
            )
        return hardware

    def _estimate(
        self,
        architecture: Architecture,
        machine: Machine,
        plan: Plan,
        work: Work | None,
        speeds: Calibration,
        warnings: Sequence[str] = (),
        *,
        reduced: bool,
    ) -> ResourceEstimate:
        setup, memory = (plan.setup, plan.memory) if reduced else plan.unreduced
        return estimate_message(
            architecture,
            machine,
            setup,
            memory,
            plan.verdict,
            work=work,
            calibration=speeds,
            prices=self._prices,
            changes=plan.adjustments if plan.verdict == "tight" and not reduced else (),
            warnings=warnings,
            parallelism_reason=plan.parallelism_reason,
        )


def _config(spec: FineTuningJobSpec, base_model: str) -> JobConfig:
    """Returns the spec merged with its recipe; fields that an estimate does not need may be missing."""
    values = {**spec_to_dict(spec), "base_model": base_model}
    values.setdefault("training_data", [{"dataset": "not given"}])
    return job_config(values)


def _within(config: JobConfig, architecture: Architecture, longest: int | None) -> tuple[JobConfig, list[str]]:
    """Limits max_length to the model's context, as a preflight does, and warns of rows that exceed the result."""
    limit, warnings = config.hyperparameters.max_length, []
    if 0 < architecture.context < limit:
        warnings.append(
            f"max_length = {limit:,} exceeds the model's context length; the estimate uses {architecture.context:,}, "
            "as a training would."
        )
        limit = architecture.context
        hyper = config.hyperparameters.model_copy(update={"max_length": limit})
        config = config.model_copy(update={"hyperparameters": hyper})
    if longest is not None and longest > limit:
        what = "dropped" if config.hyperparameters.truncation == "drop" else "truncated"
        more = "" if limit == architecture.context else " Raise hyperparameters.max_length to train on whole rows."
        warnings.append(
            f"Rows longer than max_length = {limit:,} tokens are {what}; longest_row = {longest:,} is not used.{more}"
        )
    return config, warnings


_MOST_TOKENS = 1e15


@dataclass(frozen=True)
class _Data:
    """The rows of a request."""

    num_examples: int
    mean_tokens: float
    longest: int
    held_out_tokens: float

    @property
    def tokens(self) -> float:
        return self.num_examples * self.mean_tokens

    def rows(self, max_length: int) -> TrainingRows:
        """Returns rows of the mean length, one of them of the longest."""
        lengths = Counter[int]()
        if self.num_examples:
            lengths[self.longest] = 1
            lengths[max(1, round(self.mean_tokens))] += self.num_examples - 1
        return TrainingRows(lengths, [self.num_examples], [math.ceil(self.tokens / max_length)])


def _data(request: api.EstimateResourcesRequest, config: JobConfig) -> _Data | None:
    """Returns the rows of a request; None if it does not say how many there are."""
    if not request.HasField("num_examples"):
        return None
    limit = config.hyperparameters.max_length
    longest = request.longest_row if request.HasField("longest_row") else limit
    mean = request.mean_tokens if request.HasField("mean_tokens") else longest / 2
    if not 0 <= request.num_examples * mean <= _MOST_TOKENS:
        named = "mean_tokens" if request.HasField("mean_tokens") else "num_examples"
        raise _invalid(named, f"makes {request.num_examples * mean:.3g} tokens per epoch.", "The limit is 1e15 tokens.")
    if not 0 <= request.held_out_tokens <= _MOST_TOKENS:
        raise _invalid("held_out_tokens", f"is {request.held_out_tokens:,}.", "Give 0 to 1e15 tokens.")
    if request.HasField("held_out_tokens"):
        held_out = float(request.held_out_tokens)
    else:
        # num_examples counts training rows only; the held-out rows were split off before.
        held_out = request.num_examples * mean * config.holdout_fraction / (1 - config.holdout_fraction)
    return _Data(request.num_examples, mean, min(longest, limit), held_out)


def _resolved(
    config: JobConfig,
    method: Method,
    hardware: Hardware,
    architecture: Architecture,
    length: int | None,
    data: _Data | None = None,
) -> Resolved:
    """Resolves the settings as a preflight does. Its refusals are left to the verdict of the estimate."""
    resolved = Resolved(config.model_copy(update={"method": method}))
    limit = config.hyperparameters.max_length
    resolve(resolved, hardware, architecture, length or limit, None if data is None else data.rows(limit))
    return resolved


def _with_batches(config: JobConfig, resolved: Resolved) -> JobConfig:
    """Returns `config` with the batches of `resolved`; the rest stays automatic, as alternatives may differ in it."""
    names = ("packing", "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps")
    update = {name: getattr(resolved.config.hyperparameters, name) for name in names}
    return config.model_copy(update={"hyperparameters": config.hyperparameters.model_copy(update=update)})


def _work(resolved: Resolved, architecture: Architecture, setup: Setup, data: _Data) -> Work:
    """Returns the tokens to process, with the evaluations that a preflight would choose."""
    hyper = resolved.config.hyperparameters
    rows = data.rows(hyper.max_length)
    (sequences,) = rows.packs if hyper.packing else rows.rows
    steps = total_steps(sequences, resolved.config)
    trained = data.tokens * steps / steps_per_epoch(sequences, resolved.config)
    resolve_intervals(resolved, steps, evaluation_share(architecture, setup, Work(trained, data.held_out_tokens)))
    return Work(trained, data.held_out_tokens * num_evaluations(steps, resolved.config.hyperparameters))


def _invalid(field: str, description: str, advice: str) -> JobError:
    return JobError("INVALID_REQUEST", f"{field} {description}", advice, [Violation(field, description)])
