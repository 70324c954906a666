"""Statements that are built once: building one anew costs four times as much as running it.

Every select and update by the equality of some columns, by name; what is more special stands where it is used,
as a module's constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import sqlalchemy as sa

Row = sa.Row[Any]


def first(connection: sa.Connection, table: sa.Table, **equal: Any) -> Row | None:
    """A row of ``table`` whose columns have these values, or None."""
    return connection.execute(_select(table, tuple(equal)), equal).first()


def one(connection: sa.Connection, table: sa.Table, **equal: Any) -> Row:
    """As `first`, for a row that must be there."""
    return connection.execute(_select(table, tuple(equal)), equal).one()


def change(
    connection: sa.Connection, table: sa.Table, where: dict[str, Any], **columns: Any
) -> int:
    """Sets ``columns`` of the rows whose columns are as in ``where``; how many these were."""
    parameters = {f"where_{name}": value for name, value in where.items()} | columns
    return connection.execute(_update(table, tuple(where), tuple(columns)), parameters).rowcount


def change_all(
    connection: sa.Connection,
    table: sa.Table,
    where: Sequence[str],
    rows: Sequence[dict[str, Any]],
) -> int:
    """As `change` for each of the ``rows``, which have the same columns: those of ``where`` with the prefix ``where_``."""
    columns = tuple(name for name in rows[0] if not name.startswith("where_"))
    return connection.execute(_update(table, tuple(where), columns), list(rows)).rowcount


def insert(connection: sa.Connection, table: sa.Table, *rows: dict[str, Any]) -> None:
    """Inserts the rows, which all have the same columns."""
    connection.execute(_insert(table), list(rows))


@cache
def _select(table: sa.Table, names: tuple[str, ...]) -> sa.Select[Any]:
    return sa.select(table).where(*(table.c[name] == sa.bindparam(name) for name in names))


@cache
def _update(table: sa.Table, where: tuple[str, ...], columns: tuple[str, ...]) -> sa.Update:
    conditions = (table.c[name] == sa.bindparam(f"where_{name}") for name in where)
    return sa.update(table).where(*conditions).values({n: sa.bindparam(n) for n in columns})


@cache
def _insert(table: sa.Table) -> sa.Insert:
    return sa.insert(table)
