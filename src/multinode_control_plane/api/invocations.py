"""Routes of invocations: start, get, list, wait, values, logs, cancel, retry."""

from __future__ import annotations

import time

from starlette.responses import StreamingResponse

from multinode import wire
from multinode.errors import ExecutionNotFound, InvalidRequest
from multinode_control_plane import decide
from multinode_control_plane.api import plain
from multinode_control_plane.api.calls import MAX_WAIT_S, Call, until
from multinode_control_plane.api.cancelling import cancel_children, cancel_waiting
from multinode_control_plane.api.output import follow_logs, read_logs, with_heartbeats
from multinode_control_plane.service import invocations as cases
from multinode_control_plane.service import listing
from multinode_control_plane.service.audit import Act
from multinode_control_plane.store import Transaction
from multinode_control_plane.telemetry import request as asked

MAX_WAITED_FOR = 10_000


async def start(call: Call) -> wire.StartAnswer:
    """Starts invocations of a function: all of the inputs, in their order, or none."""
    project, function = call.path("project"), call.path("function")
    begun = cases.Start(plain.with_inputs(call.body), asked.trace())
    catalog = call.plane.context.catalog
    answer = await call.act_with_others(
        ("start", project, function) if begun.may_join else object(),
        begun,
        lambda tx, starts: cases.start_all(tx, catalog, project, function, starts),
        lambda made: _started("invoke", made, project),
    )
    if begun.request.wait_s <= 0:
        return answer
    ended = await _ended(call, answer.invocation_ids, begun.request.wait_s)
    return answer.replace(ended=ended)


def _started(action: str, made: wire.StartAnswer, project: str | None) -> Act | None:
    ids = made.invocation_ids
    return Act(action, ids[0], project, len(ids)) if made.created else None


async def get(call: Call) -> wire.InvocationInfo:
    """An invocation as it is now, or as soon as it has changed."""
    invocation_id, known = call.path("id"), int(call.number("revision"))

    async def look() -> tuple[bool, wire.InvocationInfo]:
        found = await call.plane.store.read(
            lambda connection: cases.get(
                connection,
                invocation_id,
                time.time(),
                call.caller.within,
                draining=call.plane.scheduler.draining,
            )
        )
        over = decide.is_final(found.status) and found.terminated
        return found.revision != known or over, found

    found = await until(call.plane, [f"inv:{invocation_id}"], call.wait_s, look)
    return plain.with_result(found) if call.flag("plain") else found


async def wait(call: Call) -> wire.WaitAnswer:
    """Those of some invocations that have ended, as soon as any has."""
    ids: list[str] = call.body.invocation_ids
    if not 1 <= len(ids) <= MAX_WAITED_FOR:
        message = f"A request waits for 1 to {MAX_WAITED_FOR} invocations, not {len(ids)}."
        raise InvalidRequest(message)

    ended = await _ended(call, ids, call.body.wait_s)
    return wire.WaitAnswer([plain.with_result(e) for e in ended] if call.flag("plain") else ended)


async def _ended(call: Call, ids: list[str], wait_s: float) -> list[wire.InvocationInfo]:
    """Those that have ended, as soon as any has; none after ``wait_s``."""

    async def look() -> tuple[bool, list[wire.InvocationInfo]]:
        found = await call.plane.store.read(
            lambda connection: cases.ended(connection, ids, time.time(), call.caller.within)
        )
        return bool(found), found

    keys = [f"end:{item}" for item in ids]
    return await until(call.plane, keys, min(wait_s, MAX_WAIT_S), look)


async def values(call: Call) -> wire.ValuesAnswer:
    """Yielded values, oldest first, as soon as there are any."""
    invocation_id, after = call.path("id"), int(call.number("after"))

    async def look() -> tuple[bool, wire.ValuesAnswer]:
        found = await call.plane.store.read(
            lambda connection: cases.values_after(
                connection, invocation_id, after, call.caller.within
            )
        )
        return bool(found.values) or found.ended, found

    found = await until(call.plane, [f"inv:{invocation_id}"], call.wait_s, look)
    return plain.with_values(found) if call.flag("plain") else found


async def page(call: Call) -> wire.InvocationList:
    """A page of invocations, newest first."""
    asked = call.query("project")
    project = call.caller.within if asked is None else call.caller.check(asked)
    return await call.plane.store.read(
        lambda connection: listing.page(
            connection,
            time.time(),
            project=project,
            function=call.query("function"),
            version_id=call.query("version_id"),
            status=call.query("status"),
            in_flight=call.flag("in_flight"),
            offset=call.query("offset"),
            draining=call.plane.scheduler.draining,
        )
    )


