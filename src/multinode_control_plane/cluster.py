"""This process among those that share the database: it hears them, waits to lead, leads, and hands over."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Coroutine
from typing import Any

from multinode.errors import ControlPlaneError
from multinode_control_plane.api.calls import ControlPlane
from multinode_control_plane.api.forwarding import Forwarding
from multinode_control_plane.leadership import Leadership
from multinode_control_plane.leading import Leading
from multinode_control_plane.notifications import KEYS, Notice, Notifications
from multinode_control_plane.service import rings
from multinode_control_plane.store import Transaction

log = logging.getLogger("multinode")


class Cluster:
    """Lives on the event loop. ``fallen(error)`` is called, once, when this process can no longer take part: it has to end.

    Until it leads, a process serves what needs the store alone, and passes the rest on.
    """

    def __init__(
        self,
        plane: ControlPlane,
        leading: Leading,
        url: str,
        fallen: Callable[[BaseException | None], None],
    ) -> None:
        self.settled = asyncio.Event()
        """Somebody leads: this process, or another."""
        self._plane, self._leading, self._url, self._fallen = plane, leading, url, fallen
        self._leadership = Leadership(plane.store, lambda: fallen(None))
        self._notifications = Notifications(
            plane.store, self._hear, self._deafened, lambda: plane.leads
        )
        self._forwarding = Forwarding(
            self._leadership.lives, plane.store, plane.context.settings.certificate
        )
        self._stopped = asyncio.Event()
        self._waiting: asyncio.Task[None] | None = None
        self._missed: list[Notice] = []
        """Heard while the scheduler opened."""
        self._has_missed = False
        """Whether something may not have been heard then."""
        self._tasks: set[asyncio.Task[Any]] = set()

    async def open(self) -> None:
        """Begins to hear, and to wait for its turn to lead."""
        self._plane.leads = False
        self._plane.forwarding = self._forwarding
        self._notifications.open()
        # This process made keys of its own before it could tell anybody.
        await self._plane.store.write(lambda tx: tx.changed(KEYS))
        self._waiting = self._spawn(self._lead())

    async def hand_over(self) -> None:
        """Leads no more, or never; another can at once. What is asked of this process is then passed on."""
        self._stopped.set()
        if self._waiting is not None:
            await asyncio.wait([self._waiting])
        await self._leading.end()
        await self._leadership.release()

    def forward_no_more(self) -> None:
        """This process serves no more: what it has passed on is answered soon, or sent elsewhere."""
        self._forwarding.end()

    async def close(self) -> None:
        """After `hand_over`, and when nothing is asked any more."""
        await asyncio.to_thread(self._notifications.close)
        await self._forwarding.close()

    async def _lead(self) -> None:
        try:
            if not await self._leadership.wait(lambda _: self.settled.set(), self._stopped):
                return
            await self._leading.begin()
            for notice in self._missed:
                self._heed(notice)
            self._missed.clear()
            if self._has_missed:
                await self._plane.scheduler.catch_up()
            await self._leadership.show(self._url)
        except Exception as error:  # the outermost edge of this task: the process ends with it
            self._fallen(error)
        finally:
            self.settled.set()

    def _hear(self, notice: Notice) -> None:
        self._plane.store.changes.fire(set(notice.events))
        if KEYS in notice.events:
            self._spawn(self._plane.read_keys())
        if self._plane.leads:
            self._heed(notice)
        elif self._leadership.epoch is not None:
            self._missed.append(notice)
        if rings.ASKED in notice.events:
            self._spawn(self._tell_ring())

    def _heed(self, notice: Notice) -> None:
        if notice.effects or notice.woken:
            self._plane.scheduler.heed(list(notice.effects), woken=notice.woken)

    def _deafened(self) -> None:
        self._plane.store.changes.fire_each()
        self._spawn(self._plane.read_keys())
        self._spawn(self._tell_ring())
        if self._plane.leads:
            self._spawn(self._plane.scheduler.catch_up())
        elif self._leadership.epoch is not None:
            self._has_missed = True

    async def _tell_ring(self) -> None:
        """Stores which keys of `.env` values this process has."""
        store, sealer = self._plane.store, self._plane.context.sealer
        if sealer.source is None:
            return
        await asyncio.to_thread(sealer.refresh)
        place = f"{sealer.source.name} on {socket.gethostname()}"

        def job(tx: Transaction) -> None:
            living = store.database.listeners(tx.connection)
            rings.tell(tx, store.id, place, sealer.key_ids, living)

        try:
            await store.write(job, durable=False)
        except ControlPlaneError as error:  # it is asked again where it matters
            log.warning("which keys this process has could not be told: %s", error)

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return task

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            # Where the database was away: whoever listens again looks again.
            log.warning("what the other processes change is not read: %s", task.exception())
