"""The ``ecs`` runner: each worker is a Fargate task of its own, from the image of its environment.

    data folder/images/       images.py; the images are in ECR
    data folder/bundles/      bundles.py; workers fetch their code from the control plane
    CloudWatch                ecs_logs.py

Nothing here has to outlive the process but bundles and what is known of images: tasks are found by their tags, and so is their output.
ECS tells nothing by itself: every second all living tasks are looked at, by hundreds. A task that ECS does not know is gone only
when it should have been known for long.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection, Coroutine, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from multinode.errors import AwsFailed, InputError, MultinodeError
from multinode.wire import (
    BuildEvent,
    BuildRequest,
    EnvironmentInfo,
    Finding,
    ImageReport,
    LogRecord,
    WorkerSize,
)
from multinode_control_plane.ecs_settings import EcsSettings
from multinode_control_plane.runners import (
    NO_CAPACITY,
    OnEnd,
    OnNote,
    WorkerEnd,
    WorkerLaunch,
    WorkerNotMadeError,
)
from multinode_control_plane.runners.bundles import Bundles
from multinode_control_plane.runners.ecr import EcrRepository
from multinode_control_plane.runners.ecs_api import Account, Tasks
from multinode_control_plane.runners.ecs_definitions import DEFINITION, Definitions
from multinode_control_plane.runners.ecs_logs import POLL_S, TaskLogs
from multinode_control_plane.runners.ecs_tasks import (
    EXECUTION_TAG,
    NAME_TAG,
    STOP_TIMEOUT_S,
    WORKER_TAG,
    TaskPlan,
    billed_s,
    end_of,
    explain_failure,
    has_ended,
    make_launch,
    make_run,
    tags_of,
    task_id_of,
    waits_for,
)
from multinode_control_plane.runners.fargate_sizes import size_for
from multinode_control_plane.runners.images import Images
from multinode_control_plane.runners.pushed_images import PushedPlace
from multinode_control_plane.runners.storage import Discarded, Stored

log = logging.getLogger(__name__)

SWEEP_S = 300.0
UNSEEN_S = 120.0
"""So long after it was made a task may be MISSING: ECS is eventually consistent."""
SETTLE_S = 10.0
"""How long a task that was asked for just before a crash may take to be listed."""
START_PATIENCE_S = 60.0
"""How long a worker waits for its turn where AWS throttles, before it is told as one that could not be made."""
MAX_ENDED = 20_000
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 10.0
_INACTIVE = (
    "TaskDefinition is inactive",
    "Unable to describe task definition",
    "TaskDefinition not found",
)
"""What RunTask says where somebody has deregistered the definition."""  # fmt: skip


@dataclass(eq=False)
class _Worker:
    """A worker whose task is not known to have ended."""

    worker_id: str
    execution_id: str
    task: str = ""
    """Its ARN, once it has one."""
    is_wanted: bool = True
    """Whether ``on_end`` is to be called."""
    is_claimed: bool = False
    note: str = ""
    """What its making waits for, as it was told last."""
    is_ending: bool = False
    was_stopped: bool = False
    is_stop_sent: bool = False
    made_at: float = field(default_factory=time.monotonic)


class EcsRunner:
    """Makes workers as tasks of ``settings.cluster``."""

    name = "ecs"
    enforces: tuple[str, ...] = ("cpu", "memory")
    unenforced_reason = ""
    output_expires = True  # by the log group's retention

    def __init__(
        self,
        data_dir: Path,
        settings: EcsSettings,
        repository: EcrRepository,
        *,
        poll_s: float = POLL_S,
        stop_timeout_s: int = STOP_TIMEOUT_S,
        settle_s: float = SETTLE_S,
    ) -> None:
        self.tariff = settings.tariff
        self.bundles = Bundles(data_dir)
        self.images = Images(
            data_dir / "images",
            place=PushedPlace(repository, platform=settings.platform, installation=settings.name),
            installation=settings.name,
        )
        self._repository = repository
        self._settings = settings
        self._poll_s, self._stop_timeout_s, self._settle_s = poll_s, stop_timeout_s, settle_s
        self._plan = TaskPlan(settings, "", stop_timeout_s)
        self._account = Account()
        self._tasks = Tasks(self._account, settings.cluster, settings.name)
        self._definitions = Definitions(self._tasks, lambda: self._plan)
        self._logs = TaskLogs(self._account, lambda: self._plan, self._ended_at, poll_s=poll_s)
        self._workers: dict[str, _Worker] = {}
        self._ended: OrderedDict[str, float] = OrderedDict()
        """When (monotonic) the workers of executions ended."""
        self._handed: OrderedDict[str, str] = OrderedDict()
        """Executions that workers were handed, and those that these were made for."""
        self._running: set[asyncio.Task[Any]] = set()
        self._on_end: OnEnd = lambda end: None
        self.on_note: OnNote = lambda worker_id, note: None
        self._worker_url = ""

    # --- coming up -------------------------------------------------------------------------------------

    async def worker_address(self) -> None:
        """Tasks reach the control plane at ``--worker-url``, which `choice` asks for."""
        return

    async def open(self, on_end: OnEnd, worker_url: str) -> None:
        """Makes the folders, and begins to look after tasks. Raises InputError where AWS cannot be used at all."""
        self._on_end, self._worker_url = on_end, worker_url
        await asyncio.to_thread(self._open)
        try:
            region = await self._account.region()
        except AwsFailed as error:
            raise InputError(error.message, error.hint) from error
        self._plan = TaskPlan(self._settings, region, self._stop_timeout_s)
        self._spawn(self._watch())

    def _open(self) -> None:
        self.bundles.open()
        self.images.open()

    def size_for(self, cpu: float, memory_mib: int) -> WorkerSize:
        """The Fargate size: see ``Runner.size_for``."""
        return size_for(cpu, memory_mib)

    # --- environments ----------------------------------------------------------------------------------

    def build(self, request: BuildRequest) -> AsyncIterator[BuildEvent]:
        """See ``Images.build``."""
        return self.images.build(request)

    async def take_image(self, digest: str, report: ImageReport) -> EnvironmentInfo:
        """See ``Images.take``."""
        return await self.images.take(digest, report)

    async def learn(self, environments: Iterable[EnvironmentInfo]) -> None:
        """See ``Images.learn``."""
        await self.images.learn(environments)

    # --- making workers --------------------------------------------------------------------------------

    async def start(self, launch: WorkerLaunch) -> None:
        """Runs the task: see ``Runner.start``. Returns when AWS has taken it, which is long before it runs."""
        worker = _Worker(launch.worker_id, launch.execution_id)
        self._workers[launch.worker_id] = worker
        making = self._spawn(self._make(worker, launch))
        try:
            await asyncio.shield(making)
        except MultinodeError as error:
            self._drop(worker)
            raise WorkerNotMadeError(str(error)) from error
        except asyncio.CancelledError:  # nobody waits for it any more
            worker.is_wanted = False
            self._ask_to_end(worker)
            raise
        except Exception:  # WorkerNotMadeError, or this runner's own fault
            self._drop(worker)
            raise

    def _drop(self, worker: _Worker) -> None:
        """It was not made."""
        worker.is_ending = True
        self._workers.pop(worker.worker_id, None)

    async def _make(self, worker: _Worker, launch: WorkerLaunch) -> None:
        image = self.images.info(launch.environment_digest).image
        self.bundles.path(launch.bundle_digest)  # it will be asked for
        size = size_for(launch.cpu, launch.memory_mib)
        told = make_launch(launch, self._worker_url, size)
        definition = await self._definitions.arn(image, size)
        arguments = make_run(self._plan, definition, launch, told)
        try:
            worker.task = await self._run(worker.worker_id, arguments)
        except AwsFailed as error:
            if not any(words in error.message for words in _INACTIVE):
                raise
            self._definitions.forget(image, size)
            definition = await self._definitions.arn(image, size)
            token = f"{launch.worker_id}-2"  # of another request
            again = {**arguments, "taskDefinition": definition, "clientToken": token}
            worker.task = await self._run(worker.worker_id, again)
        worker.made_at = time.monotonic()
        self._spawn(self._note(worker, worker.execution_id))
        if worker.was_stopped:
            self._send_stop(worker)

    async def _run(self, worker_id: str, arguments: dict[str, Any]) -> str:
        """The task's ARN. Asks until AWS has said yes or no: a request whose answer was lost may have run it, and the token
        makes the next one find that."""
        patience_ends_at = time.monotonic() + START_PATIENCE_S
        pause_s, may_run = _FIRST_PAUSE_S, False
        while True:
            try:
                answer = await self._tasks.run(arguments)
            except AwsFailed as error:
                if not error.is_passing:
                    raise
                may_run = may_run or error.reason != "Throttled"
                if not may_run and time.monotonic() > patience_ends_at:
                    raise
                log.warning("%s", error)
                is_full = error.reason == "Throttled"
                self.on_note(worker_id, f"{NO_CAPACITY if is_full else ''}{error.message}")
            else:
                if answer["tasks"]:
                    return str(answer["tasks"][0]["taskArn"])
                raise WorkerNotMadeError(explain_failure(next(iter(answer["failures"]), {})))
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    async def _note(self, worker: _Worker, execution_id: str) -> None:
        """Says where the output of an execution is, for other processes, and for this one after a restart."""
        is_handed = execution_id != worker.execution_id
        pause_s = _FIRST_PAUSE_S
        while True:
            try:
                await self._logs.note(execution_id, task_id_of(worker.task), is_handed=is_handed)
            except AwsFailed as error:
                log.warning("%s", error)
                if not error.is_passing:
                    return
            else:
                return
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def claimed(self, worker_id: str) -> None:
        """It has its execution: see ``Runner.claimed``."""
        worker = self._workers.get(worker_id)
        if worker is not None:
            worker.is_claimed = True

    def handed(self, worker_id: str, execution_id: str) -> None:
        """Its output is with that of the worker's first one, and says whose it is: that is kept where any process finds it."""
        worker = self._workers.get(worker_id)
        if worker is not None:
            self._handed[execution_id] = worker.execution_id
            while len(self._handed) > MAX_ENDED:
                self._handed.popitem(last=False)
            self._spawn(self._note(worker, execution_id))

    # --- stopping --------------------------------------------------------------------------------------

    async def stop(self, worker_id: str, grace_s: float) -> None:
        """Asks it to end: see ``Runner.stop``. Whatever ``grace_s`` is, Fargate kills it after the definition's stop timeout."""
        worker = self._workers.get(worker_id)
        if worker is not None:
            self._ask_to_end(worker)

    def _ask_to_end(self, worker: _Worker) -> None:
        worker.was_stopped = True
        if worker.task:
            self._send_stop(worker)

    def _send_stop(self, worker: _Worker) -> None:
        if not worker.is_stop_sent:
            worker.is_stop_sent = True
            self._spawn(self._stop_task(worker))

    async def _stop_task(self, worker: _Worker) -> None:
        try:
            await self._tasks.stop(worker.task, "stopped by the control plane")
        except AwsFailed as error:  # it is sent again at the next look
            log.warning("%s", error)
            worker.is_stop_sent = False

    async def alive(self, worker_id: str) -> bool:
        """Whether any process of the worker may be left: all tasks that may run are known, or found by the sweep."""
        return worker_id in self._workers

    # --- looking ---------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """Sees the ends of tasks, for ever."""
        while True:
            await asyncio.sleep(self._poll_s)
            try:
                await self._look()
            except AwsFailed as error:  # nobody is gone for that
                log.warning("%s", error)
            except Exception:  # the outermost edge of this task
                log.exception("tasks could not be looked at")

    async def _look(self) -> None:
        looked_at = [each for each in self._workers.values() if each.task and not each.is_ending]
        if not looked_at:
            return
        found = await self._tasks.describe([each.task for each in looked_at])
        for worker in looked_at:
            task = found.get(worker.task)
            if worker.is_ending:
                continue
            if task is None:
                self._missing(worker)
                continue
            self._say(worker, waits_for(task))
            if has_ended(task):
                worker.is_ending = True
                self._spawn(self._finish(worker, task))
            elif worker.was_stopped and task.get("desiredStatus") != "STOPPED":
                worker.is_stop_sent = False  # it was lost, or came before ECS knew of the task
                self._send_stop(worker)

    def _say(self, worker: _Worker, note: str) -> None:
        """Tells what its making waits for, once."""
        if worker.note != note and not worker.is_claimed:
            worker.note = note
            self.on_note(worker.worker_id, note)

    def _missing(self, worker: _Worker) -> None:
        if time.monotonic() - worker.made_at > UNSEEN_S:
            worker.is_ending = True
            detail = "ECS does not know its task any more"
            self._tell(worker, WorkerEnd(worker.worker_id, detail=detail))

    async def _finish(self, worker: _Worker, task: Mapping[str, Any]) -> None:
        self._tell(worker, await self._end_of(worker, task))

    async def _end_of(self, worker: _Worker, task: Mapping[str, Any]) -> WorkerEnd:
        said = await self._said(worker, task)
        end = end_of(worker.worker_id, task, said, was_stopped=worker.was_stopped)
        return replace(end, billed_s=billed_s(task, time.time()))

    async def _said(self, worker: _Worker, task: Mapping[str, Any]) -> str:
        """The supervisor's own last words, where it has not come as far as its execution, or not ended well."""
        codes = [item.get("exitCode") for item in task.get("containers", ())]
        if codes in ([], [None]) or (worker.is_claimed and codes == [0]):
            return ""
        try:
            return await self._logs.last_words(task_id_of(worker.task))
        except AwsFailed as error:
            log.warning("%s", error)
            return ""

    def _tell(self, worker: _Worker, end: WorkerEnd) -> None:
        self._note_end(worker.execution_id)
        self._workers.pop(worker.worker_id, None)
        if worker.is_wanted:
            # Not here and now: `start` returns first, where the worker has ended before it could.
            asyncio.get_running_loop().call_soon(self._on_end, end)

    def _note_end(self, execution_id: str) -> None:
        self._ended[execution_id] = time.monotonic()
        while len(self._ended) > MAX_ENDED:
            self._ended.popitem(last=False)

    def _ended_at(self, execution_id: str) -> float | None:
        """See ``TaskLogs``."""
        execution_id = self._handed.get(execution_id, execution_id)
        if execution_id in self._ended:
            return self._ended[execution_id]
        lives = any(each.execution_id == execution_id for each in self._workers.values())
        return 0.0 if lives else None

    # --- after a restart -------------------------------------------------------------------------------

    async def adopt(self, worker_ids: Iterable[str]) -> dict[str, WorkerEnd]:
        """Finds the tasks of an earlier server by their tags: see ``Runner.adopt``."""
        wanted = set(worker_ids) - self._workers.keys()
        try:
            found = await self._own_tasks(await self._tasks.living())
            if wanted - found.keys():
                found.update(await self._own_tasks(await self._tasks.stopping()))
            if wanted - found.keys():  # one may have been asked for just before the crash
                await asyncio.sleep(self._settle_s)
                found.update(await self._own_tasks(await self._tasks.living()))
        except AwsFailed as error:
            raise InputError(error.message, error.hint) from error
        ends = {worker_id: WorkerEnd(worker_id) for worker_id in wanted}
        for worker_id, task in found.items():
            worker = _Worker(worker_id, tags_of(task).get(EXECUTION_TAG, ""), task["taskArn"])
            worker.is_claimed = True  # whether it is is not known
            if worker_id in self._workers:
                continue
            if worker_id not in wanted:
                if not has_ended(task):
                    self._spawn(self._stop_task(worker))
                continue
            self._spawn(self._note(worker, worker.execution_id))
            if has_ended(task):
                ends[worker_id] = await self._end_of(worker, task)
                self._note_end(worker.execution_id)
            else:
                del ends[worker_id]
                self._workers[worker_id] = worker
        self._spawn(self._sweep_regularly())
        return ends

    async def _own_tasks(self, arns: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Of these tasks those of this installation, by the ids of their workers."""
        found = {}
        for task in (await self._tasks.describe(arns)).values():
            tags = tags_of(task)
            if tags.get(NAME_TAG) == self._settings.name and tags.get(WORKER_TAG):
                found[tags[WORKER_TAG]] = task
        return found

    async def _sweep_regularly(self) -> None:
        while True:
            await asyncio.sleep(SWEEP_S)
            try:
                await self.sweep()
            except AwsFailed as error:
                log.warning("%s", error)
            except Exception:  # the outermost edge of this task
                log.exception("tasks could not be swept")

    async def sweep(self) -> None:
        """Stops tasks that nobody knows: of a request that AWS took, and whose answer nobody heard. Raises AwsFailed."""
        known = {worker.task for worker in self._workers.values()}
        unknown = [arn for arn in await self._tasks.living() if arn not in known]
        for worker_id, task in (await self._own_tasks(unknown)).items():
            if (
                worker_id not in self._workers
            ):  # else it is being made, and has no task yet that would be known
                log.warning("stopping a task that nobody knows: %s", task["taskArn"])
                await self._tasks.stop(task["taskArn"], "nobody knows it")

    # --- logs, what is stored, the end -----------------------------------------------------------------

    def logs(
        self, execution_id: str, attempt: int, *, ended: asyncio.Event | None = None
    ) -> AsyncIterator[LogRecord]:
        """See ``TaskLogs.records``."""
        return self._logs.records(execution_id, attempt, ended=ended)

    async def remove_logs(self, execution_ids: Iterable[str]) -> None:
        """Removes the output of these executions; what AWS does not let us remove, the log group's retention does."""
        try:
            await self._logs.remove(execution_ids)
        except AwsFailed as error:
            log.warning("%s", error)

    async def checks(self, base_image: str) -> list[Finding]:
        """The cluster, the log group and the repository, as far as they can be looked at without a task."""
        found = [await self._check_cluster(), await self._check_log_group()]
        return [*found, *await asyncio.to_thread(self._repository.checks)]

    async def _check_cluster(self) -> Finding:
        check, cluster = "ECS cluster", self._settings.cluster
        try:
            state = await self._tasks.cluster_state()
        except AwsFailed as error:
            return Finding(check, "FAIL", error.message, error.hint)
        if state != "ACTIVE":
            what = f"The cluster {cluster} is {state or 'not there'}"
            return Finding(check, "FAIL", what, "Is --ecs-cluster right, and AWS_REGION?")
        return Finding(check, "ok", f"{cluster} is active")

    async def _check_log_group(self) -> Finding:
        check, group = "log group", self._settings.log_group
        try:
            is_there = await self._logs.group_is_there()
        except AwsFailed as error:
            return Finding(check, "FAIL", error.message, error.hint)
        if not is_there:
            hint = "Make it, with a retention: without it no task starts."
            return Finding(check, "FAIL", f"There is no log group {group}", hint)
        return Finding(check, "ok", f"{group} is there")

    async def stored(self, in_use: Collection[str]) -> list[Stored]:
        """Images, bundles and task definitions; output goes with the log group's retention."""
        found = [
            *await self.images.stored(in_use),
            *await asyncio.to_thread(self.bundles.stored, in_use),
        ]
        try:
            return [*found, *await self._definitions.stored()]
        except AwsFailed as error:  # what else is stored can be told all the same
            log.warning("%s", error)
            return found

    async def discard(self, item: Stored) -> Discarded:
        """Removes an image, a bundle or a task definition."""
        if item.kind == "bundle":
            await self.bundles.remove(item.name)
        elif item.kind == DEFINITION:
            try:
                await self._definitions.discard(item.name)
            except AwsFailed as error:
                log.warning("%s", error)
                return Discarded(is_gone=False)
        else:
            return await self.images.discard(item)
        return Discarded(is_gone=True)

    async def close(self) -> None:
        """Lets go of everything; tasks go on running."""
        self._workers.clear()
        for task in list(self._running):
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        await asyncio.to_thread(self._account.close)
        await asyncio.to_thread(self._repository.close)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._running.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled():
            error = task.exception()
            is_told_by_start = isinstance(error, MultinodeError | WorkerNotMadeError)
            if error is not None and not is_told_by_start:
                log.error("an action on ECS failed", exc_info=error)
