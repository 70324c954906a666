"""Workers that serve several invocations, or were started ahead: the table of docs/architecture.md, on both databases."""

from __future__ import annotations

from typing import Any

import pytest
from tests.control_plane.bench import Bench

from multinode import wire
from multinode.errors import ClaimRefused, InvocationNotFound, ProjectNotFound
from multinode_control_plane import decide, model
from multinode_control_plane.runners import WorkerEnd
from multinode_control_plane.service import (
    costs,
    deployments,
    executions,
    invocations,
    pools,
    rows,
    statements,
)
from multinode_control_plane.service.executions import WorkerIdentity

pytestmark = pytest.mark.usefixtures("database")
A, B = "a" * 64, "b" * 64


def warm(bench: Bench, code: str = A, **settings: Any) -> str:
    """A version whose ``f`` has workers that serve without limit."""
    return bench.deploy(f={"max_invocations_per_worker": 0, **settings}, code=code)


def idle_worker(bench: Bench, **settings: Any) -> WorkerIdentity:
    """One that has served its first and waits."""
    warm(bench, **settings)
    who = bench.claim(bench.start())
    assert bench.ask(who, 2, done="succeeded") == wire.Next()
    return who


def state(bench: Bench, who: WorkerIdentity) -> Any:
    return bench.look(statements.one, model.workers, worker_id=who.worker_id)


def task_of(bench: Bench, who: WorkerIdentity) -> wire.Task:
    """The one that it was handed last."""
    return bench.handed[who.worker_id][-1]


def idle_count(bench: Bench) -> int:
    return int(bench.look(statements.one, model.queues, project="shop", function="f").idle)


