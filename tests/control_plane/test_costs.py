"""Costs of workers: noted when they are gone, summed by the database, guessed beforehand."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from tests.control_plane.bench import Bench
from tests.control_plane.told_plane import ServedPlane, serving

from multinode import wire
from multinode.errors import FunctionNotFound, InvalidRequest
from multinode_control_plane import model
from multinode_control_plane.prices import Meter
from multinode_control_plane.runners.fargate_sizes import size_for
from multinode_control_plane.service import costs, deployments, executions, invocations

PAID = Meter(tariff="x86_64", size_for=size_for)
LEAST = (0.25 * 0.04048 + 0.5 * 0.004445) / 60
"""Of the smallest size, for a minute."""


def paid(bench: Bench) -> None:
    """From now on its workers are tasks of Fargate."""
    bench.context = replace(bench.context, meter=PAID)


def report(bench: Bench, by: str = "function", days: float = 7, **more: Any) -> wire.CostReport:
    now = time.time() + 1 + bench.skew_s
    options = {"project": None, **more}
    return bench.look(costs.report, bench.context.meter, by, now - days * 86400, now, **options)


def accept(bench: Bench, invocation_id: str, at: float) -> None:
    launch = bench.launch_of(invocation_id)
    bench.do(executions.worker_accepted, launch.worker_id, at)


def run(bench: Bench, function: str = "f", lasted_s: float = 0.0, **end: Any) -> str:
    started = bench.start(function)
    accept(bench, started, time.time() + bench.skew_s - lasted_s)
    who = bench.claim(started)
    bench.end(started, who, "succeeded")
    bench.gone(who, **end)
    return started


def test_each_attempt_says_what_was_paid_for_it(bench: Bench) -> None:
    bench.deploy(f={"max_retries": 1, "retry_delay_s": 0.0})
    paid(bench)
    started = bench.start()
    for outcome in ("failed", "succeeded"):
        accept(bench, started, time.time())
        bench.run(started, outcome)
        bench.skew_s += 1
        bench.tick()
    detail = bench.look(invocations.detail, started, time.time())
    for attempt in detail.executions:
        assert attempt.cost is not None
        assert (attempt.cost.cpu, attempt.cost.memory_mib) == (0.25, 512)
        assert (attempt.cost.billed_s, attempt.cost.tariff) == (60, "x86_64")
        assert attempt.cost.cost == pytest.approx(LEAST)
    assert report(bench).total.executions == 2
    assert report(bench).total.cost == pytest.approx(2 * LEAST)


def test_what_runs_and_what_was_never_made_has_no_cost(bench: Bench) -> None:
    bench.deploy()
    paid(bench)
    started = bench.start()
    bench.do(executions.worker_not_made, bench.context, bench.launch_of(started).worker_id, "no")
    assert report(bench).total.executions == 0
    bench.skew_s += 5
    bench.tick()
    accept(bench, started, time.time())
    bench.claim(started)
    assert report(bench).total.executions == 0
    attempts = bench.look(invocations.detail, started, time.time()).executions
    assert [attempt.cost for attempt in attempts] == [None, None]


def test_a_worker_that_was_made_and_lost_is_paid_for_too(bench: Bench) -> None:
    bench.deploy()
    paid(bench)
    bench.stands_at = time.time()
    started = bench.start()
    accept(bench, started, bench.stands_at - 90.5)
    bench.gone(bench.worker(started))
    (line,) = report(bench).lines
    assert line.vcpu_s == pytest.approx(0.25 * 91, abs=0.3)


@pytest.mark.parametrize(("told", "paid_s"), [({}, 60), ({"billed_s": 75.0}, 75)])
def test_a_worker_whose_making_was_never_confirmed_is_paid_for_too(
    bench: Bench, told: dict[str, float], paid_s: int
) -> None:
    """The control plane was killed before it heard the runner's answer, and has adopted it."""
    bench.deploy()
    paid(bench)
    started = bench.start()
    who = bench.claim(started)
    bench.end(started, who, "succeeded")
    bench.gone(who, **told)
    assert report(bench).total.vcpu_s == 0.25 * paid_s


