"""Who runs next: what a tick of the scheduler does, in the writer's transaction.

Timers that are due, then workers for the oldest that are ready, idle or new ones, while there are slots and room; then those that are
started ahead.
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import sqlalchemy as sa

from multinode import wire
from multinode.worker.launch import INTERPRETER_PREFIXES
from multinode_control_plane import decide, model
from multinode_control_plane.model import executions, invocations, projects, queues, workers
from multinode_control_plane.runners import WorkerLaunch
from multinode_control_plane.service import pools, rows, statements
from multinode_control_plane.service.actions import SetTimer, StartWorker, StopWorker
from multinode_control_plane.service.executions import Context, pool_of
from multinode_control_plane.service.hashing import hash_secret
from multinode_control_plane.service.invocations import end_pending, purge_deleted, purge_if_empty
from multinode_control_plane.service.statements import Row
from multinode_control_plane.store import Transaction


def tick(tx: Transaction, context: Context, *, draining: bool, timers: bool = True) -> None:
    """What the scheduler does each time it is woken: due timers first, then new workers while there is room.

    Its cost grows with what is ready and can run, not with what is stored. ``timers`` False: none can be due yet.
    """
    if timers:
        _release_due(tx)
        _end_overdue(tx)
        _stop_overdue_workers(tx, context)
        purge_deleted(tx)
        context.ahead.look_again()
    # What a running function may wait for runs also where nothing else does: that function would never end.
    if draining or not _admit(tx, context, _OLDEST):
        _admit(tx, context, _OLDEST_CHILDREN, overtaking=True)
    elif context.ahead.is_due:
        _start_ahead(tx, context)
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
STEP = 300
"""Of what is due, at most so many in one tick: thousands may be, after a long stop. The next tick, at once, goes on."""
_DUE = (
    sa.select(*rows.MOVED)
    .where(_DELAYED, invocations.c.due_at <= sa.bindparam("now"))
    .order_by(invocations.c.due_at)
    .limit(STEP)
)
_OVERDUE = (
    sa.select(*rows.MOVED)
    .where(
        invocations.c.queue_deadline_at.is_not(None),
        invocations.c.queue_deadline_at <= sa.bindparam("now"),
    )
    .order_by(invocations.c.queue_deadline_at)
    .limit(STEP)
)
_OVERDUE_WORKERS = sa.select(workers).where(
    _HAS_DEADLINE, workers.c.deadline_at <= sa.bindparam("now")
)
_OPEN_QUEUES = sa.select(queues).where(
    sa.literal_column("queues.ready > 0"),
    sa.or_(queues.c.workers < queues.c.max_concurrency, queues.c.idle > 0),
)
_COMING = sa.select(sa.func.sum(workers.c.cpu), sa.func.sum(workers.c.memory_mib)).where(
    workers.c.gone_at.is_(None), workers.c.state == model.LEAVING
)
_TO_BE_KEPT = (
    sa.select(queues, projects.c.latest_version_id)
    .join(projects, projects.c.name == queues.c.project)
    .where(queues.c.min_workers > 0, projects.c.deleting_at.is_(None))
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
    """Finds workers for those that ``query`` finds, while there is room; whether there was for all."""
    open_queues = tx.connection.execute(_OPEN_QUEUES).all()
    if not open_queues:
        context.ahead.blocked_seq = None
        return True
    idle = pools.idle(tx.connection) if any(queue.idle for queue in open_queues) else {}
    waiting = _candidates(tx, context, query, open_queues, idle)
    rows_by_seq = {candidate.seq: row for candidate, row in waiting}
    placing = partial(
        decide.place,
        [candidate for candidate, _ in waiting],
        whole=_whole_room(context),
        slots={(q.project, q.function): q.max_concurrency - q.workers for q in open_queues},
        idle=[pools.as_idle(worker) for worker in idle.values()],
        overtaking=overtaking,
    )
    placed = placing(left=decide.Room(0.0, 0)) if idle else None
    if placed is None or placed.blocked is not None:
        # The idle will not do: how much room is there?
        placed = placing(left=_room_left(tx, context))
    handed: dict[str, list[Row]] = {}
    for candidate, worker_id in placed.handed:
        handed.setdefault(worker_id, []).append(rows_by_seq[candidate.seq])
    for worker_id, ready in handed.items():
        pools.hand_over(tx, context, idle[worker_id], ready)
    for worker_id in placed.leaving:
        pools.dismiss(tx, idle[worker_id])
    for candidate in placed.made:
        row = rows_by_seq[candidate.seq]
        _request_worker(tx, context, candidate.pool, row)
    if not overtaking:
        context.ahead.blocked_seq = None if placed.blocked is None else placed.blocked.seq
    if placed.blocked is not None:
        _make_way(tx, context, placed.blocked)
    return placed.blocked is None


def _make_way(tx: Transaction, context: Context, blocked: decide.Waiting) -> None:
    """Idle workers leave where an invocation needs their room, beyond what those that leave already will free."""
    idle = pools.idle(tx.connection)
    if not idle:
        return
    cpu, memory_mib = tx.connection.execute(_COMING).one()
    left = _room_left(tx, context)
    left = left.less(decide.Room(-float(cpu or 0), -int(memory_mib or 0)))
    needed = blocked.room.within(_whole_room(context))
    for worker_id in decide.give_way(needed, left, map(pools.as_idle, idle.values())):
        pools.dismiss(tx, idle[worker_id])


def _start_ahead(tx: Transaction, context: Context) -> None:
    """Makes workers for functions that have fewer of their latest version than are to be kept started, as far as there is room."""
    context.ahead.is_due = False
    for queue in tx.connection.execute(_TO_BE_KEPT).all():
        pool = decide.Pool(queue.project, queue.function, queue.latest_version_id)
        _, again_at = context.ahead.failures.get(pool, (0, 0.0))
        missing = queue.min_workers - pools.count(tx.connection, pool)
        missing = min(missing, queue.max_concurrency - queue.workers)
        if missing > 0 and again_at > tx.now:
            context.ahead.is_due = True
            tx.after_commit(SetTimer(again_at))
            continue
        for _ in range(missing):
            settings = context.settings_of(tx.connection, pool)
            needed = decide.Room(settings.cpu, settings.memory_mib).within(_whole_room(context))
            if not needed.fits(_room_left(tx, context)):
                context.ahead.is_due = True  # whoever leaves wakes the scheduler
                return
            _request_worker(tx, context, pool, None)


def next_timer(connection: sa.Connection) -> float | None:
    """When the next delay, queue timeout or worker's deadline is over; three looks into ordered indexes."""
    found = [connection.execute(query).scalar() for query in _NEXT_TIMERS]
    return min((at for at in found if at is not None), default=None)


