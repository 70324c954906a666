"""Which keys each of the processes has that share a database: no value may be encrypted with one that another lacks."""

from __future__ import annotations

from collections.abc import Collection

import sqlalchemy as sa

from multinode_control_plane.model import rings
from multinode_control_plane.store import Transaction

ASKED = "rings asked"
"""The event upon which each process reads its ring, and tells."""
TOLD = "rings told"


def tell(
    tx: Transaction, process: str, place: str, key_ids: list[str], living: Collection[str]
) -> None:
    """Stores what a process has, and where; forgets those that are not ``living``, or were it."""
    gone = rings.c.process.not_in([*living]) | (rings.c.process == process)
    tx.connection.execute(sa.delete(rings).where(gone))
    row = {"process": process, "place": place, "key_ids": key_ids}
    tx.connection.execute(sa.insert(rings).values(row))
    tx.changed(TOLD)


def lacking(connection: sa.Connection, key: str, living: Collection[str]) -> list[str]:
    """Where the rings are of those that live and have not told that they have the key."""
    rows = {row.process: row for row in connection.execute(sa.select(rings))}
    return sorted(
        rows[process].place if process in rows else f"process {process}, which has not told"
        for process in living
        if process not in rows or key not in rows[process].key_ids
    )
