"""How long a training takes: from what was measured on the same hardware, else from operations and a peak."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from engine.estimate.architecture import Architecture
from engine.estimate.machine import Machine
from engine.estimate.memory import Estimator, Setup
from engine.estimate.saved_activations import Method

# Share of the peak that trainings reach: lowest, likely, highest. On GPUs 0.15 to 0.5 is the span that published runs
# of dense models report, less where every pass expands quantised weights. On CPUs SmolLM2-135M with adapters trained
# 170 to 360 tokens/s on 2 cores with AVX-512, which is 0.3 to 0.6; a shared machine gives less.
_UTILISATION: Final[Mapping[tuple[bool, bool], tuple[float, float, float]]] = {
    (True, False): (0.15, 0.33, 0.50),
    (True, True): (0.08, 0.20, 0.38),
    (False, False): (0.12, 0.40, 0.60),
    (False, True): (0.02, 0.10, 0.30),
}
# An unlisted GPU's peak is itself a guess.
_UNKNOWN_SPREAD: Final = 3.0
# One standard deviation of the logarithm that a single observation leaves open, and what each halving or doubling of
# the model adds: speed per operation changes slowly with size.
_SINGLE: Final = 0.15
_PER_DOUBLING: Final = 0.08
# Another method on the same hardware tells the order of magnitude.
_OTHER_METHOD: Final = 0.35
# Two standard deviations: about 95 of 100.
_DEVIATIONS: Final = 2.0


@dataclass(frozen=True)
class Interval:
    """A figure and the range it is expected in."""

    low: float
    likely: float
    high: float

    def scaled(self, factor: float) -> "Interval":
        return Interval(self.low * factor, self.likely * factor, self.high * factor)

    def inverse(self, amount: float) -> "Interval":
        """The time that `amount` takes at these speeds."""
        return Interval(amount / self.high, amount / self.likely, amount / self.low)


@dataclass(frozen=True)
class Observation:
    """The speed of a training that was run."""

    hardware: str
    """`Machine.name`."""
    method: Method
    num_parameters: int
    flops_per_token: float
    """`flops_per_token` of what was run."""
    tokens_per_second: float
    """Trained rows' tokens, padding not counted."""


@dataclass(frozen=True)
class Speed:
    """Tokens a second, and where the figure is from."""

    tokens_per_second: Interval
    basis: str
    """In one sentence."""
    num_observations: int


class Calibration:
    """Speeds that were observed, and what they say of other trainings on the same hardware.

    What carries over from one training to another is the operations a second that the hardware reaches; so that is
    what is averaged, nearer sizes weighing more.
    """

    def __init__(self, observations: Iterable[Observation] = ()) -> None:
        self._observations = [observation for observation in observations if _sound(observation)]

    def observe(self, observation: Observation) -> None:
        """Takes in a finished training. One without a speed is passed over."""
        if _sound(observation):
            self._observations.append(observation)

    def records(self) -> list[dict[str, Any]]:
        """As plain values, to be kept; `of_records` reads them."""
        return [asdict(observation) for observation in self._observations]

    @classmethod
    def of_records(cls, records: Iterable[Mapping[str, Any]]) -> "Calibration":
        return cls(Observation(**record) for record in records)

    def predict(self, machine: Machine, method: Method, num_parameters: int, flops: float) -> Speed:
        """Speed of a training of `flops` operations a token on `machine`."""
        here = [o for o in self._observations if o.hardware == machine.name]
        same = [o for o in here if o.method == method]
        if not here:
            return _prior(machine, method, flops)
        chosen = same or here
        distances = [abs(math.log2(o.num_parameters / num_parameters)) for o in chosen]
        weights = [1 / (1 + distance) for distance in distances]
        logs = [math.log(o.tokens_per_second * o.flops_per_token) for o in chosen]
        mean = sum(w * x for w, x in zip(weights, logs, strict=True)) / sum(weights)
        variance = sum(w * (x - mean) ** 2 for w, x in zip(weights, logs, strict=True)) / sum(weights)
        deviation = math.sqrt(variance + _SINGLE**2 / len(chosen)) + _PER_DOUBLING * min(distances)
        deviation += 0 if same else _OTHER_METHOD
        likely = math.exp(mean) / flops
        spread = math.exp(_DEVIATIONS * deviation)
        of = "" if same else " of another method"
        plural = "s" if len(chosen) > 1 else ""
        basis = f"measured in {len(chosen)} earlier training{plural}{of} on {machine.name}"
        return Speed(Interval(likely / spread, likely, likely * spread), basis, len(chosen))


