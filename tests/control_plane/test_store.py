"""The store: a job that raises changes nothing, one that finds the disk full says so, and the writer goes on."""

from __future__ import annotations

import asyncio
import threading

import pytest
import sqlalchemy as sa
from tests.control_plane.bench import Bench

from multinode.errors import FunctionNotFound, StorageFull
from multinode_control_plane import model
from multinode_control_plane.service import invocations


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
    bench.store.submit(lambda tx: (begun.set(), going.wait(10)))
    assert begun.wait(10)  # so the others are a batch of their own

    def look(tx) -> int:
        if database == "sqlite":
            return tx.connection.exec_driver_sql("PRAGMA synchronous").scalar_one()
        waits = tx.connection.exec_driver_sql("SHOW synchronous_commit").scalar_one()
        return {"on": 2, "off": 1}[waits]

    waiting = [bench.store.submit(look, durable=each) for each in durable]
    going.set()
    assert {each.result(10) for each in waiting} == {level}


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
