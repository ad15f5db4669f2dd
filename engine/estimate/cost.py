"""What a training costs: time × the price of an hour."""

import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

from engine.errors import JobError, Violation
from engine.estimate.duration import Interval
from engine.estimate.machine import Machine

_GIB = 2**30


_ADVICE = "Have the operator correct FTF_PROBE_PRICES: [[price]] tables with gpu, per_hour and, perhaps, gib."


@dataclass(frozen=True)
class Price:
    """One line of a price table."""

    gpu: str
    per_hour: float
    gib: int | None = None


@dataclass(frozen=True)
class PriceTable:
    """Prices of an hour by GPU."""

    currency: str
    prices: Sequence[Price]

    @classmethod
    def read(cls, path: Path | None = None) -> "PriceTable":
        """The table in a TOML file, or the one that comes with the program. JobError("INVALID_PRICES") when it cannot
        be read as one."""
        source = files("engine.estimate") / "prices.toml" if path is None else path
        try:
            values = tomllib.loads(source.read_text("utf-8"))
            prices = [Price(str(p["gpu"]), float(p["per_hour"]), p.get("gib")) for p in values["price"]]
        except (tomllib.TOMLDecodeError, KeyError, TypeError, ValueError) as error:
            message = f"The price table {path} cannot be read: {error}."
            raise JobError("INVALID_PRICES", message, _ADVICE, [Violation("prices", message)]) from error
        return cls(str(values.get("currency", "USD")), prices)

    def of(self, machine: Machine) -> Price | None:
        """That of this GPU; None where the table has none: nothing is guessed."""
        words = set(machine.name.lower().replace("-", " ").split())
        for price in self.prices:
            if set(price.gpu.lower().split()) <= words and _holds(price, machine):
                return price
        return None


def cost(seconds: Interval, price: Price) -> Interval:
    """In the table's currency."""
    return seconds.scaled(price.per_hour / 3600)


def _holds(price: Price, machine: Machine) -> bool:
    # A card of 40 GB reports a little more or less than that.
    return price.gib is None or machine.total_bytes <= price.gib * 1.05 * _GIB
