"""The life of an execution and its worker: made, exchanged, claimed, reported, gone.

Each function is one line or more of the table of transitions in `docs/architecture.md`.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa

from multinode import wire
from multinode.errors import (
    ClaimRefused,
    FunctionOutputSizeLimitExceeded,
    InvocationNotFound,
)
from multinode.limits import MAX_CHARACTERS
from multinode_control_plane import decide, model
from multinode_control_plane.model import executions, invocations, values, workers
from multinode_control_plane.prices import Meter
from multinode_control_plane.runners import NO_CAPACITY, WorkerEnd
from multinode_control_plane.service import costs, rows, statements, traceparent
from multinode_control_plane.service.actions import ForgetWorker, SetTimer
from multinode_control_plane.service.catalog import Catalog, Version
from multinode_control_plane.service.dotenv import Sealer
from multinode_control_plane.service.facts import (
    Attempt,
    AttemptClaimed,
    AttemptEnded,
    WorkerNotMade,
)
from multinode_control_plane.service.hashing import hash_secret, is_same_secret
from multinode_control_plane.service.invocations import purge_if_empty
from multinode_control_plane.service.statements import Row
from multinode_control_plane.settings import Settings
from multinode_control_plane.store import Transaction

EXIT_PATIENCE_S = 30.0
"""How long a worker may stay after its execution has ended, before it is stopped."""
UNSTARTED = "unstarted"
"""The outcome of an execution that a worker gives back: none of its code has run."""


@dataclass
class Ahead:
    """What the leader remembers of its ticks, and of workers that are started ahead. Used in the writer's thread."""

    is_due: bool = True
    """Whether one may be missing."""
    blocked_seq: int | None = None
    """Of the invocation that found no room at the last tick: workers take nothing younger meanwhile."""
    failures: dict[decide.Pool, tuple[int, float]] = field(default_factory=dict)
    """How often in a row one could not be made or did not come up, and when (POSIX seconds) the next is tried."""

    def look_again(self) -> None:
        """One may be missing from now on."""
        self.is_due = True

    def failed(self, pool: decide.Pool, now: float) -> None:
        """One was gone before it was idle for the first time."""
        times = self.failures.get(pool, (0, 0.0))[0]
        self.failures[pool] = (times + 1, now + decide.not_made_delay(times))

    def came_up(self, pool: decide.Pool) -> None:
        """One has imported ``main.py``."""
        self.failures.pop(pool, None)


def pool_of(row: Row) -> decide.Pool:
    """That of an invocation or of a worker."""
    return decide.Pool(row.project, row.function, row.version_id)


@dataclass(frozen=True)
class Context:
    """What the use cases of workers need besides rows."""

    settings: Settings
    sealer: Sealer
    catalog: Catalog = field(default_factory=Catalog)
    meter: Meter = field(default_factory=Meter)
    ahead: Ahead = field(default_factory=Ahead)

    def version_of(self, connection: sa.Connection, row: Row | decide.Pool) -> Version:
        """The version that an invocation, a worker or a pool is of."""
        return self.catalog.version(connection, row.version_id)

    def settings_of(
        self, connection: sa.Connection, row: Row | decide.Pool
    ) -> wire.FunctionSettings:
        """Those of its function, in its version."""
        return self.version_of(connection, row).function(row.function).settings


@dataclass(frozen=True)
class WorkerIdentity:
    """Whose token it is."""

    worker_id: str
    project: str
    version_id: str
    invocation_id: str


# --- making workers -------------------------------------------------------------------------------------


def worker_accepted(tx: Transaction, worker_id: str, at: float) -> None:
    """The runner made the worker at this time: since then its start_timeout counts."""
    deadline_at = tx.connection.execute(_ACCEPT, {"id": worker_id, "now": at}).scalar()
    if deadline_at is not None:
        tx.after_commit(SetTimer(deadline_at))


