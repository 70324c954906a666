"""What workers have cost: noted when each is gone, summed by the database, and guessed beforehand.

A row has what was paid by the tables of that time: other sizes or prices later change no history. It outlives its project.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import sqlalchemy as sa

from multinode import wire
from multinode_control_plane import model
from multinode_control_plane.model import costs
from multinode_control_plane.prices import Meter
from multinode_control_plane.runners import WorkerEnd
from multinode_control_plane.service import statements
from multinode_control_plane.service.statements import Row
from multinode_control_plane.store import Transaction

DAY_S = 86400
MAX_LINES = 1000
STEP = 500
"""How many old rows one transaction removes."""
HISTORY = 1000
"""How many of the newest attempts of a function an estimate looks at."""
BY = ("function", "project", "version", "day")


def note(
    tx: Transaction,
    meter: Meter,
    worker: Row,
    settings: wire.FunctionSettings,
    end: WorkerEnd,
    left: Sequence[Row],
) -> None:
    """Notes what a worker that is gone has cost; nothing where it was never made, or never got as far as to be paid for.

    ``left`` are its executions that it did not go on from: their time is theirs, if it has served others too.
    """
    lasted_s = _lasted_s(tx, worker) if end.billed_s is None else end.billed_s
    if lasted_s is None or end.billed_s == 0:
        return
    if worker.execution_id and worker.served == 1 and not worker.billed_s:
        own = (worker.execution_id, worker.invocation_id)
        _insert(tx, meter, worker, settings, [(own, lasted_s)])
        return
    paid = [
        (
            (each.execution_id, each.invocation_id),
            span_s(each.started_at, each.ended_at or tx.now, each.run_ms),
        )
        for each in left
        if each.started_at is not None
    ]
    between_s = lasted_s - worker.billed_s - sum(span_s for _, span_s in paid)
    _insert(tx, meter, worker, settings, [*paid, ((worker.worker_id, ""), max(0.0, between_s))])


def span_s(started_at: float, ended_at: float, run_ms: float | None) -> float:
    """For how long an execution had its worker: one that was held while others ran began later than it was handed over."""
    passed_s = max(0.0, ended_at - started_at)
    return passed_s if run_ms is None else min(passed_s, max(0.0, run_ms / 1000))


def _lasted_s(tx: Transaction, worker: Row) -> float | None:
    """None where it was never made. A server that is killed while it is made never hears that it was: it is there when it asks."""
    made_at = worker.ready_at if worker.accepted_at is None else worker.accepted_at
    return None if made_at is None else float(tx.now - made_at)


def note_executions(
    tx: Transaction,
    meter: Meter,
    worker: Row,
    settings: wire.FunctionSettings,
    executions: Iterable[tuple[Row, float]],
) -> None:
    """Notes what executions have cost, for so many seconds each, whose worker goes on with others."""
    _insert(
        tx,
        meter,
        worker,
        settings,
        [((each.execution_id, each.invocation_id), lasted_s) for each, lasted_s in executions],
    )


def _insert(
    tx: Transaction,
    meter: Meter,
    worker: Row,
    settings: wire.FunctionSettings,
    lasted: Iterable[tuple[tuple[str, str], float]],
) -> None:
    """A row for each pair of ids (of the execution and its invocation) and seconds."""
    common = {
        "project": worker.project,
        "function": worker.function,
        "version_id": worker.version_id,
        "ended_at": tx.now,
        "day": int(tx.now // DAY_S),
        "tariff": meter.tariff,
        "currency": meter.prices.currency,
    }
    made = []
    for (execution_id, invocation_id), lasted_s in lasted:
        bill = meter.bill(settings.cpu, settings.memory_mib, lasted_s)
        made.append(
            {
                **common,
                "execution_id": execution_id,
                "invocation_id": invocation_id,
                "cpu": bill.cpu,
                "memory_mib": bill.memory_mib,
                "billed_s": bill.billed_s,
                "vcpu_s": bill.vcpu_s,
                "gb_s": bill.gb_s,
                "cost": bill.cost,
            }
        )
    statements.insert(tx.connection, costs, *made)


def forget(tx: Transaction, before: float) -> bool:
    """Removes up to `STEP` rows from before that time (POSIX seconds). Whether there may be more."""
    chosen = sa.select(costs.c.execution_id).where(costs.c.ended_at < before).limit(STEP)
    old = list(tx.connection.execute(chosen).scalars())
    if old:
        tx.connection.execute(sa.delete(costs).where(costs.c.execution_id.in_(old)))
    return len(old) == STEP


def of_invocation(connection: sa.Connection, invocation_id: str) -> dict[str, wire.AttemptCost]:
    """What each of its attempts has cost whose worker is gone, by the execution's id."""
    found = connection.execute(sa.select(costs).where(costs.c.invocation_id == invocation_id))
    return {
        row.execution_id: wire.AttemptCost(
            row.cpu,
            row.memory_mib,
            row.billed_s,
            row.vcpu_s,
            row.gb_s,
            row.cost,
            row.currency,
            row.tariff,
        )
        for row in found
    }


