"""Between the store and the runner: carries out what was committed, and tells the store what became of it.

Woken by changes and by one timer for the next thing that is due, never by a clock that ticks. `tick` runs inside of the
writer's transaction; everything else runs on the event loop.
"""

from __future__ import annotations

import asyncio
import logging
import secrets
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from multinode import wire
from multinode.errors import (
    ClaimRefused,
    ControlPlaneError,
    ImportFailed,
    ServerStopping,
    by_code,
)
from multinode.worker.launch import INTERPRETER_PREFIXES
from multinode_control_plane import model
from multinode_control_plane.runners import Runner, WorkerEnd, WorkerLaunch, WorkerNotMadeError
from multinode_control_plane.service import admission, adoption, deployments, executions
from multinode_control_plane.service.actions import (
    ForgetWorker,
    HandOver,
    RemoveLogs,
    SetTimer,
    StartWorker,
    StopWorker,
)
from multinode_control_plane.service.executions import Context, WorkerIdentity
from multinode_control_plane.service.facts import Fact
from multinode_control_plane.service.hashing import is_same_secret
from multinode_control_plane.store import Store, Transaction

log = logging.getLogger(__name__)

DESCRIBE_TIMEOUT_S = 300.0
UNREACHABLE_GRACE_S = 10.0
STALLED_S = 1.0
"""What takes longer than this, and should take no time, was held up with all else: words of workers lie unread."""
STORE_AGAIN_S = 1.0
"""First pause before what the store had no room for is written again; doubles up to a minute."""
LONGEST_STORE_AGAIN_S = 60.0


@dataclass
class Describe:
    """A worker that imports ``main.py`` to describe it. It lives in memory only: after a crash the deploy is made again."""

    project: str
    request: wire.DescribeRequest
    launch: WorkerLaunch
    answer: asyncio.Future[wire.Described]
    nonce: str | None = None


@dataclass
class Lease:
    """When a worker was heard last (monotonic), and how many requests of it are open."""

    heard_at: float
    is_at_work: bool = False
    """Whether it has said a word since it exchanged its code. Until then it may be long in coming: its start_timeout says how long."""
    open_requests: int = 0
    unreachable: bool = False
    stopped: bool = False
    """Whether it was stopped for its silence; once is enough."""
    ended: bool = False
    """Whether the end of its execution is stored: that it is gone tells no client anything new."""
    desk: list[wire.Task] = field(default_factory=list)
    """What it was handed, and not told of yet."""


