"""The ``docker`` runner: each worker is a container of its own, from the image of its environment.

    data folder/installation           the id of this data folder, in the labels of all that it makes in the engine
    data folder/network.json           the subnet of its network
    data folder/images/                docker_images.py
    data folder/bundles/               bundles.py; workers fetch their code from the control plane
    data folder/logs/                  log_files.py, written by docker_output.py

A container's end is told by the engine's events (docker_events.py), and by the end of its output, whichever comes first; after
the engine was away, and every few minutes, what is there is compared with what should be. A container is removed, with its
volumes, once its output is copied.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from multinode.errors import InputError, MultinodeError
from multinode.wire import (
    BuildEvent,
    BuildRequest,
    EnvironmentInfo,
    Finding,
    ImageReport,
    LogRecord,
)
from multinode_control_plane.runners import (
    PULLING,
    OnEnd,
    OnNote,
    WorkerAddress,
    WorkerEnd,
    WorkerLaunch,
    WorkerNotMadeError,
    whole_files,
)
from multinode_control_plane.runners.bundles import Bundles
from multinode_control_plane.runners.docker_checks import Tried, check_engine
from multinode_control_plane.runners.docker_containers import (
    CPU_LABEL,
    EXECUTION_LABEL,
    HOME,
    STARTING_CPU,
    WORKER_LABEL,
    ContainerPlan,
    container_name,
    cpu_limit,
    end_of,
    make_config,
    make_launch,
    pack,
    pack_code,
    worker_labels,
)
from multinode_control_plane.runners.docker_engine import (
    ContainerState,
    Engine,
    EngineAway,
    EngineError,
    NetworkState,
    NotInEngine,
)
from multinode_control_plane.runners.docker_events import Deaths
from multinode_control_plane.runners.docker_images import EnginePlace
from multinode_control_plane.runners.docker_logs import DockerLogs
from multinode_control_plane.runners.docker_output import OutputCopy, copy_output
from multinode_control_plane.runners.images import INSTALLATION_LABEL, Images
from multinode_control_plane.runners.registry import Repository
from multinode_control_plane.runners.storage import OUTPUT, Discarded, Stored

log = logging.getLogger(__name__)

THREADS = 8
"""The engine's own work does not get faster with more: 4.6 containers a second with 8, 2.5 with 16 (2 cores)."""
SWEEP_S = 300.0
NO_CGROUPS = "the Docker engine has no cgroups to limit with (rootless Docker needs version 2)"
PACKED_BUNDLES = 4
"""How many bundles' code is kept in memory, ready for containers; 16 MiB each at the most."""
COPY_PATIENCE_S = 5.0
"""How long the rest of a dead container's output may take to be copied by who follows it, before it is read anew."""
CLOSE_PATIENCE_S = 5.0
TERM_AGAIN_S = 1.0
"""A signal in the first milliseconds of a container, before its init has handlers, is dropped by the kernel: it is sent twice."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.02, 5.0

_ASK_AGAIN_S = 0.5

_Arguments = ParamSpec("_Arguments")
_Answer = TypeVar("_Answer")


class _MayRunError(EngineAway):
    """The engine went away while it was to start a container."""


@dataclass(eq=False)
class _Worker:
    """A worker whose container is not known to have ended."""

    worker_id: str
    cpu: float
    log_file: Path
    started: asyncio.Event = field(default_factory=asyncio.Event)
    """Set when its container runs."""
    copied: asyncio.Event = field(default_factory=asyncio.Event)
    copy: OutputCopy | None = None
    is_wanted: bool = True
    """Whether ``on_end`` is to be called."""
    is_ending: bool = False
    is_claimed: bool = False
    """Whether it has its execution: from then on ``cpu`` is its limit."""
    is_limited: bool = False
    stop_signal: str = ""
    """The last one that it was sent."""
    timers: list[asyncio.TimerHandle] = field(default_factory=list, repr=False)

    @property
    def container(self) -> str:
        return container_name(self.worker_id)

    def cancel_timers(self) -> None:
        for timer in self.timers:
            timer.cancel()
        self.timers.clear()


class DockerRunner:
    """Makes workers as containers of ``engine``."""

    name = "docker"
    tariff = ""
    output_expires = False

    def __init__(
        self,
        data_dir: Path,
        engine: Engine,
        *,
        repository: Repository | None = None,
        log_limit_bytes: int = 64 * 1024 * 1024,
    ) -> None:
        self.engine = engine
        self.enforces = engine.facts.limits
        self.unenforced_reason = "" if "memory" in self.enforces else NO_CGROUPS
        self.bundles = Bundles(data_dir)
        self._data_dir = data_dir
        self._repository = repository
        self.installation = _installation(data_dir)
        self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="docker")
        self._place = EnginePlace(
            engine, do=self._do, installation=self.installation, repository=repository
        )
        self.images = Images(data_dir / "images", place=self._place, installation=self.installation)
        self._logs = DockerLogs(data_dir / "logs")
        self._plan = ContainerPlan(
            installation=self.installation,
            network=f"multinode-{self.installation}",
            cores=engine.facts.cores,
            log_limit_bytes=log_limit_bytes,
        )
        self._workers: dict[str, _Worker] = {}
        self._packed: dict[str, bytes | None] = {}
        self._tasks: set[asyncio.Task[Any]] = set()
        self._removing: set[asyncio.Task[Any]] = set()
        """Of these tasks those that `close` waits for."""
        self._on_end: OnEnd = lambda end: None
        self.on_note: OnNote = lambda worker_id, note: None
        self._worker_url = ""
        self._deaths: Deaths | None = None
        self._sweeping: asyncio.TimerHandle | None = None

    async def _do(
        self,
        act: Callable[_Arguments, _Answer],
        *args: _Arguments.args,
        **kwargs: _Arguments.kwargs,
    ) -> _Answer:
        """What a blocking call returns, run in one of this runner's threads."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._pool, partial(act, *args, **kwargs))

    # --- coming up -------------------------------------------------------------------------------------

    async def worker_address(self) -> WorkerAddress | None:
        """The gateway of its network, where the engine runs on this machine. Raises InputError where it may not."""
        facts = self.engine.facts
        if facts.is_desktop:
            return WorkerAddress(listen="127.0.0.1", name="host.docker.internal")
        if facts.is_apart:
            message = f"Containers of the Docker engine at {facts.url} may not reach this machine."
            raise InputError(message, "Say how they can: --worker-url http://this-machine:port.")
        gateway = (await self._network()).gateway
        return WorkerAddress(listen=gateway, name=gateway)

    async def _network(self) -> NetworkState:
        """The network of this installation, with the subnet that it had before: workers know the gateway's address."""
        try:
            return await self._do(self._make_network)
        except EngineError as error:
            raise InputError(error.message, error.hint) from error

    def _make_network(self) -> NetworkState:
        path = self._data_dir / "network.json"
        known = json.loads(path.read_text())["subnet"] if path.exists() else ""
        labels = {INSTALLATION_LABEL: self.installation}
        try:
            made = self.engine.network(self._plan.network, labels, known)
        except EngineAway:
            raise
        except EngineError:  # something else has the subnet by now
            made = self.engine.network(self._plan.network, labels)
        if made.subnet != known:
            whole_files.write(path, json.dumps({"subnet": made.subnet}).encode())
        return made

    async def open(self, on_end: OnEnd, worker_url: str) -> None:
        """Makes the folders and the network, and begins to listen to the engine."""
        self._on_end, self._worker_url = on_end, worker_url
        await self._network()
        await asyncio.to_thread(self._open)
        loop = asyncio.get_running_loop()
        self._deaths = Deaths(
            self.engine,
            worker_labels(self.installation),
            on_death=lambda worker_id: _call(loop, self._died, worker_id),
            on_connect=lambda: _call(loop, self._connected),
        )
        self._deaths.start()

    def _open(self) -> None:
        self.bundles.open()
        self.images.open()
        self._logs.open()

    # --- environments ----------------------------------------------------------------------------------

    async def learn(self, environments: Iterable[EnvironmentInfo]) -> None:
        """See ``Images.learn``."""
        await self.images.learn(environments)

    def size_for(self, cpu: float, memory_mib: int) -> None:
        """None: workers have what their functions ask for."""

    def build(self, request: BuildRequest) -> AsyncIterator[BuildEvent]:
        """See ``Images.build``."""
        return self.images.build(request)

    async def take_image(self, digest: str, report: ImageReport) -> EnvironmentInfo:
        """See ``Images.take``."""
        return await self.images.take(digest, report)

    # --- making workers --------------------------------------------------------------------------------

    async def start(self, launch: WorkerLaunch) -> None:
        """Makes the worker: see ``Runner.start``.

        Where the engine went away before the container was to start, it may be there all the same, but never runs; it is
        removed when the engine is there again.
        """
        try:
            image = self.images.info(launch.environment_digest).image
            code = await self._packed_code(launch.bundle_digest)
        except MultinodeError as error:
            raise WorkerNotMadeError(str(error)) from error
        except OSError as error:
            message = f"The code cannot be laid out: {error}"
            raise WorkerNotMadeError(message) from error
        worker = _Worker(launch.worker_id, launch.cpu, self._logs.path(launch.execution_id))
        self._workers[launch.worker_id] = worker
        making = self._spawn(self._make(worker, launch, image, code))
        try:
            await asyncio.shield(making)
        except EngineError as error:
            self._drop(worker)
            raise WorkerNotMadeError(str(error)) from error
        except (
            Exception
        ):  # this runner's own fault: as if it were unknown, so that its slot is not taken for ever
            self._drop(worker)
            await self._remove(worker.container)
            raise
        except asyncio.CancelledError:  # nobody waits for it any more
            worker.is_wanted = False
            making.add_done_callback(lambda _: self._spawn(self._remove(worker.container)))
            raise

    def _drop(self, worker: _Worker) -> None:
        """It was not made."""
        self._workers.pop(worker.worker_id, None)
        worker.is_ending = True
        worker.started.set()  # for who waits to send it a signal

    async def _make(
        self, worker: _Worker, launch: WorkerLaunch, image: str, code: bytes | None
    ) -> None:
        try:
            await self._make_with_all(launch, image, code)
        except _MayRunError:
            if not await self._was_started(worker):
                raise
        self._follow(worker)

    async def _make_with_all(self, launch: WorkerLaunch, image: str, code: bytes | None) -> None:
        try:
            await self._do(self._make_container, launch, image, code)
        except NotInEngine:
            # Its image, which a registry may have, or the network, which somebody pruned.
            name = launch.worker_id
            await self._place.fetch(image, told=lambda: self.on_note(name, PULLING))
            self.on_note(name, "")
            await self._do(self._make_network)
            await self._do(self._make_container, launch, image, code)

    async def _was_started(self, worker: _Worker) -> bool:
        """Whether it was, once the engine can say so: it may have begun its execution, and another would be a second start."""
        while True:
            try:
                state = await self._do(self.engine.container, worker.container)
                return state.status != "created"
            except NotInEngine:
                return False
            except EngineError as error:
                log.warning("%s", error)
            await asyncio.sleep(_ASK_AGAIN_S)

    async def _packed_code(self, digest: str) -> bytes | None:
        """The bundle's files for a container; of the bundles that ran lately they are kept."""
        if digest not in self._packed:
            code_dir = await self.bundles.code_dir(digest)
            self._packed[digest] = await asyncio.to_thread(pack_code, code_dir)
            while len(self._packed) > PACKED_BUNDLES:
                del self._packed[next(iter(self._packed))]
        return self._packed[digest]

    def _make_container(self, launch: WorkerLaunch, image: str, code: bytes | None) -> None:
        name = container_name(launch.worker_id)
        orders = make_launch(launch, self._worker_url, has_code=code is not None)
        self.engine.create(name, self.container_config(launch, image))
        try:
            self.engine.put(name, HOME, pack(orders, code))
            self._start_container(name)
        except _MayRunError:
            raise
        except EngineError:
            self.engine.remove(name)
            raise

    def _start_container(self, name: str) -> None:
        try:
            self.engine.start(name)
        except EngineAway as error:
            raise _MayRunError(error.message, error.hint) from error

    def container_config(self, launch: WorkerLaunch, image: str) -> dict[str, Any]:
        """The worker's container in the engine's own JSON."""
        return make_config(self._plan, launch, image)

    def _follow(self, worker: _Worker) -> None:
        """Its container runs: copies its output, and learns of its end from that."""
        loop = asyncio.get_running_loop()
        worker.started.set()

        def copied() -> None:
            worker.copied.set()
            self._logs.gone(worker.worker_id)
            self._died(worker.worker_id)

        on_end = partial(_call, loop, copied)
        self._logs.begin(worker.worker_id, worker.log_file.stem)
        worker.copy = OutputCopy(
            self.engine, worker.container, worker.log_file, on_end, self._logs.mark
        )
        worker.copy.start()

    def claimed(self, worker_id: str) -> None:
        """From now on it has the cpu of its function: see ``Runner.claimed``."""
        worker = self._workers.get(worker_id)
        if worker is not None:
            worker.is_claimed = True
            self._spawn(self._limit(worker))

    def handed(self, worker_id: str, execution_id: str) -> None:
        """Its output is with that of the worker's first one, and says whose it is: see ``docker_output``."""
        self._logs.begin(worker_id, execution_id)

    async def _limit(self, worker: _Worker) -> None:
        """Takes back the cpu that it had for its start, once it needs no more of it."""
        await worker.started.wait()
        if worker.is_limited or worker.is_ending or worker.cpu >= STARTING_CPU:
            return
        limit = cpu_limit(worker.cpu, self._plan.cores)
        try:
            await self._do(self.engine.limit_cpu, worker.container, limit)
        except EngineAway as error:  # it is tried again when the engine is there again
            log.warning("%s", error)
        except EngineError as error:  # as a rule it has ended meanwhile
            log.debug("%s", error)
        else:
            worker.is_limited = True

    # --- stopping --------------------------------------------------------------------------------------

    async def stop(self, worker_id: str, grace_s: float) -> None:
        """Asks it to end, and kills it after ``grace_s``: see ``Runner.stop``."""
        worker = self._workers.get(worker_id)
        if worker is None:
            return
        if grace_s <= 0:
            self._signal(worker, "SIGKILL")
            return
        loop = asyncio.get_running_loop()
        self._signal(worker, "SIGTERM")
        worker.timers += [
            loop.call_later(TERM_AGAIN_S, self._signal, worker, "SIGTERM"),
            loop.call_later(grace_s, self._signal, worker, "SIGKILL"),
        ]

    def _signal(self, worker: _Worker, name: str) -> None:
        if worker.stop_signal != "SIGKILL":
            worker.stop_signal = name
        self._spawn(self._send(worker, worker.stop_signal))

    async def _send(self, worker: _Worker, name: str) -> None:
        await worker.started.wait()
        try:
            await self._do(self.engine.kill, worker.container, name)
        except EngineError as error:  # it is sent again when the engine is there again
            log.warning("%s", error)

    async def alive(self, worker_id: str) -> bool:
        """Whether any process of the worker may be left: an engine that is away does not say."""
        if worker_id in self._workers:
            return True
        try:
            return (await self._do(self.engine.container, container_name(worker_id))).is_running
        except NotInEngine:
            return False
        except EngineError as error:
            log.warning("%s", error)
            return True

    # --- after a restart -------------------------------------------------------------------------------

    async def adopt(self, worker_ids: Iterable[str]) -> dict[str, WorkerEnd]:
        """Finds the workers of an earlier server by their labels: see ``Runner.adopt``."""
        ends = {worker_id: WorkerEnd(worker_id) for worker_id in worker_ids}
        try:
            for state in await self._do(self.engine.containers, worker_labels(self.installation)):
                worker_id = state.labels[WORKER_LABEL]
                if worker_id in self._workers:
                    ends.pop(worker_id, None)
                elif worker_id not in ends:
                    await self._remove(state.name)
                elif state.is_running:
                    del ends[worker_id]
                    self._adopt(worker_id, state)
                else:
                    ends[worker_id] = await self._bury(worker_id, state)
        except EngineError as error:
            raise InputError(error.message, error.hint) from error
        self._sweep_later()
        return ends

    def _adopt(self, worker_id: str, state: ContainerState) -> None:
        worker = _Worker(worker_id, float(state.labels[CPU_LABEL]), self._log_of(state))
        self._workers[worker_id] = worker
        self._follow(worker)
        self.claimed(worker_id)  # whether it is, or how far that got, is not known

    async def _bury(self, worker_id: str, found: ContainerState) -> WorkerEnd:
        """Removes a container that has ended, once it has told how and its output is copied."""
        state = await self._do(self.engine.container, found.name)
        end = end_of(worker_id, state, await self._do(self._stderr, state))
        await self._copy_rest(found.name, self._log_of(found))
        await self._remove(found.name)
        return end

    def _log_of(self, state: ContainerState) -> Path:
        return self._logs.path(state.labels[EXECUTION_LABEL])

    # --- comparing -------------------------------------------------------------------------------------

    def _sweep_later(self) -> None:
        loop = asyncio.get_running_loop()
        self._sweeping = loop.call_later(SWEEP_S, lambda: self._spawn(self._compare()))

    def _connected(self) -> None:
        """The engine's events are told (again). Before ``adopt`` nothing can be compared."""
        if self._sweeping is not None:
            self._spawn(self._compare())

    async def _compare(self) -> None:
        """Takes notice of workers whose containers have ended, sends again what they were sent, removes what nobody wants."""
        before = [worker for worker in self._workers.values() if worker.started.is_set()]
        try:
            found = await self._do(self.engine.containers, worker_labels(self.installation))
        except EngineError as error:
            log.warning("%s", error)
            found = None
        if found is not None:
            by_id = {state.labels[WORKER_LABEL]: state for state in found}
            for worker in before:
                state = by_id.get(worker.worker_id)
                if state is None or not state.is_running:
                    self._died(worker.worker_id)
                    continue
                if worker.stop_signal:
                    self._signal(worker, worker.stop_signal)
                if worker.is_claimed:
                    self._spawn(self._limit(worker))
            for state in found:
                if state.labels[WORKER_LABEL] not in self._workers:
                    await self._remove(state.name)
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweep_later()

    # --- ends ------------------------------------------------------------------------------------------

    def _died(self, worker_id: str) -> None:
        worker = self._workers.get(worker_id)
        if worker is not None and not worker.is_ending:
            worker.is_ending = True
            self._spawn(self._finish(worker))

    async def _finish(self, worker: _Worker) -> None:
        await worker.started.wait()
        end = await self._end_of(worker)
        await self._output_copied(worker)
        self._workers.pop(worker.worker_id, None)
        worker.cancel_timers()
        if worker.is_wanted:
            # Not here and now: `start` returns first, where the worker has ended before it could.
            asyncio.get_running_loop().call_soon(self._on_end, end)
        removing = self._spawn(self._remove(worker.container))
        self._removing.add(removing)
        removing.add_done_callback(self._removing.discard)

    async def _end_of(self, worker: _Worker) -> WorkerEnd:
        """How it ended, once the engine can say so."""
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                state = await self._do(self.engine.container, worker.container)
                if not state.is_running:
                    stderr = await self._do(self._stderr, state)
                    return end_of(worker.worker_id, state, stderr)
            except NotInEngine:
                return WorkerEnd(worker.worker_id, detail="its container was removed")
            except EngineError as error:
                log.warning("%s", error)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _stderr(self, state: ContainerState) -> str:
        """What the supervisor itself said at last."""
        kept = b""
        for block in self.engine.output(state.name, stream="stderr"):
            kept = (kept + block)[-4096:]
        return kept.decode(errors="replace")

    async def _output_copied(self, worker: _Worker) -> None:
        try:
            await asyncio.wait_for(worker.copied.wait(), COPY_PATIENCE_S)
        except asyncio.TimeoutError:  # on Python 3.10 not the built-in one
            if worker.copy is not None:
                worker.copy.stop()
                await self._do(worker.copy.join, COPY_PATIENCE_S)
            while True:
                try:
                    return await self._copy_rest(worker.container, worker.log_file)
                except EngineAway as error:
                    log.warning("%s", error)
                await asyncio.sleep(_LONGEST_PAUSE_S)

    async def _copy_rest(self, name: str, path: Path) -> None:
        """Copies what is missing of its output. Raises EngineAway: then it is still there."""
        try:
            await self._do(copy_output, self.engine, name, path)
        except EngineAway:
            raise
        except (EngineError, OSError) as error:
            log.warning("%s: the rest of its output is lost: %s", name, error)

    async def _remove(self, name: str) -> None:
        try:
            await self._do(self.engine.remove, name)
        except EngineError as error:  # the next sweep removes it
            log.warning("%s", error)

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
        """See ``docker_checks``."""
        tried = Tried(self._plan, self._worker_url, base_image, self._repository)
        return await self._do(check_engine, self.engine, tried)

    async def remove_logs(self, execution_ids: Iterable[str]) -> None:
        """Removes the output of these executions."""
        await self._logs.remove(execution_ids)

    async def stored(self, in_use: Collection[str]) -> list[Stored]:
        """Images, bundles and output: see ``Runner.stored``."""
        return [
            *await self.images.stored(in_use),
            *await asyncio.to_thread(self.bundles.stored, in_use),
            *await asyncio.to_thread(self._logs.stored, in_use),
        ]

    async def discard(self, item: Stored) -> Discarded:
        """Removes an image, a bundle or output: see ``Runner.discard``."""
        if item.kind == OUTPUT:
            await asyncio.to_thread(self._logs.discard, item.name)
        elif item.kind == "bundle":
            await self.bundles.remove(item.name)
        else:
            return await self.images.discard(item)
        return Discarded(is_gone=True)

    async def close(self) -> None:
        """Lets go of everything; containers go on running."""
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
        threads: list[OutputCopy | Deaths] = [self._deaths] if self._deaths else []
        for worker in self._workers.values():
            worker.cancel_timers()
            threads += [worker.copy] if worker.copy else []
        self._workers.clear()
        if self._removing:
            await asyncio.wait(self._removing, timeout=CLOSE_PATIENCE_S)
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        for thread in threads:
            thread.stop()
        for thread in threads:
            await asyncio.to_thread(thread.join, CLOSE_PATIENCE_S)
        await asyncio.to_thread(self._pool.shutdown)
        await asyncio.to_thread(self._remove_network)
        self._logs.close()
        self.engine.close()

    def _remove_network(self) -> None:
        """Leaves nothing where nothing runs: the engine keeps a network that a container is in."""
        with suppress(EngineError):
            self.engine.remove_network(self._plan.network)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            error = task.exception()
            told_by_start = isinstance(error, EngineError)
            if error is not None and not told_by_start:
                log.error("an action on the engine failed", exc_info=error)


def _installation(data_dir: Path) -> str:
    """The id of this data folder, made when it is first asked for."""
    path = data_dir / "installation"
    if not path.exists():
        whole_files.write(path, secrets.token_hex(6).encode())
    return path.read_text().strip()


def _call(loop: asyncio.AbstractEventLoop, act: Callable[..., None], *args: Any) -> None:
    """Calls on the loop, from another thread; nothing happens where that is closed."""
    try:
        loop.call_soon_threadsafe(act, *args)
    except RuntimeError:
        return
