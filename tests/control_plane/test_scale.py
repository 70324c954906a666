"""What is stored costs nothing to those who do not ask for it: no statement of a use case goes through a table, and a page costs the same
at any depth of a store of any size. Counted, not timed.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from tests.control_plane.bench import Bench, make_bench

from multinode import wire
from multinode.errors import InvocationNotFound
from multinode_control_plane import model
from multinode_control_plane.api.cancelling import cancel_children, cancel_waiting
from multinode_control_plane.service import (
    admission,
    cancelling,
    deployments,
    invocations,
    listing,
    statements,
)

LARGE = {"invocations", "executions", "workers", "yielded_values", "costs", "audit"}
FEW, MANY = 1_600, 6_400


ALL: dict[str, Any] = {
    "project": None, "function": None, "version_id": None, "status": None, "in_flight": False,
}  # fmt: skip


@dataclass(frozen=True)
class Filled:
    """A store with invocations of two projects, of all statuses and functions in turns, and the version of the first."""

    bench: Bench
    version_id: str

    def page(self, offset: str | None = None, **wanted: Any) -> wire.InvocationList:
        asked = {**ALL, **wanted}
        if asked["version_id"] is not None:
            asked["version_id"] = self.version_id
        return self.bench.look(listing.page, 0.0, **asked, offset=offset)


def filled(home: Path, count: int) -> Filled:
    home.mkdir()
    made = make_bench(home)
    functions = {"f": {"max_concurrency": 1}, "g": {}}
    versions = [made.deploy(project, **functions) for project in ("shop", "other")]
    rows = [_row(i, versions[i % 2]) for i in range(count)]
    made.do(lambda tx: statements.insert(tx.connection, model.invocations, *rows))
    return Filled(made, versions[0])


def _row(i: int, version_id: str) -> dict[str, Any]:
    status = wire.STATUSES[i // 4 % len(wire.STATUSES)]
    is_final, is_pending = status in wire.FINAL_STATUSES, status == wire.PENDING
    return {
        "invocation_id": model.new_id("inv"),
        "project": ("shop", "other")[i % 2],
        "function": ("f", "g")[i // 2 % 2],
        "version_id": version_id,
        "status": status,
        "waiting": model.DELAYED if is_pending else None,
        "due_at": 4e9 if is_pending else None,
        "input": "[[],{}]",
        "created_at": float(i),
        "finished_at": float(i) if is_final else None,
        "terminated": is_final,
    }


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Filled, Filled]]:
    """One with a page of each kind in it, one with four times as much."""
    home = tmp_path_factory.mktemp("stores")
    few, many = filled(home / "few", FEW), filled(home / "many", MANY)
    yield few, many
    few.bench.close()
    many.bench.close()


@contextmanager
def steps_of(bench: Bench) -> Iterator[list[int]]:
    """Counts the instructions that SQLite executes for the readers meanwhile."""
    counted = [0]

    def one_more() -> int:
        counted[0] += 1
        return 0

    def prepare(connection: sa.Connection, *_others: Any) -> None:
        connection.connection.driver_connection.set_progress_handler(one_more, 1)

    sa.event.listen(bench.store.engine, "before_cursor_execute", prepare)
    yield counted
    sa.event.remove(bench.store.engine, "before_cursor_execute", prepare)


@contextmanager
def plans_of(bench: Bench) -> Iterator[list[str]]:
    """The plans of all statements meanwhile, each line with its statement."""
    found: list[str] = []

    def note(
        _connection: sa.Connection, cursor: Any, statement: str, parameters: Any, *_others: Any
    ) -> None:
        if re.match(r"(SELECT|UPDATE|DELETE|INSERT)", statement) and "RETURNING" not in statement:
            first = parameters[0] if isinstance(parameters, list) else parameters
            plan = cursor.connection.execute(f"EXPLAIN QUERY PLAN {statement}", first)
            found.extend(f"{line[3]}  -- {' '.join(statement.split())}" for line in plan)

    sa.event.listen(bench.store.engine, "before_cursor_execute", note)
    yield found
    sa.event.remove(bench.store.engine, "before_cursor_execute", note)


def whole_tables(plans: list[str]) -> list[str]:
    """Those lines that go through a large table, or sort what they found in it."""
    return [
        line
        for line in plans
        if (
            (
                scan := re.match(
                    r"SCAN (\w+)(?! USING (COVERING )?INDEX (workers_alive|invocations_due))", line
                )
            )
            and scan[1] in LARGE
        )
        or (line.startswith("USE TEMP B-TREE") and "FROM invocations" in line)
    ]


LISTS: list[dict[str, Any]] = [
    {},
    {"in_flight": True},
    {"status": wire.FAILED},
    {"project": "shop"},
    {"project": "shop", "in_flight": True},
    {"project": "shop", "status": wire.RUNNING},
    {"project": "shop", "function": "f"},
    {"project": "shop", "function": "f", "in_flight": True},
    {"project": "shop", "function": "f", "status": wire.TIMED_OUT},
    {"project": "shop", "version_id": "?"},
    {"project": "shop", "version_id": "?", "function": "f", "status": wire.PENDING},
    {"version_id": "?", "in_flight": True},
]


@pytest.mark.parametrize("wanted", LISTS, ids=str)
def test_a_page_costs_the_same_however_much_is_stored_and_at_any_depth(
    stores: tuple[Filled, Filled], wanted: dict[str, Any]
) -> None:
    few, many = stores

    def cost(of: Filled, offset: str | None) -> int:
        of.page(offset, **wanted)  # by now what is compiled once is
        with steps_of(of.bench) as steps:
            assert len(of.page(offset, **wanted).invocations) == 50
        return steps[0]

    reference = cost(few, None)
    page, depth = many.page(**wanted), 0
    while page.next_offset is not None:
        assert cost(many, page.next_offset) <= 1.2 * reference
        page, depth = many.page(page.next_offset, **wanted), depth + 1
        if depth == 3:
            break
    assert depth == 3
    with plans_of(many.bench) as plans:
        many.page(str(MANY), **wanted)
    assert not whole_tables(plans)


def test_pages_hold_each_once_and_in_order(tmp_path: Path, database: str) -> None:
    few = filled(tmp_path / database, 600)
    for wanted in LISTS:
        found: list[str] = []
        page = few.page(**wanted)
        while page.next_offset is not None:
            found += [item.invocation_id for item in page.invocations]
            page = few.page(page.next_offset, **wanted)
        found += [item.invocation_id for item in page.invocations]
        assert found == expected(few, {**ALL, **wanted}), wanted
    few.bench.close()


def expected(few: Filled, asked: dict[str, Any]) -> list[str]:
    columns = model.invocations.c
    query = sa.select(columns.invocation_id).order_by(columns.seq.desc())
    for name in ("project", "function", "version_id", "status"):
        if asked[name] is not None:
            value = few.version_id if name == "version_id" else asked[name]
            query = query.where(columns[name] == value)
    if asked["in_flight"]:
        query = query.where(columns.finished_at.is_(None))
    return list(few.bench.look(lambda connection: connection.execute(query).scalars().all()))


Case = Callable[[Bench], object]
CASES: dict[str, Case] = {
    "start": lambda bench: bench.start(delay_s=60.0),
    "tick": lambda bench: bench.tick(),
    "start and tick": lambda bench: bench.start(),
}


@pytest.mark.parametrize("name", CASES)
def test_no_statement_goes_through_what_is_stored(stores: tuple[Filled, Filled], name: str) -> None:
    _, many = stores
    with plans_of(many.bench) as plans:
        CASES[name](many.bench)
    assert plans
    assert not whole_tables(plans)


# --- many at once: in steps -----------------------------------------------------------------------------


def many_waiting(bench: Bench, monkeypatch: pytest.MonkeyPatch, **options: Any) -> list[str]:
    """Seven that wait where a step takes three, so that the last one takes one."""
    monkeypatch.setattr(cancelling, "_WAITING", cancelling._WAITING.limit(3))
    of_function = cancelling._WAITING_OF_FUNCTION.limit(3)
    monkeypatch.setattr(cancelling, "_WAITING_OF_FUNCTION", of_function)
    monkeypatch.setattr(cancelling, "_WAITING_CHILDREN", cancelling._WAITING_CHILDREN.limit(3))
    monkeypatch.setattr(cancelling, "STEP", 3)
    return [bench.start(**{"delay_s": 60.0, **options}) for _ in range(7)]


@contextmanager
def commits_of(bench: Bench) -> Iterator[list[int]]:
    """How many jobs went along with each commit meanwhile."""
    found: list[int] = []
    bench.store.on_commit = lambda writers, _lasted_s: found.append(len(writers))
    yield found


@pytest.mark.parametrize("function", [None, "f"])
def test_what_waits_is_cancelled_in_steps(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, function: str | None
) -> None:
    bench.deploy(f={"max_concurrency": 1}, g={})
    running = bench.start("g")
    ready = [bench.start() for _ in range(2)]  # the first gets the slot
    ids = many_waiting(bench, monkeypatch)
    other = bench.start("g", delay_s=60.0)
    with commits_of(bench) as commits:
        done = bench.run_on_loop(cancel_waiting(bench.store, "shop", function))
    expected = [ready[1], *ids] if function else [ready[1], *ids, other]
    assert (done, len(commits)) == (expected, len(expected) // 3 + 1)
    assert {bench.status(each) for each in done} == {wire.CANCELLED}
    left = [running, ready[0]] + ([other] if function else [])
    assert {bench.status(each) for each in left} == {wire.PENDING}
    assert bench.queue() == (0, 1), "those that were ready are counted no more"
    info = bench.info(ready[1])
    assert (info.terminated, info.cancel_requested_at is not None) == (True, True)


def test_what_is_started_after_the_request_is_not_cancelled(bench: Bench) -> None:
    bench.deploy()
    first = bench.start(delay_s=60.0)
    last = bench.look(cancelling.newest)
    second = bench.start(delay_s=60.0)
    bench.do(cancelling.waiting, "shop", None, last)
    assert (bench.status(first), bench.status(second)) == (wire.CANCELLED, wire.PENDING)


def test_children_of_children_are_cancelled_in_steps_and_before_their_parents(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.deploy()
    parent = bench.start()
    bench.claim(parent)
    child = bench.start(parent_id=parent)
    bench.claim(child)
    ids = many_waiting(bench, monkeypatch, parent_id=parent)
    ids += many_waiting(bench, monkeypatch, parent_id=child)
    with commits_of(bench) as commits:
        bench.run_on_loop(cancel_children(bench.store, [parent], None))
    assert len(commits) == 14 // 3 + 1
    assert {bench.status(each) for each in (parent, child)} == {wire.RUNNING}
    bench.do(invocations.cancel, [parent])
    assert {bench.status(each) for each in ids} == {wire.CANCELLED}
    assert {bench.status(each) for each in (parent, child)} == {wire.CANCELLING}


def test_those_of_another_project_are_left(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.deploy()
    parent = bench.start()
    bench.claim(parent)
    ids = many_waiting(bench, monkeypatch, parent_id=parent)
    with pytest.raises(InvocationNotFound):
        bench.run_on_loop(cancel_children(bench.store, [parent], "other"))
    assert {bench.status(each) for each in ids} == {wire.PENDING}


def test_what_is_due_after_a_long_stop_is_released_in_steps(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(admission, "_DUE", admission._DUE.limit(3))
    monkeypatch.setattr(admission, "_OVERDUE", admission._OVERDUE.limit(3))
    bench.deploy(f={"max_concurrency": 1}, g={"queue_timeout_s": 30.0})
    for _ in range(5):
        bench.start(delay_s=10.0)
    late = [bench.start("g", delay_s=10.0) for _ in range(4)]
    bench.skew_s = 50.0
    bench.tick()
    assert sum(bench.status(each) == wire.TIMED_OUT for each in late) == 3
    assert bench.timers[-1] <= bench.now(), "the next tick is due at once"
    for _ in range(3):
        bench.tick()
    assert {bench.status(each) for each in late} == {wire.TIMED_OUT}
    assert bench.queue() == (4, 1)
    assert bench.queue("g") == (0, 0)


def test_a_project_with_many_invocations_is_removed_in_steps(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(invocations, "PURGE", 3)
    bench.deploy()
    for _ in range(3):
        bench.run(bench.start())
    for _ in range(30):
        bench.start(delay_s=60.0)

    def left() -> tuple[int, int]:
        def count(connection: sa.Connection) -> tuple[int, int]:
            tables = (model.projects, model.invocations)
            found = (connection.execute(sa.select(sa.func.count()).select_from(t)) for t in tables)
            projects, stored = (each.scalar_one() for each in found)
            return projects, stored

        return bench.look(count)

    bench.do(deployments.delete, "shop")
    steps = [left()]
    while steps[-1] != (0, 0):
        bench.tick()
        steps.append(left())
    *before, last = steps
    assert (last, {projects for projects, _ in before}) == ((0, 0), {1})
    # A delete has up to three in one transaction, its last cancellation, itself and the tick; a tick has one.
    assert before[0][1] == 33 - 3 * 4
    assert all(a[1] - b[1] <= 4 for a, b in itertools.pairwise(before))