_ACCEPT = (
    sa.update(workers)
    .where(workers.c.worker_id == sa.bindparam("id"))
    .values(
        accepted_at=sa.bindparam("now"),
        state=sa.case((workers.c.state == model.REQUESTED, model.ACCEPTED), else_=workers.c.state),
        deadline_at=sa.case(
            (
                workers.c.state == model.REQUESTED,
                workers.c.deadline_at + (sa.bindparam("now") - workers.c.created_at),
            ),
            else_=workers.c.deadline_at,
        ),
    )
    .returning(workers.c.deadline_at)
)


# --- the worker's own requests --------------------------------------------------------------------------


def exchange(
    tx: Transaction, context: Context, request: wire.ExchangeRequest
) -> tuple[wire.Assignment, WorkerIdentity]:
    """The assignment for a claim code. The same nonce gets the same answer; any other use is refused."""
    worker = statements.first(tx.connection, workers, worker_id=request.worker_id)
    if worker is None or worker.gone_at is not None or not _code_fits(worker, request):
        message = f"The claim code of {request.worker_id} is not valid, or is used up."
        raise ClaimRefused(message)
    execution = None
    if worker.execution_id:
        execution = statements.one(tx.connection, executions, execution_id=worker.execution_id)
    if worker.state == model.LEAVING or (execution and execution.state == model.ENDED):
        message = f"{request.worker_id} is no longer needed."
        raise ClaimRefused(message)
    token = context.sealer.token(request.worker_id, request.nonce)
    if worker.nonce is None:
        statements.change(
            tx.connection,
            workers,
            {"worker_id": worker.worker_id},
            nonce=request.nonce,
            token_hash=hash_secret(token),
            ready_at=tx.now,
            state=model.EXCHANGED,
        )
    version = context.version_of(tx.connection, worker)
    settings = version.function(worker.function).settings
    assignment = wire.Assignment(
        token=token,
        kind="invocation",
        project=worker.project,
        version_id=worker.version_id,
        bundle_digest=version.row.bundle_digest,
        dotenv=context.sealer.open(version.row.dotenv, version.row.sealed_with),
        function=worker.function,
        timeout_s=settings.timeout_s,
        grace_s=context.settings.grace_s,
        memory_mib=settings.memory_mib,
        log_limit_bytes=context.settings.log_limit_bytes,
        max_invocations=settings.max_invocations_per_worker,
    )
    if execution:
        row = rows.invocation(tx.connection, worker.invocation_id)
        variables = trace_variables(row, execution.execution_id, traces=context.settings.traces)
        assignment = assignment.replace(
            dotenv={**variables, **assignment.dotenv},
            execution_id=execution.execution_id,
            invocation_id=row.invocation_id,
            attempt=execution.attempt,
            input=row.input,
            first_value_number=row.num_values + 1,
        )
    return assignment, identity_of(worker)


def trace_variables(row: Row, execution_id: str, *, traces: bool) -> dict[str, str]:
    """What makes the code's own spans part of the caller's trace, below the execution's span where there will be one."""
    if row.traceparent is None:
        return {}
    own = traceparent.of_execution(row.traceparent, execution_id)
    return {traceparent.VARIABLE: own if traces else row.traceparent}


def _code_fits(worker: Row, request: wire.ExchangeRequest) -> bool:
    if not is_same_secret(worker.claim_code_hash, hash_secret(request.claim_code)):
        return False
    return worker.nonce is None or is_same_secret(worker.nonce, request.nonce)


def identity(connection: sa.Connection, token: str) -> WorkerIdentity | None:
    """Whose token it is; None for one that is unknown or whose worker is gone."""
    worker = statements.first(connection, workers, token_hash=hash_secret(token))
    if worker is None or worker.gone_at is not None:
        return None
    return identity_of(worker)


def identity_of(worker: Row) -> WorkerIdentity:
    return WorkerIdentity(worker.worker_id, worker.project, worker.version_id, worker.invocation_id)


