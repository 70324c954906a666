"""Routes of the installation itself: health, readiness, server, keys."""

from __future__ import annotations

import asyncio
import os
import re
import time
from collections.abc import Iterable

import sqlalchemy as sa
from starlette.responses import Response

from multinode import wire
from multinode.errors import InvalidRequest
from multinode_control_plane import __version__, model
from multinode_control_plane.api.calls import Call, ControlPlane
from multinode_control_plane.runners.storage import DEPLOY_S, OUTPUT, Limits, Stored, superfluous
from multinode_control_plane.service import access, audit, deployments, invocations, usage
from multinode_control_plane.service.audit import Act
from multinode_control_plane.telemetry import scrape

STOP_MODES = ("drain", "now", "restart")


async def health(_call: Call) -> dict[str, str]:
    """Whether the control plane is up."""
    return {"status": "ok"}


async def ready(call: Call) -> dict[str, str]:
    """Whether it can serve now; 503 with the reason where not."""
    await call.plane.readiness.check()
    return {"status": "ready"}


async def metrics(call: Call) -> Response:
    """Metrics in the text format of Prometheus."""
    call.caller.check_unlimited()
    plane = call.plane
    plant = scrape.Plant(
        version=__version__,
        runner=plane.runner.name,
        database=plane.database_name,
        capacity=plane.context.settings.capacity,
        data_dir=plane.context.settings.data_dir,
    )
    now, names = time.time(), plane.metrics.projects
    snapshot = await plane.store.read(lambda connection: scrape.look(connection, now, names))
    # Beside the loop: a thousand lines take milliseconds.
    text = await asyncio.to_thread(scrape.render, plane.metrics.registry, snapshot, plant)
    return Response(text, media_type=scrape.CONTENT_TYPE)


async def server(call: Call) -> wire.ServerInfo:
    """The control plane: its version, runner and room, and who is asking."""
    plane, within = call.plane, call.caller.within

    def count(connection: sa.Connection) -> tuple[int, int, int]:
        living = sa.select(sa.func.count()).where(model.workers.c.gone_at.is_(None))
        if within is not None:
            living = living.where(model.workers.c.project == within)
        found = deployments.list_projects(connection, within=within)
        return (
            connection.execute(living).scalar_one(),
            sum(item.in_flight for item in found),
            invocations.count_running(connection, within=within),
        )

    workers, in_flight, running = await plane.store.read(count)
    capacity = plane.context.settings.capacity
    return wire.ServerInfo(
        version=__version__,
        runner=plane.runner.name,
        database=plane.database_name,
        pid=os.getpid(),
        started_at=model.to_time(plane.started_at),
        key_name=call.caller.name,
        role=call.caller.role,
        workers=workers,
        in_flight=in_flight,
        cpu_capacity=capacity.cpu,
        memory_capacity_mib=capacity.memory_mib,
        enforces=list(plane.runner.enforces),
        unenforced_reason=plane.runner.unenforced_reason,
        clock=model.to_time(time.time()),
        project=within,
        running=running,
    )


async def stop(call: Call) -> wire.Empty:
    """Stops the control plane."""
    if call.body.mode not in STOP_MODES:
        message = f"There is no mode {call.body.mode!r:.50}."
        raise InvalidRequest(message, f"One of: {', '.join(STOP_MODES)}.")
    mode = call.body.mode
    await call.act(lambda _: None, lambda _: Act("stop server", mode))
    call.plane.stop(mode)
    return wire.Empty()


async def checks(call: Call) -> list[wire.Finding]:
    """What `doctor` asks the runner, tried now."""
    base_image = call.query("base_image") or ""
    if not re.fullmatch(r"[A-Za-z0-9._:@/-]{0,300}", base_image) or ".." in base_image:
        message = f"{base_image!r:.100} is no name of an image."
        raise InvalidRequest(message, "Correct `base_image` in multinode.toml.")
    return await call.plane.runner.checks(base_image)


async def gc(call: Call) -> list[wire.Collected]:
    """Removes environments, images, bundles and output that nothing needs."""
    return await collect(call.plane, unused_s=DEPLOY_S, dry_run=call.flag("dry_run"))


async def collect(plane: ControlPlane, *, unused_s: float, dry_run: bool) -> list[wire.Collected]:
    """Removes environments, images and bundles that no version uses and that were not in use for so long; then, as far as what
    is left is over the limit, more of that, and output of executions that have ended."""
    known = {*await plane.store.read(usage.in_use), *plane.scheduler.describes}
    limits = Limits(unused_s, plane.context.settings.disk_limit_bytes)
    found = superfluous(await plane.runner.stored(known), limits, time.time())
    if dry_run:
        return _told((item, reason, "") for item, reason in found)
    names = {item.name for item, _ in found}
    free = await plane.store.write(lambda tx: usage.forget(tx, names))
    gone = []
    for item, reason in found:
        if item.name in free:
            discarded = await plane.runner.discard(item)
            if discarded.is_gone:
                gone.append((item, reason, discarded.note))
    return _told(gone)


def _told(gone: Iterable[tuple[Stored, str, str]]) -> list[wire.Collected]:
    """An item each, and one for all output together."""
    items, output = [], []
    for item, reason, note in gone:
        if item.kind == OUTPUT:
            output.append((item.size_bytes, reason))
        else:
            items.append(wire.Collected(item.kind, item.name, item.size_bytes, reason, note))
    if output:
        count = f"{len(output)} execution{'s' if len(output) != 1 else ''}"
        items.append(wire.Collected(OUTPUT, count, sum(size for size, _ in output), output[0][1]))
    return items


async def audit_log(call: Call) -> wire.AuditLog:
    """Who has done what, newest first."""
    offset, since_s = call.number("offset"), call.number("since_s")
    return await call.plane.store.read(
        lambda connection: audit.page(
            connection,
            since=time.time() - since_s if since_s else None,
            project=call.query("project"),
            offset=int(offset) if offset else None,
        )
    )


async def list_keys(call: Call) -> list[wire.KeyInfo]:
    """All API keys by name, without the keys themselves."""
    return await call.plane.store.read(access.list_keys)


async def create_key(call: Call) -> wire.KeyInfo:
    """A new API key, which is told this once."""
    request = call.body
    made = await call.act(
        lambda tx: access.create_key(tx, request),
        lambda info: Act("make key", info.name, info.project),
    )
    await call.plane.read_keys()
    return made


async def revoke_key(call: Call) -> wire.KeyInfo:
    """Revokes an API key."""
    name = call.path("name")
    revoked = await call.act(
        lambda tx: access.revoke_key(tx, name),
        lambda info: Act("revoke key", info.name, info.project),
    )
    await call.plane.read_keys()
    return revoked
