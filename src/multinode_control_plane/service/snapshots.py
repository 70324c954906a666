"""Invocations with all their attempts, read in one snapshot, as plain data for whoever shows them in other words."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from multinode import wire
from multinode.errors import ExecutionNotFound, InvocationNotFound
from multinode_control_plane.model import executions, invocations, projects, versions, workers
from multinode_control_plane.service import rows, statements
from multinode_control_plane.service.catalog import Catalog, Version
from multinode_control_plane.service.statements import Row


@dataclass(frozen=True)
class Attempt:
    """One execution with its worker; times are POSIX seconds."""

    execution_id: str
    attempt: int
    state: str
    outcome: str | None
    error: wire.FunctionError | None
    worker_id: str
    worker_state: str
    created_at: float
    started_at: float | None
    ended_at: float | None
    gone_at: float | None


@dataclass(frozen=True)
class Snapshot:
    """One invocation with its function's settings, its attempts, oldest first, and its parent, which has no parent here."""

    invocation_id: str
    project: str
    version_id: str
    function: str
    settings: wire.FunctionSettings
    status: str
    terminated: bool
    input: str
    result: str | None
    num_failed_attempts: int
    created_at: float
    finished_at: float | None
    cancel_requested_at: float | None
    attempts: tuple[Attempt, ...] = ()
    parent: Snapshot | None = None


def project_rows(connection: sa.Connection, within: str | None) -> list[Row]:
    """The projects, newest first, then by name; only the one ``within`` which the caller may look."""
    query = sa.select(projects).order_by(projects.c.created_at.desc(), projects.c.name)
    if within is not None:
        query = query.where(projects.c.name == within)
    return list(connection.execute(query))


def version_rows(connection: sa.Connection, project: str) -> list[Row]:
    """The project's versions, newest first. Raises ProjectNotFound."""
    rows.project(connection, project)
    query = sa.select(versions).where(versions.c.project == project)
    return list(connection.execute(query.order_by(versions.c.number.desc())))


def version(connection: sa.Connection, catalog: Catalog, project: str, version_id: str) -> Version:
    """The version; ``latest`` in any letter case is the latest. Raises ProjectNotFound and VersionNotFound."""
    wanted = None if version_id.lower() == "latest" else version_id
    row = rows.version(connection, rows.project(connection, project), wanted)
    return catalog.version(connection, row.version_id)


def invocation(
    connection: sa.Connection, version: Version, function: str, invocation_id: str
) -> Snapshot:
    """The invocation, which is one of this version's function. Raises FunctionNotFound and InvocationNotFound."""
    version.function(function)
    row = statements.first(connection, invocations, invocation_id=invocation_id)
    if row is None or (row.version_id, row.function) != (version.row.version_id, function):
        message = f"{function!r} has no invocation {invocation_id!r:.100}."
        raise InvocationNotFound(message)
    return _with_parent(connection, version, row)


def execution(whole: Snapshot, execution_id: str) -> Attempt:
    """The attempt of this id. Raises ExecutionNotFound."""
    for attempt in whole.attempts:
        if attempt.execution_id == execution_id:
            return attempt
    message = f"{whole.invocation_id} has no execution {execution_id!r:.100}."
    raise ExecutionNotFound(message)


def page(
    connection: sa.Connection,
    version: Version,
    function: str,
    *,
    terminated: bool | None,
    parent_id: str | None,
    offset: int | None,
    limit: int,
) -> tuple[list[Snapshot], int | None]:
    """Invocations of the version's function, newest first, and where the next page begins."""
    version.function(function)
    query = sa.select(invocations).where(
        invocations.c.project == version.row.project,
        invocations.c.function == function,
        invocations.c.version_id == version.row.version_id,
    )
    if terminated is not None:
        query = query.where(invocations.c.terminated.is_(terminated))
    if parent_id is not None:
        query = query.where(invocations.c.parent_id == parent_id)
    if offset is not None:
        query = query.where(invocations.c.seq <= offset)
    found = list(connection.execute(query.order_by(invocations.c.seq.desc()).limit(limit + 1)))
    following = found[limit].seq if len(found) > limit else None
    return [_with_parent(connection, version, row) for row in found[:limit]], following


def _with_parent(connection: sa.Connection, version: Version, row: Row) -> Snapshot:
    parent = None
    if row.parent_id is not None:
        parent_row = statements.first(connection, invocations, invocation_id=row.parent_id)
        if parent_row is not None:
            parent = _snapshot(connection, version, parent_row, None)
    return _snapshot(connection, version, row, parent)


def _snapshot(
    connection: sa.Connection, version: Version, row: Row, parent: Snapshot | None
) -> Snapshot:
    described = version.functions.get(row.function)  # a parent of another version may lack it here
    return Snapshot(
        invocation_id=row.invocation_id,
        project=row.project,
        version_id=row.version_id,
        function=row.function,
        settings=described.settings if described else wire.FunctionSettings(),
        status=row.status,
        terminated=row.terminated,
        input=row.input,
        result=row.result,
        num_failed_attempts=row.num_failed_attempts,
        created_at=row.created_at,
        finished_at=row.finished_at,
        cancel_requested_at=row.cancel_requested_at,
        attempts=_attempts(connection, row.invocation_id),
        parent=parent,
    )


def _attempts(connection: sa.Connection, invocation_id: str) -> tuple[Attempt, ...]:
    found = connection.execute(
        sa.select(
            executions,
            workers.c.state.label("worker_state"),
            sa.func.coalesce(executions.c.left_at, workers.c.gone_at).label("gone_at"),
        )
        .join(workers, workers.c.worker_id == executions.c.worker_id)
        .where(executions.c.invocation_id == invocation_id)
        .order_by(executions.c.created_at, executions.c.attempt)
    )
    return tuple(
        Attempt(
            execution_id=row.execution_id,
            attempt=row.attempt,
            state=row.state,
            outcome=row.outcome,
            error=rows.error_of(row.error),
            worker_id=row.worker_id,
            worker_state=row.worker_state,
            created_at=row.created_at,
            started_at=row.started_at,
            ended_at=row.ended_at,
            gone_at=row.gone_at,
        )
        for row in found
    )
