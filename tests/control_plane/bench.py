"""A store with a project in it, and the use cases as short calls: what the tests of this folder stand on."""

from __future__ import annotations

import asyncio
import tempfile
import threading
import time
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from multinode import wire
from multinode_control_plane import migrations, model
from multinode_control_plane.databases import Database, open_database
from multinode_control_plane.runners import WorkerEnd
from multinode_control_plane.service import (
    admission,
    deployments,
    executions,
    invocations,
    pools,
    rows,
    statements,
)
from multinode_control_plane.service.actions import HandOver, SetTimer, StartWorker, StopWorker
from multinode_control_plane.service.dotenv import Sealer
from multinode_control_plane.service.executions import Context, WorkerIdentity
from multinode_control_plane.settings import Capacity, Settings
from multinode_control_plane.store import Store, Transaction


def database_for(home: Path) -> str:
    """The URL of the store of ``home``; tests on another database have another function here."""
    return f"sqlite:///{home}/test.sqlite"


def make_settings(home: Path, **changes: Any) -> Settings:
    made = Settings(
        home=home,
        data_dir=home / "server",
        runner="process",
        database=database_for(home),
        host="127.0.0.1",
        port=0,
        worker_url=None,
        capacity=Capacity(cpu=4.0, memory_mib=4096),
    )
    return replace(made, **changes)


