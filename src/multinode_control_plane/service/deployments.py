"""Projects, environments, versions: what deploy, list, describe, rollback and undeploy do to the store."""

from __future__ import annotations

import hashlib
import re

import sqlalchemy as sa

from multinode import wire
from multinode.errors import (
    EnvironmentNotFound,
    InvalidName,
    InvalidRequest,
    NotAllowed,
    ProjectNotFound,
    VersionNotFound,
)
from multinode.limits import MAX_FUNCTION_NAME, MAX_PROJECT_NAME
from multinode_control_plane import decide, model
from multinode_control_plane.model import (
    environments,
    functions,
    invocations,
    projects,
    queues,
    sealing,
    versions,
)
from multinode_control_plane.service import catalog, pools, rows, statements
from multinode_control_plane.service import invocations as invocation_cases
from multinode_control_plane.service.actions import SetTimer
from multinode_control_plane.service.executions import Context
from multinode_control_plane.service.listing import IN_FLIGHT
from multinode_control_plane.service.statements import Row
from multinode_control_plane.store import Transaction


def check_name(project: str) -> None:
    """Raises InvalidName for a project name that is not allowed."""
    if not re.fullmatch(r"[a-z0-9_-]+", project) or len(project) > MAX_PROJECT_NAME:
        message = f"{project!r:.100} is not a project name."
        hint = f"Use 1 to {MAX_PROJECT_NAME} of: a-z 0-9 - _"
        raise InvalidName(message, hint)


def save_environment(tx: Transaction, info: wire.EnvironmentInfo) -> None:
    """Notes an environment that the runner has made, or made anew."""
    tx.connection.execute(sa.delete(environments).where(environments.c.digest == info.digest))
    tx.connection.execute(
        sa.insert(environments).values(digest=info.digest, info=wire.to_plain(info))
    )


def check_environment_is_free(connection: sa.Connection, digest: str, project: str) -> None:
    """Raises NotAllowed where another project has a version in the environment: what its image is, is not for ``project`` to say."""
    others = (versions.c.environment_digest == digest, versions.c.project != project)
    if connection.execute(sa.select(versions.c.version_id).where(*others).limit(1)).first():
        message = "Another project uses this environment: a key for one project cannot replace it."
        hint = "Deploy without --no-cache, or with a key that is for all projects."
        raise NotAllowed(message, hint)


def environment(connection: sa.Connection, digest: str) -> wire.EnvironmentInfo:
    """The environment. Raises EnvironmentNotFound."""
    found = connection.execute(
        sa.select(environments.c.info).where(environments.c.digest == digest)
    ).scalar()
    if found is None:
        message = f"There is no environment {digest!r:.80}."
        raise EnvironmentNotFound(message, "Deploy again: it will be made.")
    return wire.from_plain(wire.EnvironmentInfo, found)


def environments_kept(connection: sa.Connection) -> list[wire.EnvironmentInfo]:
    """All that are stored."""
    found = connection.execute(sa.select(environments.c.info)).scalars()
    return [wire.from_plain(wire.EnvironmentInfo, info) for info in found]


def described_before(
    connection: sa.Connection, context: Context, request: wire.DescribeRequest
) -> list[wire.FunctionDescription] | None:
    """What an earlier version with the same environment, bundle and `.env` was found to define."""
    version_id = connection.execute(
        sa.select(versions.c.version_id)
        .where(versions.c.describe_key == _describe_key(context, request))
        .limit(1)
    ).scalar()
    return _functions(connection, version_id) if version_id else None


def _functions(connection: sa.Connection, version_id: str) -> list[wire.FunctionDescription]:
    return list(catalog.read(connection, version_id).functions.values())


