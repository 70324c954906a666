"""Looking rows up, with errors for people, and the one function that changes an invocation's status."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from multinode import wire
from multinode.errors import (
    InternalError,
    InvocationNotFound,
    ProjectBeingDeleted,
    ProjectNotFound,
    VersionNotFound,
)
from multinode_control_plane import decide, model
from multinode_control_plane.model import (
    executions,
    invocations,
    projects,
    queues,
    versions,
    workers,
)
from multinode_control_plane.service import statements
from multinode_control_plane.service.facts import InvocationEnded
from multinode_control_plane.service.hints import nearest_hint
from multinode_control_plane.service.statements import Row
from multinode_control_plane.store import Transaction


def project(connection: sa.Connection, name: str) -> Row:
    """The project's row. Raises ProjectNotFound."""
    row = statements.first(connection, projects, name=name)
    if row is None:
        names = list(connection.execute(sa.select(projects.c.name)).scalars())
        message = f"There is no project {name!r}."
        raise ProjectNotFound(message, nearest_hint(name, names, "`multinode list` shows all."))
    return row


def live_project(connection: sa.Connection, name: str) -> Row:
    """As `project`. Raises ProjectBeingDeleted for one that is."""
    row = project(connection, name)
    if row.deleting_at is not None:
        message = f"The project {name!r} is being deleted."
        raise ProjectBeingDeleted(
            message, "Deploy it again when `multinode list` no longer shows it."
        )
    return row


def version(connection: sa.Connection, project_row: Row, version_id: str | None) -> Row:
    """The version's row; None and ``latest`` are the latest. Raises VersionNotFound."""
    wanted = version_id if version_id and version_id != "latest" else project_row.latest_version_id
    row = statements.first(connection, versions, version_id=wanted, project=project_row.name)
    if row is None and wanted.isascii() and wanted.isdecimal() and len(wanted) <= 9:
        row = statements.first(connection, versions, number=int(wanted), project=project_row.name)
    if row is None:
        message = f"The project {project_row.name!r} has no version {wanted!r}."
        otherwise = f"`multinode describe {project_row.name}` shows its versions."
        newest = (
            sa.select(versions.c.version_id)
            .where(versions.c.project == project_row.name)
            .order_by(versions.c.number.desc())
        )
        raise VersionNotFound(message, _near_id(connection, wanted, newest, otherwise))
    return row


def invocation(connection: sa.Connection, invocation_id: str, *, within: str | None = None) -> Row:
    """The invocation's row. Raises InvocationNotFound, also for another project than ``within``."""
    row = statements.first(connection, invocations, invocation_id=invocation_id)
    if row is None or (within is not None and row.project != within):
        message = f"There is no invocation {invocation_id!r}."
        otherwise = "`multinode ps -a` shows recent ones."
        newest = sa.select(invocations.c.invocation_id).order_by(invocations.c.seq.desc())
        if within is not None:
            newest = newest.where(invocations.c.project == within)
        hint = _near_id(connection, invocation_id, newest, otherwise)
        raise InvocationNotFound(message, hint)
    return row


def _near_id(connection: sa.Connection, wanted: str, newest: sa.Select[Any], otherwise: str) -> str:
    """The one of the newest ids that ``wanted`` is a mistyped or cut-off copy of, as a hint."""
    known: list[str] = [row[0] for row in connection.execute(newest.limit(100))]
    # Random ids are alike by chance as names are not.
    return nearest_hint(wanted, known, otherwise, likeness=0.8)


def move(tx: Transaction, row: Row, status: str, **columns: Any) -> None:
    """Changes an invocation to ``status``, with ``columns``, by compare-and-set on the row's revision. See `move_all`."""
    move_all(tx, [(row, status, columns)])


def move_all(tx: Transaction, changes: Sequence[tuple[Row, str, dict[str, Any]]]) -> None:
    """Changes invocations to a status each, with columns, by compare-and-set on each row's revision.

    The only place that writes a status, with `move_waiting`: it refuses what the table of transitions does not have, keeps the queues' counts of
    ready invocations, and wakes who waits for them.
    """
    alike: dict[tuple[str, ...], list[dict[str, Any]]] = {}
    ready: Counter[tuple[str, str]] = Counter()
    for row, status, asked in changes:
        columns = _columns(tx, row, status, asked)
        own = {"where_seq": row.seq, "where_revision": row.revision}
        alike.setdefault(tuple(columns), []).append(own | columns)
        is_ready = columns.get("waiting", row.waiting) == model.READY
        ready[row.project, row.function] += int(is_ready) - int(row.waiting == model.READY)
        tx.changed(f"inv:{row.invocation_id}", f"project:{row.project}")
    for together in alike.values():
        changed = statements.change_all(tx.connection, invocations, ("seq", "revision"), together)
        if changed != len(together):
            ids = ", ".join(row.invocation_id for row, _, _ in changes)
            message = f"{ids} was changed by somebody else meanwhile."
            raise InternalError(message)
    for (project_name, function), more in ready.items():
        if more:
            count(tx, project_name, function, ready=more)