def claim(tx: Transaction, who: WorkerIdentity, request: wire.Claim) -> wire.Order:
    """Starts the execution. The same worker gets the same answer again; nobody else gets one."""
    execution, row = _own(tx, who, request.execution_id)
    if execution.state == model.ENDED:
        message = f"{request.execution_id} has ended."
        raise ClaimRefused(message)
    if execution.state == model.STARTING:
        rows.move(
            tx,
            row,
            wire.RUNNING,
            started_at=row.started_at if row.started_at is not None else tx.now,
            queue_deadline_at=None,
            not_made=0,
        )
        statements.change(
            tx.connection,
            executions,
            {"execution_id": execution.execution_id},
            state=model.STARTED,
            started_at=tx.now,
            import_ms=request.import_ms,
        )
        _set_deadline(tx, who.worker_id, None)
        tx.after_commit(claimed(tx, row, execution, execution.created_at))
        return wire.Order()
    return _order(row)


def claimed(tx: Transaction, row: Row, execution: Any, requested_at: float) -> AttemptClaimed:
    """The fact that a worker, which was asked for at that time, has it now."""
    queued_at = row.created_at if row.queued_at is None else row.queued_at
    return AttemptClaimed(
        row.project,
        attempt_of(row, execution),
        tx.now,
        max(0.0, requested_at - queued_at),
        max(0.0, tx.now - requested_at),
    )


def attempt_of(row: Row, execution: Any) -> Attempt:
    """The facts' word for an execution."""
    return Attempt(
        row.invocation_id,
        execution.execution_id,
        execution.worker_id,
        row.function,
        execution.attempt,
        row.traceparent,
    )


def watch(connection: sa.Connection, who: WorkerIdentity, request: wire.Watch) -> wire.Order:
    """The order for the worker, if there is one now. Raises ClaimRefused where it was given up."""
    execution, row = _own_rows(connection, who, request.execution_id)
    if execution.state == model.ENDED:
        message = f"{request.execution_id} has ended."
        raise ClaimRefused(message)
    return _order(row)


def report(
    tx: Transaction,
    context: Context,
    who: WorkerIdentity,
    request: wire.Report,
) -> wire.Order:
    """Stores yielded values and the end. What was stored before is passed over."""
    execution, row = _own(tx, who, request.execution_id)
    if has_ended_so(execution, request.end):
        return wire.Order()
    if request.values:
        row = store_values(tx, context, row, execution.attempt, request.values)
    if request.end is None:
        return _order(row)
    if request.end.outcome == UNSTARTED:
        give_back(tx, row, execution)
        return wire.Order()
    end_all(tx, context, [(row, execution, request.end)])
    _set_deadline(tx, who.worker_id, tx.now + EXIT_PATIENCE_S)
    return wire.Order()


def has_ended_so(execution: Row, end: wire.ExecutionEnd | None) -> bool:
    """Whether it has ended with this end: the answer to an earlier report was lost. Raises ClaimRefused for another."""
    if execution.state != model.ENDED:
        return False
    if end is None or end.outcome != execution.outcome:
        message = f"{execution.execution_id} has ended already."
        raise ClaimRefused(message)
    return True


def give_back(tx: Transaction, row: Row, execution: Row) -> None:
    """An execution of which no code has run ends; its invocation is ready again, where it is not to be cancelled."""
    _end_execution(tx, execution, wire.ExecutionEnd(UNSTARTED), left_at=tx.now)
    if row.status == wire.CANCELLING:
        rows.move(tx, row, wire.CANCELLED, terminated=True)
        return
    started_at = None if execution.attempt == 1 else row.started_at
    rows.move(tx, row, wire.PENDING, waiting=model.READY, started_at=started_at)
    tx.wake()


def _order(row: Row) -> wire.Order:
    return wire.Order("cancel" if row.status == wire.CANCELLING else None)


def _own(tx: Transaction, who: WorkerIdentity, execution_id: str) -> tuple[Row, Row]:
    return _own_rows(tx.connection, who, execution_id)


