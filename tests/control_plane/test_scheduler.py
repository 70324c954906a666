"""The scheduler on a real store, with a runner that does as it is told: each state that is not final is moved on."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import sqlalchemy as sa
from tests.control_plane.bench import make_settings

from multinode import wire
from multinode.errors import StorageFull
from multinode_control_plane import migrations, model
from multinode_control_plane.api.calls import ControlPlane
from multinode_control_plane.api.routes import make_app
from multinode_control_plane.runners import WorkerEnd
from multinode_control_plane.scheduler import Scheduler
from multinode_control_plane.service import deployments, executions, invocations
from multinode_control_plane.service.dotenv import Sealer
from multinode_control_plane.service.executions import Context
from multinode_control_plane.store import Store


class ToldRunner:
    """Makes workers in name only; ``start_error`` is raised by ``start``."""

    name = "process"
    enforces = ()

    def __init__(self) -> None:
        self.launches: list[Any] = []
        self.living: set[str] = set()
        self.stops: list[str] = []
        self.start_error: Exception | None = None
        self.ends_when_stopped = True
        self.on_end: Callable[[WorkerEnd], None] = lambda end: None

    async def open(self, on_end: Callable[[WorkerEnd], None], worker_url: str) -> None:
        self.on_end = on_end

    async def start(self, launch: Any) -> None:
        self.launches.append(launch)
        if self.start_error is not None:
            raise self.start_error
        self.living.add(launch.worker_id)

    async def stop(self, worker_id: str, grace_s: float) -> None:
        self.stops.append(worker_id)
        if self.ends_when_stopped and worker_id in self.living:
            self.end(worker_id)

    def end(self, worker_id: str) -> None:
        self.living.discard(worker_id)
        self.on_end(WorkerEnd(worker_id))

    async def alive(self, worker_id: str) -> bool:
        return worker_id in self.living

    async def adopt(self, worker_ids: Any) -> set[str]:
        return set(worker_ids) & self.living

    async def remove_logs(self, execution_ids: Any) -> None:
        pass

    async def close(self) -> None:
        pass


class Plane:
    def __init__(self, home: Path, **settings: Any) -> None:
        made = make_settings(home, **settings)
        self.store = Store(made.database)
        self.runner = ToldRunner()
        self.context = Context(made, Sealer(b"k" * 32))
        self.scheduler = Scheduler(self.store, self.runner, self.context)

    async def open(self) -> None:
        migrations.upgrade(self.store.engine)
        self.store.open(asyncio.get_running_loop())
        await self.scheduler.open("http://127.0.0.1:1")

    async def close(self) -> None:
        await self.scheduler.close()
        self.store.close()

    async def deploy(self, project: str = "shop", **settings: Any) -> None:
        info = wire.EnvironmentInfo("e" * 64, "3.11", "3.11.7", [], [], model.to_time(0))
        await self.store.write(lambda tx: deployments.save_environment(tx, info))
        described = wire.FunctionDescription("f", wire.FunctionSettings(**settings), [])
        request = wire.RegisterRequest("e" * 64, "a" * 64, {}, [described])
        await self.store.write(lambda tx: deployments.register(tx, self.context, project, request))

    async def start(self, **options: Any) -> str:
        request = wire.StartRequest(**{"inputs": ["[[],{}]"], **options})
        answer = await self.store.write(
            lambda tx: invocations.start(tx, self.context.catalog, "shop", "f", request)
        )
        return answer.invocation_ids[0]

    async def workers(self) -> int:
        return await self.store.read(
            lambda connection: connection.execute(
                sa.select(sa.func.count()).where(model.workers.c.gone_at.is_(None))
            ).scalar_one()
        )

    async def until(self, fact: Callable[[], Awaitable[bool]]) -> None:
        """Waits for a fact that changes of the store bring about."""
        deadline = time.monotonic() + 10
        while not await fact():
            assert time.monotonic() < deadline, "it did not become true"
            await asyncio.sleep(0.01)

    async def launched(self) -> Any:
        async def is_launched() -> bool:
            return bool(self.runner.launches)

        await self.until(is_launched)
        return self.runner.launches[-1]


def on_plane(tmp_path: Path, test: Callable[[Plane], Awaitable[None]], **settings: Any) -> None:
    async def run() -> None:
        plane = Plane(tmp_path, **settings)
        await plane.open()
        try:
            await test(plane)
        finally:
            await plane.close()

    asyncio.run(run())


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


def test_a_start_that_fails_in_an_unforeseen_way_frees_the_slot(tmp_path: Path) -> None:
    async def test(plane: Plane) -> None:
        plane.runner.start_error = OSError(24, "Too many open files")
        await plane.deploy()
        invocation_id = await plane.start()
        await plane.launched()

        async def is_free() -> bool:
            return await plane.workers() == 0

        await plane.until(is_free)
        info = await plane.store.read(
            lambda connection: invocations.get(connection, invocation_id, time.time(), None)
        )
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
        launch = await plane.launched()
        request = wire.ExchangeRequest(launch.worker_id, launch.claim_code, "n")
        _, who = await plane.store.write(lambda tx: executions.exchange(tx, plane.context, request))
        await plane.store.write(
            lambda tx: executions.claim(tx, who, wire.Claim(launch.execution_id))
        )

        async def is_unreachable() -> bool:
            info = await plane.store.read(
                lambda connection: invocations.get(connection, invocation_id, time.time(), None)
            )
            return info.unreachable

        await plane.until(is_unreachable)

        async def is_stopped() -> bool:
            return bool(plane.runner.stops)

        await plane.until(is_stopped)
        await plane.scheduler._ask_for_silent()
        await plane.scheduler._ask_for_silent()
        assert plane.runner.stops == [launch.worker_id]

    on_plane(tmp_path, test, silence_s=0.1, unreachable_s=0.2)


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


def test_a_workers_token_starts_nothing_in_another_project(tmp_path: Path) -> None:
    async def test(plane: Plane) -> None:
        await plane.deploy()
        await plane.deploy("other")
        await plane.start()
        launch = await plane.launched()
        request = wire.ExchangeRequest(launch.worker_id, launch.claim_code, "n")
        assignment, _ = await plane.store.write(
            lambda tx: executions.exchange(tx, plane.context, request)
        )
        made = ControlPlane(
            plane.store, plane.scheduler, plane.runner, None, plane.context, print, "sqlite"
        )
        transport = httpx.ASGITransport(make_app(made, frozenset()))
        headers = {"authorization": f"Bearer {assignment.token}"}
        async with httpx.AsyncClient(transport=transport, base_url="http://x") as client:
            codes = [
                (
                    await client.post(
                        f"/v1/projects/{project}/functions/f/invocations",
                        json={"inputs": ["[[],{}]"]},
                        headers=headers,
                    )
                ).status_code
                for project in ("shop", "other")
            ]
        assert codes == [200, 403]

    on_plane(tmp_path, test)
