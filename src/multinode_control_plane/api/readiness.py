"""Whether this process can serve now: what load balancers and service managers ask before they send anybody here."""

from __future__ import annotations

import asyncio
import time

from multinode.errors import ControlPlaneError, NotReady
from multinode_control_plane.service import sealing
from multinode_control_plane.service.dotenv import Sealer, missing_key
from multinode_control_plane.store import Store

ANSWER_S = 2.0
"""How long the store may take to answer."""
FRESH_S = 1.0
"""How long its answer holds: whoever asks needs no key, and may not keep the store busy."""

STARTING, READY, DRAINING = "starting", "ready", "draining"


class Readiness:
    """``starting``, then ``ready``, then ``draining``, and never back. Lives on the event loop.

    A process that drains goes on answering: only new clients are to go elsewhere.
    """

    def __init__(self, store: Store, sealer: Sealer | None = None) -> None:
        self.state = STARTING
        self._store, self._sealer = store, sealer
        self._why = "It is starting."
        self._asking: asyncio.Task[None] | None = None
        self._answered_at: float | None = None

    def open(self) -> None:
        """Its scheduler is open: from now on it can serve, unless it drains already."""
        if self.state == STARTING:
            self.state = READY

    def drain(self, why: str) -> None:
        """It was asked to stop. ``why`` is a sentence for people."""
        self.state, self._why = DRAINING, why

    @property
    def is_draining(self) -> bool:
        """Whether clients are to go elsewhere."""
        return self.state == DRAINING

    async def check(self) -> None:
        """Returns where it can serve. Raises NotReady with the reason."""
        if self.state != READY:
            raise NotReady(self._why, "Use another one, or ask again in a moment.")
        if self._answered_at is None or time.monotonic() - self._answered_at > FRESH_S:
            await self._ask_store()

    async def _ask_store(self) -> None:
        """One question at a time: where the store hangs, askers must not take all its readers."""
        if self._asking is None:
            self._asking = asyncio.get_running_loop().create_task(self._read())
        asking = self._asking
        await asyncio.wait([asking], timeout=ANSWER_S)
        if not asking.done():
            message = f"Its store has not answered for {ANSWER_S:.0f} s."
            raise NotReady(message, "Look at the database and at the server's log.")
        if self._asking is asking:
            self._asking = None
        try:
            asking.result()
        except ControlPlaneError as error:
            raise NotReady(error.message, error.hint) from error

    async def _read(self) -> None:
        key = await self._store.read(sealing.current)
        if key is not None and self._sealer is not None:
            await self._see_key(self._sealer, key)
        self._answered_at = time.monotonic()

    async def _see_key(self, sealer: Sealer, key: str) -> None:
        """Raises NotReady where its ring lacks the key that encrypts `.env` values: what it lacks it can neither open nor hand on."""
        if not await asyncio.to_thread(sealer.has, key):
            raise NotReady(*missing_key(sealer.source, key, sealer.key_ids))
