"""Where several processes share a database: waiting to lead, showing that the leader lives, and knowing when it is another.

No wall clocks are compared. A process that waits sees the leader's beat grow; where it does not for `PATIENCE_S` of its own clock, it
takes over with the next epoch. From then on every transaction of the one before is refused (`Store.fence`), whatever it believes.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from functools import partial

import sqlalchemy as sa

from multinode.errors import ControlPlaneError, ServerStopping
from multinode_control_plane.service import leaders
from multinode_control_plane.service.leaders import Leader
from multinode_control_plane.store import Store

log = logging.getLogger(__name__)

BEAT_S = 1.0
PATIENCE_S = 6.0
"""How long the beat may stand still."""
LOOK_S = 0.5
BLIND_S = 2.0
"""A look that took longer than this says nothing of the time that it took: the leader may have had to wait as well."""


class Watch:
    """Decides from what was seen, and when, whether the leader is dead. Pure: ``now`` is of any clock that only grows."""

    def __init__(self) -> None:
        self._seen: Leader | None = None
        self._since = 0.0
        self.alive_epoch: int | None = None
        """Of the leader that was seen to live. The row of a database that was restored names one that does not live there."""

    def is_free(self, seen: Leader, now: float) -> bool:
        """Whether nobody leads, or the same beat has been seen for too long."""
        if self._seen is None or (seen.epoch, seen.beat) != (self._seen.epoch, self._seen.beat):
            if self._seen is not None:
                self.alive_epoch = seen.epoch
            self._seen, self._since = seen, now
        return seen.holder is None or now - self._since >= PATIENCE_S

    def leave_out(self, seconds: float) -> None:
        """For so long nothing could be seen, and nothing shown."""
        self._since += seconds

    def forget(self) -> None:
        """The database could not be looked at: the leader may have lived meanwhile."""
        self._seen = None


class Leadership:
    """This process's part. ``deposed`` is called on the loop, once, when it is found that another leads."""

    def __init__(self, store: Store, deposed: Callable[[], None]) -> None:
        self.epoch: int | None = None
        self.url: str | None = None
        self._store = store
        self._deposed = deposed
        self._beating: asyncio.Task[None] | None = None
        self._watch = Watch()
        self._led: int | None = None
        """The epoch in which this process led, also when it leads no more."""

    def lives(self, leader: Leader) -> bool:
        """Whether this process has seen that it does: its beat, or that it took over; or is it, for what waited until it led."""
        has_followed = self._led is not None and leader.epoch >= self._led
        is_seen = leader.epoch == self._watch.alive_epoch
        return leader.holder is not None and (has_followed or is_seen)

    async def wait(self, waiting: Callable[[Leader], None], stopped: asyncio.Event) -> bool:
        """Returns True when this process leads, False when it was stopped before. ``waiting`` is called when another leads."""
        watch, told = self._watch, False
        while not stopped.is_set():
            began = time.monotonic()
            try:
                seen = await self._store.look(leaders.read)
                took_s = time.monotonic() - began
                if took_s > BLIND_S:
                    watch.leave_out(took_s)
                if watch.is_free(seen, time.monotonic()) and await self._take(seen):
                    return True
                if not told:
                    told = True
                    waiting(seen)
            except ControlPlaneError as error:
                log.warning("the leader cannot be seen: %s", error)
                watch.forget()
            try:
                await asyncio.wait_for(stopped.wait(), LOOK_S)
            except asyncio.TimeoutError:  # on Python 3.10 not the built-in one
                continue
        return False

    async def _take(self, seen: Leader) -> bool:
        job = partial(leaders.take, seen=seen, holder=self._store.id)
        self.epoch = await self._store.write(job)
        if self.epoch is None:
            return False
        self._led = self.epoch
        self._store.fence = self._check
        self._beating = asyncio.get_running_loop().create_task(self._beat())
        log.info("this process leads, in epoch %d", self.epoch)
        return True

    def _check(self, connection: sa.Connection) -> None:
        """In the writer's thread and transaction: only the leader may change anything."""
        if leaders.current_epoch(connection) == self.epoch:
            return
        self._store.on_loop(self._step_down)
        message = "Another control plane leads by now; this one stops."
        raise ServerStopping(message, "Ask again in a moment.")

    def _step_down(self) -> None:
        if self.epoch is not None:
            log.error("another process leads by now: this one stops")
            self.epoch = None
            self._deposed()

    async def _beat(self) -> None:
        while self.epoch is not None:
            try:
                job = partial(leaders.beat, epoch=self.epoch, url=self.url)
                await self._store.write(job, durable=False)
            except ServerStopping:
                return
            except ControlPlaneError as error:  # the database is away: for the others too
                log.warning("the leader's beat could not be stored: %s", error)
            await asyncio.sleep(BEAT_S)

    async def show(self, url: str) -> None:
        """Tells the others where they reach the leader, from now on."""
        self.url = url
        if self.epoch is not None:
            await self._store.write(partial(leaders.beat, epoch=self.epoch, url=url))

    async def release(self) -> None:
        """Lets another lead, at once. What this process writes from now on, it writes as any other."""
        if self._beating is not None:
            self._beating.cancel()
        if self.epoch is None:
            return
        try:
            await self._store.write(partial(leaders.release, epoch=self.epoch))
        except ControlPlaneError as error:
            log.warning("the others will notice by themselves that this one has stopped: %s", error)
        self.epoch = None
        self._store.fence = lambda connection: None
