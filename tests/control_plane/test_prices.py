"""What a worker costs, by the table and by AWS's rules; and tables that are none."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from multinode.errors import InputError
from multinode_control_plane import prices
from multinode_control_plane.prices import DEFAULT, TARIFFS, Bill, Meter
from multinode_control_plane.runners.fargate_sizes import size_for
from multinode_control_plane.settings import parser, resolve


def table(**changes: Any) -> dict[str, Any]:
    rates = {name: {"vcpu_hour": 1, "gb_hour": 0.5} for name in TARIFFS}
    made = {"currency": "EUR", "source": "ours", "minimum_s": 10, "rates": rates, **changes}
    return {name: value for name, value in made.items() if value is not None}


def written(folder: Path, content: Any) -> Path:
    path = folder / "prices.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_an_hour_of_a_vcpu_and_two_gib_costs_what_aws_says() -> None:
    bill = Meter(tariff="x86_64", size_for=size_for).bill(1, 2048, 3600)
    assert bill.cost == pytest.approx(0.04048 + 2 * 0.004445)
    assert (bill.vcpu_s, bill.gb_s) == (3600, 7200)


@pytest.mark.parametrize(
    ("lasted_s", "billed_s"), [(0.0, 60), (59.9, 60), (60.0, 60), (60.1, 61), (3599.5, 3600)]
)
def test_a_minute_at_the_least_then_whole_seconds(lasted_s: float, billed_s: float) -> None:
    assert Meter(tariff="x86_64").bill(1, 1024, lasted_s).billed_s == billed_s


def test_the_size_is_paid_and_not_what_was_asked_for() -> None:
    bill = Meter(tariff="arm64", size_for=size_for).bill(0.1, 3000, 100)
    assert (bill.cpu, bill.memory_mib) == (0.5, 3072)
    assert bill.cost == pytest.approx((0.5 * 0.03238 + 3 * 0.00356) * 100 / 3600)


def test_what_has_no_size_any_more_is_counted_as_asked() -> None:
    assert Meter(tariff="x86_64", size_for=size_for).bill(500, 256, 60).cpu == 500


def test_local_workers_cost_nothing_and_are_counted_to_the_millisecond() -> None:
    assert Meter().bill(0.5, 512, 1.25) == Bill(0.5, 512, 1.25, 0.0)
    assert Meter().bill(0.5, 512, -0.1).billed_s == 0, "the clock was set back"


def test_spot_is_cheaper_and_arm_too() -> None:
    assert set(DEFAULT.rates) == set(TARIFFS)
    costs = {name: Meter(tariff=name).bill(1, 2048, 3600).cost for name in TARIFFS}
    assert costs["arm64-spot"] < costs["x86_64-spot"] < costs["arm64"] < costs["x86_64"]


def test_a_table_of_ones_own_takes_the_place_of_the_default(tmp_path: Path) -> None:
    found = prices.read(written(tmp_path, table()))
    assert (found.currency, found.source, found.minimum_s) == ("EUR", "ours", 10.0)
    assert Meter(found, "x86_64").bill(1, 2048, 3600).cost == 2.0
    assert prices.read(None) is DEFAULT


@pytest.mark.parametrize(("content", "why"), [
    ("hello", "it is not JSON"), ("[]", "a number"), (table(currency=None), "currency is missing"),
    (table(rates={}), "x86_64 is missing"), (table(rates=None), "rates is missing"),
    (table(minimum_s="60"), "a number"), (table(minimum_s=-1), "a number"),
    (table(rates={"x86_64": {"vcpu_hour": 1}}), "gb_hour is missing"),
    (table(rates={"x86_64": {"vcpu_hour": 1, "gb_hour": float("nan")}}), "a number"),
])  # fmt: skip
def test_what_is_no_table_is_said_before_the_server_starts(
    tmp_path: Path, content: Any, why: str
) -> None:
    path = written(tmp_path, content)
    with pytest.raises(InputError, match=f"is no table of prices: {why}") as caught:
        resolve(parser().parse_args([]), {"MULTINODE_PRICES": str(path)})
    assert "x86_64-spot" in caught.value.hint


def test_a_table_that_is_not_there_is_said(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cannot be read: No such file"):
        prices.read(tmp_path / "nobody")
