"""The life of an execution and its worker: made, exchanged, claimed, reported, gone.

Each function is one line or more of the table of transitions in `docs/architecture.md`.
"""

from __future__ import annotations

import hashlib
import hmac
import random
import secrets
from collections.abc import Iterable
from dataclasses import asdict, dataclass
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
from multinode_control_plane.model import executions, invocations, queues, values, versions, workers
from multinode_control_plane.runners import WorkerEnd, WorkerLaunch
from multinode_control_plane.service import rows
from multinode_control_plane.service.actions import ForgetWorker, SetTimer, StartWorker, StopWorker
from multinode_control_plane.service.dotenv import INTERPRETER_PREFIXES, Sealer
from multinode_control_plane.service.invocations import end_pending, purge_if_empty
from multinode_control_plane.service.rows import Row
from multinode_control_plane.settings import Settings
from multinode_control_plane.store import Transaction

EXIT_PATIENCE_S = 30.0
"""How long a worker may stay after its execution has ended, before it is stopped."""


@dataclass(frozen=True)
class Context:
    """What the use cases of workers need besides rows."""

    settings: Settings
    sealer: Sealer


@dataclass(frozen=True)
class WorkerIdentity:
    """Whose token it is."""

    worker_id: str
    project: str
    version_id: str
    invocation_id: str


def hash_secret(text: str) -> str:
    """The form in which keys, tokens and claim codes are stored."""
    return hashlib.sha256(text.encode()).hexdigest()


# --- making workers -------------------------------------------------------------------------------------


def tick(tx: Transaction, context: Context, *, draining: bool) -> None:
    """What the scheduler does each time it is woken: due timers first, then new workers while there is room.

    Its cost grows with what is ready and can run, not with what is stored.
    """
    _release_due(tx)
    _end_overdue(tx)
    _stop_overdue_workers(tx)
    for candidate in decide.admit(
        _candidates(tx, draining), _room(tx, context.settings), context.settings.capacity.cpu
    ):
        _request_worker(tx, context, candidate)
    next_at = next_timer(tx.connection)
    if next_at is not None:
        tx.after_commit(SetTimer(next_at))


def next_timer(connection: sa.Connection) -> float | None:
    """When the next delay, queue timeout or worker's deadline is over; three looks into ordered indexes."""
    found = [
        connection.execute(query).scalar()
        for query in (
            sa.select(sa.func.min(invocations.c.due_at)).where(
                invocations.c.waiting == sa.literal_column("'delayed'")
            ),
            sa.select(sa.func.min(invocations.c.queue_deadline_at)).where(
                invocations.c.queue_deadline_at.is_not(None)
            ),
            sa.select(sa.func.min(workers.c.deadline_at)).where(workers.c.deadline_at.is_not(None)),
        )
    ]
    return min((at for at in found if at is not None), default=None)


def _release_due(tx: Transaction) -> None:
    due = tx.connection.execute(
        sa.select(invocations).where(
            invocations.c.waiting == sa.literal_column("'delayed'"), invocations.c.due_at <= tx.now
        )
    ).all()
    for row in due:
        rows.move(tx, row, row.status, waiting=model.READY, due_at=None, pending_note=None)


def _end_overdue(tx: Transaction) -> None:
    overdue = tx.connection.execute(
        sa.select(invocations).where(
            invocations.c.queue_deadline_at.is_not(None),
            invocations.c.queue_deadline_at <= tx.now,
        )
    ).all()
    for row in overdue:
        error = wire.FunctionError("its queue_timeout was over before a worker was free")
        end_pending(tx, row, wire.TIMED_OUT, error=asdict(error))


def _stop_overdue_workers(tx: Transaction) -> None:
    overdue = tx.connection.execute(
        sa.select(workers).where(
            workers.c.deadline_at.is_not(None), workers.c.deadline_at <= tx.now
        )
    ).all()
    for worker in overdue:
        tx.connection.execute(
            sa.update(workers)
            .where(workers.c.worker_id == worker.worker_id)
            .values(deadline_at=None)
        )
        tx.after_commit(StopWorker(worker.worker_id))


