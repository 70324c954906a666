"""A control plane whose runner makes workers in name only, as it is told: in the test's loop, or served over HTTP."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import uvicorn
from tests.control_plane.bench import make_settings, prepare

from multinode import wire
from multinode.client import Client
from multinode.errors import Conflict
from multinode_control_plane import model
from multinode_control_plane.api.calls import ControlPlane
from multinode_control_plane.api.routes import make_app
from multinode_control_plane.listening import HttpServer, known_hosts
from multinode_control_plane.runners import WorkerEnd, whole_files
from multinode_control_plane.runners.bundles import Bundles
from multinode_control_plane.runners.storage import Discarded
from multinode_control_plane.scheduler import Scheduler
from multinode_control_plane.secret_keys import Source, source_of
from multinode_control_plane.service import (
    access,
    deployments,
    executions,
    invocations,
    rows,
    sealing,
)
from multinode_control_plane.service.dotenv import Sealer
from multinode_control_plane.service.executions import Context, WorkerIdentity
from multinode_control_plane.settings import Settings
from multinode_control_plane.store import Store


def environment_info(python: str) -> wire.EnvironmentInfo:
    """The only environment that there is."""
    return wire.EnvironmentInfo("e" * 64, python, "3.11.7", [], [], model.to_time(0))


class ToldRunner:
    """Makes workers in name only; ``start_error`` is raised by ``start``, which waits while ``may_start`` is not set."""

    name = "process"
    tariff = ""
    output_expires = False
    enforces = ()
    unenforced_reason = ""

    def __init__(self) -> None:
        self.launches: list[Any] = []
        self.living: set[str] = set()
        self.past_ends: dict[str, WorkerEnd] = {}
        """How workers ended that no other runner has told of."""
        self.stops: list[str] = []
        self.handings: list[tuple[str, str]] = []
        """Workers, and executions that they were handed."""
        self.start_error: Exception | None = None
        self.may_start = asyncio.Event()
        self.may_start.set()
        self.ends_when_stopped = True
        self.kept: list[Any] = []
        """What is stored."""
        self.held_back: set[str] = set()
        """Names of what cannot be removed."""
        self.on_end: Callable[[WorkerEnd], None] = lambda end: None
        self.on_note: Callable[[str, str], None] = lambda worker_id, note: None
        self.size_for: Callable[[float, int], wire.WorkerSize | None] = lambda cpu, memory_mib: None

    async def open(self, on_end: Callable[[WorkerEnd], None], worker_url: str) -> None:
        self.on_end = on_end

    async def learn(self, environments: Any) -> None:
        self.learnt = [info.digest for info in environments]

    async def start(self, launch: Any) -> None:
        self.launches.append(launch)
        await self.may_start.wait()
        if self.start_error is not None:
            raise self.start_error
        self.living.add(launch.worker_id)

    def handed(self, worker_id: str, execution_id: str) -> None:
        self.handings.append((worker_id, execution_id))

    def claimed(self, worker_id: str) -> None:
        """It has no limits."""

    async def stop(self, worker_id: str, grace_s: float) -> None:
        self.stops.append(worker_id)
        if self.ends_when_stopped and worker_id in self.living:
            self.end(worker_id)

    def end(self, worker_id: str) -> None:
        self.living.discard(worker_id)
        self.on_end(WorkerEnd(worker_id))

    async def alive(self, worker_id: str) -> bool:
        return worker_id in self.living

    async def adopt(self, worker_ids: Any) -> dict[str, WorkerEnd]:
        dead = set(worker_ids) - self.living
        return {each: self.past_ends.get(each, WorkerEnd(each)) for each in dead}

    async def checks(self, base_image: str) -> list[Any]:
        return []

    async def build(self, request: wire.BuildRequest) -> AsyncIterator[wire.BuildEvent]:
        yield wire.BuildEvent(line="it is there")
        yield wire.BuildEvent(environment=environment_info(request.spec.python))

    async def take_image(self, digest: str, report: wire.ImageReport) -> wire.EnvironmentInfo:
        message = f"{digest} was not ordered."
        raise Conflict(message)

    async def logs(
        self, execution_id: str, attempt: int, *, ended: asyncio.Event | None = None
    ) -> AsyncIterator[wire.LogRecord]:
        yield wire.LogRecord(model.to_time(time.time()), "stdout", "adding\n", attempt)
        if ended is not None:
            await ended.wait()

    async def stored(self, in_use: Any) -> list[Any]:
        return [item for item in self.kept if item.name not in in_use]

    async def discard(self, item: Any) -> Discarded:
        is_gone = item.name not in self.held_back
        self.kept = [other for other in self.kept if other != item or not is_gone]
        return Discarded(is_gone)

    async def remove_logs(self, execution_ids: Any) -> None:
        pass

    async def close(self) -> None:
        pass


def ring_for(made: Settings) -> Source:
    """A ring in the data folder, of one key."""
    made.data_dir.mkdir(parents=True, exist_ok=True)
    path = made.data_dir / "secret.key"
    if not path.exists():
        whole_files.write(path, b"k" * 32)
    return source_of(made, {})


class Plane:
    def __init__(self, home: Path, **settings: Any) -> None:
        made = make_settings(home, **settings)
        self.store = Store(made.database)
        self.runner = ToldRunner()
        self.source = ring_for(made)
        self.context = Context(made, Sealer([b"k" * 32], source=self.source))
        self.scheduler = Scheduler(self.store, self.runner, self.context)

    async def open(self) -> None:
        prepare(self.store.database)
        self.store.open(asyncio.get_running_loop())
        await self.store.write(lambda tx: sealing.open_sealer(tx, self.source))
        await self.scheduler.open("http://127.0.0.1:1")

    async def close(self) -> None:
        self.runner.may_start.set()
        await self.scheduler.close()
        self.store.close()

    async def deploy(self, project: str = "shop", code: str = "a" * 64, **settings: Any) -> None:
        info = environment_info("3.11")
        await self.store.write(lambda tx: deployments.save_environment(tx, info))
        described = wire.FunctionDescription("f", wire.FunctionSettings(**settings), [])
        request = wire.RegisterRequest("e" * 64, code, {}, [described])
        await self.store.write(lambda tx: deployments.register(tx, self.context, project, request))

    async def start(self, project: str = "shop", **options: Any) -> str:
        request = wire.StartRequest(**{"inputs": ["[[],{}]"], **options})
        answer = await self.store.write(
            lambda tx: invocations.start(tx, self.context.catalog, project, "f", request)
        )
        return answer.invocation_ids[0]

    async def launch_of(self, invocation_id: str) -> Any:
        """The launch of the invocation's live worker, as soon as the runner was told of it."""
        found: list[Any] = []

        async def is_launched() -> bool:
            worker = await self.store.read(
                lambda connection: rows.live_worker(connection, invocation_id)
            )
            found[:] = [
                x for x in self.runner.launches if worker and x.worker_id == worker.worker_id
            ]
            return bool(found)

        await self.until(is_launched)
        return found[0]

    async def exchange(self, launch: Any) -> tuple[wire.Assignment, WorkerIdentity]:
        """The claim code's assignment, as the worker's first request gets it."""
        request = wire.ExchangeRequest(launch.worker_id, launch.claim_code, "n")
        return await self.store.write(lambda tx: executions.exchange(tx, self.context, request))

    async def claim(self, invocation_id: str) -> tuple[wire.Assignment, WorkerIdentity]:
        """Lets the invocation's worker run it."""
        assignment, who = await self.exchange(await self.launch_of(invocation_id))
        claim = wire.Claim(assignment.execution_id or "")
        await self.store.write(lambda tx: executions.claim(tx, who, claim))
        return assignment, who

    async def end(self, claimed: tuple[wire.Assignment, WorkerIdentity], outcome: str) -> None:
        """The worker's report of how it ended; the worker is still there."""
        assignment, who = claimed
        error = None if outcome == "succeeded" else wire.FunctionError("bad bound", "ValueError")
        report = wire.Report(
            assignment.execution_id or "", end=wire.ExecutionEnd(outcome, error=error)
        )
        await self.store.write(lambda tx: executions.report(tx, self.context, who, report))

    async def info(self, invocation_id: str) -> wire.InvocationInfo:
        return await self.store.read(
            lambda connection: invocations.get(connection, invocation_id, time.time(), None)
        )

    async def workers(self) -> int:
        return await self.store.read(
            lambda connection: connection.execute(
                sa.select(sa.func.count()).where(model.workers.c.gone_at.is_(None))
            ).scalar_one()
        )

    async def until(self, fact: Callable[[], Awaitable[bool]]) -> None:
        """Waits for a fact that changes of the store bring about."""
        deadline = time.monotonic() + 60
        while not await fact():
            assert time.monotonic() < deadline, "it did not become true"
            await asyncio.sleep(0.01)

    async def launched(self) -> Any:
        async def is_launched() -> bool:
            return bool(self.runner.launches)

        await self.until(is_launched)
        return self.runner.launches[-1]