@dataclass
class Scheduler:
    """See the module. ``draining`` makes new workers only for what a running function waits for."""

    store: Store
    runner: Runner
    context: Context
    draining: bool = False
    describes: dict[str, Describe] = field(default_factory=dict)
    tokens: dict[str, WorkerIdentity] = field(default_factory=dict)
    tell: Callable[[Fact], None] = lambda fact: None
    """Called with what was committed, on the loop."""
    runner_failed: Callable[[str], None] = lambda operation: None
    """Called where the runner could not do what it was told."""
    _leases: dict[str, Lease] = field(default_factory=dict)
    _tasks: set[asyncio.Task[Any]] = field(default_factory=set)
    _starts: dict[str, asyncio.Task[Any]] = field(default_factory=dict)
    _timer: asyncio.TimerHandle | None = None
    _timer_at: float = 0.0
    _silence_timer: asyncio.TimerHandle | None = None
    _worker_url: str = ""

    async def open(self, worker_url: str) -> None:
        """Opens the runner, adopts the workers that live, gives up the others, and begins to schedule."""
        self._worker_url = worker_url
        self.runner.on_note = self._worker_noted
        await self.runner.open(self._worker_ended, worker_url)
        await self.runner.learn(await self.store.read(deployments.environments_kept))
        known = await self.store.read(adoption.alive)
        ends = await self.runner.adopt([who.worker_id for who in known])
        # Not earlier: where it takes over from another process, requests change things meanwhile. What that leaves to do is found below.
        self.store.tick = self.tick
        self.store.perform = self.perform
        living = {who.worker_id for who in known} - ends.keys()
        at_work = await self.store.read(adoption.at_work)
        for worker_id in living:
            self.lease(worker_id, is_at_work=worker_id in at_work)
        for worker_id, execution_id in await self.store.read(adoption.handed):
            self.runner.handed(worker_id, execution_id)  # a crash may have come before it was told
        for end in ends.values():
            told = replace(end, detail=end.detail or "it ended while the control plane was away")
            await self.store.write(partial(executions.worker_gone, context=self.context, end=told))
        if known:
            log.info("adopted %d of %d workers", len(living), len(known))
        for worker_id in living & await self.store.read(adoption.to_be_stopped):
            self._spawn(self._stop(worker_id, 0.0))
        await self.store.write(lambda tx: tx.wake())

    async def close(self) -> None:
        """Stops scheduling; workers go on."""
        self.store.tick = lambda tx: None
        self.store.perform = lambda effects: None
        for timer in (self._timer, self._silence_timer):
            if timer is not None:
                timer.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=5)
        await self.runner.close()

    async def catch_up(self) -> None:
        """Finds in the store what the commits of other processes have left to do, where some were not heard."""
        for worker_id in await self.store.read(adoption.to_be_stopped):
            self._spawn(self._stop(worker_id, 0.0))
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = (
            None,
            0.0,
        )  # the tick looks for the next one: an earlier one may have been missed
        await self._store(lambda tx: tx.wake())

    def heed(self, effects: list[object], *, woken: bool) -> None:
        """Does what the commit of another process leaves to the leader."""
        self.perform(effects)
        if woken:
            self._spawn(self._store(lambda tx: tx.wake()))

    # --- in the writer's transaction ----------------------------------------------------------------

    def tick(self, tx: Transaction) -> None:
        """Decides what runs next."""
        timers = tx.now >= self._timer_at
        admission.tick(tx, self.context, draining=self.draining, timers=timers)

    # --- on the loop --------------------------------------------------------------------------------

    def perform(self, effects: list[object]) -> None:
        """Carries out the actions of a commit."""
        for effect in effects:
            match effect:
                case StartWorker(launch):
                    self._starts[launch.worker_id] = self._spawn(self._start(launch))
                case HandOver(worker_id, tasks):
                    self._hand_over(worker_id, tasks)
                case StopWorker(worker_id, grace_s):
                    self._spawn(self._stop(worker_id, grace_s))
                case SetTimer(at):
                    self._set_timer(at)
                case ForgetWorker(worker_id):
                    self._forget(worker_id)
                case RemoveLogs(execution_ids):
                    self._spawn(self.runner.remove_logs(execution_ids))
                case Fact():
                    self.tell(effect)

    def _spawn(self, work: Coroutine[Any, Any, object]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            self.runner_failed("other")
            log.error("an action failed", exc_info=task.exception())

    async def _start(self, launch: WorkerLaunch) -> None:
        worker_id = launch.worker_id
        try:
            self.lease(worker_id)
            await self.runner.start(launch)
        except Exception as error:  # the runner's own fault too: else the slot would stay taken
            expected = isinstance(error, WorkerNotMadeError)
            self.runner_failed("start")
            ids = {"worker_id": worker_id, "execution_id": launch.execution_id}
            log.warning(
                "%s could not be made: %s", worker_id, error, exc_info=not expected, extra=ids
            )
            if not expected and await self.runner.alive(worker_id):
                await self.runner.stop(worker_id, 0.0)  # its end is told by the runner
                return
            why = str(error)
            await self._store(
                lambda tx: executions.worker_not_made(tx, self.context, worker_id, why)
            )
        else:
            at = time.time()
            await self._store(
                lambda tx: executions.worker_accepted(tx, worker_id, at),
                durable=False,
                urgent=False,  # its exchange will soon be stored
            )
        finally:
            self._starts.pop(worker_id, None)

    async def _stop(self, worker_id: str, grace_s: float) -> None:
        """Stops a worker, when its start is no longer under way. One that the runner does not know is gone."""
        starting = self._starts.get(worker_id)
        if starting is not None:
            await asyncio.wait([starting])
        await self.runner.stop(worker_id, grace_s)
        if not await self.runner.alive(worker_id):
            end = WorkerEnd(worker_id, detail="its runner does not know it")
            await self._store(partial(executions.worker_gone, context=self.context, end=end))

    async def _store(
        self, job: Callable[[Transaction], Any], *, durable: bool = True, urgent: bool = True
    ) -> None:
        """Writes what happened outside, and goes on trying where there is no room for it.

        A stopping server drops it: the next start compares workers and rows, and finds it.
        """
        pause_s = STORE_AGAIN_S
        while True:
            try:
                await self.store.write(job, durable=durable, urgent=urgent)
            except ServerStopping:
                return
            except ControlPlaneError as error:
                log.error("what became of a worker could not be stored: %s", error)
                await asyncio.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_STORE_AGAIN_S)
            else:
                return

    def _worker_ended(self, end: WorkerEnd) -> None:
        describe = self.describes.pop(end.worker_id, None)
        if describe is not None:
            self._end_describe(describe, end)
            return
        lease = self._leases.get(end.worker_id) or Lease(0.0)
        untold = {task.execution_id for task in lease.desk}
        lease.desk.clear()
        job = partial(executions.worker_gone, context=self.context, end=end, untold=untold)
        self._spawn(self._store(job, durable=not lease.ended))

    def _hand_over(self, worker_id: str, tasks: tuple[wire.Task, ...]) -> None:
        if worker_id in self._leases:
            self._leases[worker_id].desk.extend(tasks)
        for task in tasks:
            self.runner.handed(worker_id, task.execution_id)

    def take(self, worker_id: str, number: int) -> list[wire.Task]:
        """What the worker was handed from its task ``number`` on: it is told of it now."""
        lease = self._leases.get(worker_id)
        if lease is None:
            return []
        tasks = [task for task in lease.desk if task.number >= number]
        lease.desk.clear()
        return tasks

    def _worker_noted(self, worker_id: str, note: str) -> None:
        job = partial(executions.set_note, worker_id=worker_id, note=note)
        self._spawn(self._store(job, durable=False))

    def remember(self, token_hash: str, who: WorkerIdentity) -> None:
        """Keeps whose token it is, while its worker is there: one that has gone meanwhile would stay for ever."""
        if who.worker_id in self._leases or who.worker_id in self.describes:
            self.tokens[token_hash] = who

    def _forget(self, worker_id: str) -> None:
        self._leases.pop(worker_id, None)
        for token_hash in [h for h, who in self.tokens.items() if who.worker_id == worker_id]:
            del self.tokens[token_hash]

    # --- the timer ----------------------------------------------------------------------------------

    def _set_timer(self, at: float) -> None:
        if self._timer is not None and self._timer_at <= at:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._timer_at = at
        # At most an hour: a wall clock that jumps is noticed then.
        delay_s = min(max(at - time.time(), 0.0) + 0.001, 3600.0)
        self._timer = asyncio.get_running_loop().call_later(delay_s, self._timer_is_over)

    def _timer_is_over(self) -> None:
        self._timer = None
        self._timer_at = 0.0  # the tick looks for the next one, also where this one came early
        self._spawn(self._store(lambda tx: tx.wake()))

    # --- silence ------------------------------------------------------------------------------------

    def lease(self, worker_id: str, *, is_at_work: bool = False) -> None:
        """From now on, or from when it is at work, the worker is expected to be heard, until it is gone."""
        self._leases.setdefault(worker_id, Lease(time.monotonic(), is_at_work))
        if self._silence_timer is None:
            self._arm_silence(self.context.settings.silence_s)

    def heard(self, worker_id: str) -> None:
        """A word of the worker arrived. One that is gone by now has no lease that it could renew."""
        lease = self._leases.get(worker_id)
        if lease is None:
            return
        lease.heard_at, lease.is_at_work = time.monotonic(), True
        if lease.unreachable:
            lease.unreachable = lease.stopped = False
            self._spawn(self._store(lambda tx: executions.set_unreachable(tx, worker_id, False)))

    def claimed(self, worker_id: str) -> None:
        """The worker has its execution; it imports ``main.py`` now, which may take long."""
        self.runner.claimed(worker_id)

    def ended(self, worker_id: str) -> None:
        """The worker has reported the end of its execution, which is stored."""
        if worker_id in self._leases:
            self._leases[worker_id].ended = True

    def opened(self, worker_id: str) -> None:
        """The worker holds a request open: until `closed` it is not silent."""
        self.heard(worker_id)
        if worker_id in self._leases:
            self._leases[worker_id].open_requests += 1

    def closed(self, worker_id: str) -> None:
        """A request that the worker held open was answered."""
        self.heard(worker_id)
        if worker_id in self._leases:
            self._leases[worker_id].open_requests -= 1

    def _arm_silence(self, delay_s: float) -> None:
        due_at = time.monotonic() + delay_s
        self._silence_timer = asyncio.get_running_loop().call_later(
            delay_s, lambda: self._spawn(self._ask_for_silent(due_at))
        )

    async def _ask_for_silent(self, due_at: float) -> None:
        """Asks the runner for each worker that has been silent too long; silence is not death."""
        settings = self.context.settings
        self._forgive(due_at)
        began_at = time.monotonic()
        for worker_id, lease in list(self._leases.items()):
            is_heard = lease.open_requests or not lease.is_at_work
            silent_s = 0.0 if is_heard else time.monotonic() - lease.heard_at
            if silent_s < settings.silence_s or lease.stopped or worker_id in self._starts:
                continue
            if silent_s >= settings.silence_s + settings.unreachable_s:
                ids = {"worker_id": worker_id}
                log.warning(
                    "%s has been silent for %.0f s: stopping it", worker_id, silent_s, extra=ids
                )
                lease.stopped = True
                self._spawn(self._stop(worker_id, UNREACHABLE_GRACE_S))
            elif not lease.unreachable and await self.runner.alive(worker_id):
                lease.unreachable = True
                await self._store(
                    partial(executions.set_unreachable, worker_id=worker_id, unreachable=True)
                )
        self._forgive(began_at)
        self._silence_timer = None
        if self._leases:
            self._arm_silence(self._next_silence())

    def _forgive(self, since: float) -> None:
        """Begins all leases anew where much more time has passed since then than should have: it was this process that was silent.

        It was stopped, or its machine suspended; nobody could be heard.
        """
        now = time.monotonic()
        if now - since > STALLED_S:
            for lease in self._leases.values():
                lease.heard_at = now

    def _next_silence(self) -> float:
        """Seconds until the next lease could be over."""
        settings = self.context.settings
        now = time.monotonic()
        left = [
            lease.heard_at
            + settings.silence_s
            + (settings.unreachable_s if lease.unreachable else 0.0)
            - now
            for lease in self._leases.values()
            if lease.is_at_work and not lease.open_requests and not lease.stopped
        ]
        return max(0.05, min(left, default=settings.silence_s))

    # --- describe -----------------------------------------------------------------------------------

    async def describe(
        self, project: str, request: wire.DescribeRequest
    ) -> list[wire.FunctionDescription]:
        """The functions that ``main.py`` defines in this environment. Raises ImportFailed and its like."""
        worker_id = model.new_id("wrk")
        launch = WorkerLaunch(
            worker_id=worker_id,
            claim_code=secrets.token_urlsafe(32),
            environment_digest=request.environment_digest,
            bundle_digest=request.bundle_digest,
            execution_id=worker_id,
            cpu=1.0,
            memory_mib=1024,
            fresh_interpreter=any(name.startswith(INTERPRETER_PREFIXES) for name in request.dotenv),
            interpreter_env=tuple(
                (name, value)
                for name, value in request.dotenv.items()
                if name.startswith(INTERPRETER_PREFIXES)
            ),
        )
        answer: asyncio.Future[wire.Described] = asyncio.get_running_loop().create_future()
        self.describes[worker_id] = Describe(project, request, launch, answer)
        try:
            await self.runner.start(launch)
            described = await asyncio.wait_for(answer, DESCRIBE_TIMEOUT_S + 10)
        except WorkerNotMadeError as error:
            message = f"No worker could be made to import main.py: {error}"
            raise ImportFailed(message, "`multinode doctor` may know why.") from error
        except asyncio.TimeoutError as error:  # on Python 3.10 not the built-in one
            raise self._never_described(self.describes[worker_id]) from error
        finally:
            if self.describes.pop(worker_id, None) is not None:
                await self.runner.stop(worker_id, 0.0)
            self._forget(worker_id)
            await self.runner.remove_logs([worker_id])
        if described.error is not None:
            cls = by_code().get(described.error.code, ImportFailed)
            raise cls(described.error.message, described.error.hint)
        return described.functions or []

    def _never_described(self, describe: Describe) -> ImportFailed:
        if describe.nonce is not None:
            message = f"Importing main.py took longer than {DESCRIBE_TIMEOUT_S:.0f} s."
            return ImportFailed(message, "Move slow work into the functions.")
        message = (
            f"The worker that was to import main.py did not call within {DESCRIBE_TIMEOUT_S:.0f} s."
        )
        return ImportFailed(message, f"Can workers reach the control plane at {self._worker_url}?")

    def exchange_describe(self, request: wire.ExchangeRequest) -> wire.Assignment | None:
        """The assignment of a worker that describes; None where it is no such worker."""
        describe = self.describes.get(request.worker_id)
        if describe is None:
            return None
        same_code = is_same_secret(describe.launch.claim_code, request.claim_code)
        if not same_code or describe.nonce not in (None, request.nonce):
            message = f"The claim code of {request.worker_id} is not valid, or is used up."
            raise ClaimRefused(message)
        describe.nonce = request.nonce
        return wire.Assignment(
            token=self.context.sealer.token(request.worker_id, request.nonce),
            kind="describe",
            project=describe.project,
            version_id="",
            bundle_digest=describe.request.bundle_digest,
            dotenv=describe.request.dotenv,
            timeout_s=DESCRIBE_TIMEOUT_S,
            grace_s=0.0,
            memory_mib=describe.launch.memory_mib,
        )

    def described(self, worker_id: str, described: wire.Described) -> None:
        """The answer of a worker that describes."""
        describe = self.describes.get(worker_id)
        if describe is not None and not describe.answer.done():
            describe.answer.set_result(described)

    @staticmethod
    def _end_describe(describe: Describe, end: WorkerEnd) -> None:
        if not describe.answer.done():
            why = end.detail or "without saying why"
            error = wire.ErrorBody(
                "import_failed",
                f"The process that imported main.py ended: {why}.",
                "Does main.py, or what it imports, end the process?",
            )
            describe.answer.set_result(wire.Described(error=error))
