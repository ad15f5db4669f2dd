"""Estimates the duration of a training, from speeds observed on the same hardware or from its peak performance."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Final

from engine.estimate.architecture import Architecture
from engine.estimate.machine import Machine
from engine.estimate.memory import Estimator, Setup
from engine.estimate.parallelism import exchange_seconds
from engine.estimate.saved_activations import Method

# By (on_gpu, quantised): the share of the peak performance that trainings reach: lowest, likely, highest. On GPUs
# published runs of dense models report 0.15 to 0.5, and less where every pass dequantises the weights. On CPUs it is
# the share that matrix products of these sizes reach (75 GFLOP/s of a core with AVX-512); a shared machine gives less.
_UTILISATION: Final[Mapping[tuple[bool, bool], tuple[float, float, float]]] = {
    (True, False): (0.15, 0.33, 0.50),
    (True, True): (0.08, 0.20, 0.38),
    (False, False): (0.12, 0.47, 0.75),
    (False, True): (0.02, 0.10, 0.30),
}
# On a CPU: how much faster a training's products are in 16 bits than in float32. Products alone are 4 to 5 times as
# fast on a processor with avx512_bf16, but autocast converts the weights in every pass.
_CPU_16_BITS: Final = 1.65
# On a CPU: operations of a product that take as long as everything else that is computed for one byte which is saved
# for the backward pass. That is limited by memory: 1.45 ns a byte and core, which is read and written about eight
# times. Both constants are fitted to docs/estimates.md.
_OPERATIONS_PER_BYTE: Final = 109.0
# On a GPU: operations of a product that take as long as computing one value of one step of an INL block element by
# element, in the forward pass; the backward pass takes twice as long. Assumed: 20 kernels that read and write 12 bytes,
# at 60 operations a byte.
_INL_ON_GPU: Final = 14_400.0
# Factor by which the interval widens for an unlisted GPU, whose peak is assumed.
_UNKNOWN_SPREAD: Final = 3.0
# Standard deviation of the logarithm of the speed after a single observation, and its increase for each doubling or
# halving of the model size: operations per second change slowly with size.
_SINGLE: Final = 0.15
_PER_DOUBLING: Final = 0.08
# Doublings of the model size beyond which an observation says less than the assumption about a machine: a model with
# few weights spends its steps outside of matrix products.
_FARTHEST: Final = 5.0
# Increase if only another method was observed, which still gives the order of magnitude.
_OTHER_METHOD: Final = 0.35
# Increase if only other numbers of processes were observed.
_OTHER_WORLD_SIZE: Final = 0.25
# Two standard deviations: about 95 % of trainings.
_DEVIATIONS: Final = 2.0


@dataclass(frozen=True)
class Interval:
    """A likely value and the range in which it is expected."""

    low: float
    likely: float
    high: float

    def scaled(self, factor: float) -> "Interval":
        """Returns the interval multiplied by `factor`."""
        return Interval(self.low * factor, self.likely * factor, self.high * factor)

    def inverse(self, amount: float) -> "Interval":
        """Returns the time that `amount` takes at the speeds of this interval."""
        return Interval(amount / self.high, amount / self.likely, amount / self.low)


@dataclass(frozen=True)
class Observation:
    """The measured speed of a finished training."""

    hardware: str
    """The machine's name, as `Machine.name`."""
    method: Method
    num_parameters: int
    flops_per_token: float
    """Operations per token, from `work_per_token`."""
    tokens_per_second: float
    """Tokens of training rows, without padding, of all processes together."""
    world_size: int = 1
    """Processes that trained together."""


@dataclass(frozen=True)
class Speed:
    """Tokens per second, and the source of the figure."""

    tokens_per_second: Interval
    basis: str
    """The source, in one sentence."""
    num_observations: int