def _candidates(tx: Transaction, draining: bool) -> list[decide.Waiting]:
    found: list[decide.Waiting] = []
    open_queues = tx.connection.execute(
        sa.select(queues).where(
            sa.literal_column("queues.ready") > sa.literal_column("0"),
            queues.c.workers < queues.c.max_concurrency,
        )
    ).all()
    for queue in open_queues:
        query = (
            sa.select(
                invocations.c.seq,
                invocations.c.invocation_id,
                model.functions.c.description["settings"].label("settings"),
            )
            .join(
                model.functions,
                sa.and_(
                    model.functions.c.version_id == invocations.c.version_id,
                    model.functions.c.name == invocations.c.function,
                ),
            )
            .where(
                invocations.c.waiting == sa.literal_column("'ready'"),
                invocations.c.project == queue.project,
                invocations.c.function == queue.function,
            )
            .order_by(invocations.c.seq)
            .limit(queue.max_concurrency - queue.workers)
        )
        if draining:
            # What a running function waits for must still run, or the function would never end.
            query = query.where(invocations.c.parent_id.is_not(None))
        for row in tx.connection.execute(query):
            found.append(
                decide.Waiting(
                    row.seq,
                    row.invocation_id,
                    (queue.project, queue.function),
                    float(row.settings["cpu"]),
                    int(row.settings["memory_mib"]),
                )
            )
    return found


def _room(tx: Transaction, settings: Settings) -> decide.Room:
    used = tx.connection.execute(
        sa.select(sa.func.sum(workers.c.cpu), sa.func.sum(workers.c.memory_mib)).where(
            workers.c.gone_at.is_(None)
        )
    ).one()
    return decide.Room(
        settings.capacity.cpu - float(used[0] or 0),
        settings.capacity.memory_mib - int(used[1] or 0),
    )


def _request_worker(tx: Transaction, context: Context, candidate: decide.Waiting) -> None:
    row = tx.connection.execute(
        sa.select(invocations).where(invocations.c.seq == candidate.seq)
    ).one()
    version = tx.connection.execute(
        sa.select(versions).where(versions.c.version_id == row.version_id)
    ).one()
    settings = rows.description(tx.connection, version, row.function).settings
    execution_id, worker_id = model.new_id("exe"), model.new_id("wrk")
    claim_code = secrets.token_urlsafe(32)
    deadline_at = tx.now + settings.start_timeout_s
    tx.connection.execute(
        sa.insert(executions).values(
            execution_id=execution_id,
            invocation_id=row.invocation_id,
            attempt=row.num_failed_attempts + 1,
            worker_id=worker_id,
            state=model.STARTING,
            created_at=tx.now,
        )
    )
    tx.connection.execute(
        sa.insert(workers).values(
            worker_id=worker_id,
            execution_id=execution_id,
            invocation_id=row.invocation_id,
            project=row.project,
            function=row.function,
            version_id=row.version_id,
            state=model.REQUESTED,
            cpu=min(candidate.cpu, context.settings.capacity.cpu),
            memory_mib=candidate.memory_mib,
            claim_code_hash=hash_secret(claim_code),
            deadline_at=deadline_at,
            created_at=tx.now,
        )
    )
    rows.count(tx, row.project, row.function, workers=1)
    rows.move(tx, row, wire.PENDING, waiting=None, pending_note=None)
    interpreter_env = context.sealer.interpreter_variables(version.dotenv, version.dotenv_names)
    launch = WorkerLaunch(
        worker_id=worker_id,
        claim_code=claim_code,
        environment_digest=version.environment_digest,
        bundle_digest=version.bundle_digest,
        execution_id=execution_id,
        cpu=candidate.cpu,
        memory_mib=candidate.memory_mib,
        fresh_interpreter=any(n.startswith(INTERPRETER_PREFIXES) for n in version.dotenv_names),
        interpreter_env=interpreter_env,
    )
    tx.after_commit(StartWorker(launch))