def _own_rows(connection: sa.Connection, who: WorkerIdentity, execution_id: str) -> tuple[Row, Row]:
    execution = statements.first(
        connection, executions, execution_id=execution_id, worker_id=who.worker_id
    )
    if execution is None:
        message = f"{execution_id} is not an execution of this worker."
        raise ClaimRefused(message)
    try:
        return execution, rows.invocation(connection, execution.invocation_id)
    except InvocationNotFound as error:
        message = f"{execution.invocation_id} was removed."
        raise ClaimRefused(message) from error


def _set_deadline(tx: Transaction, worker_id: str, at: float | None) -> None:
    statements.change(tx.connection, workers, {"worker_id": worker_id}, deadline_at=at)
    if at is not None:
        tx.after_commit(SetTimer(at))


def store_values(
    tx: Transaction, context: Context, row: Row, attempt: int, reported: Iterable[wire.Value]
) -> Row:
    new = [value for value in reported if value.number > row.num_values]
    if not new:
        return row
    for value in new:
        if len(value.value) > MAX_CHARACTERS:
            message = f"A yielded value is {len(value.value)} characters long; the limit is {MAX_CHARACTERS}."
            raise FunctionOutputSizeLimitExceeded(message, "Yield a location in storage.")
    statements.insert(
        tx.connection,
        values,
        *(
            {
                "invocation_id": row.invocation_id,
                "number": value.number,
                "attempt": attempt,
                "value": value.value,
            }
            for value in new
        ),
    )
    kept, size = row.values_kept + len(new), row.values_bytes + sum(len(v.value) for v in new)
    kept, size = _drop_oldest(tx, context, row.invocation_id, kept, size)
    rows.move(
        tx,
        row,
        row.status,
        result=new[-1].value,
        num_values=new[-1].number,
        values_kept=kept,
        values_bytes=size,
    )
    return rows.invocation(tx.connection, row.invocation_id)


def _drop_oldest(
    tx: Transaction, context: Context, invocation_id: str, kept: int, size: int
) -> tuple[int, int]:
    """Removes the oldest values while there are too many; the newest one always stays."""
    limits = context.settings
    while kept > 1 and (kept > limits.max_values or size > limits.max_values_bytes):
        oldest = tx.connection.execute(
            sa.select(values.c.number, sa.func.length(values.c.value).label("size"))
            .where(values.c.invocation_id == invocation_id)
            .order_by(values.c.number)
            .limit(max(1, min(kept - 1, kept - limits.max_values)))
        ).all()
        tx.connection.execute(
            sa.delete(values).where(
                values.c.invocation_id == invocation_id, values.c.number <= oldest[-1].number
            )
        )
        kept, size = kept - len(oldest), size - sum(row.size for row in oldest)
    return kept, size


def _within_limits(end: wire.ExecutionEnd) -> wire.ExecutionEnd:
    if end.result is None or len(end.result) <= MAX_CHARACTERS:
        return end
    message = f"The result is {len(end.result)} characters long; the limit is {MAX_CHARACTERS}."
    return wire.ExecutionEnd(
        "failed", error=wire.FunctionError(message, "FunctionOutputSizeLimitExceeded")
    )


# --- ends -----------------------------------------------------------------------------------------------


def end_all(
    tx: Transaction,
    context: Context,
    ended: Sequence[tuple[Row, Row, wire.ExecutionEnd]],
    *,
    stays: bool = False,
) -> None:
    """Ends executions, given with their invocations. ``stays``: nothing of them is left in their worker, which goes on."""
    moves, changes = [], []
    for row, execution, end in ended:
        limited = _within_limits(end)
        status, columns = _settled(tx, context, row, limited)
        if stays and decide.is_final(status) and execution.attempt == 1:
            columns["terminated"] = True  # no other attempt can have a worker left
        moves.append((row, status, columns))
        own = {"where_execution_id": execution.execution_id, **_of_end(limited, tx.now)}
        changes.append(own | {"left_at": tx.now} if stays else own)
        started_at = execution.started_at
        lasted_s = None if started_at is None else max(0.0, tx.now - started_at)
        attempt = attempt_of(row, execution)
        tx.after_commit(AttemptEnded(row.project, attempt, tx.now, limited.outcome, lasted_s))
    statements.change_all(tx.connection, executions, ("execution_id",), changes)
    rows.move_all(tx, moves)


