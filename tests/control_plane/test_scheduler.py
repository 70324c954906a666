"""The scheduler on a real store, with a runner that does as it is told: each state that is not final is moved on."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from tests.control_plane.told_plane import Plane, on_plane

from multinode import wire
from multinode.errors import ImportFailed, StorageFull
from multinode_control_plane import scheduler
from multinode_control_plane.runners import WorkerEnd
from multinode_control_plane.scheduler import STALLED_S
from multinode_control_plane.service import invocations, pools

pytestmark = pytest.mark.usefixtures("database")


def test_a_timer_that_is_hours_away_is_set_again_each_hour(tmp_path: Path) -> None:
    async def test(plane: Plane) -> None:
        await plane.deploy()
        await plane.start(delay_s=7200.0)
        scheduler = plane.scheduler

        async def is_armed() -> bool:
            return scheduler._timer is not None

        await plane.until(is_armed)
        scheduler._timer.cancel()
        scheduler._timer_is_over()  # after the hour that is the longest
        await plane.until(is_armed)
        assert scheduler._timer_at > time.time() + 7000

    on_plane(tmp_path, test)


def test_a_runner_is_told_of_all_environments_before_it_adopts(tmp_path: Path) -> None:
    """Another process, with a folder of its own, may have led meanwhile."""

    async def first(plane: Plane) -> None:
        assert plane.runner.learnt == []
        await plane.deploy()

    async def second(plane: Plane) -> None:
        assert plane.runner.learnt == ["e" * 64]

    on_plane(tmp_path, first)
    on_plane(tmp_path, second)


def test_a_runner_is_told_anew_what_workers_were_handed(tmp_path: Path) -> None:
    """A crash may have come between the commit and that it was told of it."""

    async def test(plane: Plane) -> None:
        await plane.deploy(max_invocations_per_worker=0, max_concurrency=1)
        first, second = await plane.start(), await plane.start()
        assignment, who = await plane.claim(first)
        end = wire.ExecutionEnd("succeeded", result="1")
        reports = [wire.Report(assignment.execution_id, None, end)]
        request = wire.NextRequest(2, 1, reports)
        await plane.store.write(
            lambda tx: pools.ask(tx, plane.context, who, request, draining=False)
        )
        assert (await plane.info(second)).status == wire.RUNNING
        told = list(plane.runner.handings)
        assert [worker_id for worker_id, _ in told] == [who.worker_id]
        plane.runner.handings.clear()
        await plane.scheduler.close()
        plane.scheduler = scheduler.Scheduler(plane.store, plane.runner, plane.context)
        await plane.scheduler.open("http://127.0.0.1:1")
        assert plane.runner.handings == told

    on_plane(tmp_path, test)


@pytest.mark.parametrize(
    ("has_called", "message", "hint"),
    [
        (False, "did not call", "Can workers reach the control plane at http"),
        (True, "took longer", "Move slow work"),
    ],
)
def test_an_import_that_never_comes_says_whether_its_worker_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_called: bool, message: str, hint: str
) -> None:
    async def test(plane: Plane) -> None:
        request = wire.DescribeRequest("e" * 64, "b" * 64, {})
        asking = asyncio.create_task(plane.scheduler.describe("shop", request))
        launch = await plane.launched()
        if has_called:
            plane.scheduler.exchange_describe(
                wire.ExchangeRequest(launch.worker_id, launch.claim_code, "nonce")
            )
        with pytest.raises(ImportFailed, match=message) as caught:
            await asking
        assert hint in caught.value.hint

    monkeypatch.setattr(scheduler, "DESCRIBE_TIMEOUT_S", -9.0)  # ten seconds are added
    on_plane(tmp_path, test)


def test_a_start_that_fails_in_an_unforeseen_way_frees_the_slot(tmp_path: Path) -> None:
    async def test(plane: Plane) -> None:
        plane.runner.start_error = OSError(24, "Too many open files")
        await plane.deploy()
        invocation_id = await plane.start()
        await plane.launched()

        async def is_free() -> bool:
            return await plane.workers() == 0

        await plane.until(is_free)
        info = await plane.info(invocation_id)
        assert info.status == wire.PENDING
        assert "Too many open files" in str(info.pending_reason)

    on_plane(tmp_path, test)


def test_a_worker_that_its_runner_does_not_know_is_gone_once_it_is_stopped(tmp_path: Path) -> None:
    async def test(plane: Plane) -> None:
        await plane.deploy(start_timeout_s=0.2)
        await plane.start()
        plane.runner.living.discard((await plane.launched()).worker_id)

        async def is_tried_again() -> bool:
            return len(plane.runner.launches) > 1 or await plane.workers() == 0

        await plane.until(is_tried_again)
        assert plane.runner.stops

    on_plane(tmp_path, test)


def test_a_worker_that_is_being_made_when_it_is_cancelled_is_stopped_once_it_is_there(
    tmp_path: Path,
) -> None:
    async def test(plane: Plane) -> None:
        plane.runner.may_start.clear()
        await plane.deploy()
        invocation_id = await plane.start()
        launch = await plane.launched()
        await plane.store.write(lambda tx: invocations.cancel(tx, [invocation_id]))
        info = await plane.info(invocation_id)
        assert (info.status, info.terminated) == (wire.CANCELLED, False)
        assert plane.runner.stops == []
        plane.runner.may_start.set()

        async def is_over() -> bool:
            return (await plane.info(invocation_id)).terminated

        await plane.until(is_over)
        assert plane.runner.stops == [launch.worker_id]
        assert plane.runner.living == set()

    on_plane(tmp_path, test)


def test_what_was_left_to_do_by_commits_that_were_not_heard_is_found(tmp_path: Path) -> None:
    async def test(plane: Plane) -> None:
        await plane.deploy(max_concurrency=2)
        await plane.start(delay_s=3600.0)  # what the timer is set to
        cancelled = await plane.start()
        launch = await plane.launch_of(cancelled)
        perform, plane.store.perform = plane.store.perform, lambda effects: None
        await plane.store.write(lambda tx: invocations.cancel(tx, [cancelled]))
        soon = await plane.start(delay_s=0.1)
        plane.store.perform = perform
        assert plane.runner.stops == []
        await plane.scheduler.catch_up()
        await plane.launch_of(soon)
        assert plane.runner.stops == [launch.worker_id]

    on_plane(tmp_path, test)


def test_nothing_is_kept_in_memory_of_a_worker_that_is_gone(tmp_path: Path) -> None:
    async def test(plane: Plane) -> None:
        await plane.deploy()
        await plane.start()
        worker_id = (await plane.launched()).worker_id
        plane.scheduler.heard(worker_id)
        plane.scheduler.opened(worker_id)
        plane.runner.end(worker_id)

        async def is_gone() -> bool:
            return await plane.workers() == 0 and worker_id not in plane.scheduler._leases

        await plane.until(is_gone)
        plane.scheduler.closed(worker_id)  # its watch is answered after its end
        plane.scheduler.heard(worker_id)
        assert worker_id not in plane.scheduler._leases

    on_plane(tmp_path, test)


def test_a_silent_worker_is_shown_as_unreachable_and_stopped_once(tmp_path: Path) -> None:
    async def test(plane: Plane) -> None:
        plane.runner.ends_when_stopped = False
        await plane.deploy()
        invocation_id = await plane.start()
        await plane.claim(invocation_id)
        launch = await plane.launched()
        plane.scheduler.heard(launch.worker_id)

        async def is_unreachable() -> bool:
            return (await plane.info(invocation_id)).unreachable

        await plane.until(is_unreachable)

        async def is_stopped() -> bool:
            return bool(plane.runner.stops)

        await plane.until(is_stopped)
        await plane.scheduler._ask_for_silent(time.monotonic())
        await plane.scheduler._ask_for_silent(time.monotonic())
        assert plane.runner.stops == [launch.worker_id]

    on_plane(tmp_path, test, silence_s=0.1, unreachable_s=0.2)


def test_a_worker_that_takes_long_to_be_ready_is_not_given_up_before_its_start_timeout(
    tmp_path: Path,
) -> None:
    """A large image may take longer to pull than any lease lasts."""

    async def test(plane: Plane) -> None:
        await plane.deploy(start_timeout_s=2.5)
        begun_at = time.monotonic()
        await plane.start()
        await plane.launched()

        async def is_stopped() -> bool:
            return bool(plane.runner.stops)

        await plane.until(is_stopped)
        assert time.monotonic() - begun_at > 2.4

    on_plane(tmp_path, test, silence_s=0.1, unreachable_s=0.2)


def test_a_control_plane_that_was_stopped_itself_gives_nobody_up_for_it(tmp_path: Path) -> None:
    async def test(plane: Plane) -> None:
        await plane.deploy()
        await plane.claim(await plane.start())
        plane.scheduler.heard((await plane.launched()).worker_id)
        time.sleep(STALLED_S + 2.5)  # noqa: ASYNC251, RUF100 - nothing of it runs meanwhile
        awake_at = time.monotonic()

        async def is_stopped() -> bool:
            return bool(plane.runner.stops)

        await plane.until(is_stopped)
        assert time.monotonic() - awake_at > 1.5, "its worker had no time to be heard"

    on_plane(tmp_path, test, silence_s=0.5, unreachable_s=1.5)


def test_an_end_that_the_full_disk_refused_is_stored_when_there_is_room(
    tmp_path: Path, monkeypatch: Any
) -> None:
    async def test(plane: Plane) -> None:
        await plane.deploy()
        await plane.start()
        worker_id = (await plane.launched()).worker_id
        write, refusals = plane.store.write, []

        async def full_at_first(job: Any, **options: Any) -> Any:
            if len(refusals) < 2:
                refusals.append(job)
                message = "The disk is full."
                raise StorageFull(message)
            return await write(job, **options)

        monkeypatch.setattr(plane.store, "write", full_at_first)
        plane.runner.end(worker_id)

        async def is_gone() -> bool:
            return await plane.workers() == 0

        await plane.until(is_gone)
        assert len(refusals) == 2

    monkeypatch.setattr("multinode_control_plane.scheduler.STORE_AGAIN_S", 0.01)
    on_plane(tmp_path, test)


OUT_OF_MEMORY = "killed: out of memory at its limit of 64 MiB"


@pytest.mark.parametrize(
    ("end", "message"),
    [
        ({}, "worker lost: it ended while the control plane was away"),
        ({"detail": OUT_OF_MEMORY, "signal": 9, "out_of_memory": True}, OUT_OF_MEMORY),
    ],
)
def test_how_a_worker_ended_while_the_control_plane_was_away_is_what_its_runner_found(
    tmp_path: Path, end: dict[str, Any], message: str
) -> None:
    async def test(plane: Plane) -> None:
        await plane.deploy()
        invocation_id = await plane.start()
        await plane.claim(invocation_id)
        worker_id = plane.runner.launches[-1].worker_id
        plane.runner.living.clear()
        plane.runner.past_ends[worker_id] = WorkerEnd(worker_id, **end)
        await plane.scheduler.open("http://127.0.0.1:1")
        info = await plane.info(invocation_id)
        assert (info.status, info.error and info.error.message) == (wire.FAILED, message)

    on_plane(tmp_path, test)
