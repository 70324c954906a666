"""The output of executions in CloudWatch: how it is found, read to its end, and removed.

awslogs writes what a worker prints into a stream that is named by the task. Which task an execution has had, says the name of an empty
stream, ``<installation>/executions/<execution id>/<task id>``: so that any process finds it, without a folder of its own, as long as the group keeps it.
An execution for which its worker was not made, but which it was handed, has ``<task id>+`` there, and its records bear its id.
"""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from multinode.errors import AwsFailed
from multinode.wire import LogRecord
from multinode.worker.output import END
from multinode_control_plane.runners.ecs_api import Account
from multinode_control_plane.runners.ecs_tasks import TaskPlan, stream_of

log = logging.getLogger(__name__)

POLL_S = 1.0
LOOK_S = 3.0
"""Between two looks for an execution that has had no task yet."""
SETTLE_S = 5.0
"""How long after the end of a worker that was killed, and so set no mark, its last output may take to come."""
MAX_KNOWN = 20_000
_GONE = "ResourceNotFoundException"
_BEGIN = '{"at": '
_HANDED = "+"


class Pieces:
    """Records from events: Docker's log drivers cut a line after 16 KiB. What is no record is a word of the supervisor's own.

    ``execution_id`` names the one whose records are wanted; empty: those that bear no id.
    """

    def __init__(self, execution_id: str = "") -> None:
        self._execution_id = execution_id
        self.words: list[str] = []
        self.is_over = False
        """Whether the mark of the end has come."""
        self._open = ""

    def add(self, message: str) -> dict[str, Any] | None:
        """The record that is complete with this event. A record begins as no piece of one can: quotes in it are escaped."""
        if not message.startswith(_BEGIN) and not self._open:
            self.words.append(message)
            return None
        text = message if message.startswith(_BEGIN) else self._open + message
        try:
            fields: dict[str, Any] = json.loads(text)
        except ValueError:
            self._open = text
            return None
        self._open = ""
        if fields.get("execution", "") != self._execution_id:
            return None
        if fields.get("stream") == END:
            self.is_over = True
            return None
        return fields


@dataclass(frozen=True)
class _Page:
    messages: tuple[str, ...]
    token: str


