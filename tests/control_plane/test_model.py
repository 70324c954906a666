"""A model of the states, beside the store: Hypothesis does what clients, workers and a runner may do, in any order, and compares.

The model knows no tables and no SQL: what an invocation is in, by the table of docs/architecture.md, and which workers there
are. After each step the store must say the same, and its counts of slots and of room must be those of the workers that
live. At the end all that is left is let go: everything that was accepted has ended, and no slot is taken.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)
from tests.control_plane.bench import Bench, make_bench

from multinode import wire
from multinode.errors import ClaimRefused
from multinode_control_plane import decide, model
from multinode_control_plane.runners import WorkerEnd
from multinode_control_plane.service import admission, executions, invocations, rows
from multinode_control_plane.service.executions import WorkerIdentity

FUNCTIONS: dict[str, dict[str, Any]] = {
    "once": {"max_concurrency": 2, "cpu": 1.0},
    "again": {"max_concurrency": 3, "max_retries": 2, "retry_delay_s": 5.0, "cpu": 1.0},
    "queued": {"max_concurrency": 1, "max_retries": 1, "queue_timeout_s": 30.0, "cpu": 2.0},
}
CPU = 4.0
"""The room of the bench."""
EXAMPLES = {"sqlite": 25, "postgresql": 8}
ENDS = ("succeeded", "failed", "lost", "timed_out", "cancelled")


@dataclass
class Invocation:
    """What is known of one from the outside."""

    invocation_id: str
    function: str
    parent: Invocation | None = None
    status: str = wire.PENDING
    cancelled: bool = False
    """Whether its cancellation was asked for."""
    failed: int = 0
    starts: int = 0
    values: list[str] = field(default_factory=list)
    children: list[Invocation] = field(default_factory=list)
    at_the_end: wire.InvocationInfo | None = None

    @property
    def max_retries(self) -> int:
        return int(FUNCTIONS[self.function].get("max_retries", 0))

    def cancel(self) -> None:
        """Asks for it, and for that of its children."""
        if decide.is_final(self.status) or self.status == wire.CANCELLING:
            return
        self.cancelled = True
        self.status = wire.CANCELLED if self.status == wire.PENDING else wire.CANCELLING
        for child in self.children:
            child.cancel()

    def end(self, outcome: str, *, retryable: bool) -> None:
        """An attempt at it has ended."""
        plain = {
            "succeeded": wire.SUCCEEDED,
            "timed_out": wire.TIMED_OUT,
            "cancelled": wire.CANCELLED,
        }
        if outcome in plain:
            self.status = plain[outcome]
            return
        self.failed += 1
        if self.status == wire.CANCELLING:
            self.status = wire.CANCELLED if outcome == "lost" else wire.FAILED
        elif retryable and self.failed <= self.max_retries:
            self.status = wire.PENDING
        else:
            self.status = wire.FAILED


@dataclass
class Worker:
    """One that the runner was told to make; ``attempt`` is ``starting``, ``started`` or ``ended``."""

    launch: Any
    invocation: Invocation
    who: WorkerIdentity | None = None
    attempt: str = "starting"
    gone: bool = False
    nonce: str | None = None
    last: wire.Report | None = None
    """Its last report, to be sent again."""

    @property
    def state(self) -> str:
        """``made``, ``up``, ``started``, ``ended`` or ``gone``."""
        if self.gone:
            return "gone"
        if self.attempt == "starting":
            return "made" if self.who is None else "up"
        return self.attempt


class Machine(RuleBasedStateMachine):
    """The rules; ``home`` gives a folder for a new store."""

    new_bench: ClassVar[Callable[[Path], Bench]]

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.bench = self.new_bench(Path(self.folder.name))
        self.bench.stands_at = 1_800_000_000.0
        self.bench.deploy(**FUNCTIONS)
        self.invocations: dict[str, Invocation] = {}
        self.workers: dict[str, Worker] = {}

    started = Bundle("started")

    # --- clients --------------------------------------------------------------------------------------

    @rule(
        target=started,
        function=st.sampled_from(sorted(FUNCTIONS)),
        count=st.integers(1, 3),
        delay_s=st.sampled_from([0.0, 0.0, 10.0]),
    )
    def start(self, function: str, count: int, delay_s: float) -> Any:
        return multiple(*self._start(function, ["[[],{}]"] * count, delay_s=delay_s))

    @rule(target=started, function=st.sampled_from(sorted(FUNCTIONS)), parent=started)
    def start_child(self, function: str, parent: Invocation) -> Any:
        return multiple(*self._start(function, ["[[],{}]"], parent=parent))

    @precondition(lambda self: self._cancelled())
    @rule(target=started, data=st.data(), function=st.sampled_from(sorted(FUNCTIONS)))
    def start_child_of_a_cancelled_one(self, data: st.DataObject, function: str) -> Any:
        parent = data.draw(st.sampled_from(self._cancelled()))
        return multiple(*self._start(function, ["[[],{}]"], parent=parent))

    def _cancelled(self) -> list[Invocation]:
        return [each for each in self.invocations.values() if each.cancelled]

    @rule(target=started, function=st.sampled_from(sorted(FUNCTIONS)), count=st.integers(2, 4))
    def start_together(self, function: str, count: int) -> Any:
        """From as many clients, one of whom asks twice."""
        starts = [
            invocations.Start(
                wire.StartRequest(["[[],{}]"], request_key=f"key-{i}-{len(self.invocations)}")
            )
            for i in range(count)
        ]
        asked = [*starts, starts[0]]
        answers = self._do(
            invocations.start_all, self.bench.context.catalog, "shop", function, asked
        )
        assert answers[-1] == answers[0]
        ids = [answer.invocation_ids[0] for answer in answers[:-1]]
        return multiple(*self._known(function, ids, None))

    def _start(
        self, function: str, inputs: list[str], *, parent: Invocation | None = None, **more: Any
    ) -> list[Invocation]:
        parent_id = None if parent is None else parent.invocation_id
        request = wire.StartRequest(inputs, parent_id=parent_id, **more)
        answer = self._do(invocations.start, self.bench.context.catalog, "shop", function, request)
        return self._known(function, answer.invocation_ids, parent)

    def _known(self, function: str, ids: list[str], parent: Invocation | None) -> list[Invocation]:
        made = [Invocation(invocation_id, function, parent) for invocation_id in ids]
        for each in made:
            assert each.invocation_id not in self.invocations
            self.invocations[each.invocation_id] = each
            if parent is not None:
                parent.children.append(each)
                if parent.cancelled:
                    each.cancel()
        return made

    @rule(invocation=started)
    def cancel(self, invocation: Invocation) -> None:
        was_over = decide.is_final(invocation.status)
        answer = self._do(invocations.cancel, [invocation.invocation_id])
        assert answer.ended == ([invocation.invocation_id] if was_over else [])
        invocation.cancel()
        self._forget_attempts()

    @rule(function=st.sampled_from(sorted(FUNCTIONS)))
    def cancel_all(self, function: str) -> None:
        self._do(invocations.cancel_all, "shop", function)
        for each in self.invocations.values():
            if each.function == function:
                each.cancel()
        self._forget_attempts()

    def _forget_attempts(self) -> None:
        """Those that had not started when their invocation ended."""
        for worker in self.workers.values():
            if worker.attempt == "starting" and decide.is_final(worker.invocation.status):
                worker.attempt = "ended"

    # --- time -----------------------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([1.0, 6.0, 40.0]))
    def wait(self, seconds: float) -> None:
        self.bench.skew_s += seconds
        self._do(lambda tx: tx.wake())
        for each in self.invocations.values():
            if each.status == wire.PENDING and self._status(each) == wire.TIMED_OUT:
                assert "queue_timeout_s" in FUNCTIONS[each.function]
                assert each.starts == 0
                each.status = wire.TIMED_OUT
        self._forget_attempts()

    # --- the runner -----------------------------------------------------------------------------------

    def _look_for_workers(self) -> None:
        """Knows those that the runner was told to make meanwhile."""
        for launch in self.bench.launched[len(self.workers) :]:
            query = sa.select(model.workers).where(model.workers.c.worker_id == launch.worker_id)
            row = self.bench.look(lambda connection, query=query: connection.execute(query).one())
            self.workers[launch.worker_id] = Worker(launch, self.invocations[row.invocation_id])
        self._forget_attempts()

    def _some(self, data: st.DataObject, *states: str) -> Worker:
        return data.draw(st.sampled_from(self._in(*states)))

    def _in(self, *states: str) -> list[Worker]:
        return [each for each in self.workers.values() if each.state in states]

    @precondition(lambda self: self._in("made"))
    @rule(data=st.data())
    def accepted(self, data: st.DataObject) -> None:
        self._do(executions.worker_accepted, self._some(data, "made").launch.worker_id, 0.0)

    @precondition(lambda self: self._in("made"))
    @rule(data=st.data())
    def could_not_be_made(self, data: st.DataObject) -> None:
        worker = self._some(data, "made")
        worker.gone, worker.attempt = True, "ended"
        context = self.bench.context
        self._do(executions.worker_not_made, context, worker.launch.worker_id, "no room")

    @precondition(lambda self: self._in("ended"))
    @rule(data=st.data())
    def goes(self, data: st.DataObject) -> None:
        self._gone(self._some(data, "ended"))

    @precondition(lambda self: self.workers)
    @rule(data=st.data(), out_of_memory=st.booleans())
    def dies(self, data: st.DataObject, out_of_memory: bool) -> None:
        """At any time; of one that is gone already it may be told once more."""
        worker = self._some(data, "made", "up", "started", "ended", "gone")
        self._gone(worker, out_of_memory=out_of_memory)

    def _gone(self, worker: Worker, **end: Any) -> None:
        if worker.state == "started":
            worker.invocation.end("lost", retryable=True)
        worker.gone, worker.attempt = True, "ended"
        told = WorkerEnd(worker.launch.worker_id, **end)
        self._do(executions.worker_gone, self.bench.context, told)

    # --- workers --------------------------------------------------------------------------------------

    @precondition(lambda self: self._in("made"))
    @rule(data=st.data())
    def comes_up(self, data: st.DataObject) -> None:
        self._exchange(self._some(data, "made"))

    def _exchange(self, worker: Worker, nonce: str = "nonce") -> None:
        request = wire.ExchangeRequest(worker.launch.worker_id, worker.launch.claim_code, nonce)
        is_used = worker.nonce not in (None, nonce)
        if worker.attempt == "ended" or is_used:
            self._refused(executions.exchange, self.bench.context, request)
            return
        who = self._do(executions.exchange, self.bench.context, request)[1]
        assert worker.who in (None, who)
        worker.who, worker.nonce = who, nonce

    @precondition(lambda self: self._in("up"))
    @rule(data=st.data())
    def claims(self, data: st.DataObject) -> None:
        self._claim(self._some(data, "up"))

    def _claim(self, worker: Worker) -> None:
        request = wire.Claim(worker.launch.execution_id)
        if worker.attempt == "ended":
            self._refused(executions.claim, worker.who, request)
            return
        if worker.attempt == "starting":
            worker.attempt = "started"
            worker.invocation.status = wire.RUNNING
            worker.invocation.starts += 1
        is_cancelling = worker.invocation.status == wire.CANCELLING
        order = self._do(executions.claim, worker.who, request)
        assert order == wire.Order("cancel" if is_cancelling else None)

    @precondition(lambda self: self._in("started"))
    @rule(data=st.data(), count=st.integers(1, 3), is_answer_lost=st.booleans())
    def yields(self, data: st.DataObject, count: int, is_answer_lost: bool) -> None:
        worker = self._some(data, "started")
        values, first = worker.invocation.values, len(worker.invocation.values) + 1
        new = [wire.Value(first + i, f"{first + i}") for i in range(count)]
        values += [each.value for each in new]
        self._report(worker, values=new)
        if is_answer_lost:
            self._do(executions.report, self.bench.context, worker.who, worker.last)

    @precondition(lambda self: self._in("started"))
    @rule(data=st.data(), outcome=st.sampled_from(ENDS), retryable=st.booleans())
    def ends(self, data: st.DataObject, outcome: str, retryable: bool) -> None:
        self._end(self._some(data, "started"), outcome, retryable=retryable)

    def _end(self, worker: Worker, outcome: str, *, retryable: bool) -> None:
        failed = outcome != "succeeded"
        error = wire.FunctionError("bad", "ValueError") if failed else None
        result = None if failed else "7"
        worker.attempt = "ended"
        worker.invocation.end(outcome, retryable=retryable)
        end = wire.ExecutionEnd(outcome, result=result, error=error, retryable=retryable)
        self._report(worker, end=end)

    def _report(self, worker: Worker, **what: Any) -> None:
        worker.last = wire.Report(worker.launch.execution_id, **what)
        self._do(executions.report, self.bench.context, worker.who, worker.last)

    @precondition(lambda self: self._in("made"))
    @rule(data=st.data(), outcome=st.sampled_from(ENDS), attempts=st.integers(1, 4))
    def lives_a_life(self, data: st.DataObject, outcome: str, attempts: int) -> None:
        """Attempts one after another: chance alone seldom comes to a second one."""
        self._live(self._some(data, "made"), outcome, attempts)

    def _live(self, worker: Worker, outcome: str, attempts: int) -> None:
        for _ in range(attempts):
            self._exchange(worker)
            self._claim(worker)
            self._end(worker, outcome, retryable=True)
            self._gone(worker)
            self.wait(40.0)
            self._look_for_workers()
            again = [each for each in self._in("made") if each.invocation is worker.invocation]
            if not again:
                return
            worker = again[0]

    # --- what comes late, or twice, or from somebody else ----------------------------------------------

    @precondition(lambda self: self._in("up", "started", "ended", "gone"))
    @rule(data=st.data(), nonce=st.sampled_from(["nonce", "another"]))
    def exchanges_again(self, data: st.DataObject, nonce: str) -> None:
        self._exchange(self._some(data, "up", "started", "ended", "gone"), nonce)

    @precondition(lambda self: self._with_token())
    @rule(data=st.data())
    def claims_again(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self._with_token()))
        if worker.attempt != "starting":
            self._claim(worker)

    def _with_token(self) -> list[Worker]:
        return [each for each in self.workers.values() if each.who is not None]

    @precondition(lambda self: self._reporters())
    @rule(data=st.data())
    def reports_again(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self._reporters()))
        try:
            self._do(executions.report, self.bench.context, worker.who, worker.last)
        except ClaimRefused:
            assert worker.attempt == "ended"

    def _reporters(self) -> list[Worker]:
        return [each for each in self.workers.values() if each.last is not None]

    @precondition(lambda self: self._overtaken())
    @rule(data=st.data())
    def reports_too_late(self, data: st.DataObject) -> None:
        """What its attempt did not do before it ended, it can do no more."""
        worker = data.draw(st.sampled_from(self._overtaken()))
        late = wire.Value(len(worker.invocation.values) + 1, "late")
        request = wire.Report(worker.launch.execution_id, values=[late])
        self._refused(executions.report, self.bench.context, worker.who, request)

    def _overtaken(self) -> list[Worker]:
        return [each for each in self._with_token() if each.attempt == "ended"]

    # --- what must hold -------------------------------------------------------------------------------

    def _do(self, case: Any, *arguments: Any) -> Any:
        return self.bench.do(case, *arguments)

    def _refused(self, case: Any, *arguments: Any) -> None:
        try:
            self._do(case, *arguments)
        except ClaimRefused:
            return
        message = f"{case.__name__} was not refused"
        raise AssertionError(message)

    def _status(self, invocation: Invocation) -> str:
        return self.bench.status(invocation.invocation_id)

    @invariant()
    def workers_are_known(self) -> None:
        self._look_for_workers()

    @invariant()
    def statuses_are_those_of_the_model(self) -> None:
        for each in self.invocations.values():
            found = self.bench.info(each.invocation_id)
            assert found.status == each.status
            assert found.num_failed_attempts == each.failed
            assert each.starts <= each.max_retries + 1
            if decide.is_final(each.status):
                seen = (found.status, found.result, found.error, found.finished_at)
                before = each.at_the_end
                each.at_the_end = found
                if before is not None:
                    assert seen == (
                        before.status, before.result, before.error, before.finished_at
                    )  # fmt: skip

    @invariant()
    def values_are_kept_in_order(self) -> None:
        for each in self.invocations.values():
            page = self.bench.look(invocations.values_after, each.invocation_id, 0, None)
            assert [value.number for value in page.values] == list(range(1, len(each.values) + 1))
            assert [value.value for value in page.values] == each.values

    @invariant()
    def slots_and_room_are_those_of_living_workers(self) -> None:
        living = self.bench.look(
            lambda connection: connection.execute(
                sa.select(model.workers).where(model.workers.c.gone_at.is_(None))
            ).all()
        )
        assert sum(row.cpu for row in living) <= CPU
        for name, function in FUNCTIONS.items():
            own = [row for row in living if row.function == name]
            ready, workers = self.bench.queue(name)
            assert len(own) == workers <= function["max_concurrency"]
            waiting = self.bench.look(
                lambda connection, name=name: connection.execute(
                    sa.select(sa.func.count()).where(
                        model.invocations.c.function == name,
                        model.invocations.c.waiting == model.READY,
                    )
                ).scalar()
            )
            assert ready == waiting

    def teardown(self) -> None:
        """All workers do their work and go; in the end nothing is left."""
        try:
            for _ in range(200):
                self._look_for_workers()
                if living := [worker for worker in self.workers.values() if not worker.gone]:
                    self._let_go(living)
                elif all(decide.is_final(each.status) for each in self.invocations.values()):
                    break
                self.wait(40.0)
            for each in self.invocations.values():
                assert decide.is_final(each.status), f"{each} never ends"
                assert self.bench.info(each.invocation_id).terminated
            for name in FUNCTIONS:
                assert self.bench.queue(name) == (0, 0)
        finally:
            self.bench.close()
            self.folder.cleanup()

    def _let_go(self, living: list[Worker]) -> None:
        for worker in living:
            if worker.state == "made":
                self._exchange(worker)
            if worker.state == "up":
                self._claim(worker)
            if worker.state == "started":
                self._end(worker, "succeeded", retryable=False)
            self._gone(worker)


def run(examples: int, *, is_planted: bool = False) -> None:
    """Where it fails, the shortest way to it is looked for; not where it is meant to: there the same ways are tried each time."""
    machine = type("StatesOfInvocations", (Machine,), {"new_bench": staticmethod(make_bench)})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            derandomize=is_planted or "CI" in os.environ,
            database=None,
            phases=[Phase.generate] if is_planted else [Phase.generate, Phase.shrink],
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.timeout(600)
def test_whatever_happens_the_store_says_what_the_model_says(database: str) -> None:
    run(EXAMPLES[database])


def _retries_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    original = decide.settle

    def settle(**facts: Any) -> decide.Settled:
        return original(**{**facts, "failed_before": 0})

    monkeypatch.setattr(decide, "settle", settle)


def _leaks_a_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    original = rows.count

    def count(tx: Any, project: str, function: str, *, workers: int = 0, **more: int) -> None:
        original(tx, project, function, workers=max(workers, 0), **more)

    monkeypatch.setattr(rows, "count", count)


def _forgets_that_it_was_claimed(monkeypatch: pytest.MonkeyPatch) -> None:
    original = executions.exchange

    def exchange(tx: Any, context: Any, request: wire.ExchangeRequest) -> Any:
        monkeypatch.setattr(executions, "_code_fits", lambda worker, request: True)
        return original(tx, context, request)

    monkeypatch.setattr(executions, "exchange", exchange)


def _stores_values_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    original = executions.store_values

    def store_values(tx: Any, context: Any, row: Any, attempt: int, reported: Any) -> Any:
        again = [wire.Value(row.num_values + i + 1, v.value) for i, v in enumerate(reported)]
        return original(tx, context, row, attempt, again)

    monkeypatch.setattr(executions, "store_values", store_values)


def _spares_children(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(invocations, "_is_cancelled", lambda *_: False)


def _lets_in_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(admission, "_room_left", lambda tx, context: decide.Room(9.0, 99_999))


def _made(machine: Machine, function: str) -> Worker:
    """The worker of an only invocation."""
    machine._start(function, ["[[],{}]"])
    machine._look_for_workers()
    (worker,) = machine.workers.values()
    return worker


def _started(machine: Machine) -> Worker:
    """The worker of an only invocation, which has claimed it."""
    worker = _made(machine, "once")
    machine._exchange(worker)
    machine._claim(worker)
    return worker


def _fails_each_time(machine: Machine) -> None:
    machine._live(_made(machine, "again"), "failed", 3)


def _goes(machine: Machine) -> None:
    machine._gone(_started(machine))


def _is_asked_for_with_a_used_code(machine: Machine) -> None:
    machine._exchange(_started(machine), "another")


def _reports_a_value_twice(machine: Machine) -> None:
    worker = _started(machine)
    worker.invocation.values.append("1")
    machine._report(worker, values=[wire.Value(1, "1")])
    machine._do(executions.report, machine.bench.context, worker.who, worker.last)


def _has_a_child_when_it_is_cancelled(machine: Machine) -> None:
    parent = _started(machine).invocation
    machine.cancel(parent)
    machine._start("again", ["[[],{}]"], parent=parent)


def _comes_often(machine: Machine) -> None:
    for function in FUNCTIONS:
        machine._start(function, ["[[],{}]"] * 3)


PLANTS: list[tuple[Callable[[pytest.MonkeyPatch], None], Callable[[Machine], None]]] = [
    (_retries_for_ever, _fails_each_time),
    (_leaks_a_slot, _goes),
    (_forgets_that_it_was_claimed, _is_asked_for_with_a_used_code),
    (_stores_values_twice, _reports_a_value_twice),
    (_spares_children, _has_a_child_when_it_is_cancelled),
    (_lets_in_too_many, _comes_often),
]
"""Each with a way on which it is seen."""
NAMES = [plant.__name__.strip("_").replace("_", " ") for plant, _ in PLANTS]


def walk(way: Callable[[Machine], None]) -> None:
    """Goes one way, and looks at the end whether all that must hold does."""
    machine = type("OneWay", (Machine,), {"new_bench": staticmethod(make_bench)})()
    try:
        way(machine)
        machine.workers_are_known()
        machine.statuses_are_those_of_the_model()
        machine.values_are_kept_in_order()
        machine.slots_and_room_are_those_of_living_workers()
    finally:
        machine.bench.close()
        machine.folder.cleanup()


@pytest.mark.parametrize(("plant", "way"), PLANTS, ids=NAMES)
def test_a_planted_bug_is_seen(monkeypatch: Any, plant: Any, way: Any) -> None:
    walk(way)
    plant(monkeypatch)
    with pytest.raises(Exception):  # noqa: B017, PT011 - an assertion of ours, or the store's own
        walk(way)


@pytest.mark.soak
@pytest.mark.timeout(1200)
@pytest.mark.parametrize("plant", [plant for plant, _ in PLANTS], ids=NAMES)
def test_a_planted_bug_is_found_by_chance(monkeypatch: pytest.MonkeyPatch, plant: Any) -> None:
    plant(monkeypatch)
    with pytest.raises(Exception):  # noqa: B017, PT011 - an assertion of ours, or the store's own
        run(150, is_planted=True)