def _describe_key(context: Context, request: wire.DescribeRequest | wire.RegisterRequest) -> str:
    parts = (
        request.environment_digest,
        request.bundle_digest,
        context.sealer.digest(request.dotenv),
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()


def register(
    tx: Transaction,
    context: Context,
    project: str,
    request: wire.RegisterRequest,
) -> wire.RegisterAnswer:
    """Adds a version and makes it the latest, or makes an existing equal one the latest. One transaction."""
    check_name(project)
    _check_functions(context, request)
    environment(tx.connection, request.environment_digest)
    project_row = statements.first(tx.connection, projects, name=project)
    if project_row is None and not request.create:
        message = f"There is no project {project!r}."
        raise ProjectNotFound(message, "`multinode deploy` creates it.")
    if project_row is not None:
        rows.live_project(tx.connection, project)
    described = [wire.to_plain(item) for item in request.functions]
    describe_key = _describe_key(context, request)
    content_key = hashlib.sha256((describe_key + repr(described)).encode()).hexdigest()
    existing = tx.connection.execute(
        sa.select(versions).where(
            versions.c.project == project, versions.c.content_key == content_key
        )
    ).first()
    latest_id = project_row.latest_version_id if project_row is not None else None
    changes = _changes(tx.connection, latest_id, request, existing is not None)
    version_id = existing.version_id if existing is not None else model.new_id("ver")
    if not request.plan:
        if existing is None:
            _insert_version(tx, context, project, version_id, request, describe_key, content_key)
        _point_to(tx, project, version_id, request.functions, exists=project_row is not None)
    return wire.RegisterAnswer(
        project=project,
        version_id=version_id,
        created=existing is None,
        made_latest=version_id != latest_id,
        changes=changes,
    )


def planned(
    connection: sa.Connection, context: Context, project: str, request: wire.RegisterRequest
) -> wire.RegisterAnswer:
    """What ``register`` would do once the code was imported, from its inputs alone. An empty ``version_id``: a new version."""
    check_name(project)
    project_row = statements.first(connection, projects, name=project)
    latest_id = project_row.latest_version_id if project_row is not None else None
    existing = connection.execute(
        sa.select(versions.c.version_id)
        .where(
            versions.c.project == project,
            versions.c.describe_key == _describe_key(context, request),
        )
        .order_by(versions.c.version_id != latest_id, versions.c.number.desc())
        .limit(1)
    ).scalar()
    return wire.RegisterAnswer(
        project=project,
        version_id=existing or "",
        created=existing is None,
        made_latest=existing is None or existing != latest_id,
        changes=_changed_inputs(connection, context, latest_id, request) if latest_id else [],
    )


def _changed_inputs(
    connection: sa.Connection, context: Context, latest_id: str, request: wire.RegisterRequest
) -> list[str]:
    latest = connection.execute(sa.select(versions).where(versions.c.version_id == latest_id)).one()
    before, after = context.sealer.open(latest.dotenv, latest.sealed_with), request.dotenv
    found = []
    if latest.environment_digest != request.environment_digest:
        found.append("environment: changed")
    if latest.bundle_digest != request.bundle_digest:
        found.append("code: changed")
    for name in sorted({*before, *after}):
        if before.get(name) != after.get(name):
            how = "new" if name not in before else "gone" if name not in after else "changed"
            found.append(f".env {name}: {how}")
    return found


def _check_functions(context: Context, request: wire.RegisterRequest) -> None:
    names = [item.name for item in request.functions]
    if not names or len(set(names)) != len(names):
        message = "A version has at least one function, and no two of one name."
        raise InvalidRequest(message)
    for function in request.functions:
        if not 0 < len(function.name) <= MAX_FUNCTION_NAME:
            message = f"{function.name!r:.100} is not a function name."
            raise InvalidName(message, f"Use 1 to {MAX_FUNCTION_NAME} characters.")
        room_mib = context.settings.capacity.memory_mib
        if function.settings.memory_mib > room_mib:
            message = (
                f"{function.name} asks for {function.settings.memory_mib} MiB of memory; "
                f"this control plane has room for {room_mib} MiB in all."
            )
            hint = "Ask for less, or start the server with --capacity memory=…GiB."
            raise InvalidRequest(message, hint)


def _changes(
    connection: sa.Connection,
    latest_id: str | None,
    request: wire.RegisterRequest,
    exists: bool,
) -> list[str]:
    if latest_id is None:
        return [f"function {item.name}: added" for item in request.functions]
    latest = connection.execute(sa.select(versions).where(versions.c.version_id == latest_id)).one()
    before = [(item.name, item.settings) for item in _functions(connection, latest_id)]
    after = [(item.name, item.settings) for item in request.functions]
    found = []
    if latest.environment_digest != request.environment_digest:
        found.append("environment: changed")
    if latest.bundle_digest != request.bundle_digest:
        found.append("code: changed")
    found += decide.changes(before, after)
    if not found and not exists:
        found.append(".env: changed")
    return found


def _insert_version(
    tx: Transaction,
    context: Context,
    project: str,
    version_id: str,
    request: wire.RegisterRequest,
    describe_key: str,
    content_key: str,
) -> None:
    last = tx.connection.execute(
        sa.select(sa.func.max(versions.c.number)).where(versions.c.project == project)
    ).scalar()
    # Asked anew each time: another process may have begun a rotation.
    with_key = tx.connection.execute(sa.select(sealing.c.key_id)).scalar()
    with_key = with_key or context.sealer.key_ids[0]
    tx.connection.execute(
        sa.insert(versions).values(
            version_id=version_id,
            project=project,
            number=(last or 0) + 1,
            created_at=tx.now,
            environment_digest=request.environment_digest,
            bundle_digest=request.bundle_digest,
            dotenv=context.sealer.seal(request.dotenv, with_key),
            dotenv_names=sorted(request.dotenv),
            content_key=content_key,
            describe_key=describe_key,
            sealed_with=with_key,
        )
    )
    tx.connection.execute(
        sa.insert(functions),
        [
            {
                "version_id": version_id,
                "name": item.name,
                "position": position,
                "description": wire.to_plain(item),
            }
            for position, item in enumerate(request.functions)
        ],
    )


def _point_to(
    tx: Transaction,
    project: str,
    version_id: str,
    described: list[wire.FunctionDescription],
    *,
    exists: bool,
) -> None:
    """Makes the version the latest; its limits count from now on for the workers of all versions."""
    if exists:
        tx.connection.execute(
            sa.update(projects)
            .where(projects.c.name == project)
            .values(latest_version_id=version_id)
        )
    else:
        tx.connection.execute(
            sa.insert(projects).values(
                name=project, created_at=tx.now, latest_version_id=version_id
            )
        )
    of_project = queues.c.project == project
    tx.connection.execute(sa.update(queues).where(of_project).values(min_workers=0))
    for item in described:
        own = (queues.c.project == project, queues.c.function == item.name)
        limits = {
            "max_concurrency": item.settings.max_concurrency,
            "min_workers": item.settings.min_workers,
        }
        changed = tx.connection.execute(sa.update(queues).where(*own).values(limits))
        if changed.rowcount == 0:
            tx.connection.execute(
                sa.insert(queues).values(
                    project=project,
                    function=item.name,
                    ready=0,
                    workers=0,
                    **limits,
                )
            )
    pools.dismiss_outdated(tx, project)
    tx.after_commit(
        SetTimer(tx.now)
    )  # workers may have to be started ahead, by the process that leads
    tx.changed(f"project:{project}")
    tx.wake()


def make_latest(tx: Transaction, project: str, version_id: str | None) -> wire.VersionItem:
    """Points *latest* to the version; None is the one before the latest."""
    project_row = rows.live_project(tx.connection, project)
    if version_id is None:
        latest = rows.version(tx.connection, project_row, None)
        row = tx.connection.execute(
            sa.select(versions)
            .where(versions.c.project == project, versions.c.number < latest.number)
            .order_by(versions.c.number.desc())
            .limit(1)
        ).first()
        if row is None:
            message = f"The project {project!r} has no version before its latest one."
            raise VersionNotFound(message, f"`multinode describe {project}` shows its versions.")
    else:
        row = rows.version(tx.connection, project_row, version_id)
    _point_to(tx, project, row.version_id, _functions(tx.connection, row.version_id), exists=True)
    return _version_item(tx.connection, row, row.version_id)


def _version_item(connection: sa.Connection, row: Row, latest_version_id: str) -> wire.VersionItem:
    return wire.VersionItem(
        version_id=row.version_id,
        number=row.number,
        created_at=model.to_time(row.created_at),
        is_latest=row.version_id == latest_version_id,
        functions=[item.name for item in _functions(connection, row.version_id)],
    )


def list_projects(
    connection: sa.Connection, *, within: str | None = None
) -> list[wire.ProjectInfo]:
    """All projects by name; only that of ``within``, if it is given."""
    query = sa.select(projects)
    if within is not None:
        query = query.where(projects.c.name == within)
    found = connection.execute(query).all()
    # Sorted here: each database has its own order of letters.
    return [_project_info(connection, row) for row in sorted(found, key=lambda row: str(row.name))]


def _project_info(connection: sa.Connection, row: Row) -> wire.ProjectInfo:
    in_flight = connection.execute(
        sa.select(sa.func.count())
        .select_from(invocations)
        .where(invocations.c.project == row.name, invocations.c.status.in_(IN_FLIGHT))
    ).scalar_one()
    return wire.ProjectInfo(
        project=row.name,
        created_at=model.to_time(row.created_at),
        latest_version_id=row.latest_version_id,
        functions=[item.name for item in _functions(connection, row.latest_version_id)],
        in_flight=in_flight,
        deleting=row.deleting_at is not None,
    )


def describe_project(connection: sa.Connection, project: str) -> wire.ProjectDetail:
    """The project with its versions, newest first."""
    row = rows.project(connection, project)
    found = connection.execute(
        sa.select(versions).where(versions.c.project == project).order_by(versions.c.number.desc())
    ).all()
    items = [_version_item(connection, item, row.latest_version_id) for item in found]
    return wire.ProjectDetail(_project_info(connection, row), items)


def describe_version(connection: sa.Connection, project: str, version_id: str) -> wire.VersionInfo:
    """One version, whole."""
    project_row = rows.project(connection, project)
    row = rows.version(connection, project_row, version_id)
    return wire.VersionInfo(
        project=project,
        version_id=row.version_id,
        number=row.number,
        created_at=model.to_time(row.created_at),
        is_latest=row.version_id == project_row.latest_version_id,
        bundle_digest=row.bundle_digest,
        environment=environment(connection, row.environment_digest),
        dotenv_names=list(row.dotenv_names),
        functions=_functions(connection, row.version_id),
    )


def delete(tx: Transaction, project: str) -> None:
    """Marks the project as being deleted, and cancels what is in flight; it is removed when that has ended."""
    row = rows.project(tx.connection, project)
    if row.deleting_at is None:
        tx.connection.execute(
            sa.update(projects).where(projects.c.name == project).values(deleting_at=tx.now)
        )
    of_project = queues.c.project == project
    tx.connection.execute(sa.update(queues).where(of_project).values(min_workers=0))
    pools.dismiss_outdated(tx, project)
    invocation_cases.cancel_all(tx, project, None)
    invocation_cases.purge_if_empty(tx, project)
    tx.wake()


def in_flight(connection: sa.Connection, project: str) -> int | None:
    """How many invocations of the project are not over, with their workers; None where it does not exist."""
    if (
        connection.execute(sa.select(projects.c.name).where(projects.c.name == project)).first()
        is None
    ):
        return None
    return connection.execute(
        sa.select(sa.func.count())
        .select_from(invocations)
        .where(invocations.c.project == project, sa.not_(invocations.c.terminated))
    ).scalar_one()
