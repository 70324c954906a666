"""Routes of what functions cost."""

from __future__ import annotations

import time

import sqlalchemy as sa

from multinode import wire
from multinode_control_plane.api.calls import Call
from multinode_control_plane.service import costs as cases
from multinode_control_plane.service import deployments
from multinode_control_plane.service.catalog import read as read_version

WEEK_S = 7 * 24 * 3600.0


async def costs(call: Call) -> wire.CostReport:
    """What workers that have ended have used and cost: vCPU seconds, GB seconds and their price, summed."""
    until = time.time()
    since = max(0.0, until - call.number("for_s", WEEK_S))
    by, project = call.query("by") or cases.BY[0], call.caller.within or call.query("project")
    meter = call.plane.context.meter
    return await call.plane.store.read(
        lambda connection: cases.report(connection, meter, by, since, until, project)
    )


async def estimate(call: Call) -> wire.CostEstimate:
    """What an invocation of the function may cost at most, and what those before did cost."""
    project, function = call.path("project"), call.path("function")
    wanted, meter = call.query("version") or "latest", call.plane.context.meter

    def read(connection: sa.Connection) -> wire.CostEstimate:
        version = deployments.describe_version(connection, project, wanted)
        settings = read_version(connection, version.version_id).function(function).settings
        return cases.estimate(connection, meter, version, settings, function)

    return await call.plane.store.read(read)