_SUMS = (
    sa.func.coalesce(sa.func.sum(sa.case((costs.c.invocation_id != "", 1), else_=0)), 0).label(
        "executions"
    ),
    sa.func.coalesce(sa.func.sum(costs.c.vcpu_s), 0.0).label("vcpu_s"),
    sa.func.coalesce(sa.func.sum(costs.c.gb_s), 0.0).label("gb_s"),
    sa.func.coalesce(sa.func.sum(costs.c.cost), 0.0).label("cost"),
    sa.func.coalesce(sa.func.sum(sa.case((costs.c.tariff != "", 1), else_=0)), 0).label("paid"),
)
_KEYS: dict[str, tuple[sa.Column[Any], ...]] = {
    "function": (costs.c.project, costs.c.function),
    "project": (costs.c.project,),
    "version": (costs.c.project, costs.c.version_id),
    "day": (costs.c.day,),
}


def report(
    connection: sa.Connection,
    meter: Meter,
    by: str,
    since: float,
    until: float,
    project: str | None,
) -> wire.CostReport:
    """Sums over the workers that were gone between the two times, by one of `BY`, the dearest first; days in their order."""
    chosen = [costs.c.ended_at >= since, costs.c.ended_at < until]
    if project is not None:
        chosen.append(costs.c.project == project)
    keys = _KEYS[by]
    order = keys if by == "day" else (sa.desc("cost"), sa.desc("vcpu_s"), *keys)
    query = sa.select(*keys, *_SUMS).where(*chosen).group_by(*keys).order_by(*order)
    found: Iterable[Row] = connection.execute(query.limit(MAX_LINES + 1)).all()  # type: ignore[assignment]  # of whatever columns
    lines = [_line(row, _name(row, by)) for row in found]
    total: Row = connection.execute(sa.select(*_SUMS).where(*chosen)).one()  # type: ignore[assignment]  # of whatever columns
    return wire.CostReport(
        by=by,
        since=model.to_time(since),
        until=model.to_time(until),
        currency=meter.prices.currency,
        source=meter.prices.source,
        lines=lines[:MAX_LINES],
        total=_line(total, "total"),
        paid_executions=total.paid,
        has_more=len(lines) > MAX_LINES,
    )


def _name(row: Row, by: str) -> str:
    if by == "day":
        return model.to_time(row.day * DAY_S)[:10]
    return "/".join(row[: len(_KEYS[by])])


def _line(row: Row, name: str) -> wire.CostLine:
    return wire.CostLine(name, row.executions, row.vcpu_s, row.gb_s, row.cost)


def estimate(
    connection: sa.Connection,
    meter: Meter,
    version: wire.VersionInfo,
    settings: wire.FunctionSettings,
    function: str,
) -> wire.CostEstimate:
    """What one invocation may cost at most by its limits, and what those before did cost."""
    attempts = settings.max_retries + 1
    most = meter.bill(settings.cpu, settings.memory_mib, settings.timeout_s)
    return wire.CostEstimate(
        project=version.project,
        function=function,
        version_id=version.version_id,
        cpu=most.cpu,
        memory_mib=most.memory_mib,
        timeout_s=settings.timeout_s,
        attempts=attempts,
        most=wire.CostLine(
            "most", attempts, most.vcpu_s * attempts, most.gb_s * attempts, most.cost * attempts
        ),
        history=_history(connection, version.project, function),
        currency=meter.prices.currency,
        source=meter.prices.source,
        tariff=meter.tariff,
    )


def _history(connection: sa.Connection, project: str, function: str) -> wire.CostHistory | None:
    newest = (
        sa.select(costs)
        .where(
            costs.c.project == project, costs.c.function == function, costs.c.invocation_id != ""
        )
        .order_by(costs.c.ended_at.desc())
        .limit(HISTORY)
        .subquery()
    )
    each = (
        sa.select(
            sa.func.sum(newest.c.cost).label("cost"),
            sa.func.sum(newest.c.vcpu_s).label("vcpu_s"),
            sa.func.sum(newest.c.gb_s).label("gb_s"),
        )
        .group_by(newest.c.invocation_id)
        .subquery()
    )
    query = sa.select(
        sa.func.count().label("invocations"),
        sa.func.avg(each.c.cost).label("mean"),
        sa.func.max(each.c.cost).label("highest"),
        sa.func.avg(each.c.vcpu_s).label("vcpu_s"),
        sa.func.avg(each.c.gb_s).label("gb_s"),
    ).select_from(each)
    row = connection.execute(query).one()
    if not row.invocations:
        return None
    return wire.CostHistory(row.invocations, row.mean, row.highest, row.vcpu_s, row.gb_s)