class TestServingSeveral:
    def test_an_idle_worker_is_handed_what_is_started(self, bench: Bench) -> None:
        who = idle_worker(bench)
        invocation_id = bench.start(inputs=["[[7],{}]"])
        task = task_of(bench, who)
        assert (task.number, task.invocation_id, task.input) == (2, invocation_id, "[[7],{}]")
        assert bench.status(invocation_id) == wire.RUNNING
        assert len(bench.launched) == 1
        assert (bench.queue(), idle_count(bench)) == ((0, 1), 0)

    def test_the_end_and_the_next_are_one_request(self, bench: Bench) -> None:
        warm(bench, max_concurrency=1)
        first, second, third = (bench.start() for _ in range(3))
        who = bench.claim(first)
        found = bench.ask(who, 2, done="succeeded")
        assert [task.invocation_id for task in found.tasks] == [second]
        assert (bench.status(first), bench.status(second)) == (wire.SUCCEEDED, wire.RUNNING)
        assert bench.info(first).terminated
        found = bench.ask(who, 3, done="failed")
        assert [task.invocation_id for task in found.tasks] == [third]
        assert bench.status(second) == wire.FAILED

    def test_a_lost_answer_can_be_asked_for_again(self, bench: Bench) -> None:
        who = idle_worker(bench)
        bench.start()
        told = bench.ask(who, 2)
        assert told.tasks
        assert bench.ask(who, 2) == told
        assert bench.ask(who, 3, done="succeeded") == wire.Next()
        with pytest.raises(ClaimRefused, match="cannot ask for its execution 2"):
            bench.ask(who, 2)

    def test_one_that_has_not_ended_its_execution_gets_no_other(self, bench: Bench) -> None:
        warm(bench, max_concurrency=1)
        first, second = bench.start(), bench.start()
        who = bench.claim(first)
        with pytest.raises(ClaimRefused, match="cannot ask for its execution 2"):
            bench.ask(who, 2)
        assert bench.status(second) == wire.PENDING
        with pytest.raises(ClaimRefused, match="asks for its execution 9; it was given 1"):
            bench.ask(who, 9)

    def test_ends_can_be_told_while_another_runs(self, bench: Bench) -> None:
        warm(bench, max_concurrency=1)
        claimed, first, second, third = (bench.start() for _ in range(4))
        who = bench.claim(claimed)
        ran, runs = bench.ask(who, 2, done="succeeded", most=2).tasks
        end = wire.Report(ran.execution_id, None, wire.ExecutionEnd("succeeded", result="1"))
        more = bench.ask(who, 4, reports=[end], wait_s=0.0).tasks
        assert [task.invocation_id for task in more] == [third]
        found = [bench.status(each) for each in (first, second)]
        assert found == [wire.SUCCEEDED, wire.RUNNING]
        assert bench.info(first).terminated
        assert (state(bench, who).state, state(bench, who).deadline_at) == (model.EXCHANGED, None)
        end = wire.Report(runs.execution_id, None, wire.ExecutionEnd("succeeded", result="1"))
        found = bench.ask(who, 4, reports=[end])
        assert [task.invocation_id for task in found.tasks] == [third]

    def test_after_so_many_it_is_told_to_leave(self, bench: Bench) -> None:
        warm(bench, max_concurrency=1, max_invocations_per_worker=2)
        first, second, third = (bench.start() for _ in range(3))
        who = bench.claim(first)
        assert bench.ask(who, 2, done="succeeded").tasks
        assert bench.ask(who, 3, done="succeeded") == wire.Next(leave=True)
        assert bench.status(second) == wire.SUCCEEDED
        assert bench.look(rows.live_worker, third) is None
        bench.gone(who)
        assert bench.look(rows.live_worker, third) is not None

    def test_one_worker_takes_several_at_once_where_it_asks_for_them(self, bench: Bench) -> None:
        warm(bench, max_concurrency=1)
        first, *others = (bench.start() for _ in range(6))
        who = bench.claim(first)
        found = bench.ask(who, 2, done="succeeded", most=4)
        assert [task.invocation_id for task in found.tasks] == others[:4]
        assert [task.number for task in found.tasks] == [2, 3, 4, 5]
        assert bench.ask(who, 6, done="succeeded").tasks[0].invocation_id == others[4]
        assert {bench.status(each) for each in others[:4]} == {wire.SUCCEEDED}

    def test_one_that_still_has_some_gets_more_and_is_not_idle(self, bench: Bench) -> None:
        warm(bench, max_concurrency=1)
        first, *others = (bench.start() for _ in range(5))
        who = bench.claim(first)
        told = bench.ask(who, 2, done="succeeded", most=2).tasks
        end = wire.ExecutionEnd("succeeded", result="1")
        done = [wire.Report(told[0].execution_id, None, end)]
        request = wire.NextRequest(4, 1, done, wait_s=0.0)
        bench.do(pools.ask, bench.context, who, request, draining=False)
        assert [task.invocation_id for task in bench.handed.pop(who.worker_id)] == [others[2]]
        assert bench.status(others[0]) == wire.SUCCEEDED
        assert (idle_count(bench), state(bench, who).state) == (0, model.EXCHANGED)
        assert bench.ask(who, 5, done="succeeded").tasks[0].invocation_id == others[3]
        assert {bench.status(each) for each in others[:3]} == {wire.SUCCEEDED}
        paid = [bench.look(costs.of_invocation, each) for each in (first, *others[:3])]
        assert [len(each) for each in paid] == [1, 1, 1, 1]

    def test_nor_does_it_get_what_is_younger_than_one_that_finds_no_room(
        self, bench: Bench
    ) -> None:
        several = {"max_invocations_per_worker": 0, "max_concurrency": 1, "cpu": 1.0}
        bench.deploy(f=several, g={"cpu": 4.0})
        first, *_ = (bench.start() for _ in range(3))
        who = bench.claim(first)
        assert len(bench.ask(who, 2, done="succeeded", most=2).tasks) == 2
        large, younger = bench.start("g"), bench.start()
        request = wire.NextRequest(4, 5, None, wait_s=0.0)
        bench.do(pools.ask, bench.context, who, request, draining=False)
        assert bench.handed.get(who.worker_id, []) == []
        assert bench.status(younger) == bench.status(large) == wire.PENDING

    def test_what_is_ready_is_shared_among_those_that_are_idle(self, bench: Bench) -> None:
        warm(bench, max_concurrency=2)
        both = [bench.claim(each) for each in (bench.start(), bench.start())]
        for who in both:
            bench.ask(who, 2, done="succeeded", most=64)
        bench.start(inputs=["[[],{}]"] * 10)
        assert [len(bench.handed[who.worker_id]) for who in both] == [5, 5]

    def test_yields_and_attempts_go_on_as_with_a_worker_each(self, bench: Bench) -> None:
        who = idle_worker(bench, max_retries=1)
        invocation_id = bench.start()
        task = bench.ask(who, 2).tasks[0]
        values = [wire.Value(1, "10", 1)]
        bench.do(executions.report, bench.context, who, wire.Report(task.execution_id, values))
        again = bench.ask(who, 3, done="failed").tasks[0]
        assert (again.invocation_id, again.attempt) == (invocation_id, 2)
        assert again.first_value_number == 2
        assert bench.info(invocation_id).num_failed_attempts == 1

    def test_cancelling_is_told_to_the_worker_that_has_it(self, bench: Bench) -> None:
        who = idle_worker(bench)
        invocation_id = bench.start()
        task = bench.ask(who, 2).tasks[0]
        bench.do(invocations.cancel, [invocation_id])
        asked = wire.Watch(task.execution_id)
        assert bench.look(executions.watch, who, asked).order == "cancel"
        bench.do(
            executions.report,
            bench.context,
            who,
            wire.Report(task.execution_id, None, wire.ExecutionEnd("cancelled")),
        )
        assert bench.status(invocation_id) == wire.CANCELLED
        assert not bench.info(invocation_id).terminated
        bench.gone(who)
        assert bench.info(invocation_id).terminated


