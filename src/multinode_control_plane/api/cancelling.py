"""Cancelling thousands over the writer: steps, one transaction each, until few are left."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from multinode_control_plane.service import cancelling
from multinode_control_plane.store import Store


async def cancel_waiting(store: Store, project: str, function: str | None = None) -> list[str]:
    """Cancels what waits for a worker in the project, or of one function of it; the ids. Raises ProjectNotFound."""
    last = await store.read(cancelling.newest)
    job = partial(cancelling.waiting, project=project, function=function, last=last)
    cancelled = await store.write(job)
    some = cancelled
    while len(some) == cancelling.STEP:
        some = await store.write(job)
        cancelled = cancelled + some
    return cancelled


async def cancel_children(store: Store, invocation_ids: Sequence[str], within: str | None) -> None:
    """Cancels waiting children of these, where they are many. Raises InvocationNotFound."""
    look = partial(cancelling.has_many_children, invocation_ids=list(invocation_ids), within=within)
    if not await store.read(look):
        return
    step = partial(cancelling.children, invocation_ids=list(invocation_ids), within=within)
    while await store.write(step):
        pass
