"""Routes of projects: environments, bundles, describe, register, list, roll back, delete."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import suppress
from functools import partial

from starlette.responses import FileResponse, Response, StreamingResponse

from multinode import wire
from multinode.errors import InvalidRequest, MultinodeError, NotAllowed
from multinode_control_plane import bundle_copies
from multinode_control_plane.api.calls import Call, until
from multinode_control_plane.api.cancelling import cancel_waiting
from multinode_control_plane.api.output import with_heartbeats
from multinode_control_plane.service import bundles, rows
from multinode_control_plane.service import deployments as cases
from multinode_control_plane.service.audit import Act


async def list_projects(call: Call) -> list[wire.ProjectInfo]:
    """All projects, by name."""
    within = call.caller.within
    return await call.plane.store.read(
        lambda connection: cases.list_projects(connection, within=within)
    )


async def get_project(call: Call) -> wire.ProjectDetail:
    """A project with its versions, newest first."""
    project = call.path("project")
    return await call.plane.store.read(
        lambda connection: cases.describe_project(connection, project)
    )


async def get_version(call: Call) -> wire.VersionInfo:
    """One version of a project, whole."""
    project, version = call.path("project"), call.path("version")
    found = await call.plane.store.read(
        lambda connection: cases.describe_version(connection, project, version)
    )
    return found.replace(sizes=_sizes(call, found.functions))


def _sizes(
    call: Call, functions: Iterable[wire.FunctionDescription]
) -> dict[str, wire.WorkerSize] | None:
    """What their workers are made with, where the runner has sizes; without those that none of them holds."""
    found = {}
    for function in functions:
        with suppress(InvalidRequest):
            size = call.plane.runner.size_for(function.settings.cpu, function.settings.memory_mib)
            if size is not None:
                found[function.name] = size
    return found or None


def _check_sizes(call: Call, functions: Iterable[wire.FunctionDescription]) -> None:
    """Raises InvalidRequest for a function of which no worker could be made."""
    for function in functions:
        try:
            call.plane.runner.size_for(function.settings.cpu, function.settings.memory_mib)
        except InvalidRequest as error:
            message = f"{function.name}: {error.message}"
            raise InvalidRequest(message, error.hint) from error


async def make_latest(call: Call) -> wire.VersionItem:
    """Makes a version the project's latest."""
    project, version_id = call.path("project"), call.body.version_id
    return await call.act(
        lambda tx: cases.make_latest(tx, project, version_id),
        lambda made: Act("rollback", made.version_id, project),
    )


async def delete(call: Call) -> wire.DeletedProject:
    """Cancels what is in flight in a project, then removes it with all that belongs to it."""
    project = call.path("project")
    await cancel_waiting(call.plane.store, project)
    await call.act(lambda tx: cases.delete(tx, project), lambda _: Act("remove", project, project))

    async def look() -> tuple[bool, wire.DeletedProject]:
        left = await call.plane.store.read(lambda connection: cases.in_flight(connection, project))
        return left is None, wire.DeletedProject(project, left is None, left or 0)

    return await until(call.plane, [f"project:{project}"], call.wait_s, look)


async def build_environment(call: Call) -> StreamingResponse:
    """Makes an environment, unless it is there; at last tells of it, orders its image, or says why not."""
    cases.check_name(call.path("project"))

    async def events() -> AsyncIterator[wire.BuildEvent]:
        async for event in call.plane.runner.build(call.body):
            if event.environment is not None:
                yield await _saved(call, event, event.environment)
            else:
                yield event

    return StreamingResponse(with_heartbeats(events()), media_type="application/x-ndjson")


async def _saved(call: Call, made: wire.BuildEvent, info: wire.EnvironmentInfo) -> wire.BuildEvent:
    """``made``, once it is stored. An answer that streams has begun: an error is an event of it."""
    try:
        await call.plane.store.write(partial(cases.save_environment, info=info))
    except MultinodeError as error:
        return wire.BuildEvent(error=wire.ErrorBody(error.code, error.message, error.hint))
    return made


