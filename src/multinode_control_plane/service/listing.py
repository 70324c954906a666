"""Pages of invocations, newest first. What one costs depends neither on how many are stored nor on how far down it lies.

Each filter is a few exact ranges of an index that ends with ``seq``, of which a page each is read and merged: none is gone through.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import islice
from typing import Any

import sqlalchemy as sa

from multinode import wire
from multinode.errors import InvalidRequest
from multinode.limits import PAGE_SIZE
from multinode_control_plane.model import functions, invocations, projects, versions
from multinode_control_plane.service import rows
from multinode_control_plane.service.catalog import read as read_version

IN_FLIGHT = tuple(status for status in wire.STATUSES if status not in wire.FINAL_STATUSES)
Range = dict[str, str]
"""Columns that are equal to something: those with which one of the indexes begins."""
MERGED = 100
"""Ranges in one statement; SQLite takes 500."""


def page(
    connection: sa.Connection,
    now: float,
    *,
    project: str | None,
    function: str | None,
    version_id: str | None,
    status: str | None,
    in_flight: bool,
    offset: str | None,
    draining: bool = False,
) -> wire.InvocationList:
    """A page of invocations, newest first."""
    statuses = _statuses(status, in_flight=in_flight)
    version_id = None if version_id == "latest" and function is None else version_id
    if project is not None:
        project_row = rows.project(connection, project)
        if function is not None:
            version = rows.version(connection, project_row, version_id)
            read_version(connection, version.version_id).function(function)
            version_id = None if version_id in (None, "latest") else version.version_id
    ranges = _ranges(connection, project, function, version_id, statuses)
    found = newest(connection, ranges, PAGE_SIZE + 1, _number(offset))
    shown = connection.execute(_SHOWN, {"seqs": found[:PAGE_SIZE]}).all()
    following = str(found[PAGE_SIZE]) if len(found) > PAGE_SIZE else None
    return wire.InvocationList(rows.items(connection, shown, now, draining=draining), following)


def newest(
    connection: sa.Connection, ranges: Sequence[Range], limit: int, first: int | None = None
) -> list[int]:
    """The ``seq`` of the newest invocations in any of the ranges, which are of the same columns, from ``first`` down."""
    found: list[int] = []
    left = iter(ranges)
    while some := list(islice(left, MERGED)):
        is_postgres = connection.dialect.name == "postgresql"
        query = _merged(tuple(some[0]), len(some), limit, first is not None, is_postgres)
        equal = {f"{name}_{i}": each[name] for i, each in enumerate(some) for name in each}
        found += connection.execute(query, {**equal, "first": first}).scalars()
    return sorted(found, reverse=True)[:limit]


@cache
def _merged(
    names: tuple[str, ...], count: int, limit: int, has_first: bool, is_postgres: bool
) -> Any:
    if is_postgres and names:
        # Each with a limit of its own: it reads all of a union that is ordered as a whole.
        limited = [_part_on_postgres(names, i, has_first).limit(limit) for i in range(count)]
        parts = [sa.select(each.subquery().c.seq) for each in limited]
    else:
        parts = [_part(names, i, has_first) for i in range(count)]
    whole = parts[0] if count == 1 else sa.union_all(*parts)
    return whole.order_by(sa.desc("seq")).limit(limit)


def _part(names: tuple[str, ...], i: int, has_first: bool) -> Any:
    seq = invocations.c.seq
    query = sa.select(seq).where(
        *(invocations.c[name] == sa.bindparam(f"{name}_{i}") for name in names)
    )
    if has_first:
        query = query.where(seq <= sa.bindparam("first"))
    return query


def _part_on_postgres(names: tuple[str, ...], i: int, has_first: bool) -> Any:
    """The same range and order, said so that only its own index has it.

    Of a status that is frequent PostgreSQL expects some near the end of the table, and would go through that by the primary
    key: past all 100,000 that are pending.
    """
    *wide, last = names
    end, seq = invocations.c[last], invocations.c.seq
    value: sa.BindParameter[str] = sa.bindparam(f"{last}_{i}")
    first = sa.bindparam("first", type_=sa.BigInteger) if has_first else sa.literal(2**62)
    return (
        sa.select(seq)
        .where(
            *(invocations.c[name] == sa.bindparam(f"{name}_{i}") for name in wide),
            end >= value,
            sa.tuple_(end, seq) <= sa.tuple_(value, first),
        )
        .order_by(end.desc(), seq.desc())
    )


def _ranges(
    connection: sa.Connection,
    project: str | None,
    function: str | None,
    version_id: str | None,
    statuses: Sequence[str],
) -> list[Range]:
    wide: list[Range]
    if version_id is not None:
        names = [function] if function else _functions_of(connection, version_id, project)
        wide = [{"version_id": version_id, "function": name} for name in names]
    elif project is not None and function is not None:
        wide = [{"project": project, "function": function}]
    elif project is not None:
        wide = [{"project": project}]
    elif len(statuses) == len(wire.STATUSES):
        return [{}]
    else:
        wide = [{"project": name} for name in connection.execute(_PROJECTS).scalars()]
    return [{**each, "status": status} for each in wide for status in statuses]


def _functions_of(connection: sa.Connection, version_id: str, project: str | None) -> list[str]:
    query = (
        sa.select(functions.c.name)
        .join(versions, versions.c.version_id == functions.c.version_id)
        .where(versions.c.version_id == version_id)
    )
    if project is not None:
        query = query.where(versions.c.project == project)
    return list(connection.execute(query).scalars())


def _statuses(status: str | None, *, in_flight: bool) -> list[str]:
    if status is not None and status not in wire.STATUSES:
        message = f"There is no status {status!r}."
        raise InvalidRequest(message, f"One of {', '.join(wire.STATUSES)}.")
    wanted = wire.STATUSES if status is None else (status,)
    return [each for each in wanted if not in_flight or each in IN_FLIGHT]


def _number(offset: str | None) -> int | None:
    if offset is None:
        return None
    if not (offset.isascii() and offset.isdecimal() and len(offset) <= 18):
        message = f"The offset {offset!r:.50} is none that a list gave."
        raise InvalidRequest(message)
    return int(offset)


_PROJECTS = sa.select(projects.c.name)
_SHOWN = (
    sa.select(
        *(
            invocations.c[name]
            for name in (
                "seq",
                "invocation_id",
                "project",
                "function",
                "version_id",
                "status",
                "waiting",
                "due_at",
                "pending_note",
                "num_failed_attempts",
                "parent_id",
                "created_at",
                "started_at",
                "finished_at",
            )
        )
    )
    .where(invocations.c.seq.in_(sa.bindparam("seqs", expanding=True)))
    .order_by(invocations.c.seq.desc())
)
"""What a line of a list is made from: not inputs and results, each of which may be 250,000 characters long."""
