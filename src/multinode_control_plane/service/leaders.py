"""Which of the processes that share a database leads: one row, changed by compare-and-set."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from multinode_control_plane.model import leader
from multinode_control_plane.store import Transaction


@dataclass(frozen=True)
class Leader:
    """The row as it is. ``holder`` is None where nobody leads; ``beat`` grows while it lives."""

    holder: str | None
    epoch: int
    beat: int
    url: str | None = None


_READ = sa.select(leader.c.holder, leader.c.epoch, leader.c.beat, leader.c.url)
_EPOCH = sa.select(leader.c.epoch)


def read(connection: sa.Connection) -> Leader:
    """Who leads."""
    row = connection.execute(_READ).one()
    return Leader(row.holder, row.epoch, row.beat, row.url)


def current_epoch(connection: sa.Connection) -> int:
    """The epoch of who leads or led last."""
    found: int = connection.execute(_EPOCH).scalar_one()
    return found


def take(tx: Transaction, seen: Leader, holder: str) -> int | None:
    """Makes ``holder`` lead, if the row is still as it was seen: the new epoch, or None where somebody was faster."""
    done = _change(
        tx, seen.epoch, leader.c.beat == seen.beat, holder=holder, epoch=seen.epoch + 1, url=None
    )
    return seen.epoch + 1 if done else None


def beat(tx: Transaction, epoch: int, url: str | None) -> None:
    """Shows that the leader of ``epoch`` lives."""
    _change(tx, epoch, sa.true(), beat=leader.c.beat + 1, url=url)


def release(tx: Transaction, epoch: int) -> None:
    """The leader of ``epoch`` leads no more: another may at once."""
    _change(tx, epoch, sa.true(), holder=None, url=None)


def _change(tx: Transaction, seen_epoch: int, also: sa.ColumnElement[bool], **columns: Any) -> bool:
    statement = sa.update(leader).where(leader.c.epoch == seen_epoch, also).values(**columns)
    return tx.connection.execute(statement).rowcount == 1
