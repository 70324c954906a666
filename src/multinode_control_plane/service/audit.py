"""The audit log: who has deployed, invoked, cancelled, removed, made and revoked keys, in the transaction that did it."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from multinode import wire
from multinode_control_plane import model
from multinode_control_plane.model import audit
from multinode_control_plane.service import statements
from multinode_control_plane.service.access import Caller
from multinode_control_plane.store import Transaction

PAGE = 200
STEP = 500
"""Lines that one transaction removes."""


@dataclass(frozen=True)
class Act:
    """What was done: ``target`` is a name or an id, the first one where there are ``count`` of them."""

    action: str
    target: str
    project: str | None = None
    count: int = 1


def note(tx: Transaction, *acts: tuple[Caller, Act]) -> None:
    """Adds a line for each. What workers do is not noted: somebody has invoked the function that they run."""
    lines = [
        {
            "at": tx.now,
            "key_name": caller.name,
            "role": caller.role,
            "action": act.action,
            "project": act.project,
            "target": act.target,
            "count": act.count,
        }
        for caller, act in acts
        if caller.worker is None
    ]
    if lines:
        statements.insert(tx.connection, audit, *lines)


def page(
    connection: sa.Connection, *, since: float | None, project: str | None, offset: int | None
) -> wire.AuditLog:
    """A page of lines, newest first, not older than ``since`` (POSIX seconds)."""
    query = sa.select(audit).order_by(audit.c.seq.desc()).limit(PAGE + 1)
    if since is not None:
        query = query.where(audit.c.at >= since)
    if project is not None:
        query = query.where(audit.c.project == project)
    if offset is not None:
        query = query.where(audit.c.seq <= offset)
    found = list(connection.execute(query))
    following = str(found[PAGE].seq) if len(found) > PAGE else None
    return wire.AuditLog([_line(row) for row in found[:PAGE]], following)


def forget(tx: Transaction, before: float) -> bool:
    """Removes up to `STEP` of the oldest lines, as far as they are from before that time (POSIX seconds). Whether there may be more."""
    oldest = sa.select(audit.c.seq, audit.c.at).order_by(audit.c.seq).limit(STEP)
    old = [row.seq for row in tx.connection.execute(oldest) if row.at < before]
    if old:
        tx.connection.execute(sa.delete(audit).where(audit.c.seq.in_(old)))
    return len(old) == STEP


def _line(row: sa.Row[tuple[object, ...]]) -> wire.AuditLine:
    return wire.AuditLine(
        at=model.to_time(row.at),
        key_name=row.key_name,
        role=row.role,
        action=row.action,
        target=row.target,
        project=row.project,
        count=row._mapping["count"],
    )
