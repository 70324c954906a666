"""What has ended is removed some time later, with all that belongs to it and nothing else, in steps that nobody notices."""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from tests.control_plane.bench import Bench
from tests.control_plane.told_plane import Plane, api_of, on_plane, serving

from multinode import wire
from multinode.errors import ExecutionNotFound, InvocationNotFound, MultinodeError
from multinode_control_plane import model
from multinode_control_plane.forgetting import forget_old
from multinode_control_plane.service import costs, executions, invocations, retention

DAY_S = 24 * 3600.0
OF_INVOCATIONS = (model.invocations, model.executions, model.workers, model.values)


def sweep(
    bench: Bench, before: float, has_time: Callable[[], bool] = lambda: False
) -> tuple[list[str], int]:
    """Removes what ended before that time; the ids of their attempts, and in how many steps."""
    execution_ids: list[str] = []
    after = steps = 0
    while page := bench.look(retention.page, after, before):
        left, after = page.invocation_ids, page.last_seq
        execution_ids += page.execution_ids
        while left:
            steps += 1
            left = left[bench.do(retention.remove, left, has_time) :]
    return execution_ids, steps


def count(bench: Bench, table: sa.Table) -> int:
    return bench.look(
        lambda connection: connection.execute(
            sa.select(sa.func.count()).select_from(table)
        ).scalar_one()
    )


def ended_ago(bench: Bench, days: float, **options: Any) -> str:
    """An invocation that was started and ended so long ago."""
    bench.skew_s = -days * DAY_S
    invocation_id = bench.start(**options)
    bench.run(invocation_id)
    bench.skew_s = 0.0
    return invocation_id


def is_kept(bench: Bench, invocation_id: str) -> bool:
    try:
        bench.info(invocation_id)
    except InvocationNotFound:
        return False
    return True


def month_ago(bench: Bench) -> float:
    return bench.now() - 30 * DAY_S


def test_what_ended_long_ago_goes_with_its_attempts_workers_and_values(bench: Bench) -> None:
    bench.deploy()
    bench.skew_s = -31 * DAY_S
    old = bench.start()
    who = bench.claim(old)
    bench.report(old, who, values=[wire.Value(n, str(n)) for n in range(1, 51)])
    bench.end(old, who, "succeeded")
    bench.gone(who)
    bench.skew_s = 0.0
    young = ended_ago(bench, 29)
    execution_ids, steps = sweep(bench, month_ago(bench))
    assert not is_kept(bench, old)
    assert is_kept(bench, young)
    assert [len(execution_ids), count(bench, model.values)] == [1, 0]
    assert [count(bench, table) for table in OF_INVOCATIONS[:3]] == [1, 1, 1]
    assert steps == 4, "20 values, 20 values, 10 values, the rest"
    assert len(bench.look(invocations.detail, young, bench.now()).executions) == 1


def test_a_worker_that_has_served_a_kept_one_too_goes_with_that(bench: Bench) -> None:
    bench.deploy(f={"max_invocations_per_worker": 0})
    bench.skew_s = -31 * DAY_S
    first = bench.start()
    who = bench.claim(first)
    bench.ask(who, 2, done="succeeded")
    second = bench.start()
    bench.ask(who, 3, done="succeeded")
    bench.gone(who)
    bench.skew_s = 0.0
    ended = sa.update(model.invocations).where(model.invocations.c.invocation_id == second)
    bench.do(lambda tx: tx.connection.execute(ended.values(finished_at=tx.now)) and None)
    sweep(bench, month_ago(bench))
    assert [is_kept(bench, one) for one in (first, second)] == [False, True]
    assert len(bench.look(invocations.detail, second, bench.now()).executions) == 1
    sweep(bench, bench.now() + 1)
    assert [count(bench, table) for table in OF_INVOCATIONS] == [0, 0, 0, 0]


def test_what_has_not_ended_or_has_a_worker_left_stays(bench: Bench) -> None:
    bench.deploy()
    bench.skew_s = -50 * DAY_S
    running, with_worker = bench.start(), bench.start()
    bench.claim(running)
    bench.end(with_worker, bench.claim(with_worker), "succeeded")
    delayed = bench.start(delay_s=1000.0)
    bench.skew_s = 0.0
    assert sweep(bench, month_ago(bench)) == ([], 0)
    assert all(is_kept(bench, one) for one in (running, with_worker, delayed))