def worker_accepted(tx: Transaction, worker_id: str) -> None:
    """The runner has made the worker."""
    tx.connection.execute(
        sa.update(workers)
        .where(workers.c.worker_id == worker_id)
        .values(
            accepted_at=tx.now,
            state=sa.case(
                (workers.c.state == model.REQUESTED, model.ACCEPTED), else_=workers.c.state
            ),
        )
    )


# --- the worker's own requests --------------------------------------------------------------------------


def exchange(
    tx: Transaction, context: Context, request: wire.ExchangeRequest
) -> tuple[wire.Assignment, WorkerIdentity]:
    """The assignment for a claim code. The same nonce gets the same answer; any other use is refused."""
    worker = tx.connection.execute(
        sa.select(workers).where(workers.c.worker_id == request.worker_id)
    ).first()
    if worker is None or worker.gone_at is not None or not _code_fits(worker, request):
        message = f"The claim code of {request.worker_id} is not valid, or is used up."
        raise ClaimRefused(message)
    execution = tx.connection.execute(
        sa.select(executions).where(executions.c.execution_id == worker.execution_id)
    ).one()
    if execution.state == model.ENDED:
        message = f"{request.worker_id} is no longer needed."
        raise ClaimRefused(message)
    token = context.sealer.token(request.worker_id, request.nonce)
    if worker.nonce is None:
        tx.connection.execute(
            sa.update(workers)
            .where(workers.c.worker_id == worker.worker_id)
            .values(
                nonce=request.nonce,
                token_hash=hash_secret(token),
                ready_at=tx.now,
                state=model.EXCHANGED,
            )
        )
    row = rows.invocation(tx.connection, worker.invocation_id)
    version = tx.connection.execute(
        sa.select(versions).where(versions.c.version_id == worker.version_id)
    ).one()
    settings = rows.description(tx.connection, version, row.function).settings
    assignment = wire.Assignment(
        token=token,
        kind="invocation",
        project=row.project,
        version_id=row.version_id,
        bundle_digest=version.bundle_digest,
        dotenv=context.sealer.open(version.dotenv),
        function=row.function,
        execution_id=execution.execution_id,
        invocation_id=row.invocation_id,
        attempt=execution.attempt,
        input=row.input,
        timeout_s=settings.timeout_s,
        grace_s=context.settings.grace_s,
        memory_mib=settings.memory_mib,
        log_limit_bytes=context.settings.log_limit_bytes,
        first_value_number=row.num_values + 1,
    )
    return assignment, WorkerIdentity(
        worker.worker_id, row.project, row.version_id, row.invocation_id
    )


def _code_fits(worker: Row, request: wire.ExchangeRequest) -> bool:
    if not hmac.compare_digest(worker.claim_code_hash, hash_secret(request.claim_code)):
        return False
    return worker.nonce is None or hmac.compare_digest(worker.nonce, request.nonce)


def identity(connection: sa.Connection, token: str) -> WorkerIdentity | None:
    """Whose token it is; None for one that is unknown or whose worker is gone."""
    worker = connection.execute(
        sa.select(workers).where(
            workers.c.token_hash == hash_secret(token), workers.c.gone_at.is_(None)
        )
    ).first()
    if worker is None:
        return None
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
        tx.connection.execute(
            sa.update(executions)
            .where(executions.c.execution_id == execution.execution_id)
            .values(state=model.STARTED, started_at=tx.now, import_ms=request.import_ms)
        )
        _set_deadline(tx, who.worker_id, None)
        return wire.Order()
    return _order(row)


def watch(connection: sa.Connection, who: WorkerIdentity, request: wire.Watch) -> wire.Order:
    """The order for the worker, if there is one now. Raises ClaimRefused where it was given up."""
    execution, row = _own_rows(connection, who, request.execution_id)
    if execution.state == model.ENDED:
        message = f"{request.execution_id} has ended."
        raise ClaimRefused(message)
    return _order(row)


