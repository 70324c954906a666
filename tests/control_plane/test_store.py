"""The store: a job that raises changes nothing, one that finds the disk full says so, and the writer goes on."""

from __future__ import annotations

import asyncio
import threading

import pytest
import sqlalchemy as sa
from tests.control_plane.bench import Bench

from multinode import wire
from multinode.errors import FunctionNotFound, StorageFull
from multinode_control_plane import model
from multinode_control_plane.service import invocations, statements


def test_a_job_that_raises_changes_nothing(bench: Bench) -> None:
    bench.deploy()

    def job(tx) -> None:
        tx.connection.execute(sa.delete(model.projects))
        message = "no"
        raise ValueError(message)

    with pytest.raises(ValueError, match="no"):
        bench.do(job)
    assert bench.status(bench.start()) == "PENDING"


def test_a_full_disk_is_an_error_and_loses_nothing(sqlite_bench: Bench) -> None:
    bench = sqlite_bench
    bench.deploy()
    first = bench.start()

    def limit(pages: int) -> None:
        bench.do(lambda tx: tx.connection.exec_driver_sql(f"PRAGMA max_page_count={pages}"))

    limit(1)  # SQLite takes it for the size that it has
    with pytest.raises(StorageFull):
        bench.start(inputs=["1" * 200_000] * 20)
    assert bench.status(first) == "PENDING"
    limit(1_000_000)
    assert bench.status(bench.start()) == "PENDING"


@pytest.mark.parametrize(("durable", "level"), [((True,), 2), ((False,), 1), ((False, True), 2)])
def test_a_commit_waits_for_the_disk_unless_nothing_in_it_has_to(
    bench: Bench, database: str, durable: tuple[bool, ...], level: int
) -> None:
    begun, going = threading.Event(), threading.Event()
    bench.store.submit(lambda tx: (begun.set(), going.wait(60)))
    assert begun.wait(60)  # so the others are a batch of their own

    def look(tx) -> int:
        if database == "sqlite":
            return tx.connection.exec_driver_sql("PRAGMA synchronous").scalar_one()
        waits = tx.connection.exec_driver_sql("SHOW synchronous_commit").scalar_one()
        return {"on": 2, "off": 1}[waits]

    waiting = [bench.store.submit(look, durable=each) for each in durable]
    going.set()
    assert {each.result(60) for each in waiting} == {level}


def test_what_is_not_urgent_goes_along_with_the_next_commit_or_by_itself_soon(
    bench: Bench,
) -> None:
    order: list[str] = []

    async def write_both() -> None:
        later = asyncio.create_task(
            bench.store.write(lambda tx: order.append("later"), urgent=False)
        )
        await asyncio.sleep(0)  # until it has begun
        await bench.store.write(lambda tx: order.append("urgent"))
        await asyncio.wait_for(later, 10)

    async def write_one() -> None:
        await asyncio.wait_for(
            bench.store.write(lambda tx: order.append("alone"), urgent=False), 10
        )

    bench.run_on_loop(write_both())
    assert order == ["later", "urgent"]
    bench.run_on_loop(write_one())
    assert order[-1] == "alone"


def test_the_same_retry_asked_twice_starts_one(bench: Bench) -> None:
    bench.deploy()
    old = bench.start()
    catalog = bench.context.catalog
    answers = {
        bench.do(invocations.retry, catalog, old, "key-1").invocation_ids[0] for _ in range(2)
    }
    assert len(answers) == 1
    assert answers != {old}


def test_cancelling_all_of_an_unknown_function_says_so(bench: Bench) -> None:
    bench.deploy(greet={})
    with pytest.raises(FunctionNotFound, match="grete") as caught:
        bench.do(invocations.cancel_all, "shop", "grete")
    assert "greet" in caught.value.hint


class Together:
    """Writes that wait for the writer at the same time, each of them with the others of its kind."""

    def __init__(self, bench: Bench) -> None:
        self.bench = bench
        self.calls: list[list[str]] = []

    def do_all(self, tx, items: list[str]) -> list[str]:
        self.calls.append(items)
        if "bad" in items:
            message = "bad"
            raise ValueError(message)
        return [item.upper() for item in items]

    def write(self, *items: str, kind: str = "kind") -> list[object]:
        async def work() -> list[object]:
            begun, going = threading.Event(), threading.Event()
            self.bench.store.submit(lambda tx: (begun.set(), going.wait(60)))
            assert begun.wait(60)
            store = self.bench.store
            waiting = [
                asyncio.create_task(store.write_with_others(kind or object(), item, self.do_all))
                for item in items
            ]
            await asyncio.sleep(0)  # until each has begun
            going.set()
            return await asyncio.gather(*waiting, return_exceptions=True)

        return self.bench.run_on_loop(work())


def test_what_is_of_a_kind_is_done_together(bench: Bench) -> None:
    together = Together(bench)
    assert together.write("a", "b", "c") == ["A", "B", "C"]
    assert together.calls == [["a", "b", "c"]]


def test_what_is_of_no_kind_is_done_alone(bench: Bench) -> None:
    together = Together(bench)
    assert together.write("a", "b", kind="") == ["A", "B"]
    assert together.calls == [["a"], ["b"]]


def test_one_that_fails_among_others_fails_alone(bench: Bench) -> None:
    together = Together(bench)
    one, bad, two = together.write("a", "bad", "b")
    assert (one, two) == ("A", "B")
    assert isinstance(bad, ValueError)
    assert together.calls[1:] == [["a"], ["bad"], ["b"]]


def test_starts_of_a_function_at_once_are_as_they_are_one_by_one(bench: Bench) -> None:
    bench.deploy()

    def begun(text: str, key: str, delay_s: float = 0.0) -> invocations.Start:
        return invocations.Start(wire.StartRequest([text], request_key=key, delay_s=delay_s))

    before = bench.start(request_key="before")
    starts = [
        begun("[[1],{}]", "one"),
        begun("[[],{}]", "before"),
        begun("[[2],{}]", "two", delay_s=3600.0),
        begun("[[1],{}]", "one"),
    ]
    answers = bench.do(invocations.start_all, bench.context.catalog, "shop", "f", starts)
    one, known, two, again = [answer.invocation_ids[0] for answer in answers]
    assert known == before
    assert again == one
    assert len({before, one, two}) == 3
    assert bench.info(two).pending_reason.startswith("delayed until")
    assert bench.info(one).created_at <= bench.info(two).created_at
    ready = bench.look(statements.one, model.queues, project="shop", function="f")
    assert ready.ready + ready.workers == 2