class TaskLogs:
    """``ended_at`` answers when (monotonic) the worker of an execution was seen to have ended; 0.0 where it lives, None where that is not known."""

    def __init__(
        self,
        account: Account,
        plan: Callable[[], TaskPlan],
        ended_at: Callable[[str], float | None],
        *,
        poll_s: float = POLL_S,
    ) -> None:
        self._account = account
        self._plan = plan
        self._ended_at = ended_at
        self._poll_s = poll_s
        self._known: OrderedDict[str, str] = OrderedDict()

    # --- which task ------------------------------------------------------------------------------------

    async def note(self, execution_id: str, task_id: str, *, is_handed: bool = False) -> None:
        """Keeps which task an execution has, or was handed to; twice is no error. Raises AwsFailed."""
        mark = f"{task_id}{_HANDED}" if is_handed else task_id
        self._remember(execution_id, mark)
        try:
            await self._call("stream", "create_log_stream", f"{self._index(execution_id)}{mark}")
        except AwsFailed as error:
            if error.reason != "ResourceAlreadyExistsException":
                raise

    async def _mark_of(self, execution_id: str) -> str:
        """The id of its task, with ``+`` where it was handed to that; empty where it has had none."""
        if execution_id not in self._known:
            found = await self._account.call(
                "log",
                self._account.logs,
                "describe_log_streams",
                "Output cannot be looked for",
                logGroupName=self._group,
                logStreamNamePrefix=self._index(execution_id),
            )
            for stream in found["logStreams"]:
                self._remember(execution_id, stream["logStreamName"].rpartition("/")[2])
        return self._known.get(execution_id, "")

    def _remember(self, execution_id: str, mark: str) -> None:
        self._known[execution_id] = mark
        while len(self._known) > MAX_KNOWN:
            self._known.popitem(last=False)

    def _index(self, execution_id: str) -> str:
        return f"{self._plan().settings.name}/executions/{execution_id}/"

    # --- reading ---------------------------------------------------------------------------------------

    async def records(
        self, execution_id: str, attempt: int, *, ended: asyncio.Event | None
    ) -> AsyncIterator[LogRecord]:
        """See ``Runner.logs``; of a worker that has just ended, waits for what is still on its way."""
        pieces: Pieces | None = None
        token = ""
        while True:
            may_be_last = self._is_settled(execution_id, ended)  # before reading
            try:
                mark = await self._mark_of(execution_id)
                task_id = mark.rstrip(_HANDED)
                page = await self._page(task_id, token) if task_id else _Page((), "")
            except AwsFailed as error:
                if ended is None or not error.is_passing:
                    raise
                log.warning("%s", error)  # who follows goes on when AWS does
                await _pause(LOOK_S, ended)
                continue
            if pieces is None and task_id:
                pieces = Pieces(execution_id if mark.endswith(_HANDED) else "")
            for message in page.messages:
                record = pieces.add(message) if pieces is not None else None
                if record is not None:
                    yield LogRecord(record["at"], record["stream"], record["text"], attempt)
            is_at_end = page.token == token and not page.messages
            token = page.token
            if (is_at_end and may_be_last) or (pieces is not None and pieces.is_over):
                return
            if is_at_end:
                await _pause(self._poll_s if task_id else min(self._poll_s, LOOK_S), ended)

    def _is_settled(self, execution_id: str, ended: asyncio.Event | None) -> bool:
        """Whether everything that will be told can be read now."""
        ended_at = self._ended_at(execution_id)
        if ended_at:
            return time.monotonic() - ended_at > SETTLE_S
        if ended is None or ended_at is None:
            return ended is None or ended.is_set()
        return False  # it lives: its end will be seen

    async def _page(self, task_id: str, token: str) -> _Page:
        """The next events. At the end there are none, and the token stays the same."""
        try:
            answer = await self._call(
                "log",
                "get_log_events",
                stream_of(self._plan(), task_id),
                startFromHead=True,
                **({"nextToken": token} if token else {}),
            )
        except AwsFailed as error:
            if error.reason == _GONE:  # not made yet, or removed
                return _Page((), token)
            raise
        return _Page(_in_order(answer["events"]), answer.get("nextForwardToken", token))

    async def last_words(self, task_id: str) -> str:
        """What the supervisor itself said at last, as far as it has come. Raises AwsFailed."""
        pieces = Pieces()
        try:
            answer = await self._call(
                "log", "get_log_events", stream_of(self._plan(), task_id), limit=50
            )
        except AwsFailed as error:
            if error.reason == _GONE:
                return ""
            raise
        for message in _in_order(answer["events"]):
            pieces.add(message)
        return "\n".join(pieces.words)

    # --- removing --------------------------------------------------------------------------------------

    async def remove(self, execution_ids: Iterable[str]) -> None:
        """Removes the output of these executions; missing ones are no error. Raises AwsFailed."""
        for execution_id in execution_ids:
            mark = await self._mark_of(execution_id)
            if not mark:
                continue
            # What was handed to a task lies with what that was made for. The index last: while it is there, the output is found.
            names = [f"{self._index(execution_id)}{mark}"]
            if not mark.endswith(_HANDED):
                names.insert(0, stream_of(self._plan(), mark))
            for name in names:
                try:
                    await self._call("stream", "delete_log_stream", name)
                except AwsFailed as error:
                    if error.reason != _GONE:
                        raise
            self._known.pop(execution_id, None)

    async def group_is_there(self) -> bool:
        """Whether there is a log group of this name. Raises AwsFailed."""
        account, what = self._account, f"The log group {self._group} cannot be looked at"
        answer = await account.call(
            "log", account.logs, "describe_log_groups", what, logGroupNamePrefix=self._group
        )
        return any(each["logGroupName"] == self._group for each in answer["logGroups"])

    @property
    def _group(self) -> str:
        return self._plan().settings.log_group

    async def _call(self, rate: str, operation: str, stream: str, **more: Any) -> dict[str, Any]:
        account, what = self._account, f"The log stream {stream} cannot be used"
        return await account.call(
            rate,
            account.logs,
            operation,
            what,
            logGroupName=self._group,
            logStreamName=stream,
            **more,
        )


def _in_order(events: Iterable[Mapping[str, Any]]) -> tuple[str, ...]:
    """CloudWatch's times are in milliseconds, and say nothing of the order within one; they come sorted, and a sort that is
    stable keeps pieces of one line together."""
    return tuple(
        event["message"] for event in sorted(events, key=lambda event: int(event["timestamp"]))
    )


async def _pause(seconds: float, ended: asyncio.Event | None) -> None:
    """Cut short where the execution ends."""
    if ended is None or ended.is_set():
        await asyncio.sleep(seconds)
        return
    waiting = asyncio.ensure_future(ended.wait())
    try:
        await asyncio.wait((waiting,), timeout=seconds)
    finally:
        waiting.cancel()