def test_it_is_the_end_that_counts(bench: Bench) -> None:
    bench.deploy()
    bench.skew_s = -60 * DAY_S
    late = bench.start()
    who = bench.claim(late)
    bench.skew_s = -1 * DAY_S
    bench.end(late, who, "succeeded")
    bench.gone(who)
    bench.skew_s = 0.0
    sweep(bench, month_ago(bench))
    assert is_kept(bench, late)
    sweep(bench, bench.now())
    assert not is_kept(bench, late)


def test_a_child_stays_while_its_parent_goes_on(bench: Bench) -> None:
    bench.deploy()
    bench.skew_s = -40 * DAY_S
    parent = bench.start()
    who = bench.claim(parent)
    child = ended_ago(bench, 40, parent_id=parent)
    sweep(bench, month_ago(bench))
    assert is_kept(bench, child)
    bench.end(parent, who, "succeeded")
    bench.gone(who)
    sweep(bench, month_ago(bench))
    assert not is_kept(bench, child)
    assert is_kept(bench, parent)


def test_an_idempotency_key_goes_with_its_invocation(bench: Bench) -> None:
    bench.deploy()
    first = ended_ago(bench, 31, idempotency_key="order-7")
    sweep(bench, month_ago(bench))
    assert bench.start(idempotency_key="order-7") != first


def test_costs_stay(bench: Bench) -> None:
    bench.deploy()
    bench.skew_s = -31 * DAY_S
    old = bench.start()
    bench.do(executions.worker_accepted, bench.launch_of(old).worker_id, bench.now())
    bench.run(old)
    bench.skew_s = 0.0
    before = bench.look(costs.of_invocation, old)
    sweep(bench, month_ago(bench))
    assert len(before) == 1
    assert bench.look(costs.of_invocation, old) == before


def test_a_clock_that_was_ahead_for_a_moment_hides_nothing(bench: Bench) -> None:
    bench.deploy()
    bench.skew_s = 365 * DAY_S
    ahead = bench.start()
    bench.run(ahead)
    old = ended_ago(bench, 31)
    sweep(bench, month_ago(bench))
    assert not is_kept(bench, old)
    assert is_kept(bench, ahead)


def test_all_pages_are_looked_at(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "_OLDEST", retention._OLDEST.limit(3))
    monkeypatch.setattr(retention, "SLICE", 2)
    bench.deploy()
    kept = [bench.start(delay_s=1000.0), ended_ago(bench, 1)]
    old = [ended_ago(bench, 31) for _ in range(5)]
    newest = [ended_ago(bench, 1) for _ in range(5)]
    _, steps = sweep(bench, month_ago(bench))
    assert [is_kept(bench, one) for one in (*kept, *newest)] == [True] * 7
    assert [is_kept(bench, one) for one in old] == [False] * 5
    assert steps == 4, "one of the first page; two, and one, of the second; one of the third"


def test_with_time_a_step_does_more(bench: Bench) -> None:
    bench.deploy()
    for _ in range(retention.SLICE + 2):
        ended_ago(bench, 31)
    assert sweep(bench, month_ago(bench), has_time=lambda: True)[1] == 1
    assert count(bench, model.invocations) == 0


# --- when, and how it is noticed ---


def test_output_goes_before_the_rows_that_know_of_it(tmp_path: Path, database: str) -> None:
    async def test(plane: Plane) -> None:
        await plane.deploy()
        invocation_id = await _ended(plane)
        seen: list[tuple[int, bool]] = []

        async def remove_logs(execution_ids: list[str]) -> None:
            seen.append((len(execution_ids), await _is_there(plane, invocation_id)))

        plane.runner.remove_logs = remove_logs  # type: ignore[method-assign]
        assert await forget_old(api_of(plane), time.time() + 29 * DAY_S) == 0
        assert seen == []
        assert await forget_old(api_of(plane), time.time() + 31 * DAY_S) == 1
        assert seen == [(1, True)]
        assert not await _is_there(plane, invocation_id)

    on_plane(tmp_path, test)


def test_output_that_expires_by_itself_is_left_alone(tmp_path: Path) -> None:
    async def test(plane: Plane) -> None:
        await plane.deploy()
        await _ended(plane)

        async def remove_logs(_execution_ids: list[str]) -> None:
            pytest.fail("CloudWatch has a retention of its own")

        plane.runner.remove_logs = remove_logs  # type: ignore[method-assign]
        plane.runner.output_expires = True
        assert await forget_old(api_of(plane), time.time() + 31 * DAY_S) == 1

    on_plane(tmp_path, test)


def test_zero_keeps_all(tmp_path: Path) -> None:
    async def test(plane: Plane) -> None:
        await plane.deploy()
        await _ended(plane)
        assert await forget_old(api_of(plane), time.time() + 9999 * DAY_S) == 0

    on_plane(tmp_path, test, keep_invocations_s=0.0)


