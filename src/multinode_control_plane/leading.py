"""What only the process does that leads: the scheduler with its runner, the door of its workers, and tidying up."""

from __future__ import annotations

import asyncio
import logging
import time
from functools import partial

from multinode import wire
from multinode_control_plane import bundle_copies
from multinode_control_plane.api.calls import ControlPlane
from multinode_control_plane.api.installation import collect
from multinode_control_plane.api.routes import WORKER_ENDPOINTS, make_app
from multinode_control_plane.listening import Serving, worker_door
from multinode_control_plane.local_state import FILE, Local
from multinode_control_plane.runners.storage import size
from multinode_control_plane.service import audit, costs

log = logging.getLogger("multinode")

COLLECT_S = 600.0
"""Output may grow by much meanwhile."""


class Leading:
    """``begin`` once, ``end`` once. ``url`` is the control plane's own, which workers are told where they have no other way."""

    def __init__(self, plane: ControlPlane, url: str, port: int) -> None:
        self._plane, self._url, self._port = plane, url, port
        self._door: Serving | None = None
        self._collecting: asyncio.Task[None] | None = None
        self._fetching: asyncio.Task[None] | None = None

    async def begin(self) -> None:
        """Opens the scheduler, which adopts what lives. Raises InputError where workers could not reach this process."""
        plane, settings = self._plane, self._plane.context.settings
        # Read anew: where several share the folder, the one that led before may have written it since.
        local = Local(settings.data_dir / FILE)
        door = await worker_door(
            settings, plane.runner, local.worker_port, is_shared=plane.store.database.is_shared
        )
        local.remember(self._port, door.port if door else None, plane.runner.name)
        await plane.scheduler.open(settings.worker_url or (door.url if door else self._url))
        plane.leads = True
        plane.metrics.leader.set(1)
        if door is not None:
            self._door = Serving(make_app(plane, door.hosts, WORKER_ENDPOINTS), door.listener)
        loop = asyncio.get_running_loop()
        self._collecting = loop.create_task(_collect_regularly(plane))
        if plane.store.database.is_shared:
            self._fetching = loop.create_task(_fetch_bundles(plane))

    async def end(self) -> None:
        """Closes all of it; workers go on. Does nothing where it has not begun."""
        if self._collecting is None:
            return
        self._collecting.cancel()
        if self._fetching is not None:
            self._fetching.cancel()
        self._collecting = None
        self._plane.leads = False
        self._plane.metrics.leader.set(0)
        self._plane.store.changes.fire_each()  # workers that wait here go to who leads next
        if self._door is not None:
            await self._door.end()
        await self._plane.scheduler.close()


async def _fetch_bundles(plane: ControlPlane) -> None:
    """What needs a bundle before it has come is tried again, as for everything that a worker lacks."""
    try:
        await bundle_copies.fetch_missing(plane.store, plane.bundles)
    except Exception:  # the outermost edge of this task
        log.exception("bundles could not be fetched from the database")


async def _collect_regularly(plane: ControlPlane) -> None:
    """Removes what no version has used for long, what is over the disk limit, and what is old of the audit log and of costs."""
    while True:
        await asyncio.sleep(COLLECT_S)
        try:
            await forget_old(plane, time.time())
            unused_s = plane.context.settings.keep_unused_s
            done = await collect(plane, unused_s=unused_s, dry_run=False)
            if done:
                log.info("removed what nothing needs: %s", "; ".join(map(_in_words, done)))
        except Exception:  # the outermost edge: the next time it is tried again
            log.exception("what nothing needs could not be removed")


async def forget_old(plane: ControlPlane, now: float) -> None:
    """Removes what the audit log and the costs are to keep no longer, in small steps, between which others write."""
    settings = plane.context.settings
    for kept_s, forget in (
        (settings.keep_audit_s, audit.forget),
        (settings.keep_costs_s, costs.forget),
    ):
        job = partial(forget, before=now - kept_s)
        while kept_s and await plane.store.write(job):
            pass


def _in_words(item: wire.Collected) -> str:
    """For the log."""
    return (
        f"{item.kind} {item.name:.19}, {size(item.size_bytes)}, {item.reason} {item.note}".strip()
    )
