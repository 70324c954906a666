"""Removing invocations whose time is over, with all that belongs to them: attempts, workers, yielded values.

What is old is found in the order in which invocations were created, without an index that each end would have to write: whatever
ended before a time was created before it, so the search is over where nothing is that old.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import sqlalchemy as sa

from multinode_control_plane.model import executions, invocations, values, workers
from multinode_control_plane.store import Transaction

PAGE = 200
"""Invocations that are looked at together."""
SLICE = 20
"""Invocations, or yielded values, that are removed by one statement: what each holds may be 250,000 characters long."""


@dataclass(frozen=True)
class Page:
    """Some of the oldest invocations: ids of those to be removed, their attempts', and where the next page begins."""

    invocation_ids: list[str]
    execution_ids: list[str]
    last_seq: int


_OLDEST = (
    sa.select(
        invocations.c.seq,
        invocations.c.invocation_id,
        invocations.c.parent_id,
        invocations.c.created_at,
        invocations.c.finished_at,
        invocations.c.terminated,
    )
    .where(invocations.c.seq > sa.bindparam("after"))
    .order_by(invocations.c.seq)
    .limit(PAGE)
)
_IDS: sa.BindParameter[str] = sa.bindparam("ids", expanding=True)
_LIVE = sa.select(invocations.c.invocation_id).where(
    invocations.c.invocation_id.in_(_IDS), invocations.c.finished_at.is_(None)
)
_ATTEMPTS = sa.select(executions.c.execution_id, executions.c.worker_id).where(
    executions.c.invocation_id.in_(_IDS)
)
_VALUES = (
    sa.select(values.c.invocation_id, values.c.number)
    .where(values.c.invocation_id.in_(_IDS))
    .order_by(values.c.invocation_id, values.c.number)
    .limit(SLICE)
)
_REMOVE_VALUES = sa.delete(values).where(
    values.c.invocation_id == sa.bindparam("id"),
    values.c.number.in_(sa.bindparam("numbers", expanding=True)),
)
_REMOVE_ATTEMPTS = sa.delete(executions).where(executions.c.invocation_id.in_(_IDS))
# Not a worker that lives, nor one of which another execution is kept.
_REMOVE_WORKERS = sa.delete(workers).where(
    workers.c.worker_id.in_(_IDS),
    workers.c.gone_at.is_not(None),
    ~sa.exists().where(executions.c.worker_id == workers.c.worker_id),
)
_REMOVE_INVOCATIONS = sa.delete(invocations).where(invocations.c.invocation_id.in_(_IDS))


def page(connection: sa.Connection, after: int, before: float) -> Page | None:
    """The page after number ``after``, of what ended before that time (POSIX seconds); None where nothing more is so old.

    What has a worker left, or a parent that goes on and may still ask for it, is none of them.
    """
    found = connection.execute(_OLDEST, {"after": after}).all()
    # A page, not a row: a clock that was ahead for a moment must not end the search for ever.
    if not any(row.created_at < before for row in found):
        return None
    old = [row for row in found if row.terminated and (row.finished_at or before) < before]
    parents = sorted({row.parent_id for row in old if row.parent_id is not None})
    live = set(connection.execute(_LIVE, {"ids": parents}).scalars()) if parents else set()
    ids = [row.invocation_id for row in old if row.parent_id not in live]
    attempts = connection.execute(_ATTEMPTS, {"ids": ids}).all() if ids else []
    return Page(ids, [row.execution_id for row in attempts], found[-1].seq)


def remove(tx: Transaction, invocation_ids: Sequence[str], has_time: Callable[[], bool]) -> int:
    """Removes invocations of a `page` in their order, a few in any case, and on while there is time; how many are gone."""
    removed = 0
    while removed < len(invocation_ids):
        some = invocation_ids[removed : removed + SLICE]
        while _remove_values(tx, some):
            if not has_time():
                return removed
        _remove_rows(tx, some)
        removed += len(some)
        if not has_time():
            break
    return removed


def _remove_values(tx: Transaction, invocation_ids: Sequence[str]) -> bool:
    """Removes some values of one of them. Whether there were any."""
    first = tx.connection.execute(_VALUES, {"ids": invocation_ids}).all()
    if not first:
        return False
    own = [row.number for row in first if row.invocation_id == first[0].invocation_id]
    tx.connection.execute(_REMOVE_VALUES, {"id": first[0].invocation_id, "numbers": own})
    return True


def _remove_rows(tx: Transaction, invocation_ids: Sequence[str]) -> None:
    ids = {"ids": invocation_ids}
    attempts = tx.connection.execute(_ATTEMPTS, ids).all()
    if attempts:
        tx.connection.execute(_REMOVE_ATTEMPTS, ids)
        workers_of = {"ids": sorted({row.worker_id for row in attempts})}
        tx.connection.execute(_REMOVE_WORKERS, workers_of)
    tx.connection.execute(_REMOVE_INVOCATIONS, ids)