class Calibration:
    """Observed speeds, and predictions from them for other trainings on the same hardware.

    Operations per second carry over from one training to another, so they are averaged, each with the inverse of its
    variance: models of similar size weigh more.
    """

    def __init__(self, observations: Iterable[Observation] = ()) -> None:
        self._observations = [observation for observation in observations if _sound(observation)]

    def observe(self, observation: Observation) -> None:
        """Adds a finished training; ignores one without a speed."""
        if _sound(observation):
            self._observations.append(observation)

    def predict(
        self,
        machine: Machine,
        method: Method,
        num_parameters: int,
        flops: float,
        speedup: Callable[[int], float] = lambda processes: 1.0,
    ) -> Speed:
        """Predicts the speed of a training with `flops` operations per token on `machine`.

        Trainings with as many processes are preferred; others are scaled by `speedup`: the speed of a number of
        processes as a multiple of that of one.
        """
        here = [
            o
            for o in self._observations
            if o.hardware == machine.name and abs(math.log2(o.num_parameters / num_parameters)) <= _FARTHEST
        ]
        if not here:
            return _prior(machine, method, flops, speedup)
        together = [o for o in here if o.world_size == machine.world_size]
        here = together or here
        same = [o for o in here if o.method == method]
        chosen = same or here
        distances = [abs(math.log2(o.num_parameters / num_parameters)) for o in chosen]
        weights = [(_SINGLE + _PER_DOUBLING * distance) ** -2 for distance in distances]
        scales = [speedup(machine.world_size) / speedup(o.world_size) for o in chosen]
        logs = [
            math.log(o.tokens_per_second * o.flops_per_token * scale) for o, scale in zip(chosen, scales, strict=True)
        ]
        mean = sum(w * x for w, x in zip(weights, logs, strict=True)) / sum(weights)
        variance = sum(w * (x - mean) ** 2 for w, x in zip(weights, logs, strict=True)) / sum(weights)
        deviation = math.sqrt(variance + _SINGLE**2 / len(chosen)) + _PER_DOUBLING * min(distances)
        deviation += 0 if same else _OTHER_METHOD
        deviation += 0 if together else _OTHER_WORLD_SIZE
        likely = math.exp(mean) / flops
        spread = math.exp(_DEVIATIONS * deviation)
        of = "" if same else " of another method"
        plural = "s" if len(chosen) > 1 else ""
        basis = f"measured in {len(chosen)} earlier training{plural}{of} on {machine.name}"
        if not together:
            basis += f" with other numbers of processes, scaled to {machine.world_size}"
        return Speed(Interval(likely / spread, likely, likely * spread), basis, len(chosen))


def flops_per_token(architecture: Architecture, setup: Setup) -> float:
    """Returns the operations of training on one token.

    The forward pass takes 2 operations for each weight that a token passes through, and so does each of the two
    gradients of the backward pass, that of the inputs and that of the weights (arXiv 2001.08361, sec. 2.1: 6N in all).
    Frozen weights need only the first. Recomputation repeats the forward pass. Attention adds 2 · 2 · length / 2 for
    each value of a query.
    """
    a, estimator = architecture, Estimator(architecture, setup)
    ends = a.num_embedding_weights * (1 if a.tied else 2)
    blocks = a.num_active_parameters - ends
    scores = a.layers * a.heads * a.head_dim * setup.length if a.family == "decoder" else 0
    passes = 4 if setup.trains_adapters else 6
    passes += 2 if setup.checkpointing else 0
    # Attention scores have no weights: their backward pass takes twice the forward pass for every method.
    attention = scores * (6 + (2 if setup.checkpointing else 0))
    # The head's logits are computed again in its backward pass.
    head = a.num_embedding_weights * setup.trained_share * (passes + 2)
    return passes * blocks + attention + head + 6 * estimator.num_adapter_parameters


def work_per_token(architecture: Architecture, setup: Setup) -> float:
    """Returns the operations of training on one token, by which speeds are compared. What is computed element by
    element counts as the operations that would take as long; products in 16 bits on a CPU count as fewer."""
    passes = 4 if setup.checkpointing else 3
    return flops_per_token(architecture, setup) / _narrow(setup) + passes * _elementwise(architecture, setup)


def _narrow(setup: Setup) -> float:
    return 1.0 if setup.on_gpu or setup.precision == "fp32" else _CPU_16_BITS


def _elementwise(architecture: Architecture, setup: Setup) -> float:
    """Returns what a forward pass computes element by element, a third of a training without recomputation."""
    a = architecture
    if setup.on_gpu:
        return a.layers * a.iterations * a.hidden * _INL_ON_GPU
    # In 16 bits fewer bytes are saved, but more are converted.
    wide = replace(setup, precision="fp32")
    saved = sum(Estimator(a, wide).blocks_saved) / setup.batch.tokens
    return _OPERATIONS_PER_BYTE * (saved + 4 * a.vocabulary * setup.trained_share) / 3


