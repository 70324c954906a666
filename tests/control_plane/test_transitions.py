"""The table of states in docs/architecture.md, line by line."""

from __future__ import annotations

import itertools
import time

import pytest
from tests.control_plane.bench import Bench

from multinode import wire
from multinode.errors import ClaimRefused, InternalError
from multinode_control_plane import model
from multinode_control_plane.service import executions, invocations, rows

PENDING, RUNNING, CANCELLING = wire.PENDING, wire.RUNNING, wire.CANCELLING
SUCCEEDED, FAILED, CANCELLED, TIMED_OUT = (
    wire.SUCCEEDED,
    wire.FAILED,
    wire.CANCELLED,
    wire.TIMED_OUT,
)
ERROR = wire.FunctionError("bad bound", "ValueError", "Traceback …")


def started(bench: Bench, **settings: object) -> tuple[str, executions.WorkerIdentity]:
    bench.deploy(f=settings)
    invocation_id = bench.start()
    return invocation_id, bench.claim(invocation_id)


@pytest.mark.parametrize(
    ("outcome", "retries", "retryable", "expected"),
    [
        ("succeeded", 0, True, SUCCEEDED),
        ("succeeded", 3, True, SUCCEEDED),
        ("failed", 0, True, FAILED),
        ("failed", 3, True, PENDING),
        ("failed", 3, False, FAILED),
        ("lost", 0, True, FAILED),
        ("lost", 3, True, PENDING),
        ("timed_out", 3, True, TIMED_OUT),
        ("cancelled", 3, True, CANCELLED),
    ],
)
def test_end_of_a_running_one(
    bench: Bench, outcome: str, retries: int, retryable: bool, expected: str
) -> None:
    invocation_id, who = started(bench, max_retries=retries)
    assert bench.status(invocation_id) == RUNNING
    error = None if outcome == "succeeded" else ERROR
    bench.end(invocation_id, who, outcome, error=error, retryable=retryable)
    assert bench.status(invocation_id) == expected


@pytest.mark.parametrize(
    ("outcome", "expected"),
    [
        ("succeeded", SUCCEEDED),
        ("failed", FAILED),
        ("cancelled", CANCELLED),
        ("timed_out", TIMED_OUT),
        ("lost", CANCELLED),
    ],
)
def test_end_of_a_cancelling_one_is_never_retried(
    bench: Bench, outcome: str, expected: str
) -> None:
    invocation_id, who = started(bench, max_retries=3)
    bench.do(invocations.cancel, [invocation_id])
    assert bench.status(invocation_id) == CANCELLING
    bench.end(invocation_id, who, outcome, error=None if outcome == "succeeded" else ERROR)
    assert bench.status(invocation_id) == expected


def test_the_table_refuses_every_other_pair(bench: Bench) -> None:
    bench.deploy()
    for before, after in itertools.product(wire.STATUSES, wire.STATUSES):
        if before == after or after in model.TRANSITIONS[before]:
            continue
        invocation_id = bench.start()

        def force(tx: object, invocation_id: str = invocation_id, before: str = before) -> None:
            tx.connection.execute(  # type: ignore[attr-defined]
                model.invocations.update()
                .where(model.invocations.c.invocation_id == invocation_id)
                .values(status=before)
            )

        bench.do(force)
        row = bench.look(rows.invocation, invocation_id)
        with pytest.raises(InternalError, match=f"from {before} to {after}"):
            bench.do(rows.move, row, after)


def test_an_ended_one_stays_as_it_is(bench: Bench) -> None:
    invocation_id, who = started(bench)
    bench.end(invocation_id, who, "succeeded", result="7")
    before = bench.info(invocation_id)
    assert bench.do(invocations.cancel, [invocation_id]).ended == [invocation_id]
    with pytest.raises(ClaimRefused):
        bench.end(invocation_id, who, "failed", error=ERROR)
    with pytest.raises(ClaimRefused):
        bench.report(invocation_id, who, values=[wire.Value(1, "1")])
    assert bench.info(invocation_id) == before