async def detail(call: Call) -> wire.InvocationDetail:
    """An invocation with its input, and each of its attempts with its timeline."""
    invocation_id = call.path("id")
    found = await call.plane.store.read(
        lambda connection: cases.detail(
            connection,
            invocation_id,
            time.time(),
            draining=call.plane.scheduler.draining,
            within=call.caller.within,
        )
    )
    return plain.with_input(found) if call.flag("plain") else found


async def detail_of_execution(call: Call) -> wire.InvocationDetail:
    """The invocation of an execution, with this one of its attempts."""
    execution_id, within = call.path("id"), call.caller.within
    return await call.plane.store.read(
        lambda connection: cases.detail_of_execution(
            connection, execution_id, time.time(), within=within
        )
    )


async def logs(call: Call) -> StreamingResponse:
    """The output of an invocation's attempts; blank lines are heartbeats."""
    invocation_id, within = call.path("id"), call.caller.within
    known = await call.plane.store.read(
        lambda connection: cases.execution_ids(connection, invocation_id, within=within)
    )
    attempt = int(call.number("attempt")) or None
    if attempt is not None and not call.flag("follow"):
        _check_attempt(invocation_id, attempt, len(known))
    tail = int(call.number("tail")) if call.query("tail") else None
    since_s = call.number("since_s") or None
    if call.flag("follow"):
        records = follow_logs(
            call.plane, invocation_id, tail=tail, since_s=since_s, attempt=attempt
        )
    else:
        cases.check_attempt(invocation_id, attempt, [number for _, number, _ in known])
        records = read_logs(call.plane, known, tail=tail, since_s=since_s, attempt=attempt)
    return StreamingResponse(with_heartbeats(records), media_type="application/x-ndjson")


def _check_attempt(invocation_id: str, attempt: int, last: int) -> None:
    if attempt > last:
        message = f"{invocation_id} has had no attempt {attempt}."
        hint = f"It has had {last or 'none yet'}; `multinode describe {invocation_id}` shows them."
        raise ExecutionNotFound(message, hint)


async def cancel(call: Call) -> wire.InvocationInfo:
    """Asks for an invocation's cancellation, and for its children's. One that has ended stays as it is."""
    invocation_id, within = call.path("id"), call.caller.within
    await _cancel(call, [invocation_id])
    return await call.plane.store.read(
        lambda connection: cases.get(connection, invocation_id, time.time(), within)
    )


async def cancel_many(call: Call) -> wire.CancelAnswer:
    """Asks for the cancellation of these invocations, or of all in flight of a project or function."""
    request: wire.CancelRequest = call.body
    if (request.invocation_ids is None) == (request.project is None):
        message = "Either invocation_ids or a project is needed."
        raise InvalidRequest(message)
    if request.invocation_ids is not None:
        return await _cancel(call, request.invocation_ids)
    project, function = call.caller.check(request.project or ""), request.function
    waited = await cancel_waiting(call.plane.store, project, function)

    def cancel_the_others(tx: Transaction) -> wire.CancelAnswer:
        answer = cases.cancel_all(tx, project, function)
        return wire.CancelAnswer(waited + answer.requested, answer.ended)

    return await call.act(
        cancel_the_others,
        lambda answer: _cancelled(answer, project),
    )


async def _cancel(call: Call, invocation_ids: list[str]) -> wire.CancelAnswer:
    """Cancels these; the audit log names the project of the first."""
    await cancel_children(call.plane.store, invocation_ids, call.caller.within)
    projects: list[str] = []

    def cancel_them(tx: Transaction) -> wire.CancelAnswer:
        answer = cases.cancel(tx, invocation_ids, within=call.caller.within)
        projects[:] = [cases.project_of(tx.connection, each) for each in answer.requested[:1]]
        return answer

    return await call.act(cancel_them, lambda answer: _cancelled(answer, *projects))


def _cancelled(answer: wire.CancelAnswer, project: str | None = None) -> Act | None:
    asked = answer.requested
    return Act("cancel", asked[0], project, len(asked)) if asked else None


async def retry(call: Call) -> wire.StartAnswer:
    """Starts a new invocation with the same input, of the project's latest version."""
    invocation_id, catalog = call.path("id"), call.plane.context.catalog
    request_key, trace = call.query("request_key") or "", asked.trace()
    projects: list[str] = []

    def start_again(tx: Transaction) -> wire.StartAnswer:
        made = cases.retry(
            tx,
            catalog,
            invocation_id,
            request_key,
            within=call.caller.within,
            traceparent=trace,
        )
        projects[:] = [cases.project_of(tx.connection, invocation_id)]
        return made

    return await call.act(start_again, lambda made: _started("retry", made, projects[0]))
