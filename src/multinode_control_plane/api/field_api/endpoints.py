"""The paths of the API of 2023. The worker's side of it is not here: workers of this release speak ``/v1/worker``."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, Optional

import sqlalchemy as sa

from multinode import wire
from multinode.errors import (
    Conflict,
    FunctionInputSizeLimitExceeded,
    InputError,
)
from multinode.limits import MAX_CHARACTERS, PAGE_SIZE
from multinode.records import Record
from multinode_control_plane.api.calls import Call, Endpoint
from multinode_control_plane.api.field_api import answers, refusals
from multinode_control_plane.api.field_api.answers import Plain
from multinode_control_plane.api.field_api.refusals import refusal
from multinode_control_plane.api.parameters import Query
from multinode_control_plane.model import invocations as invocations_table
from multinode_control_plane.service import deployments, rows, snapshots, statements
from multinode_control_plane.service import invocations as cases
from multinode_control_plane.service.audit import Act
from multinode_control_plane.service.catalog import Version
from multinode_control_plane.service.snapshots import Snapshot
from multinode_control_plane.store import Transaction
from multinode_control_plane.telemetry import request as asked

MAX_PROJECT_NAME = 64
LOG_PAGE = 250
DEPLOY_NOW = "Programs are deployed now, not images: run `multinode deploy` of Multinode 2.0 or later in the project's folder."


class ParentRef(Record):
    """The invocation that starts another one."""

    function_name: str
    invocation_id: str


class InvocationDef(Record):
    """Body of a start."""

    input: str
    parent_invocation: Optional[ParentRef] = None


# --- what the path names --------------------------------------------------------------------------------


def _version(call: Call, connection: sa.Connection) -> Version:
    catalog = call.plane.context.catalog
    return snapshots.version(connection, catalog, call.path("project"), call.path("version"))


def _invocation(call: Call, connection: sa.Connection) -> Snapshot:
    version = _version(call, connection)
    return snapshots.invocation(connection, version, call.path("function"), call.path("invocation"))


def _offset(call: Call) -> int | None:
    text = call.query("initial_offset")
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise InputError(refusals.OFFSET_IS_INVALID)
    return int(text)


def _limit(call: Call, name: str, cap: int) -> int:
    return int(min(call.number(name, cap), cap))


# --- projects and versions ------------------------------------------------------------------------------


async def health(_call: Call) -> Plain:
    """Whether the control plane is up."""
    return {"status": "healthy"}


async def list_projects(call: Call) -> Plain:
    """All projects, newest first."""
    within = call.caller.within
    found = await call.plane.store.read(lambda conn: snapshots.project_rows(conn, within))
    return {"projects": [answers.project_info(row, row.deleting_at) for row in found]}


async def get_project(call: Call) -> Plain:
    """One project."""
    name = call.path("project")
    row = await call.plane.store.read(lambda connection: rows.project(connection, name))
    return answers.project_info(row, row.deleting_at)


async def create_project(call: Call) -> Plain:
    """Refuses: a project is made by its first deployment."""
    name = call.path("project")
    if len(name) > MAX_PROJECT_NAME:
        raise InputError(refusals.NAME_IS_TOO_LONG)
    known = await call.plane.store.read(lambda conn: snapshots.project_rows(conn, name))
    if known:
        raise Conflict(refusals.PROJECT_EXISTS)
    raise InputError(DEPLOY_NOW)


async def delete_project(call: Call) -> Plain:
    """Cancels what is in flight in a project, then removes it."""
    name = call.path("project")

    def delete(tx: Transaction) -> Plain:
        row = rows.project(tx.connection, name)
        deployments.delete(tx, name)
        return answers.project_info(row, tx.now if row.deleting_at is None else row.deleting_at)

    return await call.act(delete, lambda _: Act("remove", name, name))


async def register_images(call: Call) -> Plain:
    """Refuses: versions are programs."""
    raise InputError(DEPLOY_NOW)


async def list_versions(call: Call) -> Plain:
    """A project's versions, newest first."""
    name = call.path("project")
    found = await call.plane.store.read(lambda conn: snapshots.version_rows(conn, name))
    return answers.versions_list(name, found)


async def get_version(call: Call) -> Plain:
    """One version with its functions."""
    found = await call.plane.store.read(lambda connection: _version(call, connection))
    return answers.version_info(found)


# --- invocations ----------------------------------------------------------------------------------------


async def start(call: Call) -> Plain:
    """Starts an invocation."""
    body: InvocationDef = call.body
    if len(body.input) > MAX_CHARACTERS:
        message = f"input: at most {MAX_CHARACTERS} characters"
        raise FunctionInputSizeLimitExceeded(message)

    def begin(tx: Transaction) -> Snapshot:
        version, function = _version(call, tx.connection), call.path("function")
        version.function(function)
        request = wire.StartRequest(
            inputs=[body.input],
            version_id=version.row.version_id,
            parent_id=_parent_id(tx.connection, version, body.parent_invocation),
        )
        catalog, project = call.plane.context.catalog, version.row.project
        answer = cases.start(tx, catalog, project, function, request, traceparent=asked.trace())
        (made,) = answer.invocation_ids
        return snapshots.invocation(tx.connection, version, function, made)

    made = await call.act(begin, lambda found: Act("invoke", found.invocation_id, found.project))
    return answers.invocation_info(made)


def _parent_id(connection: sa.Connection, version: Version, parent: ParentRef | None) -> str | None:
    """The parent's id, which is an invocation of the same version."""
    if parent is None:
        return None
    row = statements.first(connection, invocations_table, invocation_id=parent.invocation_id)
    named = (version.row.version_id, parent.function_name)
    if row is None or (row.version_id, row.function) != named:
        raise InputError(refusals.NO_PARENT)
    return parent.invocation_id


