"""What a worker costs: prices from a table that can be set, and the bill of one worker. Pure, but for the reading of the file.

The default are the public prices of AWS Fargate on Linux in US East (N. Virginia), as https://aws.amazon.com/fargate/pricing/ had them in 2025 and
others repeat in 2026. Those of Spot move: a discount of up to 70 % is what AWS names, and what these have. AWS charges by the second, from the pull
of the image to the end of the task, a minute at the least. Storage over 20 GiB, addresses, traffic and logs come on top.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multinode.errors import InputError, InvalidRequest
from multinode.wire import WorkerSize

TARIFFS = ("x86_64", "arm64", "x86_64-spot", "arm64-spot")
"""What a table has prices for: a processor's architecture, and whether the task may be interrupted."""
_HOUR_S = 3600.0
_MOST = 1e6


@dataclass(frozen=True)
class Rate:
    """What an hour costs."""

    vcpu_hour: float
    gb_hour: float
    """Of a GiB, which AWS calls GB."""


@dataclass(frozen=True)
class Prices:
    """A table: a rate for each of `TARIFFS`, and where it comes from."""

    currency: str
    source: str
    """In words, with region and date."""
    minimum_s: float
    rates: dict[str, Rate]


DEFAULT = Prices(
    "USD",
    "AWS Fargate, Linux, us-east-1, 2025 (https://aws.amazon.com/fargate/pricing/)",
    60.0,
    {
        "x86_64": Rate(0.04048, 0.004445),
        "arm64": Rate(0.03238, 0.00356),
        "x86_64-spot": Rate(0.012144, 0.0013335),
        "arm64-spot": Rate(0.009714, 0.001068),
    },
)


def read(path: Path | None) -> Prices:
    """The table of a file, or the default. Raises InputError for a file that is not there, or is no table."""
    if path is None:
        return DEFAULT
    try:
        data = json.loads(path.read_bytes())
    except OSError as error:
        message = f"The file of prices {path} cannot be read: {error.strerror}."
        raise InputError(message, "Correct --prices (MULTINODE_PRICES).") from error
    except ValueError as error:
        raise _no_table(path, "it is not JSON") from error
    try:
        rates = {name: _rate(data["rates"][name]) for name in TARIFFS}
        return Prices(str(data["currency"]), str(data["source"]), _amount(data["minimum_s"]), rates)
    except KeyError as error:
        raise _no_table(path, f"{error.args[0]} is missing") from error
    except (TypeError, ValueError) as error:
        raise _no_table(path, f"a number from 0 to {_MOST:g} is missing") from error


def _rate(data: Any) -> Rate:
    return Rate(_amount(data["vcpu_hour"]), _amount(data["gb_hour"]))


def _amount(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= _MOST:
        raise ValueError(value)
    return float(value)


def _no_table(path: Path, why: str) -> InputError:
    message = f"The file {path} is no table of prices: {why}."
    hint = (
        "Write it as docs/reference/settings.md shows: currency, source, minimum_s, and rates with "
        f"vcpu_hour and gb_hour for {', '.join(TARIFFS)}."
    )
    return InputError(message, hint)


@dataclass(frozen=True)
class Bill:
    """What one worker costs. ``cost`` is in the table's currency, 0 where nothing is paid."""

    cpu: float
    memory_mib: int
    billed_s: float
    cost: float

    @property
    def vcpu_s(self) -> float:
        """vCPU seconds."""
        return self.cpu * self.billed_s

    @property
    def gb_s(self) -> float:
        """GiB seconds."""
        return self.memory_mib / 1024 * self.billed_s


@dataclass(frozen=True)
class Meter:
    """Makes bills as this installation pays. ``tariff`` is one of `TARIFFS`; empty: nothing is paid, and nothing rounded.

    ``size_for`` says what a worker of a function is made with, where that is more than it asks for.
    """

    prices: Prices = DEFAULT
    tariff: str = ""
    size_for: Callable[[float, int], WorkerSize | None] = field(
        default=lambda cpu, memory_mib: None
    )

    def bill(self, cpu: float, memory_mib: int, lasted_s: float) -> Bill:
        """Of a worker of a function that asks for this, and that was there for so long."""
        size = self._size(cpu, memory_mib)
        if not self.tariff:
            return Bill(size.cpu, size.memory_mib, max(0.0, lasted_s), 0.0)
        billed_s = max(self.prices.minimum_s, float(math.ceil(lasted_s)))
        rate = self.prices.rates[self.tariff]
        an_hour = size.cpu * rate.vcpu_hour + size.memory_mib / 1024 * rate.gb_hour
        return Bill(size.cpu, size.memory_mib, billed_s, an_hour * billed_s / _HOUR_S)

    def _size(self, cpu: float, memory_mib: int) -> WorkerSize:
        try:
            found = self.size_for(cpu, memory_mib)
        except InvalidRequest:  # made before the runner's sizes were others
            found = None
        return found or WorkerSize(cpu, memory_mib)