class TestLosing:
    def test_a_worker_that_dies_loses_what_it_was_told(self, bench: Bench) -> None:
        who = idle_worker(bench)
        invocation_id = bench.start()
        assert bench.ask(who, 2).tasks
        bench.gone(who, detail="killed by signal 9")
        info = bench.info(invocation_id)
        assert (info.status, info.terminated) == (wire.FAILED, True)
        assert info.error is not None
        assert info.error.message == "worker lost: killed by signal 9"
        assert bench.queue() == (0, 0)

    def test_what_it_was_certainly_not_told_is_given_back(self, bench: Bench) -> None:
        who = idle_worker(bench)
        invocation_id = bench.start()
        untold = {task.execution_id for task in bench.handed[who.worker_id]}
        bench.do(executions.worker_gone, bench.context, WorkerEnd(who.worker_id), untold=untold)
        info = bench.info(invocation_id)
        assert (info.status, info.num_failed_attempts) == (wire.PENDING, 0)
        assert bench.look(rows.live_worker, invocation_id) is not None

    def test_what_no_code_has_seen_is_given_back_at_no_cost(self, bench: Bench) -> None:
        warm(bench, max_concurrency=1)
        first, second, third = (bench.start() for _ in range(3))
        who = bench.claim(first)
        tasks = bench.ask(who, 2, done="succeeded", most=2).tasks
        bench.do(invocations.cancel, [third])
        for task in tasks:
            end = wire.ExecutionEnd("unstarted")
            asked = wire.Report(task.execution_id, None, end)
            bench.do(executions.report, bench.context, who, asked)
        info = bench.info(second)
        assert (info.status, info.num_failed_attempts, info.started_at) == (wire.PENDING, 0, None)
        assert (bench.status(third), bench.info(third).terminated) == (wire.CANCELLED, True)
        assert bench.ask(who, 4).tasks[0].invocation_id == second

    def test_an_idle_worker_that_dies_frees_its_slot(self, bench: Bench) -> None:
        who = idle_worker(bench)
        bench.gone(who)
        assert (bench.queue(), idle_count(bench)) == ((0, 0), 0)
        with pytest.raises(ClaimRefused):
            bench.ask(who, 2)