def _release_due(tx: Transaction) -> None:
    found = tx.connection.execute(_DUE, {"now": tx.now}).all()
    rows.move_waiting(tx, found, wire.PENDING, waiting=model.READY, due_at=None, pending_note=None)


def _end_overdue(tx: Transaction) -> None:
    error = wire.to_plain(wire.FunctionError("its queue_timeout was over before a worker was free"))
    found = tx.connection.execute(_OVERDUE, {"now": tx.now}).all()
    waiting = [row for row in found if row.waiting is not None]
    rows.move_waiting(tx, waiting, wire.TIMED_OUT, error=error)
    for each in found:
        if each.waiting is None:  # a worker is on its way to it
            row = rows.invocation(tx.connection, each.invocation_id)
            end_pending(tx, row, wire.TIMED_OUT, error=error)
    for project in {row.project for row in waiting}:
        purge_if_empty(tx, project)


def _stop_overdue_workers(tx: Transaction, context: Context) -> None:
    for worker in tx.connection.execute(_OVERDUE_WORKERS, {"now": tx.now}).all():
        if worker.idle_at is not None:
            settings = context.settings_of(tx.connection, worker)
            pools.idle_for_long(tx, worker, settings.min_workers)
            continue
        statements.change(tx.connection, workers, {"worker_id": worker.worker_id}, deadline_at=None)
        tx.after_commit(StopWorker(worker.worker_id))


def _candidates(
    tx: Transaction,
    context: Context,
    query: sa.Select[Any],
    open_queues: Sequence[Row],
    idle: Mapping[str, Row],
) -> list[tuple[decide.Waiting, Row]]:
    """The oldest ready invocations of each queue: as many as it has free slots, and its idle workers take."""
    found = []
    for queue in open_queues:
        own = {"project": queue.project, "function": queue.function}
        wanted = sum(
            worker.wanted
            for worker in idle.values()
            if (worker.project, worker.function) == (queue.project, queue.function)
        )
        slots = max(0, queue.max_concurrency - queue.workers) + wanted
        for row in tx.connection.execute(query, {**own, "slots": slots}):
            settings = context.settings_of(tx.connection, row)
            room = decide.Room(settings.cpu, settings.memory_mib)
            found.append((decide.Waiting(row.seq, room, pool_of(row)), row))
    return found


def _whole_room(context: Context) -> decide.Room:
    capacity = context.settings.capacity
    return decide.Room(capacity.cpu, capacity.memory_mib)


def _room_left(tx: Transaction, context: Context) -> decide.Room:
    cpu, memory_mib = tx.connection.execute(_USED).one()
    return _whole_room(context).less(decide.Room(float(cpu or 0), int(memory_mib or 0)))


def _request_worker(tx: Transaction, context: Context, pool: decide.Pool, row: Row | None) -> None:
    """Notes the intent to make a worker, for the invocation or ahead of any, and has it made after the commit."""
    version = context.version_of(tx.connection, pool)
    settings = version.function(pool.function).settings
    taken = decide.Room(settings.cpu, settings.memory_mib).within(_whole_room(context))
    worker_id, claim_code = model.new_id("wrk"), secrets.token_urlsafe(32)
    execution_id = "" if row is None else _note_execution(tx, row, worker_id)
    statements.insert(
        tx.connection,
        workers,
        {
            "worker_id": worker_id,
            "execution_id": execution_id,
            "invocation_id": "" if row is None else row.invocation_id,
            "project": pool.project,
            "function": pool.function,
            "version_id": pool.version_id,
            "state": model.REQUESTED,
            "cpu": taken.cpu,
            "memory_mib": taken.memory_mib,
            "served": 0 if row is None else 1,
            "claim_code_hash": hash_secret(claim_code),
            "deadline_at": tx.now + settings.start_timeout_s,
            "created_at": tx.now,
        },
    )
    rows.count(tx, pool.project, pool.function, workers=1)
    names = version.row.dotenv_names
    launch = WorkerLaunch(
        worker_id=worker_id,
        claim_code=claim_code,
        environment_digest=version.row.environment_digest,
        bundle_digest=version.row.bundle_digest,
        execution_id=execution_id or worker_id,
        cpu=settings.cpu,
        memory_mib=settings.memory_mib,
        fresh_interpreter=any(name.startswith(INTERPRETER_PREFIXES) for name in names),
        interpreter_env=context.sealer.interpreter_variables(
            version.row.dotenv, names, version.row.sealed_with
        ),
    )
    tx.after_commit(StartWorker(launch))


def _note_execution(tx: Transaction, row: Row, worker_id: str) -> str:
    """The next attempt at the invocation, which waits for its worker now."""
    execution_id = model.new_id("exe")
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
    rows.move(tx, row, wire.PENDING, waiting=None, pending_note=None)
    return execution_id
