"""Who runs next: what a tick of the scheduler does, in the writer's transaction.

Timers that are due, then new workers for the oldest that are ready, while there are slots and room.
"""

from __future__ import annotations

import secrets
from typing import Any

import sqlalchemy as sa

from multinode import wire
from multinode.worker.launch import INTERPRETER_PREFIXES
from multinode_control_plane import decide, model
from multinode_control_plane.model import executions, invocations, queues, workers
from multinode_control_plane.runners import WorkerLaunch
from multinode_control_plane.service import rows, statements
from multinode_control_plane.service.actions import SetTimer, StartWorker, StopWorker
from multinode_control_plane.service.executions import Context
from multinode_control_plane.service.hashing import hash_secret
from multinode_control_plane.service.invocations import end_pending
from multinode_control_plane.service.statements import Row
from multinode_control_plane.store import Transaction


def tick(tx: Transaction, context: Context, *, draining: bool, timers: bool = True) -> None:
    """What the scheduler does each time it is woken: due timers first, then new workers while there is room.

    Its cost grows with what is ready and can run, not with what is stored. ``timers`` False: none can be due yet.
    """
    if timers:
        _release_due(tx)
        _end_overdue(tx)
        _stop_overdue_workers(tx)
    # What a running function may wait for runs also where nothing else does: that function would never end.
    if draining or not _admit(tx, context, _OLDEST):
        _admit(tx, context, _OLDEST_CHILDREN, overtaking=True)
    if timers:
        next_at = next_timer(tx.connection)
        if next_at is not None:
            tx.after_commit(SetTimer(next_at))


# The conditions are written as the partial indexes have them, so that these are used.
_DELAYED: sa.ColumnElement[bool] = sa.literal_column("invocations.waiting = 'delayed'")
_READY: sa.ColumnElement[bool] = sa.literal_column("invocations.waiting = 'ready'")
# While a worker is only requested, its runner bounds how long the making may take.
_HAS_DEADLINE = sa.and_(workers.c.deadline_at.is_not(None), workers.c.state != model.REQUESTED)
_NEXT_TIMERS = (
    sa.select(sa.func.min(invocations.c.due_at)).where(_DELAYED),
    sa.select(sa.func.min(invocations.c.queue_deadline_at)).where(
        invocations.c.queue_deadline_at.is_not(None)
    ),
    sa.select(sa.func.min(workers.c.deadline_at)).where(_HAS_DEADLINE),
)
_DUE = sa.select(invocations).where(_DELAYED, invocations.c.due_at <= sa.bindparam("now"))
_OVERDUE = sa.select(invocations).where(
    invocations.c.queue_deadline_at.is_not(None),
    invocations.c.queue_deadline_at <= sa.bindparam("now"),
)
_OVERDUE_WORKERS = sa.select(workers).where(
    _HAS_DEADLINE, workers.c.deadline_at <= sa.bindparam("now")
)
_OPEN_QUEUES = sa.select(queues).where(
    sa.literal_column("queues.ready > 0"), queues.c.workers < queues.c.max_concurrency
)
_OLDEST = (
    sa.select(invocations)
    .where(
        _READY,
        invocations.c.project == sa.bindparam("project"),
        invocations.c.function == sa.bindparam("function"),
    )
    .order_by(invocations.c.seq)
    .limit(sa.bindparam("slots"))
)
_OLDEST_CHILDREN = _OLDEST.where(invocations.c.parent_id.is_not(None))
_USED = sa.select(sa.func.sum(workers.c.cpu), sa.func.sum(workers.c.memory_mib)).where(
    workers.c.gone_at.is_(None)
)


def _admit(
    tx: Transaction, context: Context, query: sa.Select[Any], *, overtaking: bool = False
) -> bool:
    """Requests workers for those that ``query`` finds, while there is room; whether there was for all."""
    waiting = _candidates(tx, context, query)
    if not waiting:
        return True
    rows_by_seq = {candidate.seq: row for candidate, row in waiting}
    admitted = decide.admit(
        [candidate for candidate, _ in waiting],
        _room_left(tx, context),
        _whole_room(context),
        overtaking=overtaking,
    )
    for candidate in admitted:
        _request_worker(tx, context, rows_by_seq[candidate.seq])
    return len(admitted) == len(waiting)


