"""The ``process`` runner: workers are processes on the control plane's machine, in virtual environments.

    data folder/environments/   virtualenv.py        data folder/workers/<wrk-id>.json   worker_processes.py
    data folder/bundles/, code/ bundles.py           data folder/work, by worker         working folders
    data folder/logs/           log_files.py         data folder/starters/               what starters said on stderr

A worker that a starter of this server made is gone when the starter says so. One that was adopted from an earlier
server, or whose starter was killed, is watched through its supervisor's process; it is gone when that has ended and
its starter has killed what was left and noted so in the worker's file, or, where there is no starter, this
module has (``leftovers``, ``cgroups``).

cpu and memory are limited where a cgroup can be made for a worker (``cgroups``). It isolates nothing: functions run as the
server's user.
"""

from __future__ import annotations

import asyncio
import logging
import os
import shutil
import signal
from collections import defaultdict
from collections.abc import AsyncIterator, Collection, Coroutine, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from multinode.errors import InvalidRequest, MultinodeError
from multinode.wire import (
    BuildEvent,
    BuildRequest,
    EnvironmentInfo,
    Finding,
    ImageReport,
    LogRecord,
)
from multinode.worker import processes
from multinode.worker.launch import Launch
from multinode_control_plane.runners import (
    OnEnd,
    OnNote,
    WorkerEnd,
    WorkerLaunch,
    WorkerNotMadeError,
    cgroups,
    leftovers,
)
from multinode_control_plane.runners.bundles import Bundles
from multinode_control_plane.runners.log_files import LogFiles
from multinode_control_plane.runners.starters import Starter
from multinode_control_plane.runners.storage import OUTPUT, Discarded, Stored
from multinode_control_plane.runners.virtualenv import Virtualenvs
from multinode_control_plane.runners.worker_processes import (
    WatchedProcess,
    WorkerFile,
    is_held,
    read,
)

log = logging.getLogger(__name__)

STARTER_IDLE_S = 180.0
"""How long a starter without workers is kept: it costs about 10 MiB, and starting one 50 to 100 ms."""
ORPHANS_TIMEOUT_S = 5.0
"""How long a starter may take to kill what a supervisor has left, and to note it."""
_ORPHANS_STEP_S = 0.01
UNTOLD = "its supervisor was killed, and so was the starter that would know how"


@dataclass(eq=False)
class _Worker:
    """A worker that is not gone. ``starter`` is None where it is watched through ``process``."""

    worker_id: str
    process: WatchedProcess | None
    starter: Starter | None = None
    is_wanted: bool = True
    """Whether ``on_end`` is to be called."""
    kill: asyncio.TimerHandle | None = field(default=None, repr=False)


