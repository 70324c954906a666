"""Workers that serve several invocations, or were started ahead of any: asking for more, being handed it, leaving.

A worker asks; a tick of the scheduler hands over (`admission`). What it was handed has started with that commit, so that one
commit and one answer are all that lies between a start and its code. The table is in `docs/architecture.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from multinode import wire
from multinode.errors import ClaimRefused
from multinode_control_plane import decide, model
from multinode_control_plane.model import executions, invocations, projects, queues, workers
from multinode_control_plane.service import costs, rows, statements
from multinode_control_plane.service import executions as cases
from multinode_control_plane.service.actions import HandOver, SetTimer
from multinode_control_plane.service.executions import EXIT_PATIENCE_S, Context, WorkerIdentity
from multinode_control_plane.service.statements import Row
from multinode_control_plane.store import Transaction

MOST = 256
"""How many a worker can be handed at once."""

# As the partial index has it, so that it is used.
_IS_IDLE: sa.ColumnElement[bool] = sa.literal_column("workers.idle_at IS NOT NULL")
_IDLE = sa.select(workers).where(_IS_IDLE)
_OLDEST_OF_VERSION = (
    sa.select(invocations)
    .where(
        sa.literal_column("invocations.waiting = 'ready'"),
        invocations.c.project == sa.bindparam("project"),
        invocations.c.function == sa.bindparam("function"),
        invocations.c.version_id == sa.bindparam("version_id"),
    )
    .order_by(invocations.c.seq)
    .limit(sa.bindparam("most"))
)
_COUNT = sa.select(sa.func.count()).where(
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

    One that still has some to run, and does not wait, gets more of its version where there is more, and is not idle.
    Raises ClaimRefused where it has nothing more to ask for.
    """
    worker = _worker(tx.connection, who)
    billed_s = worker.billed_s
    if request.reports:
        billed_s += _end_all(tx, context, worker, request.reports)
    running = cases.unended(tx.connection, worker)
    if running and request.number == worker.served + 1 and request.wait_s <= 0:
        _note_billed(tx, worker, billed_s)
        if not draining:
            _hand_more(tx, context, worker, running, request.most)
        return wire.Next()
    found = _answer(tx.connection, context, worker, request.number, running)
    if found.leave or found.tasks:
        _note_billed(tx, worker, billed_s)
        return found
    settings = context.settings_of(tx.connection, worker)
    if worker.served == 0:
        context.ahead.came_up(cases.pool_of(worker))
    most = settings.max_invocations_per_worker
    if (most and worker.served >= most) or not _may_stay(tx.connection, worker, draining=draining):
        _tell_to_leave(tx, worker, billed_s=billed_s)
        return wire.Next(leave=True)
    if worker.idle_at is None:
        _rest(tx, worker, settings, max(1, request.most), billed_s)
        tx.wake()
    return wire.Next()


def _note_billed(tx: Transaction, worker: Row, billed_s: float) -> None:
    if billed_s != worker.billed_s:
        own = {"worker_id": worker.worker_id}
        statements.change(tx.connection, workers, own, billed_s=billed_s)


def _hand_more(
    tx: Transaction, context: Context, worker: Row, running: Sequence[Row], most: int
) -> None:
    """What is ready for a worker that has not run all that it has, unless others have to come first."""
    queue = statements.one(tx.connection, queues, project=worker.project, function=worker.function)
    settings = context.settings_of(tx.connection, worker)
    if settings.max_invocations_per_worker:
        most = min(most, settings.max_invocations_per_worker - worker.served)
    most = min(most, MOST - len(running), queue.ready)
    if most <= 0 or queue.workers > queue.max_concurrency:
        return
    before = context.ahead.blocked_seq
    oldest = _oldest_for(tx.connection, worker, most)
    ready = [row for row in oldest if before is None or row.seq < before]
    if ready:
        hand_over(tx, context, worker, ready, running=len(running))


def _oldest_for(connection: sa.Connection, worker: Row, most: int) -> Sequence[Row]:
    """What is ready for the worker."""
    own = {**cases.pool_of(worker)._asdict(), "most": most}
    return connection.execute(_OLDEST_OF_VERSION, own).all()


def _end_all(
    tx: Transaction, context: Context, worker: Row, reports: Sequence[wire.Report]
) -> float:
    """Ends executions of which nothing is left in the worker; how many seconds of its time they are billed for.

    What was ended before is passed over. Raises ClaimRefused where one of them is not the worker's, or ended otherwise.
    """
    ids = [report.execution_id for report in reports]
    own = {"ids": ids, "worker_id": worker.worker_id}
    found = {row.execution_id: row for row in tx.connection.execute(_OWN, own)}
    its = [execution.invocation_id for execution in found.values()]
    invocation_of = {row.invocation_id: row for row in tx.connection.execute(_THESE, {"ids": its})}
    ended = []
    for report in reports:
        execution = found.get(report.execution_id)
        row = invocation_of.get(execution.invocation_id) if execution is not None else None
        if execution is None or row is None or report.end is None:
            message = f"{report.execution_id} is not an execution that this worker can end."
            raise ClaimRefused(message)
        if cases.has_ended_so(execution, report.end):
            continue
        if report.values:
            row = cases.store_values(tx, context, row, execution.attempt, report.values)
        if report.end.outcome == cases.UNSTARTED:
            cases.give_back(tx, row, execution)
        else:
            ended.append((row, execution, report.end))
    return _leave_behind(tx, context, worker, ended) if ended else 0.0