async def report_image(call: Call) -> wire.EnvironmentInfo:
    """Takes the image that was built to an order, once it is checked."""
    project, digest = call.path("project"), call.path("digest")
    cases.check_name(project)
    if call.caller.within is not None:
        await call.plane.store.read(
            lambda connection: cases.check_environment_is_free(connection, digest, project)
        )
    info = await call.plane.runner.take_image(digest, call.body)
    await call.plane.store.write(partial(cases.save_environment, info=info))
    return info


async def put_bundle(call: Call) -> wire.Empty:
    """Stores the archive (tar.gz) of a project's files, named by its SHA-256."""
    digest, within = call.path("digest"), call.caller.within
    # What is here already is read too: only who has all of it may use it in their project.
    await call.plane.bundles.put(digest, call.request.stream(), check=within is not None)
    if call.plane.store.database.is_shared:
        await bundle_copies.copy(call.plane.store, call.plane.bundles, digest)
    if within is not None:
        await call.plane.store.write(lambda tx: bundles.sent(tx, digest, within))
    return wire.Empty()


async def get_bundle(call: Call) -> Response:
    """The archive; HEAD says whether it is there."""
    digest = call.path("digest")
    if call.caller.worker is not None:
        await _check_workers_bundle(call, digest)
    else:
        await _check_own_bundle(call, digest)
    return FileResponse(call.plane.bundles.path(digest), media_type="application/gzip")


async def _check_own_bundle(call: Call, digest: str) -> None:
    """Raises BundleNotFound for one of another project than the key's."""
    within = call.caller.within
    if within is not None:
        await call.plane.store.read(
            lambda connection: bundles.check_own(connection, digest, within)
        )


async def _check_workers_bundle(call: Call, digest: str) -> None:
    who = call.caller.worker
    assert who is not None
    describe = call.plane.scheduler.describes.get(who.worker_id)
    if describe is not None:
        own = describe.request.bundle_digest
    else:
        own = await call.plane.store.read(
            lambda connection: (
                rows.version(
                    connection, rows.project(connection, who.project), who.version_id
                ).bundle_digest
            )
        )
    if own != digest:
        message = "A worker may fetch the bundle of its own version only."
        raise NotAllowed(message)


async def describe(call: Call) -> wire.DescribeAnswer:
    """Imports `main.py` in its environment, and says which functions it defines."""
    project, request = call.path("project"), call.body
    cases.check_name(project)
    await _check_own_bundle(call, request.bundle_digest)
    before = await call.plane.store.read(
        lambda connection: (
            cases.environment(connection, request.environment_digest),
            cases.described_before(connection, call.plane.context, request),
        )
    )
    if before[1] is not None:
        return wire.DescribeAnswer(before[1])
    call.plane.bundles.path(request.bundle_digest)  # must be here
    return wire.DescribeAnswer(await call.plane.scheduler.describe(project, request))


async def register(call: Call) -> wire.RegisterAnswer:
    """Adds a version and makes it the latest; an equal one that exists is made the latest instead."""
    plane, project, request = call.plane, call.path("project"), call.body
    if request.plan and not request.functions:
        return await plane.store.read(
            lambda connection: cases.planned(connection, plane.context, project, request)
        )
    await _check_own_bundle(call, request.bundle_digest)
    plane.bundles.path(request.bundle_digest)  # must be here
    _check_sizes(call, request.functions)
    return await call.act(
        lambda tx: cases.register(tx, plane.context, project, request),
        lambda answer: None if request.plan else _deployed(answer),
    )


def _deployed(answer: wire.RegisterAnswer) -> Act | None:
    """Nothing, where nothing was changed."""
    has_changed = answer.created or answer.made_latest
    return Act("deploy", answer.version_id, answer.project) if has_changed else None