def _settled(
    tx: Transaction, context: Context, row: Row, end: wire.ExecutionEnd
) -> tuple[str, dict[str, Any]]:
    """What becomes of an invocation whose execution has ended so."""
    settled = decide.settle(
        status=row.status,
        end=end,
        failed_before=row.num_failed_attempts,
        settings=context.settings_of(tx.connection, row),
        now=tx.now,
        jitter=random.random(),
    )
    columns: dict[str, Any] = {
        "error": None if settled.error is None else wire.to_plain(settled.error),
        "num_failed_attempts": row.num_failed_attempts + int(settled.failed),
    }
    if end.result is not None:
        columns["result"] = end.result
    if settled.due_at is not None:
        columns |= {"waiting": model.DELAYED, "due_at": settled.due_at}
        tx.after_commit(SetTimer(settled.due_at))
    return settled.status, columns


def _of_end(end: wire.ExecutionEnd, now: float) -> dict[str, Any]:
    return {
        "state": model.ENDED,
        "outcome": end.outcome,
        "error": None if end.error is None else wire.to_plain(end.error),
        "exit_code": end.exit_code,
        "signal": end.signal,
        "peak_memory_bytes": end.peak_memory_bytes,
        "run_ms": end.run_ms,
        "ended_at": now,
    }


def _change_execution(tx: Transaction, execution: Row, **columns: Any) -> None:
    own = {"execution_id": execution.execution_id}
    statements.change(tx.connection, executions, own, **columns)


def _end_execution(tx: Transaction, execution: Row, end: wire.ExecutionEnd, **columns: Any) -> None:
    _change_execution(tx, execution, **_of_end(end, tx.now), **columns)


def worker_not_made(tx: Transaction, context: Context, worker_id: str, why: str) -> None:
    """The runner could not make it, or it was lost before its claim: another will be made, at no retry's cost."""
    worker_gone(tx, context, WorkerEnd(worker_id, detail=why))


def worker_gone(
    tx: Transaction, context: Context, end: WorkerEnd, *, untold: Collection[str] = ()
) -> None:
    """No process of the worker is left: its slot and room are free, and what it had not ended is lost.

    ``untold`` are executions that it was given, and certainly not told of: these are given back.
    """
    worker = statements.first(tx.connection, workers, worker_id=end.worker_id)
    if worker is None or worker.gone_at is not None:
        return
    statements.change(
        tx.connection,
        workers,
        {"worker_id": end.worker_id},
        state=model.GONE,
        gone_at=tx.now,
        deadline_at=None,
    )
    idle = int(worker.idle_at is not None)
    rows.count(tx, worker.project, worker.function, workers=-1, idle=-idle)
    tx.after_commit(ForgetWorker(end.worker_id))
    tx.changed(f"worker:{end.worker_id}", f"project:{worker.project}", "workers")
    left = _still_there(tx.connection, worker)
    settings = context.settings_of(tx.connection, worker)
    costs.note(tx, context.meter, worker, settings, end, left)
    context.ahead.look_again()
    if not worker.served and worker.state != model.LEAVING:
        context.ahead.failed(pool_of(worker), tx.now)
    for execution in left:
        row = rows.invocation(tx.connection, execution.invocation_id)
        if execution.state == model.STARTING:
            _try_again(tx, row, execution, _why_not_made(tx, context, worker, end))
        elif execution.state == model.STARTED and execution.execution_id in untold:
            give_back(tx, row, execution)
        elif execution.state == model.STARTED:
            end_all(tx, context, [(row, execution, _lost(end))])
        _change_execution(tx, execution, left_at=tx.now)
        terminate_if_over(tx, execution.invocation_id)
    if not worker.served:  # no execution refers to it
        own = workers.c.worker_id == end.worker_id
        tx.connection.execute(sa.delete(workers).where(own))
    if not left:
        purge_if_empty(tx, worker.project)
    tx.wake()