def next_timer(connection: sa.Connection) -> float | None:
    """When the next delay, queue timeout or worker's deadline is over; three looks into ordered indexes."""
    found = [connection.execute(query).scalar() for query in _NEXT_TIMERS]
    return min((at for at in found if at is not None), default=None)


def _release_due(tx: Transaction) -> None:
    for row in tx.connection.execute(_DUE, {"now": tx.now}).all():
        rows.move(tx, row, row.status, waiting=model.READY, due_at=None, pending_note=None)


def _end_overdue(tx: Transaction) -> None:
    error = wire.FunctionError("its queue_timeout was over before a worker was free")
    for row in tx.connection.execute(_OVERDUE, {"now": tx.now}).all():
        end_pending(tx, row, wire.TIMED_OUT, error=wire.to_plain(error))


def _stop_overdue_workers(tx: Transaction) -> None:
    for worker in tx.connection.execute(_OVERDUE_WORKERS, {"now": tx.now}).all():
        statements.change(tx.connection, workers, {"worker_id": worker.worker_id}, deadline_at=None)
        tx.after_commit(StopWorker(worker.worker_id))


def _candidates(
    tx: Transaction, context: Context, query: sa.Select[Any]
) -> list[tuple[decide.Waiting, Row]]:
    """The oldest ready invocations of each queue, as many as it has free slots."""
    found = []
    for queue in tx.connection.execute(_OPEN_QUEUES).all():
        own = {"project": queue.project, "function": queue.function}
        slots = queue.max_concurrency - queue.workers
        for row in tx.connection.execute(query, {**own, "slots": slots}):
            settings = context.settings_of(tx.connection, row)
            waiting = decide.Waiting(row.seq, decide.Room(settings.cpu, settings.memory_mib))
            found.append((waiting, row))
    return found


def _whole_room(context: Context) -> decide.Room:
    capacity = context.settings.capacity
    return decide.Room(capacity.cpu, capacity.memory_mib)


def _room_left(tx: Transaction, context: Context) -> decide.Room:
    cpu, memory_mib = tx.connection.execute(_USED).one()
    return _whole_room(context).less(decide.Room(float(cpu or 0), int(memory_mib or 0)))


def _request_worker(tx: Transaction, context: Context, row: Row) -> None:
    """Notes the intent to make a worker for the invocation, and has it made after the commit."""
    version = context.version_of(tx.connection, row)
    settings = version.function(row.function).settings
    taken = decide.Room(settings.cpu, settings.memory_mib).within(_whole_room(context))
    execution_id, worker_id = model.new_id("exe"), model.new_id("wrk")
    claim_code = secrets.token_urlsafe(32)
    statements.insert(
        tx.connection,
        executions,
        {
            "execution_id": execution_id,
            "invocation_id": row.invocation_id,
            "attempt": row.num_failed_attempts + 1,
            "worker_id": worker_id,
            "state": model.STARTING,
            "created_at": tx.now,
        },
    )
    statements.insert(
        tx.connection,
        workers,
        {
            "worker_id": worker_id,
            "execution_id": execution_id,
            "invocation_id": row.invocation_id,
            "project": row.project,
            "function": row.function,
            "version_id": row.version_id,
            "state": model.REQUESTED,
            "cpu": taken.cpu,
            "memory_mib": taken.memory_mib,
            "claim_code_hash": hash_secret(claim_code),
            "deadline_at": tx.now + settings.start_timeout_s,
            "created_at": tx.now,
        },
    )
    rows.count(tx, row.project, row.function, workers=1)
    rows.move(tx, row, wire.PENDING, waiting=None, pending_note=None)
    names = version.row.dotenv_names
    launch = WorkerLaunch(
        worker_id=worker_id,
        claim_code=claim_code,
        environment_digest=version.row.environment_digest,
        bundle_digest=version.row.bundle_digest,
        execution_id=execution_id,
        cpu=settings.cpu,
        memory_mib=settings.memory_mib,
        fresh_interpreter=any(name.startswith(INTERPRETER_PREFIXES) for name in names),
        interpreter_env=context.sealer.interpreter_variables(
            version.row.dotenv, names, version.row.sealed_with
        ),
    )
    tx.after_commit(StartWorker(launch))