class TestLeaving:
    def test_after_its_idle_timeout(self, bench: Bench) -> None:
        who = idle_worker(bench, idle_timeout_s=20.0)
        bench.skew_s = 19
        bench.tick()
        assert state(bench, who).state == model.IDLE
        bench.skew_s = 21
        bench.tick()
        assert (state(bench, who).state, idle_count(bench)) == (model.LEAVING, 0)
        assert bench.ask(who, 2) == wire.Next(leave=True)
        bench.skew_s = 60
        bench.tick()
        assert bench.stopped == [who.worker_id]

    def test_at_a_deploy_the_idle_leave_at_once_and_the_others_when_they_have_ended(
        self, bench: Bench
    ) -> None:
        warm(bench, max_concurrency=2)
        resting, busy = (bench.claim(bench.start()) for _ in range(2))
        bench.ask(resting, 2, done="succeeded")
        warm(bench, code=B, max_concurrency=2)
        assert state(bench, resting).state == model.LEAVING
        assert state(bench, busy).state == model.EXCHANGED
        assert bench.ask(busy, 2, done="succeeded") == wire.Next(leave=True)

    def test_one_of_an_old_version_serves_on_what_is_of_that_version(self, bench: Bench) -> None:
        old = warm(bench, max_concurrency=1)
        first, second = bench.start(), bench.start()
        who = bench.claim(first)
        warm(bench, code=B, max_concurrency=1)
        newest = bench.start()
        found = bench.ask(who, 2, done="succeeded")
        assert [task.invocation_id for task in found.tasks] == [second]
        assert bench.info(second).version_id == old
        assert bench.ask(who, 3, done="succeeded") == wire.Next(leave=True)
        bench.gone(who)
        assert bench.launch_of(newest) is bench.launched[-1]

    def test_a_slot_is_given_up_to_another_version(self, bench: Bench) -> None:
        old = warm(bench, max_concurrency=1)
        warm(bench, code=B, max_concurrency=1)
        who = bench.claim(bench.start())
        bench.ask(who, 2, done="succeeded")
        pinned = bench.start(version_id=old)
        assert state(bench, who).state == model.LEAVING
        bench.gone(who)
        assert bench.look(rows.live_worker, pinned) is not None

    def test_room_is_given_up_to_another_function(self, bench: Bench) -> None:
        several = {"max_invocations_per_worker": 0, "cpu": 1.0}
        bench.deploy(f=several, g={"cpu": 3.0})
        both = [bench.claim(each) for each in (bench.start(), bench.start())]
        for who in both:
            bench.ask(who, 2, done="succeeded")
        large = bench.start("g")
        assert [state(bench, who).state for who in both] == [model.LEAVING, model.IDLE]
        bench.tick()
        assert state(bench, both[1]).state == model.IDLE
        bench.gone(both[0])
        assert bench.look(rows.live_worker, large) is not None

    def test_where_the_limit_was_lowered_no_more_run_at_once(self, bench: Bench) -> None:
        warm(bench, max_concurrency=2)
        first, second, third = (bench.start() for _ in range(3))
        one, other = bench.claim(first), bench.claim(second)
        with_one = {"max_invocations_per_worker": 0, "max_concurrency": 1}
        bench.deploy(f=with_one, code=B)
        assert bench.ask(one, 2, done="succeeded").tasks is None
        assert state(bench, one).state == model.LEAVING
        assert bench.status(third) == wire.PENDING
        bench.gone(one)
        assert bench.ask(other, 2, done="succeeded").tasks[0].invocation_id == third

    def test_where_the_control_plane_stops(self, bench: Bench) -> None:
        who = idle_worker(bench)
        bench.draining = True
        bench.do(pools.dismiss_all)
        assert bench.ask(who, 2) == wire.Next(leave=True)

    def test_where_its_project_is_removed(self, bench: Bench) -> None:
        who = idle_worker(bench)
        bench.do(deployments.delete, "shop")
        assert state(bench, who).state == model.LEAVING
        bench.gone(who)
        with pytest.raises(ProjectNotFound):
            bench.look(rows.project, "shop")