def report(
    tx: Transaction, context: Context, who: WorkerIdentity, request: wire.Report
) -> wire.Order:
    """Stores yielded values and the end. What was stored before is passed over."""
    execution, row = _own(tx, who, request.execution_id)
    if execution.state == model.ENDED:
        if request.end is not None and request.end.outcome == execution.outcome:
            return wire.Order()  # the answer to the first report was lost
        message = f"{request.execution_id} has ended already."
        raise ClaimRefused(message)
    if request.values:
        row = _store_values(tx, context, row, execution.attempt, request.values)
    if request.end is not None:
        _end(tx, row, execution, _within_limits(request.end))
        _set_deadline(tx, who.worker_id, tx.now + EXIT_PATIENCE_S)
        return wire.Order()
    return _order(row)


def _order(row: Row) -> wire.Order:
    return wire.Order("cancel" if row.status == wire.CANCELLING else None)


def _own(tx: Transaction, who: WorkerIdentity, execution_id: str) -> tuple[Row, Row]:
    return _own_rows(tx.connection, who, execution_id)


def _own_rows(connection: sa.Connection, who: WorkerIdentity, execution_id: str) -> tuple[Row, Row]:
    execution = connection.execute(
        sa.select(executions).where(
            executions.c.execution_id == execution_id, executions.c.worker_id == who.worker_id
        )
    ).first()
    if execution is None:
        message = f"{execution_id} is not an execution of this worker."
        raise ClaimRefused(message)
    try:
        return execution, rows.invocation(connection, execution.invocation_id)
    except InvocationNotFound as error:
        message = f"{execution.invocation_id} was removed."
        raise ClaimRefused(message) from error


def _set_deadline(tx: Transaction, worker_id: str, at: float | None) -> None:
    tx.connection.execute(
        sa.update(workers).where(workers.c.worker_id == worker_id).values(deadline_at=at)
    )
    if at is not None:
        tx.after_commit(SetTimer(at))