def api_of(plane: Plane) -> ControlPlane:
    """What serves it, without a socket and without bundles."""
    return ControlPlane(
        plane.store, plane.scheduler, plane.runner, None, plane.context, print, "sqlite"
    )


def on_plane(tmp_path: Path, test: Callable[[Plane], Awaitable[None]], **settings: Any) -> None:
    async def run() -> None:
        plane = Plane(tmp_path, **settings)
        await plane.open()
        try:
            await test(plane)
        finally:
            await plane.close()

    asyncio.run(run())


class ServedPlane:
    """A `Plane` in a thread of its own, behind a real socket. ``stops`` are the modes in which it was asked to stop."""

    def __init__(self, home: Path, **settings: Any) -> None:
        self.plane = Plane(home, **settings)
        self.bundles = Bundles(self.plane.context.settings.data_dir)
        self.stops: list[str] = []
        self.tracing: Any = None
        self.url = ""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)

    def do(self, work: Coroutine[Any, Any, Any]) -> Any:
        """Runs a coroutine where the plane lives."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(20)

    def client(self, secret: str) -> Client:
        return Client(self.url, secret, retry_s=0)

    def key(self, role: str, name: str | None = None, project: str | None = None) -> str:
        """The secret of a new key."""
        request = wire.KeyRequest(name or role, role, project)
        made = self.do(self.plane.store.write(lambda tx: access.create_key(tx, request)))
        self.do(self.api.read_keys())
        return made.key

    def open(self) -> None:
        self._thread.start()
        self.bundles.open()
        self.do(self._open())

    async def _open(self) -> None:
        plane = self.plane
        await plane.open()
        self.api = ControlPlane(
            plane.store, plane.scheduler, plane.runner, self.bundles, plane.context,
            self.stops.append, "sqlite", tracing=self.tracing,
        )  # fmt: skip
        listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        self.api.readiness.open()
        app = make_app(self.api, known_hosts(plane.context.settings))
        config = uvicorn.Config(
            app, lifespan="off", log_config=None, access_log=False, ws="none", proxy_headers=False
        )
        self._http = HttpServer(config)
        self._serving = asyncio.create_task(self._http.serve(sockets=[listener]))

    async def _close(self) -> None:
        self.plane.store.changes.fire_all()
        self._http.end()
        await self._serving
        await self.plane.close()

    def close(self) -> None:
        self.do(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


@contextlib.contextmanager
def serving(home: Path, **settings: Any) -> Iterator[ServedPlane]:
    served = ServedPlane(home, **settings)
    served.open()
    try:
        yield served
    finally:
        served.close()