@dataclass
class Bench:
    """The use cases on a real store; ``launched`` and ``stopped`` are what a runner would be told."""

    store: Store
    context: Context
    launched: list[Any] = field(default_factory=list)
    stopped: list[str] = field(default_factory=list)
    timers: list[float] = field(default_factory=list)
    handed: dict[str, list[wire.Task]] = field(default_factory=dict)
    """What each worker was handed and has not taken."""
    skew_s: float = 0.0
    stands_at: float | None = None
    """The time at which the clock stands still; None: it goes."""
    draining: bool = False
    _loop: Any = None
    _thread: Any = None

    def open(self) -> None:
        prepare(self.store.database)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.store.tick = self._tick
        self.store.perform = self._perform
        self.store.open(self._loop)

    def close(self) -> None:
        self.store.close()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def now(self) -> float:
        """POSIX time of the use cases."""
        return (time.time() if self.stands_at is None else self.stands_at) + self.skew_s

    def _tick(self, tx: Transaction) -> None:
        tx.now = self.now()
        admission.tick(tx, self.context, draining=self.draining)

    def _perform(self, effects: list[object]) -> None:
        for effect in effects:
            if isinstance(effect, StartWorker):
                self.launched.append(effect.launch)
            elif isinstance(effect, HandOver):
                self.handed.setdefault(effect.worker_id, []).extend(effect.tasks)
            elif isinstance(effect, StopWorker):
                self.stopped.append(effect.worker_id)
            elif isinstance(effect, SetTimer):
                self.timers.append(effect.at)

    # --- use cases ----------------------------------------------------------------------------------

    def do(self, case: Any, *arguments: Any, **options: Any) -> Any:
        """Runs a use case in a transaction, ``skew_s`` in the future, and waits for what follows it."""

        def job(tx: Transaction) -> Any:
            tx.now = self.now()
            return case(tx, *arguments, **options)

        answer = self.store.submit(job).result(60)
        self.run_on_loop(asyncio.sleep(0))
        return answer

    def run_on_loop(self, work: Any) -> Any:
        """What a coroutine on the store's loop returns."""
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    def look(self, case: Any, *arguments: Any, **options: Any) -> Any:
        return self.store._read(lambda connection: case(connection, *arguments, **options))

    def deploy(self, project: str = "shop", code: str = "a" * 64, **functions: Any) -> str:
        """A version whose functions have these settings; ``f`` with the defaults where none is given."""
        described = [
            wire.FunctionDescription(name, wire.FunctionSettings(**settings), [])
            for name, settings in (functions or {"f": {}}).items()
        ]
        info = wire.EnvironmentInfo("e" * 64, "3.11", "3.11.7", [], [], model.to_time(0))
        self.do(deployments.save_environment, info)
        request = wire.RegisterRequest("e" * 64, code, {"A": "1"}, described)
        return self.do(deployments.register, self.context, project, request).version_id

    def start(self, function: str = "f", project: str = "shop", **options: Any) -> str:
        request = wire.StartRequest(**{"inputs": ["[[],{}]"], **options})
        return self.do(
            invocations.start, self.context.catalog, project, function, request
        ).invocation_ids[0]

    def tick(self) -> None:
        self.do(lambda tx: tx.wake())

    def info(self, invocation_id: str) -> wire.InvocationInfo:
        return self.look(invocations.get, invocation_id, self.now(), None)

    def status(self, invocation_id: str) -> str:
        return self.info(invocation_id).status

    def launch_of(self, invocation_id: str) -> Any:
        """The newest launch for the invocation."""
        worker = self.look(rows.live_worker, invocation_id)
        assert worker is not None, "it has no live worker"
        return next(item for item in reversed(self.launched) if item.worker_id == worker.worker_id)

    def worker(self, invocation_id: str) -> WorkerIdentity:
        """Exchanges the claim code of the invocation's worker."""
        launch = self.launch_of(invocation_id)
        request = wire.ExchangeRequest(launch.worker_id, launch.claim_code, "nonce")
        return self.do(executions.exchange, self.context, request)[1]

    def claim(self, invocation_id: str) -> WorkerIdentity:
        who = self.worker(invocation_id)
        execution_id = self.launch_of(invocation_id).execution_id
        self.do(executions.claim, who, wire.Claim(execution_id))
        return who

    def report(self, invocation_id: str, who: WorkerIdentity, **report: Any) -> wire.Order:
        execution_id = next(x.execution_id for x in self.launched if x.worker_id == who.worker_id)
        return self.do(executions.report, self.context, who, wire.Report(execution_id, **report))

    def end(self, invocation_id: str, who: WorkerIdentity, outcome: str, **end: Any) -> None:
        self.report(invocation_id, who, end=wire.ExecutionEnd(outcome, **end))

    def gone(self, who: WorkerIdentity, **end: Any) -> None:
        self.do(executions.worker_gone, self.context, WorkerEnd(who.worker_id, **end))

    def ask(
        self,
        who: WorkerIdentity,
        number: int,
        *,
        done: Any = None,
        most: int = 1,
        reports: Any = None,
        wait_s: float = 25.0,
    ) -> Any:
        """The worker asks for its next; what it was handed with that. ``done`` is the outcome of its execution before."""
        if done is not None:
            worker = self.look(statements.one, model.workers, worker_id=who.worker_id)
            running = self.look(executions.unended, worker)
            end = wire.ExecutionEnd(done, result="1" if done == "succeeded" else None)
            reports = [wire.Report(each.execution_id, None, end) for each in running]
        request = wire.NextRequest(number, most, reports, wait_s=wait_s)
        found = self.do(pools.ask, self.context, who, request, draining=self.draining)
        return wire.Next(self.handed.pop(who.worker_id, None) or found.tasks, found.leave)

    def up(self, launch: Any) -> WorkerIdentity:
        """Exchanges the claim code of a worker that was launched."""
        request = wire.ExchangeRequest(launch.worker_id, launch.claim_code, "nonce")
        return self.do(executions.exchange, self.context, request)[1]

    def run(self, invocation_id: str, outcome: str = "succeeded", **end: Any) -> None:
        """Claim, end, worker gone."""
        who = self.claim(invocation_id)
        self.end(invocation_id, who, outcome, **end)
        self.gone(who)

    def queue(self, function: str = "f", project: str = "shop") -> tuple[int, int]:
        """(ready, workers) of the function."""
        row = self.look(
            lambda connection: connection.execute(
                sa.select(model.queues).where(
                    model.queues.c.project == project, model.queues.c.function == function
                )
            ).one()
        )
        return row.ready, row.workers


def prepare(database: Database) -> None:
    """As ``migrations.prepare``. Alembic takes a tenth of a second, a copy of an empty file that it has made nearly none."""
    path = Path(database.engine.url.database or "")
    if database.name == "sqlite" and not path.exists():
        path.write_bytes(_empty_file())
    migrations.prepare(database)


@cache
def _empty_file() -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        database = open_database(f"sqlite:///{folder}/empty.sqlite")
        migrations.prepare(database)
        database.engine.dispose()
        return (Path(folder) / "empty.sqlite").read_bytes()


def make_bench(home: Path, **settings: Any) -> Bench:
    made = make_settings(home, **settings)
    bench = Bench(Store(made.database), Context(made, Sealer([b"k" * 32])))
    bench.open()
    return bench