def test_a_change_by_two_is_made_by_one(bench: Bench) -> None:
    bench.deploy()
    invocation_id = bench.start()
    stale = bench.look(rows.invocation, invocation_id)
    bench.claim(invocation_id)
    with pytest.raises(InternalError, match="somebody else"):
        bench.do(rows.move, stale, CANCELLED)


class TestPending:
    def test_cancel_ends_it_at_once_and_stops_its_worker(self, bench: Bench) -> None:
        bench.deploy()
        invocation_id = bench.start()
        who = bench.worker(invocation_id)
        bench.do(invocations.cancel, [invocation_id])
        assert bench.status(invocation_id) == CANCELLED
        assert bench.stopped == [who.worker_id]
        assert not bench.info(invocation_id).terminated
        with pytest.raises(ClaimRefused):
            bench.do(executions.claim, who, wire.Claim(bench.launched[0].execution_id))
        bench.gone(who)
        assert bench.info(invocation_id).terminated

    def test_cancel_of_one_without_a_worker_is_terminated(self, bench: Bench) -> None:
        bench.deploy(f={"max_concurrency": 1})
        bench.start()
        waiting = bench.start()
        bench.do(invocations.cancel, [waiting])
        info = bench.info(waiting)
        assert (info.status, info.terminated) == (CANCELLED, True)
        assert bench.queue() == (0, 1)

    def test_queue_timeout_before_the_first_start(self, bench: Bench) -> None:
        bench.deploy(f={"max_concurrency": 1, "queue_timeout_s": 5.0})
        first = bench.start()
        bench.claim(first)
        waiting = bench.start()
        bench.skew_s = 6
        bench.tick()
        assert bench.status(waiting) == TIMED_OUT
        assert bench.status(first) == RUNNING
        assert "queue_timeout" in bench.info(waiting).error.message

    @pytest.mark.parametrize(("retries", "expected"), [(0, FAILED), (1, PENDING)])
    def test_failed_import_counts_as_an_attempt(
        self, bench: Bench, retries: int, expected: str
    ) -> None:
        bench.deploy(f={"max_retries": retries})
        invocation_id = bench.start()
        who = bench.worker(invocation_id)
        bench.end(invocation_id, who, "failed", error=ERROR)
        info = bench.info(invocation_id)
        assert (info.status, info.num_failed_attempts) == (expected, 1)
        assert info.started_at is None

    def test_worker_lost_before_its_claim_costs_no_retry(self, bench: Bench) -> None:
        bench.deploy()
        invocation_id = bench.start()
        delays = []
        for _ in range(3):
            bench.gone(bench.worker(invocation_id), detail="killed by signal 9")
            gone_at = time.time() + bench.skew_s
            row = bench.look(rows.invocation, invocation_id)
            assert (row.status, row.num_failed_attempts) == (PENDING, 0)
            delays.append(round(row.due_at - gone_at))
            assert "killed by signal 9" in bench.info(invocation_id).pending_reason
            bench.skew_s += 120
            bench.tick()
        assert delays == [1, 2, 4]
        bench.run(invocation_id)
        assert bench.status(invocation_id) == SUCCEEDED

    def test_start_timeout_stops_the_worker(self, bench: Bench) -> None:
        bench.deploy(f={"start_timeout_s": 10.0})
        invocation_id = bench.start()
        worker_id = bench.launch_of(invocation_id).worker_id
        bench.skew_s = 60  # that long the runner takes to make it, which does not count
        bench.tick()
        bench.do(executions.worker_accepted, worker_id, time.time() + bench.skew_s)
        bench.skew_s = 69
        bench.tick()
        assert bench.stopped == []
        bench.skew_s = 71
        bench.tick()
        assert bench.stopped == [worker_id]
        bench.gone(bench.worker(invocation_id), detail="killed by signal 9")
        assert bench.info(invocation_id).pending_reason.startswith(
            "worker could not be made: it was not ready within its start_timeout of 10 s (next try"
        )