async def list_invocations(call: Call) -> Plain:
    """A page of a function's invocations, newest first."""
    parent_function, parent_id = (
        call.query("parent_function_name"),
        call.query("parent_invocation_id"),
    )
    status, offset = call.query("status"), _offset(call)
    limit = _limit(call, "max_results", PAGE_SIZE)

    def read(connection: sa.Connection) -> Plain:
        version, function = _version(call, connection), call.path("function")
        version.function(function)
        if parent_id is not None and parent_function is None:
            raise InputError(refusals.NO_PARENT_FUNCTION)
        if parent_function is not None and parent_id is None:
            raise InputError(refusals.NO_PARENT_ID)
        found, following = snapshots.page(
            connection,
            version,
            function,
            terminated=None if status is None else status == "TERMINATED",
            parent_id=parent_id,
            offset=offset,
            limit=limit,
        )
        of_parent = [
            w
            for w in found
            if parent_id is None or (w.parent and w.parent.function == parent_function)
        ]
        return answers.invocations_list(version, function, of_parent, following)

    return await call.plane.store.read(read)


async def get_invocation(call: Call) -> Plain:
    """An invocation with its executions."""
    found = await call.plane.store.read(lambda connection: _invocation(call, connection))
    return answers.invocation_info(found)


async def cancel(call: Call) -> Plain:
    """Asks for an invocation's cancellation, and for its children's."""

    def ask(tx: Transaction) -> Snapshot:
        known = _invocation(call, tx.connection)
        if known.terminated:
            raise Conflict(refusals.INVOCATION_IS_OVER)
        cases.cancel(tx, [known.invocation_id])
        return _invocation(call, tx.connection)

    asked = await call.act(ask, lambda found: Act("cancel", found.invocation_id, found.project))
    return answers.invocation_info(asked)


async def get_execution(call: Call) -> Plain:
    """One execution."""
    found = await call.plane.store.read(lambda connection: _invocation(call, connection))
    return answers.execution_info(found, snapshots.execution(found, call.path("execution")))


async def logs(call: Call) -> Plain:
    """Lines of an execution's output, oldest first. The next offset may be asked for again later."""
    found = await call.plane.store.read(lambda connection: _invocation(call, connection))
    attempt = snapshots.execution(found, call.path("execution"))
    offset, limit = _offset(call) or 0, _limit(call, "max_lines", LOG_PAGE)
    records = call.plane.runner.logs(attempt.execution_id, attempt.attempt)
    lines, seen = [], 0
    async for line in _lines(records, is_whole=attempt.gone_at is not None):
        if seen >= offset + limit:
            break
        if seen >= offset:
            lines.append(line)
        seen += 1
    following = None if seen == 0 else max(offset, seen)
    return answers.execution_logs(found, attempt.execution_id, lines, following)


async def _lines(records: AsyncIterator[wire.LogRecord], *, is_whole: bool) -> AsyncIterator[str]:
    """Whole lines; what has no end of line yet only where the output is whole."""
    rest = ""
    async for record in records:
        *ended, rest = (rest + record.text).split("\n")
        for line in ended:
            yield line
    if rest and is_whole:
        yield rest


async def credentials(_call: Call) -> Plain:
    """Refuses: images are no longer pushed by clients of 2023."""
    raise InputError(DEPLOY_NOW)


P = "/projects/{project}"
V = P + "/versions/{version}"
F = V + "/functions/{function}"
I = F + "/invocations/{invocation}"  # noqa: E741 - the contract's name for it
X = I + "/executions/{execution}"
_OFFSET = Query("initial_offset", "The `next_offset` of the page before.")


def _endpoint(method: str, path: str, handler: Any, role: str | None, **more: Any) -> Endpoint:
    return Endpoint(method, path, handler, role=role, refuse=refusal, **more)


FIELD_ENDPOINTS = (
    _endpoint("GET", "/", health, None, public=True),
    _endpoint("GET", "/projects", list_projects, "read"),
    _endpoint("GET", P, get_project, "read"),
    _endpoint("PUT", P, create_project, "deploy"),
    _endpoint("DELETE", P, delete_project, "deploy"),
    _endpoint("GET", P + "/versions", list_versions, "read"),
    _endpoint("POST", P + "/versions", register_images, "deploy"),
    _endpoint("GET", V, get_version, "read"),
    _endpoint(
        "POST",
        F + "/invocations",
        start,
        "invoke",
        body=InvocationDef,
        max_body_bytes=4 * 1024 * 1024,  # MAX_CHARACTERS of input, each escaped
    ),
    _endpoint(
        "GET",
        F + "/invocations",
        list_invocations,
        "read",
        query=(
            _OFFSET,
            Query("max_results", "50 at most.", "whole"),
            Query("status", "Only those in this status.", one_of=("RUNNING", "TERMINATED")),
            Query("parent_function_name", "Only children of an invocation of this function."),
            Query("parent_invocation_id", "Only children of this invocation."),
        ),
    ),
    _endpoint("GET", I, get_invocation, "read"),
    _endpoint("PUT", I + "/cancel", cancel, "invoke"),
    _endpoint("GET", X, get_execution, "read"),
    _endpoint(
        "GET",
        X + "/logs",
        logs,
        "read",
        leader=True,
        query=(_OFFSET, Query("max_lines", "250 at most.", "whole")),
    ),
    _endpoint("GET", "/container_repository_credentials", credentials, "deploy"),
)