async def _ended(plane: Plane) -> str:
    invocation_id = await plane.start()
    claimed = await plane.claim(invocation_id)
    await plane.end(claimed, "succeeded")
    plane.runner.end(claimed[1].worker_id)

    async def is_over() -> bool:
        return bool((await plane.info(invocation_id)).terminated)

    await plane.until(is_over)
    return invocation_id


async def _is_there(plane: Plane, invocation_id: str) -> bool:
    try:
        await plane.info(invocation_id)
    except InvocationNotFound:
        return False
    return True


@pytest.mark.parametrize(
    ("path", "error"),
    [
        (f"/v1/invocations/inv-{'7' * 32}", InvocationNotFound),
        (f"/v1/invocations/inv-{'7' * 32}/detail", InvocationNotFound),
        (f"/v1/executions/exe-{'7' * 32}", ExecutionNotFound),
    ],
)
def test_who_asks_for_one_is_told_that_it_may_have_been_removed(
    tmp_path: Path, path: str, error: type[MultinodeError]
) -> None:
    with serving(tmp_path) as served, pytest.raises(error) as raised:
        served.client(served.key("read")).call(wire.InvocationInfo, "GET", path)
    assert "It may have been removed: what ended over 30 days ago is." in raised.value.hint


def test_who_asks_for_what_never_was_an_id_is_not_told_so(tmp_path: Path) -> None:
    with serving(tmp_path) as served, pytest.raises(InvocationNotFound) as raised:
        served.client(served.key("read")).call(wire.InvocationInfo, "GET", "/v1/invocations/inv-1")
    assert raised.value.hint == "`multinode ps -a` shows recent ones."


# --- 100,000 of them ---

MANY = 100_000
STARTS = 150
"""Before, and as many during the removal."""


def test_starts_are_as_quick_while_many_are_removed(tmp_path: Path, database: str) -> None:
    async def test(plane: Plane) -> None:
        await plane.deploy(max_concurrency=1)
        await plane.store.write(_add_many)
        before = await _latencies(plane)
        removing = asyncio.create_task(forget_old(api_of(plane), time.time()))
        during = await _latencies(plane)
        assert not removing.done(), "they are gone in one go"
        removing.cancel()
        await asyncio.wait([removing])
        removed = MANY - await plane.store.read(_old_ones)
        assert removed > 2 * STARTS
        # Generous: other tests run beside this one. In one transaction they would take seconds.
        assert statistics.median(during) < 2 * statistics.median(before) + 0.05
        assert max(during) < max(before) + 1.0

    on_plane(tmp_path, test)


async def _latencies(plane: Plane) -> list[float]:
    """Seconds that each of some starts took."""
    found = []
    for _ in range(STARTS):
        began_at = time.perf_counter()
        await plane.start()
        found.append(time.perf_counter() - began_at)
        await asyncio.sleep(0.01)
    return found


_MANY = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :many) "


def _add_many(tx: Any) -> None:
    """By the database itself: from here it would take a minute."""
    for table, columns in (
        (
            "invocations (invocation_id, project, function, version_id, status, input, result, terminated, revision,"
            " not_made, num_failed_attempts, num_values, values_kept, values_bytes, created_at, finished_at)",
            "'inv-' || i, 'shop', 'f', 'ver-0', 'SUCCEEDED', '[[],{}]', 'result', true, 1, 0, 0, 0, 0, 0, :at, :at",
        ),
        (
            "executions (execution_id, invocation_id, attempt, worker_id, state, created_at)",
            "'exe-' || i, 'inv-' || i, 1, 'wrk-' || i, 'ended', :at",
        ),
        (
            "workers (worker_id, execution_id, invocation_id, project, function, version_id, state, cpu, memory_mib,"
            " claim_code_hash, unreachable, created_at, gone_at)",
            "'wrk-' || i, 'exe-' || i, 'inv-' || i, 'shop', 'f', 'ver-0', 'gone', 1, 256, '', false, :at, :at",
        ),
    ):
        text = f"{_MANY} INSERT INTO {table} SELECT {columns} FROM n"
        tx.connection.execute(sa.text(text), {"many": MANY, "at": float(int(tx.now - 31 * DAY_S))})


def _old_ones(connection: sa.Connection) -> int:
    return int(
        connection.execute(
            sa.select(sa.func.count()).where(model.invocations.c.version_id == "ver-0")
        ).scalar_one()
    )