class ProcessRunner:
    """Makes workers as processes. ``variables`` are the server's environment variables, of which uv and functions get
    a few; ``bundles`` is where the API keeps what clients send."""

    name = "process"
    tariff = ""
    output_expires = False

    def __init__(
        self,
        data_dir: Path,
        *,
        variables: Mapping[str, str] = os.environ,
        starter_idle_s: float = STARTER_IDLE_S,
    ) -> None:
        self.bundles = Bundles(data_dir)
        self.environments = Virtualenvs(data_dir / "environments", variables)
        self._logs = LogFiles(data_dir / "logs")
        self.enforces: tuple[str, ...] = ()
        self.unenforced_reason = ""
        self._cgroups = cgroups.Cgroups()
        self._data_dir = data_dir
        self._variables = dict(variables)
        self._starter_idle_s = starter_idle_s
        self._starters: dict[Path, Starter] = {}
        self._starting: defaultdict[Path, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._workers: dict[str, _Worker] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._on_end: OnEnd = lambda end: None
        self.on_note: OnNote = lambda worker_id, note: None
        self._worker_url = ""

    async def worker_address(self) -> None:
        """None: its workers reach the server as everybody on this machine does."""

    async def open(self, on_end: OnEnd, worker_url: str) -> None:
        """Makes the folders, and removes what an earlier server left half made."""
        self._on_end, self._worker_url = on_end, worker_url
        await asyncio.to_thread(self._open)

    def _open(self) -> None:
        for name in ("workers", "work"):
            (self._data_dir / name).mkdir(parents=True, exist_ok=True)
        self.bundles.open()
        self.environments.open()
        self._logs.open()
        self._cgroups = found = cgroups.find(self._data_dir)
        self.enforces, self.unenforced_reason = found.enforces, found.reason

    async def learn(self, environments: Iterable[EnvironmentInfo]) -> None:
        """Nothing: its environments are folders, and are made where they are missing."""

    def size_for(self, cpu: float, memory_mib: int) -> None:
        """None: workers have what their functions ask for."""

    def build(self, request: BuildRequest) -> AsyncIterator[BuildEvent]:
        """See ``Virtualenvs.build``."""
        return self.environments.build(request)

    async def take_image(self, digest: str, report: ImageReport) -> EnvironmentInfo:
        """Refuses: this runner makes environments itself."""
        message = "This control plane's runner is `process`: it makes environments itself."
        raise InvalidRequest(message, "Deploy again.")

    # --- making workers --------------------------------------------------------------------------------

    async def start(self, launch: WorkerLaunch) -> None:
        """Makes the worker: see ``Runner.start``."""
        try:
            generation = self.environments.generation(launch.environment_digest)
            code_dir = await self.bundles.code_dir(launch.bundle_digest)
        except MultinodeError as error:
            raise WorkerNotMadeError(str(error)) from error
        except OSError as error:
            message = f"The code cannot be laid out: {error}"
            raise WorkerNotMadeError(message) from error
        starter = await self._starter_of(generation)
        orders = self._orders(launch, code_dir)
        try:
            await starter.start(
                orders,
                fresh=launch.fresh_interpreter,
                interpreter_env=dict(launch.interpreter_env),
            )
        except WorkerNotMadeError:
            # A starter that died may have forked it before. If its file is there, it is killed. If it comes up
            # only later, the control plane, which has given it up, refuses its claim code, and it ends.
            self._kill_if_there(launch.worker_id)
            self._stop_when_idle(starter)
            raise

    def _orders(self, launch: WorkerLaunch, code_dir: Path) -> Launch:
        return Launch(
            worker_id=launch.worker_id,
            claim_code=launch.claim_code,
            api_url=self._worker_url,
            code_dir=str(code_dir),
            work_dir=str(self._work_dir(launch.worker_id)),
            worker_file=str(self._worker_file(launch.worker_id)),
            log_file=str(self._logs.path(launch.execution_id)),
            cgroups=self._cgroups.parents or None,
            cpu=launch.cpu,
            memory_mib=launch.memory_mib,
        )

    async def _starter_of(self, generation: Path) -> Starter:
        async with self._starting[generation]:
            starter = self._starters.get(generation)
            if starter is None or not starter.is_usable:
                name = f"{generation.parent.name[:16]}-{generation.name}.log"
                starter = await Starter.launch(
                    generation,
                    variables=self._variables,
                    cgroups=self._cgroups.parents,
                    log_file=self._data_dir / "starters" / name,
                    events=self,
                )
                self._starters[generation] = starter
            return starter

    # --- what starters tell (StarterEvents) ------------------------------------------------------------

    def started(self, starter: Starter, worker_id: str, pid: int) -> None:
        """A worker exists."""
        process = WatchedProcess.open(pid)
        self._workers[worker_id] = _Worker(worker_id, process, starter)

    def gone(self, worker_id: str, status: int) -> None:
        """Nothing of a worker is left."""
        worker = self._workers.get(worker_id)
        if worker is None:
            return
        starter = worker.starter
        self._finish(worker, _end(worker_id, status))
        if starter is not None:
            self._stop_when_idle(starter)

    def lost(self, starter: Starter) -> None:
        """A starter has died: its workers are watched themselves from now on."""
        if self._starters.get(starter.generation) is starter:
            del self._starters[starter.generation]
        for worker in list(self._workers.values()):
            if worker.starter is starter:
                worker.starter = None
                self._watch(worker)

    def _stop_when_idle(self, starter: Starter) -> None:
        """Stops a starter that has nothing to do now if it still has nothing to do in a while."""
        if starter.is_idle:
            loop = asyncio.get_running_loop()
            loop.call_later(self._starter_idle_s, self._stop_if_idle, starter)

    def _stop_if_idle(self, starter: Starter) -> None:
        if starter.is_idle and self._starters.get(starter.generation) is starter:
            del self._starters[starter.generation]
            starter.close()

    def claimed(self, worker_id: str) -> None:
        """Nothing: its limits are those of its function from the start."""

    def handed(self, worker_id: str, execution_id: str) -> None:
        """Nothing: its supervisor writes a file for it."""

    # --- stopping --------------------------------------------------------------------------------------

    async def stop(self, worker_id: str, grace_s: float) -> None:
        """Asks it to end, and kills it after ``grace_s``: see ``Runner.stop``."""
        worker = self._workers.get(worker_id)
        if worker is None or worker.process is None:
            return
        loop = asyncio.get_running_loop()
        if grace_s <= 0:
            worker.process.send(signal.SIGKILL)
            return
        worker.process.send(signal.SIGTERM)
        kill_at = loop.time() + grace_s
        if worker.kill is None or kill_at < worker.kill.when():
            _cancel(worker.kill)
            worker.kill = loop.call_at(kill_at, worker.process.send, signal.SIGKILL)

    async def alive(self, worker_id: str) -> bool:
        """Whether any process of the worker is left."""
        return worker_id in self._workers or is_held(self._worker_file(worker_id))

    # --- after a restart -------------------------------------------------------------------------------

    async def adopt(self, worker_ids: Iterable[str]) -> dict[str, WorkerEnd]:
        """Finds the workers of an earlier server by their files: see ``Runner.adopt``.

        A supervisor that an earlier server's starter forks only now, after its files were looked through, does no harm: the
        control plane has given its worker up and refuses its claim code.
        """
        ends = {worker_id: WorkerEnd(worker_id) for worker_id in worker_ids}
        held, dead = await asyncio.to_thread(self._found_workers)
        for worker_id in held:
            self._adopt(worker_id, is_wanted=worker_id in ends)
        for end in await asyncio.gather(*map(self._bury, dead)):
            if end.worker_id in ends:
                ends[end.worker_id] = end
        return {worker_id: end for worker_id, end in ends.items() if worker_id not in self._workers}

    def _found_workers(self) -> tuple[list[str], list[str]]:
        """Workers whose supervisor lives and that are not known yet, and dead ones that have left a file."""
        held, dead = [], []
        for path in (self._data_dir / "workers").iterdir():
            is_draft = path.suffix != ".json"
            if is_held(path):
                if not is_draft and path.stem not in self._workers:
                    held.append(path.stem)
            elif is_draft:
                path.unlink(missing_ok=True)
            elif path.stem not in self._workers:
                dead.append(path.stem)
        for folder in (self._data_dir / "work").iterdir():
            if folder.name not in held and folder.name not in self._workers:
                shutil.rmtree(folder, ignore_errors=True)
        return held, dead

    async def _bury(self, worker_id: str) -> WorkerEnd:
        """How a worker ended whose supervisor is gone; nothing of it is left then."""
        end = await self._end_of(worker_id)
        await asyncio.to_thread(self._remove_files, worker_id)
        return end

    def _adopt(self, worker_id: str, *, is_wanted: bool) -> bool:
        found = read(self._worker_file(worker_id))
        process = None if found is None else WatchedProcess.open(found.pid)
        if found is None or process is None:
            log.warning("worker %s holds its file but cannot be found by it", worker_id)
            return False
        if not found.is_running:  # looked at after it was opened: so the pid is its own
            process.close()
            return False
        worker = _Worker(worker_id, process, is_wanted=is_wanted)
        self._workers[worker_id] = worker
        self._watch(worker)
        if not is_wanted:
            process.send(signal.SIGKILL)
        return True

    def _kill_if_there(self, worker_id: str) -> None:
        worker = self._workers.get(worker_id)
        if worker is not None:
            worker.is_wanted = False
            if worker.process is not None:
                worker.process.send(signal.SIGKILL)
        elif is_held(self._worker_file(worker_id)):
            self._adopt(worker_id, is_wanted=False)

    # --- ends ------------------------------------------------------------------------------------------

    def _watch(self, worker: _Worker) -> None:
        """Has the worker's end noticed by its supervisor's process."""
        if worker.process is None:
            self._spawn(self._finish_when_gone(worker))
        else:
            worker.process.on_exit(lambda: self._spawn(self._finish_when_gone(worker)))

    async def _finish_when_gone(self, worker: _Worker) -> None:
        self._finish(worker, await self._end_of(worker.worker_id))

    async def _end_of(self, worker_id: str) -> WorkerEnd:
        """How a worker ended whose supervisor is gone and of which no starter tells; nothing of it is left then."""
        path = self._worker_file(worker_id)
        found = read(path)
        given_up_at = asyncio.get_running_loop().time() + ORPHANS_TIMEOUT_S
        while found is not None and found.status is None:
            is_guarded = leftovers.is_marked(found.starter_pid, found.starter_mark)
            found = read(path)  # after that look: a starter notes it before it ends itself
            if not is_guarded or asyncio.get_running_loop().time() > given_up_at:
                break
            await asyncio.sleep(_ORPHANS_STEP_S)
        if found is None and not path.exists():
            return _end(worker_id, 0)  # it has removed it, which is the last that it does
        if found is not None and found.status is not None:
            return _end(worker_id, found.status)
        if found is not None:
            await self._clear(found)
        return WorkerEnd(worker_id, UNTOLD)

    async def _clear(self, file: WorkerFile) -> None:
        """Sees to it that nothing is left of a worker whose supervisor is gone."""
        if file.boot_id != processes.boot_id():
            return
        await asyncio.to_thread(cgroups.clear, file.cgroups)
        living = [item.process.pid for item in self._workers.values() if item.process]
        mark, starter_pid = file.starter_mark, file.starter_pid
        await asyncio.to_thread(leftovers.kill, mark, starter_pid=starter_pid, guarded=living)

    def _finish(self, worker: _Worker, end: WorkerEnd) -> None:
        if self._workers.pop(worker.worker_id, None) is None:
            return
        _cancel(worker.kill)
        if worker.process is not None:
            worker.process.close()
        self._spawn(asyncio.to_thread(self._remove_files, worker.worker_id))
        if worker.is_wanted:
            # Not here and now: `start` returns first, where the worker has ended before it could.
            asyncio.get_running_loop().call_soon(self._on_end, end)

    def _remove_files(self, worker_id: str) -> None:
        file = read(self._worker_file(worker_id))
        if file is not None:
            cgroups.clear(file.cgroups)
        shutil.rmtree(self._work_dir(worker_id), ignore_errors=True)
        self._worker_file(worker_id).unlink(missing_ok=True)

    # --- logs, the end ---------------------------------------------------------------------------------

    def logs(
        self,
        execution_id: str,
        attempt: int,
        *,
        ended: asyncio.Event | None = None,
        tail: int | None = None,
    ) -> AsyncIterator[LogRecord]:
        """See ``LogFiles.records``."""
        return self._logs.records(execution_id, attempt, ended=ended, tail=tail)

    async def checks(self, base_image: str) -> list[Finding]:
        """None: what it stands on is checked when it is opened, and by every build."""
        return []

    async def remove_logs(self, execution_ids: Iterable[str]) -> None:
        """Removes the output of these executions."""
        await self._logs.remove(execution_ids)

    async def stored(self, in_use: Collection[str]) -> list[Stored]:
        """Environments, bundles and output: see ``Runner.stored``."""
        return [
            *await asyncio.to_thread(self.environments.stored, in_use),
            *await asyncio.to_thread(self.bundles.stored, in_use),
            *await asyncio.to_thread(self._logs.stored, in_use),
        ]

    async def discard(self, item: Stored) -> Discarded:
        """Removes an environment, a bundle or output: see ``Runner.discard``."""
        if item.kind == "environment":
            return Discarded(await self.environments.discard(item.name))
        if item.kind == OUTPUT:
            await asyncio.to_thread(self._logs.discard, item.name)
        else:
            await self.bundles.remove(item.name)
        return Discarded(is_gone=True)

    async def close(self) -> None:
        """Lets go of everything; workers go on running, and starters stay until their last one is gone."""
        starters, self._starters = list(self._starters.values()), {}
        for starter in starters:
            starter.close()
        for worker in self._workers.values():
            _cancel(worker.kill)
            if worker.process is not None:
                worker.process.close()
        self._workers.clear()
        self._logs.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await asyncio.gather(*(starter.wait_closed() for starter in starters))
        await asyncio.to_thread(self._cgroups.close)

    def _work_dir(self, worker_id: str) -> Path:
        return self._data_dir / "work" / worker_id

    def _worker_file(self, worker_id: str) -> Path:
        return self._data_dir / "workers" / f"{worker_id}.json"

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


def _end(worker_id: str, status: int) -> WorkerEnd:
    """The end of a worker by its supervisor's raw wait status."""
    if os.WIFSIGNALED(status):
        number = os.WTERMSIG(status)
        return WorkerEnd(worker_id, f"its supervisor was killed by signal {number}", signal=number)
    code = os.WEXITSTATUS(status)
    detail = f"its supervisor exited with code {code}" if code else ""
    return WorkerEnd(worker_id, detail, exit_code=code)


def _cancel(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