class TestRetries:
    def test_delay_doubles_with_jitter(self, bench: Bench) -> None:
        bench.deploy(f={"max_retries": 5, "retry_delay_s": 10.0})
        invocation_id = bench.start()
        delays = []
        for _ in range(4):
            bench.run(invocation_id, "failed", error=ERROR)
            row = bench.look(rows.invocation, invocation_id)
            delays.append(row.due_at - row.created_at - bench.skew_s)
            bench.skew_s += 200
            bench.tick()
        assert delays[0] == pytest.approx(10, abs=1)
        for delay, full in zip(delays[1:], (20, 40, 80), strict=True):
            assert full * 0.8 - 1 <= delay <= full + 1

    def test_at_most_max_retries_more(self, bench: Bench) -> None:
        bench.deploy(f={"max_retries": 2})
        invocation_id = bench.start()
        for _ in range(3):
            bench.tick()
            bench.run(invocation_id, "failed", error=ERROR)
        info = bench.info(invocation_id)
        assert (info.status, info.num_failed_attempts, len(bench.launched)) == (FAILED, 3, 3)

    def test_values_run_on_over_attempts(self, bench: Bench) -> None:
        bench.deploy(f={"max_retries": 1})
        invocation_id = bench.start()
        who = bench.claim(invocation_id)
        bench.report(invocation_id, who, values=[wire.Value(1, "10"), wire.Value(2, "20")])
        bench.end(invocation_id, who, "failed", error=ERROR)
        bench.gone(who)
        bench.tick()
        who = bench.claim(invocation_id)
        bench.report(invocation_id, who, values=[wire.Value(3, "30")])
        found = bench.look(invocations.values_after, invocation_id, 1, None)
        assert [(v.number, v.value, v.attempt) for v in found.values] == [
            (2, "20", 1),
            (3, "30", 2),
        ]


class TestCancelling:
    def test_children_are_cancelled_generation_by_generation(self, bench: Bench) -> None:
        bench.deploy()
        parent = bench.start()
        bench.claim(parent)
        child = bench.start(parent_id=parent)
        bench.claim(child)
        grandchild = bench.start(parent_id=child)
        bench.do(invocations.cancel, [parent])
        statuses = [bench.status(item) for item in (parent, child, grandchild)]
        assert statuses == [CANCELLING, CANCELLING, CANCELLED]

    def test_what_has_a_worker_can_be_cancelled_alone(self, bench: Bench) -> None:
        bench.deploy(f={"max_concurrency": 2}, g={})
        running, starting, waiting = [bench.start() for _ in range(3)]
        who = bench.claim(running)
        child = bench.start("g", parent_id=running, delay_s=60.0)
        delayed = bench.start(delay_s=86_400.0)
        assert bench.look(invocations.count_running) == 2
        bench.do(invocations.cancel_running)
        ids = (running, starting, child, waiting, delayed)
        assert [bench.status(item) for item in ids] == [
            CANCELLING, CANCELLED, CANCELLED, PENDING, PENDING,
        ]  # fmt: skip
        bench.end(running, who, "cancelled")
        assert bench.look(invocations.count_running) == 0

    def test_other_ends_of_a_parent_leave_its_children(self, bench: Bench) -> None:
        bench.deploy()
        parent = bench.start()
        who = bench.claim(parent)
        child = bench.start(parent_id=parent)
        bench.claim(child)
        bench.end(parent, who, "timed_out", error=ERROR)
        assert bench.status(child) == RUNNING

    def test_a_child_started_after_the_cancel_is_cancelled_too(self, bench: Bench) -> None:
        bench.deploy()
        parent = bench.start()
        bench.claim(parent)
        bench.do(invocations.cancel, [parent])
        assert bench.status(bench.start(parent_id=parent)) == CANCELLED

    def test_the_order_is_told_by_claim_report_and_watch(self, bench: Bench) -> None:
        bench.deploy()
        invocation_id = bench.start()
        who = bench.claim(invocation_id)
        execution_id = bench.launched[0].execution_id
        assert bench.look(executions.watch, who, wire.Watch(execution_id)).order is None
        bench.do(invocations.cancel, [invocation_id])
        assert bench.look(executions.watch, who, wire.Watch(execution_id)).order == "cancel"
        assert bench.do(executions.claim, who, wire.Claim(execution_id)).order == "cancel"
        assert bench.report(invocation_id, who, values=[wire.Value(1, "1")]).order == "cancel"

    def test_a_worker_that_is_lost_while_cancelling(self, bench: Bench) -> None:
        invocation_id, who = started(bench, max_retries=5)
        bench.do(invocations.cancel, [invocation_id])
        bench.gone(who, detail="killed by signal 9")
        info = bench.info(invocation_id)
        assert (info.status, info.error.message) == (CANCELLED, "worker lost: killed by signal 9")