def test_a_runner_that_knows_better_says_for_how_long_it_is_paid(bench: Bench) -> None:
    bench.deploy()
    paid(bench)
    run(bench, lasted_s=500, billed_s=120.2)
    run(bench, lasted_s=500, billed_s=0.0)
    assert report(bench).total.executions == 1, "0 is not at all"
    assert report(bench).total.vcpu_s == 0.25 * 121


def test_another_table_later_changes_no_history(bench: Bench) -> None:
    bench.deploy()
    paid(bench)
    run(bench)
    bench.context = replace(bench.context, meter=Meter())
    assert report(bench).total.cost == pytest.approx(LEAST)
    assert (report(bench).paid_executions, report(bench).total.executions) == (1, 1)
    run(bench)
    assert (report(bench).paid_executions, report(bench).total.executions) == (1, 2)


def test_sums_by_each_kind_of_name(bench: Bench) -> None:
    first = bench.deploy(f={}, g={"cpu": 2.0})
    paid(bench)
    for function in ("f", "g", "f"):
        run(bench, function)
    second = bench.deploy(code="b" * 64, f={}, g={})
    run(bench)
    by_function = report(bench).lines
    assert [(line.name, line.executions) for line in by_function] == [("shop/g", 1), ("shop/f", 3)]
    by_version = {line.name: line.executions for line in report(bench, "version").lines}
    assert by_version == {f"shop/{first}": 3, f"shop/{second}": 1}
    assert [(line.name, line.executions) for line in report(bench, "project").lines] == [
        ("shop", 4)
    ]
    days = report(bench, "day").lines
    assert sum(line.executions for line in days) == 4
    assert days[-1].name == time.strftime("%Y-%m-%d", time.gmtime())
    assert report(bench, project="nobody").total.executions == 0
    assert report(bench, days=0).lines == []


def test_local_workers_are_counted_and_cost_nothing(bench: Bench) -> None:
    bench.deploy(f={"cpu": 0.5, "memory_mib": 512})
    bench.stands_at = time.time()
    run(bench, lasted_s=2)
    found = report(bench)
    assert (found.total.cost, found.paid_executions) == (0, 0)
    assert found.total.vcpu_s == pytest.approx(1.0, abs=0.5)
    assert found.total.gb_s == pytest.approx(found.total.vcpu_s)


def test_a_project_that_is_removed_leaves_its_costs(bench: Bench) -> None:
    bench.deploy()
    run(bench)
    bench.do(deployments.delete, "shop")
    assert report(bench).total.executions == 1


def estimate(bench: Bench, function: str = "f", version: str = "latest") -> wire.CostEstimate:
    found = bench.look(deployments.describe_version, "shop", version)
    settings = {item.name: item.settings for item in found.functions}[function]
    return bench.look(costs.estimate, bench.context.meter, found, settings, function)


def test_an_estimate_is_timeout_times_size_times_attempts(bench: Bench) -> None:
    bench.deploy(f={"timeout_s": 600.0, "max_retries": 2, "cpu": 1.0, "memory_mib": 2048})
    paid(bench)
    found = estimate(bench)
    assert (found.attempts, found.timeout_s, found.history) == (3, 600, None)
    assert found.most.vcpu_s == 1800
    assert found.most.cost == pytest.approx(3 * (0.04048 + 2 * 0.004445) / 6)


def test_an_estimate_says_what_it_did_cost(bench: Bench) -> None:
    bench.deploy()
    paid(bench)
    for lasted_s in (10, 120):
        run(bench, lasted_s=lasted_s, billed_s=float(lasted_s))
    history = estimate(bench).history
    assert history is not None
    assert history.invocations == 2
    assert history.highest == pytest.approx(2 * LEAST)
    assert history.mean == pytest.approx(1.5 * LEAST)
    assert history.mean_vcpu_s == 0.25 * 90


