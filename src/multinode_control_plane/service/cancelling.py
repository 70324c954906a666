"""Cancelling thousands: what waits for a worker ends some hundred at a time, so that no transaction is long and others write between two.

These are the steps before `invocations.cancel` and `cancel_all`, which see to what is left, all of it in one transaction.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa

from multinode import wire
from multinode_control_plane import decide
from multinode_control_plane.model import invocations
from multinode_control_plane.service import rows
from multinode_control_plane.service.statements import Row
from multinode_control_plane.store import Transaction

STEP = 300
"""Invocations that one transaction ends."""

_WAITING = (
    sa.select(*rows.MOVED)
    .where(
        invocations.c.project == sa.bindparam("project"),
        invocations.c.status == wire.PENDING,
        invocations.c.waiting.is_not(None),
        invocations.c.seq <= sa.bindparam("last"),
    )
    .order_by(invocations.c.seq)
    .limit(STEP)
)
_WAITING_OF_FUNCTION = _WAITING.where(invocations.c.function == sa.bindparam("function"))
_CHILDREN = sa.select(*rows.MOVED).where(
    invocations.c.parent_id.in_(sa.bindparam("parents", expanding=True)),
    invocations.c.finished_at.is_(None),
)
_WAITING_CHILDREN = _CHILDREN.where(invocations.c.waiting.is_not(None)).limit(STEP)
_OTHER_CHILDREN = _CHILDREN.where(invocations.c.waiting.is_(None))


def newest(connection: sa.Connection) -> int:
    """The number of the invocation that was started last: what comes later was not meant."""
    return connection.execute(sa.select(sa.func.max(invocations.c.seq))).scalar() or 0


def waiting(tx: Transaction, project: str, function: str | None, last: int) -> list[str]:
    """Cancels the oldest of a project, or of one function of it, that wait for a slot or for their time; none after number ``last``.

    At most `STEP`; their ids. The oldest first, for those would run next.
    """
    rows.project(tx.connection, project)
    query = _WAITING if function is None else _WAITING_OF_FUNCTION
    asked = {"project": project, "function": function, "last": last}
    found = tx.connection.execute(query, asked).all()
    _end(tx, found)
    return [row.invocation_id for row in found]


def has_many_children(
    connection: sa.Connection, invocation_ids: Sequence[str], within: str | None
) -> bool:
    """Whether so many of their children, and of those's, wait for a worker that they are to be cancelled in steps."""
    return len(_waiting_children(connection, invocation_ids, within)) == STEP


def children(tx: Transaction, invocation_ids: Sequence[str], *, within: str | None) -> bool:
    """Cancels children of invocations in flight, and their children's, that wait for a worker: at most `STEP`. Whether there were so many.

    Before their parents: where it breaks off, no parent is cancelled of which a child goes on.
    """
    found = _waiting_children(tx.connection, invocation_ids, within)
    _end(tx, found)
    return len(found) == STEP


def _waiting_children(
    connection: sa.Connection, invocation_ids: Sequence[str], within: str | None
) -> Sequence[Row]:
    known = [rows.invocation(connection, each, within=within) for each in invocation_ids]
    parents = [row.invocation_id for row in known if not decide.is_final(row.status)]
    found: list[Row] = []
    while parents and len(found) < STEP:
        asked = {"parents": parents}
        found += connection.execute(_WAITING_CHILDREN, asked)
        parents = [row.invocation_id for row in connection.execute(_OTHER_CHILDREN, asked)]
    return found[:STEP]


def _end(tx: Transaction, found: Sequence[Row]) -> None:
    rows.move_waiting(tx, found, wire.CANCELLED, cancel_requested_at=tx.now)