def _columns(tx: Transaction, row: Row, status: str, asked: dict[str, Any]) -> dict[str, Any]:
    """All columns that change with the ones ``asked`` for."""
    if status != row.status and status not in model.TRANSITIONS[row.status]:
        message = f"{row.invocation_id} cannot go from {row.status} to {status}."
        raise InternalError(message)
    columns = {**asked, "status": status, "revision": row.revision + 1}
    if decide.is_final(status):
        tx.changed(f"end:{row.invocation_id}")
        tx.after_commit(InvocationEnded(row.project, status))
        columns |= _AT_THE_END | {"finished_at": tx.now}
    if columns.get("waiting") == model.READY and row.waiting != model.READY:
        columns["queued_at"] = tx.now
    return columns


_AT_THE_END = {"waiting": None, "due_at": None, "queue_deadline_at": None, "pending_note": None}


MOVED = tuple(
    invocations.c[name] for name in ("seq", "invocation_id", "project", "function", "waiting")
)
"""What `move_waiting` has to know of each."""


def move_waiting(tx: Transaction, found: Sequence[Row], status: str, **columns: Any) -> None:
    """As `move`, in one statement for many that are PENDING and wait without a worker: to the end, or to be ready."""
    if not found:
        return
    is_ready = columns.get("waiting") == model.READY
    if decide.is_final(status):
        over = dict.fromkeys(("waiting", "due_at", "queue_deadline_at", "pending_note"))
        columns |= {**over, "finished_at": tx.now, "terminated": True}
        tx.changed(*(f"end:{row.invocation_id}" for row in found))
        for row in found:
            tx.after_commit(InvocationEnded(row.project, status))
    if is_ready:
        columns |= {"queued_at": tx.now}
    changed = tx.connection.execute(
        sa.update(invocations)
        .where(
            invocations.c.seq.in_([row.seq for row in found]),
            invocations.c.status == wire.PENDING,
            invocations.c.waiting.is_not(None),
        )
        .values(status=status, revision=invocations.c.revision + 1, **columns)
    ).rowcount
    if changed != len(found):
        message = f"Of {len(found)} invocations that wait, {changed} were left."
        raise InternalError(message)
    more = Counter((row.project, row.function) for row in found) if is_ready else Counter()
    more.subtract((row.project, row.function) for row in found if row.waiting == model.READY)
    for (project_name, function), ready in more.items():
        count(tx, project_name, function, ready=ready)
    tx.changed(*(f"inv:{row.invocation_id}" for row in found))
    tx.changed(*(f"project:{row.project}" for row in found))


def count(
    tx: Transaction,
    project_name: str,
    function: str,
    *,
    ready: int = 0,
    workers: int = 0,
    idle: int = 0,
) -> None:
    """Adds to the function's counts of ready invocations, of workers that hold a slot, and of those among them that are idle."""
    own = {"own_project": project_name, "own_function": function}
    more = {"more_ready": ready, "more_workers": workers, "more_idle": idle}
    tx.connection.execute(_COUNT, own | more)


_COUNT = (
    sa.update(queues)
    .where(
        queues.c.project == sa.bindparam("own_project"),
        queues.c.function == sa.bindparam("own_function"),
    )
    .values(
        ready=queues.c.ready + sa.bindparam("more_ready"),
        workers=queues.c.workers + sa.bindparam("more_workers"),
        idle=queues.c.idle + sa.bindparam("more_idle"),
    )
)

_LIVE_WORKER = (
    sa.select(workers, executions.c.execution_id.label("own_execution_id"))
    .join(executions, executions.c.worker_id == workers.c.worker_id)
    .where(
        executions.c.invocation_id == sa.bindparam("id"),
        executions.c.left_at.is_(None),
        workers.c.gone_at.is_(None),
    )
    .order_by(executions.c.created_at.desc())
    .limit(1)
)


def live_worker(connection: sa.Connection, invocation_id: str) -> Row | None:
    """The invocation's newest worker in which something of it may be left; ``own_execution_id`` is its execution there."""
    return connection.execute(_LIVE_WORKER, {"id": invocation_id}).first()