def evaluation_flops_per_token(architecture: Architecture, setup: Setup) -> float:
    """Returns the operations of evaluating one token, as `work_per_token` counts them: a forward pass."""
    a = architecture
    ends = a.num_embedding_weights * (1 if a.tied else 2)
    scores = a.layers * a.heads * a.head_dim * setup.length if a.family == "decoder" else 0
    passed = a.num_active_parameters - ends + scores + a.num_embedding_weights
    return 2.0 * passed / _narrow(setup) + _elementwise(architecture, setup)


@dataclass(frozen=True)
class Work:
    """The tokens that a training processes."""

    tokens: float
    """Training tokens of all epochs together."""
    evaluation_tokens: float = 0.0
    """Held-out tokens of all evaluations together."""


def evaluation_share(architecture: Architecture, setup: Setup, work: Work) -> float:
    """Returns the operations of the evaluations of `work` as a share of those of its training."""
    training = work.tokens * work_per_token(architecture, setup)
    return work.evaluation_tokens * evaluation_flops_per_token(architecture, setup) / max(training, 1.0)


@dataclass(frozen=True)
class Duration:
    """The duration of a training, and the speed behind it."""

    seconds: Interval
    speed: Speed


def estimate_duration(
    architecture: Architecture, setup: Setup, machine: Machine, work: Work, calibration: Calibration | None = None
) -> Duration:
    """Estimates the time that `work` takes, without loading and saving."""
    flops = work_per_token(architecture, setup)
    speed = predict_speed(architecture, setup, machine, calibration or Calibration())
    held_out = work.evaluation_tokens * evaluation_flops_per_token(architecture, setup) / flops
    return Duration(speed.tokens_per_second.inverse(work.tokens + held_out), speed)


def predict_speed(architecture: Architecture, setup: Setup, machine: Machine, calibration: Calibration) -> Speed:
    """Predicts the speed of a training, of all its processes together."""
    flops = work_per_token(architecture, setup)

    def speedup(processes: int) -> float:
        return _speedup(architecture, setup, machine, flops, processes)

    return calibration.predict(machine, setup.method, architecture.num_parameters, flops, speedup)


def _speedup(architecture: Architecture, setup: Setup, machine: Machine, flops: float, processes: int) -> float:
    """Returns the speed of several processes as a multiple of that of one.

    It is the share of a step's time that computing takes if nothing is sent meanwhile. Processes on a CPU divide its
    cores, and are at best as fast as one.
    """
    if processes == 1:
        return 1.0
    _, likely, _ = _UTILISATION[machine.on_gpu, setup.method == "qlora"]
    tokens = setup.rows * setup.accumulation * setup.length
    computing = tokens * flops / (likely * machine.peak_flops) * (1 if machine.on_gpu else processes)
    whole = Estimator(architecture, setup).whole
    sending = exchange_seconds(whole, setup.parallelism, processes, setup.accumulation, on_gpu=machine.on_gpu)
    return (processes if machine.on_gpu else 1) * computing / (computing + sending)


def _prior(machine: Machine, method: Method, flops: float, speedup: Callable[[int], float]) -> Speed:
    low, likely, high = _UTILISATION[machine.on_gpu, method == "qlora"]
    spread = 1.0 if machine.known else _UNKNOWN_SPREAD
    speed = Interval(low / spread, likely, high * spread).scaled(machine.peak_flops / flops)
    peak = f"{machine.peak_flops / 1e12:.3g} TFLOP/s" + ("" if machine.known else ", assumed for an unlisted GPU")
    basis = (
        f"no training of a model of about this size has been measured on {machine.name} yet; {likely:.0%} of its peak "
        f"({peak}) is assumed"
    )
    if machine.world_size > 1:
        devices = machine.world_size if machine.on_gpu else 1
        factor = speedup(machine.world_size)
        speed = Interval(speed.low * factor, speed.likely * factor, speed.high * devices)
        basis += f", and {factor / devices:.0%} of it with {machine.world_size} processes"
    return Speed(speed, basis, 0)


def _sound(observation: Observation) -> bool:
    return min(observation.tokens_per_second, observation.flops_per_token, observation.num_parameters) > 0
