"""The route that changes the key of `.env` values, and what has to be so before it may."""

from __future__ import annotations

from multinode import wire
from multinode.errors import Conflict
from multinode_control_plane.api.calls import Call, ControlPlane, until
from multinode_control_plane.secret_keys import Source
from multinode_control_plane.service import rings, sealing
from multinode_control_plane.service.audit import Act

TOLD_S = 10.0
"""How long the other processes may take to tell that they have the new key."""


async def rotate_key(call: Call) -> wire.RotatedKey:
    """Encrypts all `.env` values with a new key, and retires the old ones. Asked again, it goes on with one that was broken off."""
    store, sealer = call.plane.store, call.plane.context.sealer
    source, request_key = sealer.source, call.query("request_key") or ""
    assert source is not None, "the server gives its sealer one"
    target = await store.write(lambda tx: sealing.prepare(tx, sealer, source, request_key))
    if store.database.is_shared:
        await _see_that_all_have(call.plane, target, source)
    rotation = await call.act(
        lambda tx: sealing.begin(tx, sealer, source, target, request_key),
        lambda begun: None if begun.is_known else Act("rotate key", begun.key_id),
    )
    count = None
    while count is None:
        if not await store.write(lambda tx: sealing.go_on(tx, sealer, rotation)):
            count = await store.write(lambda tx: sealing.end(tx, sealer, source, rotation))
    left = ""
    if not source.is_writable and rotation.retiring:
        left = (
            f"{source.name} still has the old keys: take them out of it. They are needed no more."
        )
    return wire.RotatedKey(rotation.key_id, count, list(rotation.retiring), left)


async def _see_that_all_have(plane: ControlPlane, key: str, source: Source) -> None:
    """Raises Conflict where another process lives that does not have it; the ring keeps the key, for when it has."""
    store = plane.store
    await store.write(lambda tx: tx.changed(rings.ASKED))

    async def look() -> tuple[bool, list[str]]:
        lacking = await store.read(
            lambda c: rings.lacking(c, key, store.database.listeners(c) - {store.id})
        )
        return not lacking, lacking

    lacking = await until(plane, [rings.TOLD], TOLD_S, look)
    if lacking:
        message = (
            f"The new key is in {source.name}, but other control planes do not have it; nothing was encrypted with it. "
            f"They use: {'; '.join(lacking)}."
        )
        hint = (
            "Give all one ring (--secret-key-from aws:SECRET_ID, or file:PATH on a file system that all have), or copy "
            "this ring to theirs; then run `multinode server rotate-key` again."
        )
        raise Conflict(message, hint)