@dataclass(frozen=True)
class State:
    """What is computed when somebody looks: why it is pending and, where it waits for a time, for which (POSIX seconds)."""

    pending_reason: str | None = None
    next_try_at: float | None = None
    unreachable: bool = False


def state(connection: sa.Connection, row: Row, now: float, *, draining: bool) -> State:
    """The invocation's."""
    if decide.is_final(row.status):
        return State()
    worker = live_worker(connection, row.invocation_id)
    if row.status != wire.PENDING:
        return _state(row, worker, None, now, draining=draining)
    queue = statements.one(connection, queues, project=row.project, function=row.function)
    return _state(row, worker, queue, now, draining=draining)


def _state(row: Row, worker: Row | None, queue: Row | None, now: float, *, draining: bool) -> State:
    """As `state`. ``queue`` is looked at where it is PENDING."""
    if decide.is_final(row.status):
        return State()
    if row.status != wire.PENDING or queue is None:
        return State(unreachable=bool(worker is not None and worker.unreachable))
    facts = decide.PendingFacts(
        waiting=row.waiting,
        due_at=row.due_at,
        note=row.pending_note,
        failed_attempts=row.num_failed_attempts,
        worker_state=worker.state if worker is not None and row.waiting is None else None,
        worker_note=worker.note if worker is not None else None,
        slots_used=queue.workers,
        max_concurrency=queue.max_concurrency,
        held_back=draining and row.parent_id is None,
    )
    return State(decide.pending_reason(facts, now), decide.next_try_at(facts))


def error_of(plain: Any) -> wire.FunctionError | None:
    """The stored error, or None."""
    return None if plain is None else wire.from_plain(wire.FunctionError, plain)


def info(
    connection: sa.Connection, row: Row, now: float, *, draining: bool = False
) -> wire.InvocationInfo:
    """The invocation as clients see it. ``draining``: the control plane makes no new workers, but for children."""
    found = state(connection, row, now, draining=draining)
    return wire.InvocationInfo(
        invocation_id=row.invocation_id,
        project=row.project,
        function=row.function,
        version_id=row.version_id,
        status=row.status,
        result=row.result,
        error=error_of(row.error),
        pending_reason=found.pending_reason,
        num_failed_attempts=row.num_failed_attempts,
        created_at=model.to_time(row.created_at),
        started_at=model.to_time_or_none(row.started_at),
        finished_at=model.to_time_or_none(row.finished_at),
        terminated=row.terminated,
        num_values=row.num_values,
        revision=row.revision,
        parent_id=row.parent_id,
        cancel_requested_at=model.to_time_or_none(row.cancel_requested_at),
        unreachable=found.unreachable,
        next_try_at=model.to_time_or_none(found.next_try_at),
    )


def items(
    connection: sa.Connection, found: Sequence[Row], now: float, *, draining: bool = False
) -> list[wire.InvocationItem]:
    """The invocations as lines of a list, in a few statements for all of them."""
    left = [row for row in found if not decide.is_final(row.status)]
    ids = {"ids": [row.invocation_id for row in left]}
    living = connection.execute(_LIVE_WORKERS, ids) if left else ()
    worker_of = {each.own_invocation_id: each for each in living}  # the newest, which comes last
    queue_of = {
        name: statements.one(connection, queues, project=name[0], function=name[1])
        for name in {(row.project, row.function) for row in left}
    }
    lines = []
    for row in found:
        worker = worker_of.get(row.invocation_id)
        queue = queue_of.get((row.project, row.function))
        lines.append(_item(row, _state(row, worker, queue, now, draining=draining)))
    return lines


_LIVE_WORKERS = (
    sa.select(workers, executions.c.invocation_id.label("own_invocation_id"))
    .join(executions, executions.c.worker_id == workers.c.worker_id)
    .where(
        executions.c.invocation_id.in_(sa.bindparam("ids", expanding=True)),
        executions.c.left_at.is_(None),
        workers.c.gone_at.is_(None),
    )
    .order_by(executions.c.created_at)
)


def _item(row: Row, known: State) -> wire.InvocationItem:
    return wire.InvocationItem(
        invocation_id=row.invocation_id,
        project=row.project,
        function=row.function,
        version_id=row.version_id,
        status=row.status,
        pending_reason=known.pending_reason,
        num_failed_attempts=row.num_failed_attempts,
        created_at=model.to_time(row.created_at),
        started_at=model.to_time_or_none(row.started_at),
        finished_at=model.to_time_or_none(row.finished_at),
        unreachable=known.unreachable,
        next_try_at=model.to_time_or_none(known.next_try_at),
    )