class TestClaims:
    def test_the_same_worker_gets_the_same_answer(self, bench: Bench) -> None:
        bench.deploy()
        invocation_id = bench.start()
        who = bench.claim(invocation_id)
        assert (
            bench.do(executions.claim, who, wire.Claim(bench.launched[0].execution_id))
            == wire.Order()
        )

    def test_another_worker_gets_none(self, bench: Bench) -> None:
        bench.deploy()
        first, second = bench.start(), bench.start()
        who = bench.worker(first)
        other = bench.launch_of(second).execution_id
        with pytest.raises(ClaimRefused):
            bench.do(executions.claim, who, wire.Claim(other))

    def test_a_claim_code_is_used_by_one_nonce(self, bench: Bench) -> None:
        bench.deploy()
        launch = bench.launch_of(bench.start())

        def exchange(code: str, nonce: str) -> wire.Assignment:
            request = wire.ExchangeRequest(launch.worker_id, code, nonce)
            return bench.do(executions.exchange, bench.context, request)[0]

        with pytest.raises(ClaimRefused):
            exchange("wrong", "a")
        first = exchange(launch.claim_code, "a")
        assert exchange(launch.claim_code, "a") == first
        with pytest.raises(ClaimRefused):
            exchange(launch.claim_code, "b")

    def test_a_token_is_void_when_its_worker_is_gone(self, bench: Bench) -> None:
        bench.deploy()
        launch = bench.launch_of(bench.start())
        request = wire.ExchangeRequest(launch.worker_id, launch.claim_code, "n")
        assignment, who = bench.do(executions.exchange, bench.context, request)
        assert bench.look(executions.identity, assignment.token) == who
        bench.gone(who)
        assert bench.look(executions.identity, assignment.token) is None


class TestReports:
    def test_twice_changes_nothing(self, bench: Bench) -> None:
        invocation_id, who = started(bench)
        for _ in range(2):
            bench.report(invocation_id, who, values=[wire.Value(1, "10")])
        for _ in range(2):
            bench.end(invocation_id, who, "succeeded")
        info = bench.info(invocation_id)
        assert (info.status, info.result, info.num_values) == (SUCCEEDED, "10", 1)

    def test_a_result_that_is_too_long_fails(self, bench: Bench) -> None:
        invocation_id, who = started(bench)
        bench.end(invocation_id, who, "succeeded", result="1" * 250_001)
        info = bench.info(invocation_id)
        assert info.status == FAILED
        assert "250001" in info.error.message

    def test_only_the_newest_values_are_kept(self, bench: Bench) -> None:
        object.__setattr__(bench.context.settings, "max_values", 10)
        invocation_id, who = started(bench)
        for start in range(1, 31, 5):
            new = [wire.Value(n, str(n)) for n in range(start, start + 5)]
            bench.report(invocation_id, who, values=new)
        found = bench.look(invocations.values_after, invocation_id, 0, None)
        assert [v.number for v in found.values] == list(range(21, 31))
        assert found.left_out == 20
        assert bench.look(invocations.values_after, invocation_id, 25, None).left_out == 0