_STILL_THERE = (
    sa.select(executions)
    .where(
        executions.c.worker_id == sa.bindparam("id"),
        executions.c.number > sa.bindparam("after"),
        executions.c.left_at.is_(None),
    )
    .order_by(executions.c.number)
)


def _still_there(connection: sa.Connection, worker: Row) -> Sequence[Row]:
    own = {"id": worker.worker_id, "after": worker.served - worker.wanted}
    return connection.execute(_STILL_THERE, own).all()


def unended(connection: sa.Connection, worker: Row) -> list[Row]:
    """The worker's executions that have not ended, in the order in which it was given them."""
    found = _still_there(connection, worker)
    return [execution for execution in found if execution.state != model.ENDED]


def _lost(end: WorkerEnd) -> wire.ExecutionEnd:
    why = end.detail or "it ended without a report"
    error = wire.FunctionError(why if end.out_of_memory else f"worker lost: {why}")
    return wire.ExecutionEnd("lost", error=error, exit_code=end.exit_code, signal=end.signal)


def _why_not_made(tx: Transaction, context: Context, worker: Row, end: WorkerEnd) -> str:
    # Only a claim clears the deadline, and `_stop_overdue_workers`: then it was we who killed it.
    if worker.deadline_at is None:
        limit_s = context.settings_of(tx.connection, worker).start_timeout_s
        return f"it was not ready within its start_timeout of {limit_s:g} s"
    return end.detail or "it ended before it was ready"


def _try_again(tx: Transaction, row: Row, execution: Row, why: str) -> None:
    """A worker that never claimed has started nothing: another one, after a while that doubles."""
    is_known = why.startswith(NO_CAPACITY)
    error = wire.FunctionError(why if is_known else f"worker could not be made: {why}")
    _end_execution(tx, execution, wire.ExecutionEnd("lost", error=error))
    tx.after_commit(WorkerNotMade(row.project))
    due_at = tx.now + decide.not_made_delay(row.not_made)
    rows.move(
        tx,
        row,
        wire.PENDING,
        waiting=model.DELAYED,
        due_at=due_at,
        pending_note=error.message.replace("\0", " "),  # a runner's words; PostgreSQL stores none
        not_made=row.not_made + 1,
    )
    tx.after_commit(SetTimer(due_at))


def terminate_if_over(tx: Transaction, invocation_id: str) -> None:
    row = rows.invocation(tx.connection, invocation_id)
    if not decide.is_final(row.status) or rows.live_worker(tx.connection, invocation_id):
        return
    if not row.terminated:
        statements.change(
            tx.connection,
            invocations,
            {"seq": row.seq},
            terminated=True,
            revision=row.revision + 1,
        )
        tx.changed(f"inv:{invocation_id}")
    purge_if_empty(tx, row.project)


def set_unreachable(tx: Transaction, worker_id: str, unreachable: bool) -> None:
    """Notes whether a worker that lives is silent."""
    worker = statements.first(tx.connection, workers, worker_id=worker_id)
    if worker is None or worker.gone_at is not None or worker.unreachable == unreachable:
        return
    statements.change(tx.connection, workers, {"worker_id": worker_id}, unreachable=unreachable)
    for execution in unended(tx.connection, worker):
        row = rows.invocation(tx.connection, execution.invocation_id)
        if not decide.is_final(row.status):
            rows.move(tx, row, row.status)


def set_note(tx: Transaction, worker_id: str, note: str) -> None:
    """Notes what the making of a worker waits for; empty: for nothing more."""
    worker = statements.first(tx.connection, workers, worker_id=worker_id)
    if worker is None or worker.state not in (model.REQUESTED, model.ACCEPTED):
        return
    words = note.replace("\0", " ") or None  # PostgreSQL stores none
    statements.change(tx.connection, workers, {"worker_id": worker_id}, note=words)
    for execution in unended(tx.connection, worker):
        row = rows.invocation(tx.connection, execution.invocation_id)
        if row.status == wire.PENDING:
            rows.move(tx, row, row.status)