def test_over_http(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        served.do(served.plane.deploy())
        client = served.client(served.key("read"))
        found = client.call(wire.CostReport, "GET", "/v1/costs?by=day&for_s=60")
        with pytest.raises(InvalidRequest, match="by='colour' is not one of function, project"):
            client.call(wire.CostReport, "GET", "/v1/costs?by=colour")
        assert (
            client.call(wire.CostReport, "GET", "/v1/costs?for_s=999999999999999").since
            < found.since
        )
        assert (found.by, found.lines, found.currency) == ("day", [], "USD")
        assert "us-east-1" in found.source
        path = "/v1/projects/shop/functions/f/estimate"
        assert client.call(wire.CostEstimate, "GET", path).attempts == 1
        with pytest.raises(FunctionNotFound):
            client.call(wire.CostEstimate, "GET", path.replace("/f/", "/nobody/"))
        _only_its_own_project(served)


def _only_its_own_project(served: ServedPlane) -> None:
    rows = [_row(number, project=name) for number, name in enumerate(("shop", "other"))]
    served.do(
        served.plane.store.write(lambda tx: tx.connection.execute(sa.insert(model.costs), rows))
    )
    client = served.client(served.key("read", "shops", "shop"))
    for query in ("?by=project", "?by=project&project=other"):
        found = client.call(wire.CostReport, "GET", f"/v1/costs{query}")
        assert [line.name for line in found.lines] == ["shop"]


def _row(number: int, project: str = "shop", function: str = "f") -> dict[str, Any]:
    at = time.time() - number % 100_000
    return {
        "execution_id": f"exe-{number}", "invocation_id": f"inv-{number}", "project": project,
        "function": function, "version_id": f"ver-{number % 20}", "ended_at": at,
        "day": int(at // 86400), "tariff": "x86_64", "currency": "USD", "cpu": 0.25, "memory_mib": 512,
        "billed_s": 60.0, "vcpu_s": 15.0, "gb_s": 30.0, "cost": 0.0002,
    }  # fmt: skip


def test_what_is_old_is_forgotten_in_steps(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(costs, "STEP", 2)
    rows = [{**_row(number), "ended_at": float(number)} for number in range(5)]
    bench.do(lambda tx: tx.connection.execute(sa.insert(model.costs), rows))
    assert [bench.do(costs.forget, 3.0) for _ in range(2)] == [True, False]
    left = bench.look(
        lambda connection: list(connection.execute(sa.select(model.costs.c.ended_at)).scalars())
    )
    assert sorted(left) == [3.0, 4.0]


@pytest.mark.slow
def test_a_hundred_thousand_executions_are_summed_at_once(bench: Bench) -> None:
    """As many lie before the week; the database looks at the week's alone."""
    bench.deploy()
    recent = [_row(number, function=f"f{number % 50}") for number in range(100_000)]
    old = [
        {**_row(number), "execution_id": f"old-{number}", "ended_at": number * 100.0}
        for number in range(100_000)
    ]
    rows = [*recent, *old]
    for start in range(0, len(rows), 5000):
        part = rows[start : start + 5000]
        bench.do(lambda tx, part=part: tx.connection.execute(sa.insert(model.costs), part))
    for by, lines in (("function", 50), ("project", 1), ("version", 20)):
        began_at = time.perf_counter()
        found = report(bench, by)
        took_s = time.perf_counter() - began_at
        assert (len(found.lines), found.total.executions) == (lines, 100_000)
        assert took_s < 20
    began_at = time.perf_counter()
    estimate(bench)
    assert time.perf_counter() - began_at < 5
    assert "costs" in _plan(bench)


def _plan(bench: Bench) -> str:
    """How the database finds what is summed: by an index."""
    if bench.store.database.name != "sqlite":
        return "costs"
    query = "EXPLAIN QUERY PLAN SELECT sum(cost) FROM costs WHERE ended_at >= 1 AND ended_at < 2"
    rows = bench.look(lambda connection: list(connection.exec_driver_sql(query)))
    text = " ".join(row[3] for row in rows)
    assert "USING INDEX ix_costs_ended_at" in text
    return text
