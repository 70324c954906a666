"""What is kept for a time: lines of the audit log, costs, and invocations that have ended. Removed in steps that nobody notices.

A step has the store's writer for a few milliseconds, waits for no disk, and is followed by a pause in which others write.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from functools import partial

from multinode_control_plane.api.calls import ControlPlane
from multinode_control_plane.service import audit, costs, retention
from multinode_control_plane.store import Transaction

STEP_S = 0.005
"""How long a step has the writer before it stops by itself."""
PAUSE_S = 0.05
"""After each step at least; where the step took long, five times as long."""


async def forget_old(plane: ControlPlane, now: float) -> int:
    """Removes what is to be kept no longer at ``now`` (POSIX seconds); how many invocations that were."""
    settings = plane.context.settings
    for kept_s, forget in (
        (settings.keep_audit_s, audit.forget),
        (settings.keep_costs_s, costs.forget),
    ):
        if kept_s:
            await _forget_rows(plane, partial(forget, before=now - kept_s))
    if not settings.keep_invocations_s:
        return 0
    return await _forget_invocations(plane, before=now - settings.keep_invocations_s)


async def _forget_rows(plane: ControlPlane, step: Callable[[Transaction], bool]) -> None:
    while await plane.store.write(step, durable=False):
        await asyncio.sleep(PAUSE_S)


async def _forget_invocations(plane: ControlPlane, before: float) -> int:
    removed, after = 0, 0
    while True:
        look = partial(retention.page, after=after, before=before)
        page = await plane.store.read(look)
        if page is None:
            return removed
        # Their output first: once the rows are gone, nobody would know of it.
        if page.execution_ids and not plane.runner.output_expires:
            await plane.runner.remove_logs(page.execution_ids)
        await _remove(plane, page.invocation_ids)
        removed += len(page.invocation_ids)
        after = page.last_seq
        await asyncio.sleep(PAUSE_S)


async def _remove(plane: ControlPlane, invocation_ids: list[str]) -> None:
    left = invocation_ids
    while left:
        done, took_s = await plane.store.write(partial(_step, invocation_ids=left), durable=False)
        left = left[done:]
        await asyncio.sleep(max(PAUSE_S, 5 * took_s))


def _step(tx: Transaction, invocation_ids: list[str]) -> tuple[int, float]:
    """How many are gone, and how long that took."""
    began_at = time.monotonic()
    until = began_at + STEP_S
    done = retention.remove(tx, invocation_ids, lambda: time.monotonic() < until)
    return done, time.monotonic() - began_at