def _leave_behind(
    tx: Transaction,
    context: Context,
    worker: Row,
    ended: Sequence[tuple[Row, Row, wire.ExecutionEnd]],
) -> float:
    """The worker has gone on: they are ended, paid for and over."""
    cases.end_all(tx, context, ended, stays=True)
    settings = context.settings_of(tx.connection, worker)
    paid = [
        (execution, costs.span_s(execution.started_at, tx.now, end.run_ms))
        for _, execution, end in ended
    ]
    costs.note_executions(tx, context.meter, worker, settings, paid)
    # Who waits for its orders, on behalf of what has ended, is answered.
    tx.changed(f"worker:{worker.worker_id}")
    for row, execution, _ in ended:
        if execution.attempt > 1:
            cases.terminate_if_over(tx, row.invocation_id)
    return float(sum(each for _, each in paid))


_OWN = sa.select(executions).where(
    executions.c.execution_id.in_(sa.bindparam("ids", expanding=True)),
    executions.c.worker_id == sa.bindparam("worker_id"),
)
_THESE = sa.select(invocations).where(
    invocations.c.invocation_id.in_(sa.bindparam("ids", expanding=True))
)


def _worker(connection: sa.Connection, who: WorkerIdentity) -> Row:
    worker = statements.first(connection, workers, worker_id=who.worker_id)
    if worker is None or worker.gone_at is not None:
        message = f"{who.worker_id} was given up."
        raise ClaimRefused(message)
    return worker


def _answer(
    connection: sa.Connection, context: Context, worker: Row, number: int, running: Sequence[Row]
) -> wire.Next:
    """What the worker was handed from ``number`` on, or that it has to leave; else nothing. ``running`` is what it has not ended."""
    if worker.state == model.LEAVING:
        return wire.Next(leave=True)
    if number > worker.served + 1:
        message = (
            f"{worker.worker_id} asks for its execution {number}; it was given {worker.served}."
        )
        raise ClaimRefused(message)
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
    worker = _worker(connection, who)
    return _answer(connection, context, worker, number, cases.unended(connection, worker))


def _may_stay(connection: sa.Connection, worker: Row, *, draining: bool) -> bool:
    """Whether it may wait: one of an older version only while there is something for it."""
    if draining:
        return False
    return _is_of_latest(connection, worker) or bool(_oldest_for(connection, worker, 1))


def _is_of_latest(connection: sa.Connection, worker: Row) -> bool:
    project = statements.first(connection, projects, name=worker.project)
    return (
        project is not None
        and project.deleting_at is None
        and project.latest_version_id == worker.version_id
    )


def _rest(
    tx: Transaction, worker: Row, settings: wire.FunctionSettings, most: int, billed_s: float
) -> None:
    until = tx.now + settings.idle_timeout_s
    left = settings.max_invocations_per_worker - worker.served
    statements.change(
        tx.connection,
        workers,
        {"worker_id": worker.worker_id},
        state=model.IDLE,
        idle_at=tx.now,
        billed_s=billed_s,
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


def hand_over(
    tx: Transaction, context: Context, worker: Row, ready: list[Row], *, running: int = 0
) -> None:
    """Starts these invocations in an idle worker, in their order; or in one that has so many still to run."""
    tasks: list[wire.Task] = []
    made: list[dict[str, Any]] = []
    moves: list[tuple[Row, str, dict[str, Any]]] = []
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
        started_at = row.started_at if row.started_at is not None else tx.now
        moves.append((row, wire.RUNNING, {**_TAKEN, "started_at": started_at}))
        tx.after_commit(cases.claimed(tx, row, handed, tx.now))
        tasks.append(_task(row, handed, context))
    rows.move_all(tx, moves)
    statements.insert(tx.connection, executions, *made)
    statements.change(
        tx.connection,
        workers,
        {"worker_id": worker.worker_id},
        state=model.EXCHANGED,
        served=worker.served + len(ready),
        wanted=running + len(ready),
        idle_at=None,
        deadline_at=None,
    )
    if worker.idle_at is not None:
        rows.count(tx, worker.project, worker.function, idle=-1)
    tx.after_commit(HandOver(worker.worker_id, tuple(tasks)))
    tx.changed(f"worker:{worker.worker_id}")


_TAKEN = {"waiting": None, "pending_note": None, "queue_deadline_at": None, "not_made": 0}


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


def _tell_to_leave(tx: Transaction, worker: Row, **columns: Any) -> None:
    until = tx.now + EXIT_PATIENCE_S
    statements.change(
        tx.connection,
        workers,
        {"worker_id": worker.worker_id},
        state=model.LEAVING,
        idle_at=None,
        deadline_at=until,
        **columns,
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
    is_kept = _is_of_latest(tx.connection, worker) and (
        count(tx.connection, cases.pool_of(worker)) <= min_workers
    )
    if is_kept:
        statements.change(tx.connection, workers, {"worker_id": worker.worker_id}, deadline_at=None)
    else:
        dismiss(tx, worker)


def count(connection: sa.Connection, pool: decide.Pool) -> int:
    """How many workers the pool has, without those that leave."""
    return int(connection.execute(_COUNT, pool._asdict()).scalar_one())