class TestStartedAhead:
    def test_as_many_as_are_to_be_kept(self, bench: Bench) -> None:
        bench.deploy(f={"min_workers": 2})
        assert [launch.execution_id for launch in bench.launched] == [
            launch.worker_id for launch in bench.launched
        ]
        assert bench.queue() == (0, 2)

    def test_it_imports_and_is_handed_the_first(self, bench: Bench) -> None:
        bench.deploy(f={"min_workers": 1})
        who = bench.up(bench.launched[0])
        assert bench.ask(who, 1) == wire.Next()
        invocation_id = bench.start()
        task = bench.ask(who, 1).tasks[0]
        assert (task.number, task.invocation_id) == (1, invocation_id)
        assert bench.ask(who, 2, done="succeeded") == wire.Next(leave=True)
        bench.gone(who)
        assert len(bench.launched) == 2

    def test_an_idle_one_that_is_to_be_kept_outlasts_its_timeout(self, bench: Bench) -> None:
        kept = {"min_workers": 1, "max_invocations_per_worker": 0, "idle_timeout_s": 10.0}
        bench.deploy(f=kept)
        first = bench.up(bench.launched[0])
        bench.ask(first, 1)
        ids = [bench.start(), bench.start()]
        second = bench.claim(ids[1])
        bench.ask(first, 2, done="succeeded")
        bench.ask(second, 2, done="succeeded")
        bench.skew_s = 11
        bench.tick()
        states = sorted(state(bench, who).state for who in (first, second))
        assert states == [model.IDLE, model.LEAVING]
        bench.skew_s = 1000
        bench.tick()
        assert idle_count(bench) == 1

    def test_one_that_does_not_come_up_is_tried_again_later_each_time(self, bench: Bench) -> None:
        bench.stands_at = 1000.0
        bench.deploy(f={"min_workers": 1})
        for times, pause_s in ((1, 1.0), (2, 2.0), (3, 4.0)):
            assert len(bench.launched) == times
            bench.do(executions.worker_gone, bench.context, WorkerEnd(bench.launched[-1].worker_id))
            bench.skew_s += pause_s - 0.1
            bench.tick()
            assert len(bench.launched) == times
            bench.skew_s += 0.2
            bench.tick()
        assert len(bench.launched) == 4

    def test_another_version_gets_its_own_and_a_version_without_gets_none(
        self, bench: Bench
    ) -> None:
        bench.deploy(f={"min_workers": 1})
        first = bench.up(bench.launched[0])
        bench.ask(first, 1)
        newer = bench.deploy(f={"min_workers": 1}, code=B)
        assert state(bench, first).state == model.LEAVING
        assert bench.look(pools.count, decide.Pool("shop", "f", newer)) == 1
        bench.deploy(g={}, code="c" * 64)
        assert (
            bench.look(statements.one, model.queues, project="shop", function="f").min_workers == 0
        )

    def test_they_wait_for_room_and_give_it_up(self, bench: Bench) -> None:
        bench.deploy(f={"min_workers": 2, "cpu": 3.0}, g={"cpu": 4.0})
        assert len(bench.launched) == 1
        who = bench.up(bench.launched[0])
        bench.ask(who, 1)
        large = bench.start("g")
        assert state(bench, who).state == model.LEAVING
        bench.gone(who)
        assert bench.launched[-1].execution_id != bench.launched[-1].worker_id
        bench.run(large)
        assert bench.launched[-1].execution_id == bench.launched[-1].worker_id


class TestWhatIsTold:
    def test_each_invocation_has_its_cost_and_the_time_between_is_the_workers(
        self, bench: Bench
    ) -> None:
        bench.stands_at = 1000.0
        warm(bench, idle_timeout_s=3600.0)
        first = bench.start()
        bench.do(executions.worker_accepted, bench.launch_of(first).worker_id, bench.now())
        bench.skew_s = 5
        who = bench.claim(first)
        bench.skew_s = 15
        bench.ask(who, 2, done="succeeded")
        bench.skew_s = 100
        second = bench.start()
        bench.ask(who, 2)
        bench.skew_s = 130
        bench.ask(who, 3, done="succeeded")
        third = bench.start()
        task = bench.ask(who, 3).tasks[0]
        bench.skew_s = 150
        end = wire.ExecutionEnd("succeeded", result="1")
        bench.do(executions.report, bench.context, who, wire.Report(task.execution_id, None, end))
        bench.skew_s = 200
        bench.gone(who)
        paid = [
            sum(each.billed_s for each in bench.look(costs.of_invocation, each_id).values())
            for each_id in (first, second, third, "")
        ]
        assert paid == pytest.approx([10, 30, 20, 140])
        report = bench.look(costs.report, bench.context.meter, "function", 0, 2e9, None)
        assert (report.total.executions, report.total.vcpu_s) == (3, pytest.approx(20))

    def test_its_timeline_begins_with_the_worker_that_was_there(self, bench: Bench) -> None:
        who = idle_worker(bench)
        invocation_id = bench.start()
        bench.ask(who, 2)
        bench.ask(who, 3, done="succeeded")
        detail = bench.look(invocations.detail, invocation_id, bench.now())
        assert [step.name for step in detail.executions[0].timeline] == [
            "handed to a worker that was there",
            "code ended",
            "worker ready for the next",
        ]

    def test_removing_the_project_of_a_warm_worker_removes_all(self, bench: Bench) -> None:
        who = idle_worker(bench)
        invocation_id = bench.start()
        bench.do(deployments.delete, "shop")
        task = bench.ask(who, 2).tasks[0]
        end = wire.ExecutionEnd("cancelled")
        bench.do(executions.report, bench.context, who, wire.Report(task.execution_id, None, end))
        bench.gone(who)
        with pytest.raises(InvocationNotFound):
            bench.info(invocation_id)