def _store_values(
    tx: Transaction, context: Context, row: Row, attempt: int, reported: Iterable[wire.Value]
) -> Row:
    new = [value for value in reported if value.number > row.num_values]
    if not new:
        return row
    for value in new:
        if len(value.value) > MAX_CHARACTERS:
            message = f"A yielded value is {len(value.value)} characters long; the limit is {MAX_CHARACTERS}."
            raise FunctionOutputSizeLimitExceeded(message, "Yield a location in storage.")
    tx.connection.execute(
        sa.insert(values),
        [
            {
                "invocation_id": row.invocation_id,
                "number": value.number,
                "attempt": attempt,
                "value": value.value,
            }
            for value in new
        ],
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


def _end(tx: Transaction, row: Row, execution: Row, end: wire.ExecutionEnd) -> None:
    version = tx.connection.execute(
        sa.select(versions).where(versions.c.version_id == row.version_id)
    ).one()
    settled = decide.settle(
        status=row.status,
        end=end,
        failed_before=row.num_failed_attempts,
        settings=rows.description(tx.connection, version, row.function).settings,
        now=tx.now,
        jitter=random.random(),
    )
    _end_execution(tx, execution, end)
    columns: dict[str, Any] = {
        "error": None if settled.error is None else asdict(settled.error),
        "num_failed_attempts": row.num_failed_attempts + int(settled.failed),
    }
    if end.result is not None:
        columns["result"] = end.result
    if settled.due_at is not None:
        columns |= {"waiting": model.DELAYED, "due_at": settled.due_at}
        tx.after_commit(SetTimer(settled.due_at))
    rows.move(tx, row, settled.status, **columns)
    tx.wake()


def _end_execution(tx: Transaction, execution: Row, end: wire.ExecutionEnd) -> None:
    tx.connection.execute(
        sa.update(executions)
        .where(executions.c.execution_id == execution.execution_id)
        .values(
            state=model.ENDED,
            outcome=end.outcome,
            error=None if end.error is None else asdict(end.error),
            exit_code=end.exit_code,
            signal=end.signal,
            peak_memory_bytes=end.peak_memory_bytes,
            run_ms=end.run_ms,
            ended_at=tx.now,
        )
    )


def worker_not_made(tx: Transaction, worker_id: str, why: str) -> None:
    """The runner could not make it, or it was lost before its claim: another will be made, at no retry's cost."""
    _worker_ends(tx, WorkerEnd(worker_id, detail=why))


def worker_gone(tx: Transaction, end: WorkerEnd) -> None:
    """No process of the worker is left: its slot and room are free, and what it had not ended is lost."""
    _worker_ends(tx, end)


def _worker_ends(tx: Transaction, end: WorkerEnd) -> None:
    worker = tx.connection.execute(
        sa.select(workers).where(workers.c.worker_id == end.worker_id)
    ).first()
    if worker is None or worker.gone_at is not None:
        return
    tx.connection.execute(
        sa.update(workers)
        .where(workers.c.worker_id == end.worker_id)
        .values(state=model.GONE, gone_at=tx.now, deadline_at=None)
    )
    rows.count(tx, worker.project, worker.function, workers=-1)
    tx.after_commit(ForgetWorker(end.worker_id))
    tx.changed(f"worker:{end.worker_id}", f"project:{worker.project}", "workers")
    execution = tx.connection.execute(
        sa.select(executions).where(executions.c.execution_id == worker.execution_id)
    ).one()
    row = rows.invocation(tx.connection, worker.invocation_id)
    if execution.state == model.STARTING:
        _try_again(tx, row, execution, end)
    elif execution.state == model.STARTED:
        error = wire.FunctionError(f"worker lost: {end.detail or 'it ended without a report'}")
        lost = wire.ExecutionEnd("lost", error=error, exit_code=end.exit_code, signal=end.signal)
        _end(tx, row, execution, lost)
    _terminate_if_over(tx, worker.invocation_id)
    tx.wake()


def _try_again(tx: Transaction, row: Row, execution: Row, end: WorkerEnd) -> None:
    """A worker that never claimed has started nothing: another one, after a while that doubles."""
    why = end.detail or "it ended before it was ready"
    error = wire.FunctionError(f"worker could not be made: {why}")
    _end_execution(tx, execution, wire.ExecutionEnd("lost", error=error))
    due_at = tx.now + decide.not_made_delay(row.not_made)
    rows.move(
        tx,
        row,
        wire.PENDING,
        waiting=model.DELAYED,
        due_at=due_at,
        pending_note=error.message,
        not_made=row.not_made + 1,
    )
    tx.after_commit(SetTimer(due_at))


def _terminate_if_over(tx: Transaction, invocation_id: str) -> None:
    row = rows.invocation(tx.connection, invocation_id)
    if not decide.is_final(row.status) or rows.live_worker(tx.connection, invocation_id):
        return
    if not row.terminated:
        tx.connection.execute(
            sa.update(invocations)
            .where(invocations.c.seq == row.seq)
            .values(terminated=True, revision=row.revision + 1)
        )
        tx.changed(f"inv:{invocation_id}")
    purge_if_empty(tx, row.project)


def set_unreachable(tx: Transaction, worker_id: str, unreachable: bool) -> None:
    """Notes whether a worker that lives is silent."""
    worker = tx.connection.execute(
        sa.select(workers).where(workers.c.worker_id == worker_id, workers.c.gone_at.is_(None))
    ).first()
    if worker is None or worker.unreachable == unreachable:
        return
    tx.connection.execute(
        sa.update(workers).where(workers.c.worker_id == worker_id).values(unreachable=unreachable)
    )
    row = rows.invocation(tx.connection, worker.invocation_id)
    if not decide.is_final(row.status):
        rows.move(tx, row, row.status)


def alive(connection: sa.Connection) -> list[WorkerIdentity]:
    """All workers that are not gone, as the store knows them."""
    found = connection.execute(sa.select(workers).where(workers.c.gone_at.is_(None)))
    return [
        WorkerIdentity(row.worker_id, row.project, row.version_id, row.invocation_id)
        for row in found
    ]