def flops_per_token(architecture: Architecture, setup: Setup) -> float:
    """Operations for one token of training.

    A forward pass takes 2 for each weight that a token meets, and so does each of the two gradients of the backward
    pass, that of the inputs and that of the weights (arXiv 2001.08361, sec. 2.1: 6N in all); frozen weights need
    only the first. Recomputation repeats the forward pass. Attention adds 2 · 2 · length / 2 for each value of a query.
    """
    a, estimator = architecture, Estimator(architecture, setup)
    ends = a.num_embedding_weights * (1 if a.tied else 2)
    blocks = a.num_active_parameters - ends
    scores = a.layers * a.heads * a.head_dim * setup.length if a.family == "decoder" else 0
    passes = 4 if setup.trains_adapters else 6
    passes += 2 if setup.checkpointing else 0
    # Scores have no weights: their backward pass is twice the forward one whatever is trained.
    attention = scores * (6 + (2 if setup.checkpointing else 0))
    # The head's tiles are made again in its backward pass.
    head = a.num_embedding_weights * setup.trained_share * (passes + 2)
    return passes * blocks + attention + head + 6 * estimator.num_adapter_parameters


def evaluation_flops_per_token(architecture: Architecture, setup: Setup) -> float:
    """Operations for one held-out token: a forward pass."""
    a = architecture
    ends = a.num_embedding_weights * (1 if a.tied else 2)
    scores = a.layers * a.heads * a.head_dim * setup.length if a.family == "decoder" else 0
    return 2.0 * (a.num_active_parameters - ends + scores + a.num_embedding_weights)


@dataclass(frozen=True)
class Work:
    """How much there is to do."""

    tokens: float
    """Trained on, all epochs together."""
    evaluation_tokens: float = 0.0
    """Evaluated on, all evaluations together."""


@dataclass(frozen=True)
class Duration:
    """Time of a training."""

    seconds: Interval
    speed: Speed


def estimate_duration(
    architecture: Architecture, setup: Setup, machine: Machine, work: Work, calibration: Calibration | None = None
) -> Duration:
    """The time that `work` takes; loading and saving are not in it."""
    flops = flops_per_token(architecture, setup)
    calibration = calibration or Calibration()
    speed = calibration.predict(machine, setup.method, architecture.num_parameters, flops)
    held_out = work.evaluation_tokens * evaluation_flops_per_token(architecture, setup) / flops
    return Duration(speed.tokens_per_second.inverse(work.tokens + held_out), speed)


def _prior(machine: Machine, method: Method, flops: float) -> Speed:
    low, likely, high = _UTILISATION[machine.on_gpu, method == "qlora"]
    spread = 1.0 if machine.known else _UNKNOWN_SPREAD
    speed = Interval(low / spread, likely, high * spread).scaled(machine.peak_flops / flops)
    peak = f"{machine.peak_flops / 1e12:.3g} TFLOP/s" + ("" if machine.known else ", a guess for an unlisted GPU")
    basis = f"no training was measured on {machine.name} yet: {likely:.0%} of its peak ({peak}) is assumed"
    return Speed(speed, basis, 0)


def _sound(observation: Observation) -> bool:
    return min(observation.tokens_per_second, observation.flops_per_token, observation.num_parameters) > 0
