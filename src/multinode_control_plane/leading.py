"""What only the process does that leads: the scheduler with its runner, the door of its workers, and tidying up."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from multinode import wire
from multinode_control_plane import bundle_copies
from multinode_control_plane.api.calls import ControlPlane
from multinode_control_plane.api.installation import collect
from multinode_control_plane.api.routes import WORKER_ENDPOINTS, make_app
from multinode_control_plane.forgetting import forget_old
from multinode_control_plane.listening import Serving, worker_door
from multinode_control_plane.local_state import FILE, Local
from multinode_control_plane.runners.storage import size, span

log = logging.getLogger("multinode")

COLLECT_S = 600.0
"""Output may grow by much meanwhile."""


class Leading:
    """``begin`` once, ``end`` once. ``url`` is the control plane's own, which workers are told where they have no other way."""

    def __init__(self, plane: ControlPlane, url: str, port: int) -> None:
        self._plane, self._url, self._port = plane, url, port
        self._door: Serving | None = None
        self._has_begun = False
        self._tasks: list[asyncio.Task[None]] = []

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
            app = make_app(plane, door.hosts, WORKER_ENDPOINTS)
            self._door = Serving(app, door.listener, on_late=plane.metrics.was_late)
        work = [_regularly(_collect, plane), _regularly(_forget, plane)]
        if plane.store.database.is_shared:
            work.append(_fetch_bundles(plane))
        self._tasks = [asyncio.get_running_loop().create_task(each) for each in work]
        self._has_begun = True

    async def end(self) -> None:
        """Closes all of it; workers go on. Does nothing where it has not begun."""
        if not self._has_begun:
            return
        self._has_begun = False
        for task in self._tasks:
            task.cancel()
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


async def _regularly(work: Callable[[ControlPlane], Awaitable[None]], plane: ControlPlane) -> None:
    while True:
        await asyncio.sleep(COLLECT_S)
        try:
            await work(plane)
        except Exception:  # the outermost edge: the next time it is tried again
            log.exception("what is needed no longer could not be removed")


async def _collect(plane: ControlPlane) -> None:
    """Removes what no version has used for long, and what is over the disk limit."""
    done = await collect(plane, unused_s=plane.context.settings.keep_unused_s, dry_run=False)
    if done:
        log.info("removed what nothing needs: %s", "; ".join(map(_in_words, done)))


async def _forget(plane: ControlPlane) -> None:
    """Removes what has been kept for long enough."""
    removed = await forget_old(plane, time.time())
    if removed:
        kept = span(plane.context.settings.keep_invocations_s)
        log.info("removed %d invocations that ended over %s ago", removed, kept)


def _in_words(item: wire.Collected) -> str:
    """For the log."""
    return (
        f"{item.kind} {item.name:.19}, {size(item.size_bytes)}, {item.reason} {item.note}".strip()
    )
