"""The cost of a training: its duration times the price of an hour."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from engine.errors import JobError, Violation
from engine.estimate.duration import Interval
from engine.estimate.machine import Machine

_GIB = 2**30
_ADVICE = "Ask the operator to correct FTF_PROBE_PRICES: [[price]] tables with gpu, per_hour and, optionally, gib."


@dataclass(frozen=True)
class Price:
    """The price of one GPU."""

    gpu: str
    """Words that the GPU's name must contain."""
    per_hour: float
    gib: int | None = None
    """Memory of the GPU, to tell variants apart; None: any."""


@dataclass(frozen=True)
class PriceTable:
    """Prices per hour of GPUs, in one currency."""

    currency: str
    prices: Sequence[Price]

    @classmethod
    def read(cls, path: Path | None = None) -> "PriceTable":
        """Reads the table from a TOML file, by default the one shipped with this package.

        Raises JobError("INVALID_PRICES") for a file that is not a price table.
        """
        source = files("engine.estimate") / "prices.toml" if path is None else path
        try:
            values = tomllib.loads(source.read_text("utf-8"))
            prices = [Price(str(p["gpu"]), float(p["per_hour"]), p.get("gib")) for p in values["price"]]
        except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
            message = f"The price table {path} cannot be read: {error}."
            raise JobError("INVALID_PRICES", message, _ADVICE, [Violation("prices", message)]) from error
        return cls(str(values.get("currency", "USD")), prices)

    def of(self, machine: Machine) -> Price | None:
        """Returns the price of the machine's GPU, or None if the table has none; prices are never guessed."""
        words = set(machine.name.lower().replace("-", " ").split())
        for price in self.prices:
            if set(price.gpu.lower().split()) <= words and _holds(price, machine):
                return price
        return None


def cost(seconds: Interval, price: Price, gpus: int = 1) -> Interval:
    """Returns the cost of a duration on this number of GPUs, in the currency of the price table."""
    return seconds.scaled(gpus * price.per_hour / 3600)


def _holds(price: Price, machine: Machine) -> bool:
    # A card of 40 GB reports a little more or less than that.
    return price.gib is None or machine.total_bytes <= price.gib * 1.05 * _GIB
