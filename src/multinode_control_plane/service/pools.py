"""Workers that serve several invocations, or were started ahead of any: asking for more, being handed it, leaving.

A worker asks; a tick of the scheduler hands over (`admission`). What it was handed has started with that commit, so that one
commit and one answer are all that lies between a start and its code. The table is in `docs/architecture.md`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from multinode import wire
from multinode.errors import ClaimRefused
from multinode_control_plane import decide, model
from multinode_control_plane.model import executions, invocations, projects, workers
from multinode_control_plane.service import executions as cases
from multinode_control_plane.service import rows, statements
from multinode_control_plane.service.actions import HandOver, SetTimer
from multinode_control_plane.service.executions import EXIT_PATIENCE_S, Context, WorkerIdentity
from multinode_control_plane.service.statements import Row
from multinode_control_plane.store import Transaction

MOST = 256
"""How many a worker can be handed at once."""

# As the partial index has it, so that it is used.
_IS_IDLE: sa.ColumnElement[bool] = sa.literal_column("workers.idle_at IS NOT NULL")
_IDLE = sa.select(workers).where(_IS_IDLE)
_READY_OF_VERSION = (
    sa.select(invocations.c.seq)
    .where(
        sa.literal_column("invocations.waiting = 'ready'"),
        invocations.c.project == sa.bindparam("project"),
        invocations.c.function == sa.bindparam("function"),
        invocations.c.version_id == sa.bindparam("version_id"),
    )
    .limit(1)
)
_COUNT_OF_VERSION = sa.select(sa.func.count()).where(
    workers.c.gone_at.is_(None),
    workers.c.project == sa.bindparam("project"),
    workers.c.function == sa.bindparam("function"),
    workers.c.version_id == sa.bindparam("version_id"),
    workers.c.state != model.LEAVING,
)


# --- a worker's own request -----------------------------------------------------------------------------


def ask(
    tx: Transaction,
    context: Context,
    who: WorkerIdentity,
    request: wire.NextRequest,
    *,
    draining: bool,
) -> wire.Next:
    """Ends what the worker has done; then what it was handed already, or nothing: then it is idle, and will be handed what comes.

    One that does not wait may have others that run: then it only tells ends. Raises ClaimRefused where it has nothing more to ask for.
    """
    for done in request.reports or ():
        cases.report(tx, context, who, done, stays=True)
    worker = statements.first(tx.connection, workers, worker_id=who.worker_id)
    if worker is None or worker.gone_at is not None:
        message = f"{who.worker_id} was given up."
        raise ClaimRefused(message)
    is_next = request.number == worker.served + 1
    if is_next and not request.wait_s and cases.unended(tx.connection, worker):
        return wire.Next()
    found = answer_to(tx.connection, context, worker, request.number)
    if found.leave or found.tasks:
        return found
    settings = context.settings_of(tx.connection, worker)
    if worker.served == 0:
        context.ahead.came_up(cases.pool_of(worker))
    most = settings.max_invocations_per_worker
    if (most and worker.served >= most) or not _may_stay(tx.connection, worker, draining=draining):
        _tell_to_leave(tx, worker)
        return wire.Next(leave=True)
    if worker.idle_at is None:
        _rest(tx, worker, settings, max(1, request.most))
        tx.wake()
    return wire.Next()


def answer_to(connection: sa.Connection, context: Context, worker: Row, number: int) -> wire.Next:
    """What the worker was handed from ``number`` on, or that it has to leave; else nothing."""
    if worker.state == model.LEAVING or worker.gone_at is not None:
        return wire.Next(leave=True)
    if number > worker.served + 1:
        message = (
            f"{worker.worker_id} asks for its execution {number}; it was given {worker.served}."
        )
        raise ClaimRefused(message)
    running = cases.unended(connection, worker)
    if number == worker.served + 1 and not running:
        return wire.Next()
    tasks = [
        _task(rows.invocation(connection, execution.invocation_id), execution, context)
        for execution in running
        if execution.number >= number and execution.state == model.STARTED
    ]
    if not tasks:  # it has not ended what it has, or was overtaken by what came after it
        message = f"{worker.worker_id} cannot ask for its execution {number} now."
        raise ClaimRefused(message)
    return wire.Next(tasks)


def look(
    connection: sa.Connection, context: Context, who: WorkerIdentity, number: int
) -> wire.Next:
    """As `ask`, of a worker that has asked. Raises ClaimRefused."""
    worker = statements.first(connection, workers, worker_id=who.worker_id)
    if worker is None:
        message = f"{who.worker_id} was given up."
        raise ClaimRefused(message)
    return answer_to(connection, context, worker, number)


def _may_stay(connection: sa.Connection, worker: Row, *, draining: bool) -> bool:
    """Whether it may wait: one of an older version only while there is something for it."""
    if draining:
        return False
    if _is_of_latest(connection, worker):
        return True
    own = {name: getattr(worker, name) for name in ("project", "function", "version_id")}
    return connection.execute(_READY_OF_VERSION, own).first() is not None


def _is_of_latest(connection: sa.Connection, worker: Row) -> bool:
    project = statements.first(connection, projects, name=worker.project)
    return (
        project is not None
        and project.deleting_at is None
        and project.latest_version_id == worker.version_id
    )


def _rest(tx: Transaction, worker: Row, settings: wire.FunctionSettings, most: int) -> None:
    until = tx.now + settings.idle_timeout_s
    left = settings.max_invocations_per_worker - worker.served
    statements.change(
        tx.connection,
        workers,
        {"worker_id": worker.worker_id},
        state=model.IDLE,
        idle_at=tx.now,
        wanted=min(most, left, MOST) if settings.max_invocations_per_worker else min(most, MOST),
        deadline_at=until,
    )
    rows.count(tx, worker.project, worker.function, idle=1)
    tx.after_commit(SetTimer(until))


# --- handing over ---------------------------------------------------------------------------------------


def idle(connection: sa.Connection) -> dict[str, Row]:
    """The workers that wait for an invocation, by their ids."""
    return {row.worker_id: row for row in connection.execute(_IDLE)}


def as_idle(worker: Row) -> decide.Idle:
    """For `decide`."""
    room = decide.Room(worker.cpu, worker.memory_mib)
    return decide.Idle(worker.worker_id, cases.pool_of(worker), room, worker.idle_at, worker.wanted)


@dataclass(frozen=True)
class _Handed:
    execution_id: str
    worker_id: str
    attempt: int
    number: int


def hand_over(tx: Transaction, context: Context, worker: Row, ready: list[Row]) -> None:
    """Starts these invocations in an idle worker, in their order."""
    tasks: list[wire.Task] = []
    made: list[dict[str, Any]] = []
    for number, row in enumerate(ready, worker.served + 1):
        handed = _Handed(model.new_id("exe"), worker.worker_id, row.num_failed_attempts + 1, number)
        made.append(
            {
                "execution_id": handed.execution_id,
                "invocation_id": row.invocation_id,
                "attempt": handed.attempt,
                "worker_id": worker.worker_id,
                "number": number,
                "state": model.STARTED,
                "created_at": tx.now,
                "started_at": tx.now,
            }
        )
        rows.move(
            tx,
            row,
            wire.RUNNING,
            waiting=None,
            pending_note=None,
            started_at=row.started_at if row.started_at is not None else tx.now,
            queue_deadline_at=None,
            not_made=0,
        )
        tx.after_commit(cases.claimed(tx, row, handed, tx.now))
        tasks.append(_task(row, handed, context))
    statements.insert(tx.connection, executions, *made)
    statements.change(
        tx.connection,
        workers,
        {"worker_id": worker.worker_id},
        state=model.EXCHANGED,
        served=worker.served + len(ready),
        idle_at=None,
        deadline_at=None,
    )
    rows.count(tx, worker.project, worker.function, idle=-1)
    tx.after_commit(HandOver(worker.worker_id, tuple(tasks)))
    tx.changed(f"worker:{worker.worker_id}")


def _task(row: Row, execution: Any, context: Context) -> wire.Task:
    traces = context.settings.traces
    variables = cases.trace_variables(row, execution.execution_id, traces=traces)
    return wire.Task(
        number=execution.number,
        execution_id=execution.execution_id,
        invocation_id=row.invocation_id,
        attempt=execution.attempt,
        input=row.input,
        first_value_number=row.num_values + 1,
        variables=variables or None,
    )


# --- leaving --------------------------------------------------------------------------------------------


def dismiss(tx: Transaction, worker: Row) -> None:
    """An idle worker is told to leave when it asks next, or asks now."""
    rows.count(tx, worker.project, worker.function, idle=-1)
    _tell_to_leave(tx, worker)


def _tell_to_leave(tx: Transaction, worker: Row) -> None:
    until = tx.now + EXIT_PATIENCE_S
    statements.change(
        tx.connection,
        workers,
        {"worker_id": worker.worker_id},
        state=model.LEAVING,
        idle_at=None,
        deadline_at=until,
    )
    tx.changed(f"worker:{worker.worker_id}")
    tx.after_commit(SetTimer(until))


def dismiss_all(tx: Transaction) -> None:
    """No idle worker is needed any more."""
    for worker in idle(tx.connection).values():
        dismiss(tx, worker)


def dismiss_outdated(tx: Transaction, project: str) -> None:
    """Idle workers of other versions than the latest leave; all of them where the project is being removed."""
    of_project = _IDLE.where(workers.c.project == project)
    for worker in tx.connection.execute(of_project).all():
        if not _is_of_latest(tx.connection, worker):
            dismiss(tx, worker)


def idle_for_long(tx: Transaction, worker: Row, min_workers: int) -> None:
    """Its idle_timeout is over: it leaves, unless it is one of those that are kept started."""
    own = {name: getattr(worker, name) for name in ("project", "function", "version_id")}
    is_kept = _is_of_latest(tx.connection, worker) and (
        count_of_version(tx.connection, **own) <= min_workers
    )
    if is_kept:
        statements.change(tx.connection, workers, {"worker_id": worker.worker_id}, deadline_at=None)
    else:
        dismiss(tx, worker)


def count_of_version(
    connection: sa.Connection, project: str, function: str, version_id: str
) -> int:
    """How many workers the function has of this version, without those that leave."""
    own = {"project": project, "function": function, "version_id": version_id}
    return int(connection.execute(_COUNT_OF_VERSION, own).scalar_one())
