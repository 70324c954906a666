"""Starting, reading, listing, cancelling and retrying invocations."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from multinode import wire
from multinode.errors import (
    ExecutionNotFound,
    FunctionInputSizeLimitExceeded,
    FunctionNotFound,
    IdempotencyConflict,
    InvalidRequest,
    InvocationNotFound,
)
from multinode.limits import (
    IDEMPOTENCY_WINDOW_S,
    MAX_CHARACTERS,
    MAX_DELAY_S,
    MAX_START_BATCH,
)
from multinode_control_plane import decide, model
from multinode_control_plane.model import executions, invocations, queues, values, workers
from multinode_control_plane.service import costs, retention, rows, statements
from multinode_control_plane.service.actions import RemoveLogs, SetTimer, StopWorker
from multinode_control_plane.service.catalog import Catalog
from multinode_control_plane.service.facts import InvocationsStarted
from multinode_control_plane.service.hints import nearest_hint
from multinode_control_plane.service.listing import IN_FLIGHT
from multinode_control_plane.service.statements import Row
from multinode_control_plane.store import Transaction

PURGE, PURGE_S = 200, 0.02
"""Of a project that is being deleted: invocations that one transaction removes at most, and for how long it does."""
VALUES_PAGE = 1_000
VALUES_PAGE_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Start:
    """What one request asks for. ``traceparent`` is a valid one."""

    request: wire.StartRequest
    traceparent: str | None = None

    @property
    def may_join(self) -> bool:
        """Whether it can be done in one go with others of its function: none of them has to see what another did."""
        return self.request.idempotency_key is None and self.request.parent_id is None


def start(
    tx: Transaction,
    catalog: Catalog,
    project: str,
    function: str,
    request: wire.StartRequest,
    *,
    traceparent: str | None = None,
) -> wire.StartAnswer:
    """Creates the invocations, all or none. The same request again gets the same ids. ``traceparent`` is a valid one."""
    (answer,) = start_all(tx, catalog, project, function, [Start(request, traceparent)])
    return answer


def start_all(
    tx: Transaction, catalog: Catalog, project: str, function: str, starts: Sequence[Start]
) -> list[wire.StartAnswer]:
    """As `start` for each, in as many statements as for one: several only where each of them `may_join`.

    What is wrong with one of them is raised, and then nothing was created for any.
    """
    for begun in starts:
        _check_start(begun.request)
    project_row = rows.live_project(tx.connection, project)
    known = _started_before(tx, project, [begun.request for begun in starts])
    answers: list[wire.StartAnswer] = []
    made: list[dict[str, Any]] = []
    for begun in starts:
        key, version_id = begun.request.request_key, project_row.latest_version_id
        if begun.request.version_id is not None:
            version_id = rows.version(
                tx.connection, project_row, begun.request.version_id
            ).version_id
        described = catalog.version(tx.connection, version_id).function(function)
        answer = known.get(key) if key else None
        if answer is None:
            answer = _started_by_idempotency_key(tx, project, function, begun.request)
        if answer is None:
            own = _columns(tx, project, version_id, described, begun)
            made += own
            answer = wire.StartAnswer([columns["invocation_id"] for columns in own])
        if key:
            known[key] = answer
        answers.append(answer)
    if made:
        _create(tx, project, function, made)
    return answers


def _columns(
    tx: Transaction,
    project: str,
    version_id: str,
    described: wire.FunctionDescription,
    begun: Start,
) -> list[dict[str, Any]]:
    """A row for each input."""
    request, queue_timeout_s = begun.request, described.settings.queue_timeout_s
    is_delayed = request.delay_s > 0
    due_at = tx.now + max(request.delay_s, 0.0)
    common = {
        "project": project,
        "function": described.name,
        "version_id": version_id,
        "status": wire.PENDING,
        "waiting": model.DELAYED if is_delayed else model.READY,
        "due_at": due_at if is_delayed else None,
        "queued_at": None if is_delayed else tx.now,
        "queue_deadline_at": None if queue_timeout_s is None else due_at + queue_timeout_s,
        "parent_id": request.parent_id,
        "request_key": request.request_key or None,
        "idempotency_key": request.idempotency_key,
        "traceparent": begun.traceparent,
        "created_at": tx.now,
    }
    return [
        {**common, "invocation_id": model.new_id("inv"), "input": text} for text in request.inputs
    ]


def _create(tx: Transaction, project: str, function: str, made: list[dict[str, Any]]) -> None:
    """Inserts the rows, and sees to what follows."""
    parents = {columns["parent_id"] for columns in made}
    are_cancelled = any(_is_cancelled(tx, project, parent) for parent in parents)
    statements.insert(tx.connection, invocations, *made)
    timers = [at for columns in made for at in (columns["due_at"], columns["queue_deadline_at"])]
    if times := [at for at in timers if at is not None]:
        tx.after_commit(SetTimer(min(times)))
    if ready := sum(columns["waiting"] == model.READY for columns in made):
        rows.count(tx, project, function, ready=ready)
    if are_cancelled:
        cancel(tx, [columns["invocation_id"] for columns in made])
    tx.changed(f"project:{project}")
    tx.after_commit(InvocationsStarted(project, len(made)))
    tx.wake()


def _check_start(request: wire.StartRequest) -> None:
    if not 1 <= len(request.inputs) <= MAX_START_BATCH:
        message = f"A request starts 1 to {MAX_START_BATCH} invocations, not {len(request.inputs)}."
        raise InvalidRequest(message)
    if request.idempotency_key is not None and len(request.inputs) != 1:
        message = "An idempotency key goes with one input."
        raise InvalidRequest(message)
    if not 0 <= request.delay_s <= MAX_DELAY_S:
        message = f"A delay is 0 to {MAX_DELAY_S:.0f} s, not {request.delay_s}."
        raise InvalidRequest(message)
    for text in request.inputs:
        if len(text) > MAX_CHARACTERS:
            message = f"The encoded arguments are {len(text)} characters long; the limit is {MAX_CHARACTERS}."
            hint = "Put large data into storage and pass its location."
            raise FunctionInputSizeLimitExceeded(message, hint)


_SAME_REQUESTS = (
    sa.select(invocations.c.request_key, invocations.c.invocation_id)
    .where(
        invocations.c.request_key.in_(sa.bindparam("keys", expanding=True)),
        invocations.c.project == sa.bindparam("project"),
    )
    .order_by(invocations.c.seq)
)


def _started_before(
    tx: Transaction, project: str, requests: Sequence[wire.StartRequest]
) -> dict[str, wire.StartAnswer]:
    """What was answered to these requests when they came before, by their keys."""
    known: dict[str, wire.StartAnswer] = {}
    if keys := [request.request_key for request in requests if request.request_key]:
        same = {"keys": keys, "project": project}
        for key, invocation_id in tx.connection.execute(_SAME_REQUESTS, same):
            known.setdefault(key, wire.StartAnswer([])).invocation_ids.append(invocation_id)
    return known


def _started_by_idempotency_key(
    tx: Transaction, project: str, function: str, request: wire.StartRequest
) -> wire.StartAnswer | None:
    if request.idempotency_key is None:
        return None
    row = tx.connection.execute(
        sa.select(invocations.c.invocation_id, invocations.c.input)
        .where(
            invocations.c.project == project,
            invocations.c.function == function,
            invocations.c.idempotency_key == request.idempotency_key,
            invocations.c.created_at > tx.now - IDEMPOTENCY_WINDOW_S,
        )
        .order_by(invocations.c.seq.desc())
    ).first()
    if row is None:
        return None
    if row.input != request.inputs[0]:
        message = (
            f"The idempotency key {request.idempotency_key!r} was used within 24 hours for "
            f"{row.invocation_id}, with other arguments."
        )
        raise IdempotencyConflict(message, "Use another key for another call.")
    return wire.StartAnswer([row.invocation_id], created=False)


def _is_cancelled(tx: Transaction, project: str, parent_id: str | None) -> bool:
    if parent_id is None:
        return False
    parent = rows.invocation(tx.connection, parent_id, within=project)
    return parent.cancel_requested_at is not None


def get(
    connection: sa.Connection,
    invocation_id: str,
    now: float,
    within: str | None,
    *,
    draining: bool = False,
) -> wire.InvocationInfo:
    """The invocation as it is now."""
    row = rows.invocation(connection, invocation_id, within=within)
    return rows.info(connection, row, now, draining=draining)


def ended(
    connection: sa.Connection, invocation_ids: Sequence[str], now: float, within: str | None
) -> list[wire.InvocationInfo]:
    """Those that have ended, in no order. Raises InvocationNotFound where one does not exist."""
    found = {
        row.invocation_id: row
        for row in connection.execute(
            sa.select(invocations).where(invocations.c.invocation_id.in_(invocation_ids))
        )
        if within is None or row.project == within
    }
    missing = [i for i in invocation_ids if i not in found]
    if missing:
        message = f"There is no invocation {missing[0]!r}."
        raise InvocationNotFound(message)
    return [
        rows.info(connection, row, now) for row in found.values() if decide.is_final(row.status)
    ]


def values_after(
    connection: sa.Connection, invocation_id: str, after: int, within: str | None
) -> wire.ValuesAnswer:
    """A page of yielded values after number ``after``."""
    row = rows.invocation(connection, invocation_id, within=within)
    found = connection.execute(
        sa.select(values)
        .where(values.c.invocation_id == invocation_id, values.c.number > after)
        .order_by(values.c.number)
        .limit(VALUES_PAGE)
    )
    page: list[wire.Value] = []
    size = 0
    for value in found:
        page.append(wire.Value(value.number, value.value, value.attempt))
        size += len(value.value)
        if size >= VALUES_PAGE_BYTES:
            break
    last = page[-1].number if page else after
    ended_now = decide.is_final(row.status) and last >= row.num_values
    oldest_kept = row.num_values - row.values_kept + 1
    return wire.ValuesAnswer(page, ended_now, left_out=max(0, oldest_kept - 1 - after))


def project_of(connection: sa.Connection, invocation_id: str) -> str:
    """The project of an invocation that there is."""
    return str(rows.invocation(connection, invocation_id).project)


def cancel(
    tx: Transaction, invocation_ids: Sequence[str], *, within: str | None = None
) -> wire.CancelAnswer:
    """Asks for cancellation of each and of all their children; what has ended is left as it is."""
    requested: list[str] = []
    already_ended: list[str] = []
    for invocation_id in invocation_ids:
        row = rows.invocation(tx.connection, invocation_id, within=within)
        if decide.is_final(row.status):
            already_ended.append(invocation_id)
            continue
        requested.append(invocation_id)
        _cancel_one(tx, row)
    return wire.CancelAnswer(requested, already_ended)


def _cancel_one(tx: Transaction, row: Row) -> None:
    if row.status == wire.CANCELLING:
        return
    if row.status == wire.PENDING:
        end_pending(tx, row, wire.CANCELLED, cancel_requested_at=tx.now)
    else:
        rows.move(tx, row, wire.CANCELLING, cancel_requested_at=tx.now)
        worker = rows.live_worker(tx.connection, row.invocation_id)
        if worker is not None:
            tx.changed(f"worker:{worker.worker_id}")
    children = tx.connection.execute(
        sa.select(invocations).where(
            invocations.c.parent_id == row.invocation_id, invocations.c.finished_at.is_(None)
        )
    ).all()
    for child in children:
        _cancel_one(tx, child)


def end_pending(tx: Transaction, row: Row, status: str, **columns: Any) -> None:
    """Ends a PENDING invocation for good; a worker that is on its way is stopped, its claim will be refused."""
    worker = rows.live_worker(tx.connection, row.invocation_id) if row.waiting is None else None
    rows.move(tx, row, status, terminated=worker is None, **columns)
    if worker is not None:
        tx.connection.execute(
            sa.update(executions)
            .where(
                executions.c.execution_id == worker.own_execution_id,
                executions.c.state != model.ENDED,
            )
            .values(
                state=model.ENDED,
                outcome="timed_out" if status == wire.TIMED_OUT else "cancelled",
                ended_at=tx.now,
            )
        )
        tx.after_commit(StopWorker(worker.worker_id))
    else:
        purge_if_empty(tx, row.project)


def cancel_all(tx: Transaction, project: str, function: str | None) -> wire.CancelAnswer:
    """Asks for cancellation of everything in flight in the project, or of one function of it."""
    rows.project(tx.connection, project)
    query = sa.select(invocations.c.invocation_id).where(
        invocations.c.project == project, invocations.c.status.in_(IN_FLIGHT)
    )
    if function is not None:
        _check_function(tx.connection, project, function)
        query = query.where(invocations.c.function == function)
    return cancel(tx, list(tx.connection.execute(query).scalars()))


def cancel_running(tx: Transaction) -> wire.CancelAnswer:
    """Asks for cancellation of all that have a worker, on its way or at work, and of their children. What waits for one goes on waiting."""
    return cancel(tx, running(tx.connection))


def running(connection: sa.Connection) -> list[str]:
    """The invocations that have a worker, on its way or at work."""
    return list(connection.execute(_WITH_WORKERS).scalars())


def count_running(connection: sa.Connection, *, within: str | None = None) -> int:
    """How many invocations have a worker, on its way or at work; only those of the project ``within``, if it is given."""
    query = _WITH_WORKERS
    if within is not None:
        query = query.where(workers.c.project == within)
    counted = sa.select(sa.func.count()).select_from(query.subquery())
    return connection.execute(counted).scalar_one()


_WITH_WORKERS = (
    sa.select(executions.c.invocation_id)
    .join(workers, workers.c.worker_id == executions.c.worker_id)
    .where(workers.c.gone_at.is_(None), executions.c.state != model.ENDED)
)


def _check_function(connection: sa.Connection, project: str, function: str) -> None:
    """Raises FunctionNotFound where no version of the project has the function."""
    names = connection.execute(
        sa.select(queues.c.function).where(queues.c.project == project)
    ).scalars()
    known = list(names)
    if function not in known:
        message = f"The project {project!r} has no function {function!r}."
        raise FunctionNotFound(
            message, nearest_hint(function, known, f"It has: {', '.join(known)}.")
        )


def retry(
    tx: Transaction,
    catalog: Catalog,
    invocation_id: str,
    request_key: str = "",
    *,
    within: str | None = None,
    traceparent: str | None = None,
) -> wire.StartAnswer:
    """Starts a new invocation of the latest version with the same input; one for each ``request_key``."""
    row = rows.invocation(tx.connection, invocation_id, within=within)
    return start(
        tx,
        catalog,
        row.project,
        row.function,
        wire.StartRequest(inputs=[row.input], request_key=request_key),
        traceparent=traceparent,
    )


def detail(
    connection: sa.Connection,
    invocation_id: str,
    now: float,
    *,
    draining: bool = False,
    within: str | None = None,
) -> wire.InvocationDetail:
    """The invocation with its input, and each of its attempts."""
    row = rows.invocation(connection, invocation_id, within=within)
    found = connection.execute(
        sa.select(
            executions,
            workers.c.memory_mib,
            workers.c.accepted_at,
            workers.c.ready_at,
            workers.c.gone_at,
        )
        .join(workers, workers.c.worker_id == executions.c.worker_id)
        .where(executions.c.invocation_id == invocation_id)
        .order_by(executions.c.created_at)
    )
    paid = costs.of_invocation(connection, invocation_id)
    return wire.InvocationDetail(
        rows.info(connection, row, now, draining=draining),
        row.input,
        [_execution_info(item, paid.get(item.execution_id)) for item in found],
    )


def detail_of_execution(
    connection: sa.Connection, execution_id: str, now: float, *, within: str | None = None
) -> wire.InvocationDetail:
    """As `detail`, with this one of the attempts. Raises ExecutionNotFound, also for another project than ``within``."""
    row = statements.first(connection, executions, execution_id=execution_id)
    whole = detail(connection, row.invocation_id, now) if row is not None else None
    if whole is None or within not in (None, whole.invocation.project):
        message = f"There is no execution {execution_id!r}."
        raise ExecutionNotFound(message, "`multinode describe inv-…` shows those of an invocation.")
    chosen = [item for item in whole.executions if item.execution_id == execution_id]
    return wire.InvocationDetail(whole.invocation, whole.input, chosen)


def _execution_info(row: Row, cost: wire.AttemptCost | None) -> wire.ExecutionInfo:
    peak = row.peak_memory_bytes
    return wire.ExecutionInfo(
        execution_id=row.execution_id,
        attempt=row.attempt,
        state=row.state,
        worker_id=row.worker_id,
        outcome=row.outcome,
        error=rows.error_of(row.error),
        exit_code=row.exit_code,
        signal=row.signal,
        peak_memory_mib=None if peak is None else round(peak / 2**20, 1),
        memory_limit_mib=row.memory_mib,
        created_at=model.to_time(row.created_at),
        started_at=model.to_time_or_none(row.started_at),
        ended_at=model.to_time_or_none(row.ended_at),
        timeline=_timeline(row),
        cost=cost,
    )


def _timeline(row: Row) -> list[wire.TimelineStep]:
    if row.number > 1 or (row.accepted_at is not None and row.accepted_at < row.created_at):
        steps = [("handed to a worker that was there", row.created_at)]
    else:
        steps = [
            ("worker requested", row.created_at),
            ("worker made", row.accepted_at),
            ("worker connected", row.ready_at),
            ("main.py imported, code started", row.started_at),
        ]
    steps.append(("code ended", row.ended_at))
    if row.left_at is not None and row.left_at != row.gone_at:
        steps.append(("worker ready for the next", row.left_at))
    else:
        steps.append(("worker gone", row.gone_at))
    # Each step as its transaction saw the clock; two in one commit may be seen in either order.
    known = sorted(((at, name) for name, at in steps if at is not None), key=lambda step: step[0])
    befores = [known[0][0], *(at for at, _ in known)]
    return [
        wire.TimelineStep(name, model.to_time(at), round((at - before) * 1000, 1))
        for (at, name), before in zip(known, befores, strict=False)
    ]


def execution_ids(
    connection: sa.Connection, invocation_id: str, *, within: str | None = None
) -> list[tuple[str, int, bool]]:
    """Id, attempt and whether nothing of it is left in a worker, of each execution, oldest first. Raises InvocationNotFound."""
    rows.invocation(connection, invocation_id, within=within)
    found = connection.execute(
        sa.select(
            executions.c.execution_id,
            executions.c.attempt,
            sa.func.coalesce(executions.c.left_at, workers.c.gone_at).label("gone_at"),
        )
        .join(workers, workers.c.worker_id == executions.c.worker_id)
        .where(executions.c.invocation_id == invocation_id)
        .order_by(executions.c.created_at)
    )
    return [(row.execution_id, row.attempt, row.gone_at is not None) for row in found]


def check_attempt(invocation_id: str, attempt: int | None, known: Sequence[int]) -> None:
    """Raise ExecutionNotFound where an ``attempt`` was asked for that there is not among the ``known``."""
    if attempt is not None and attempt not in known:
        message = f"{invocation_id} has no attempt {attempt}."
        raise ExecutionNotFound(message, f"It has had {max(known, default=0)} so far.")


def purge_if_empty(tx: Transaction, project: str) -> None:
    """Removes a project that is being deleted, with all that belongs to it, once no worker of it is left.

    Where it has had many invocations, some of them: the next tick, at once, goes on.
    """
    row = statements.first(tx.connection, model.projects, name=project)
    if row is None or row.deleting_at is None or _unfinished(tx.connection, project):
        return
    if _remove_some(tx, project):
        tx.after_commit(SetTimer(tx.now))
        return
    own = sa.select(invocations.c.invocation_id).where(invocations.c.project == project)
    versions_of = sa.select(model.versions.c.version_id).where(model.versions.c.project == project)
    gone = tx.connection.execute(
        sa.select(executions.c.execution_id).where(executions.c.invocation_id.in_(own))
    ).scalars()
    tx.after_commit(RemoveLogs(tuple(gone)))
    for statement in (
        sa.delete(values).where(values.c.invocation_id.in_(own)),
        sa.delete(executions).where(executions.c.invocation_id.in_(own)),
        sa.delete(workers).where(workers.c.project == project),
        sa.delete(invocations).where(invocations.c.project == project),
        sa.delete(queues).where(queues.c.project == project),
        sa.delete(model.functions).where(model.functions.c.version_id.in_(versions_of)),
        sa.delete(model.versions).where(model.versions.c.project == project),
        sa.delete(model.bundle_projects).where(model.bundle_projects.c.project == project),
        sa.delete(model.projects).where(model.projects.c.name == project),
    ):
        tx.connection.execute(statement)
    tx.changed(f"project:{project}")


def _remove_some(tx: Transaction, project: str) -> bool:
    """Removes invocations of a project for some time, where they are many. Whether they were."""
    query = sa.select(invocations.c.invocation_id).where(invocations.c.project == project)
    ids = list(tx.connection.execute(query.limit(PURGE + 1)).scalars())
    if len(ids) <= PURGE:
        return False
    attempts = tx.connection.execute(
        sa.select(executions.c.invocation_id, executions.c.execution_id).where(
            executions.c.invocation_id.in_(ids)
        )
    ).all()
    until = time.monotonic() + PURGE_S
    removed = set(ids[: retention.remove(tx, ids, lambda: time.monotonic() < until)])
    gone = [row.execution_id for row in attempts if row.invocation_id in removed]
    tx.after_commit(RemoveLogs(tuple(gone)))
    return True


def purge_deleted(tx: Transaction) -> None:
    """As `purge_if_empty` for each project that is being deleted."""
    deleting = sa.select(model.projects.c.name).where(model.projects.c.deleting_at.is_not(None))
    for name in tx.connection.execute(deleting).scalars().all():
        purge_if_empty(tx, name)


def _unfinished(connection: sa.Connection, project: str) -> bool:
    """Whether an invocation of the project has not ended, or a worker of it is left."""
    open_ones = sa.select(invocations.c.seq).where(
        invocations.c.project == project, sa.not_(invocations.c.terminated)
    )
    living = sa.select(workers.c.worker_id).where(
        workers.c.project == project, workers.c.gone_at.is_(None)
    )
    return any(connection.execute(query.limit(1)).first() for query in (open_ones, living))
