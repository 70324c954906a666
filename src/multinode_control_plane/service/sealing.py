"""Which key encrypts `.env` values now, and the rotation to another.

One row says it: the id of the current key, and the key of digests and tokens (see `Sealer`), encrypted with the current one. A
rotation can be broken off anywhere and begun again: the ring has both keys before the row names the new one, every process
asks the row before it encrypts, and the old keys leave the ring when the last value has left them. Its steps are `prepare`,
`begin`, `go_on` until nothing is left, `end`. The row keeps what the last one was asked with and has done: who asks again
with the same key, since the answer was lost, is told of that one.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from typing import Any

import sqlalchemy as sa

from multinode.errors import Conflict, InputError, InternalError
from multinode_control_plane.model import sealing, versions
from multinode_control_plane.secret_keys import NEW_KEY, Source, key_id, new_key
from multinode_control_plane.service.dotenv import Sealer, mac_key_of
from multinode_control_plane.store import Transaction

BATCH = 100
"""Versions that one transaction encrypts anew: others wait that long for theirs."""
_MAC = "mac"


@dataclass(frozen=True)
class Rotation:
    """One that is under way, from any of the ``retiring`` ids to ``key_id``. ``is_known``: this request has begun it before."""

    key_id: str
    retiring: tuple[str, ...]
    is_known: bool = False


def current(connection: sa.Connection) -> str | None:
    """The id of the key that encrypts now; None before the first start with a ring."""
    found: str | None = connection.execute(sa.select(sealing.c.key_id)).scalar()
    return found


def open_sealer(tx: Transaction, source: Source) -> Sealer:
    """What encrypts and decrypts for this process; at the first start of all it makes the ring, if need be, and the row.

    Raises InputError where the ring cannot open what the database holds.
    """
    row = tx.connection.execute(sa.select(sealing)).first()
    unlabelled = tx.connection.execute(
        sa.select(versions.c.dotenv).where(versions.c.sealed_with.is_(None)).limit(1)
    ).scalar()
    keys = source.read()
    if not keys:
        if row is not None or unlabelled is not None:
            raise _foreign(source, row.key_id if row is not None else "unknown", [])
        keys = source.make()
    sealer = Sealer(keys)
    needed = set(tx.connection.execute(sa.select(versions.c.sealed_with).distinct()).scalars())
    needed |= {row.key_id} if row is not None else set()
    missing = sorted(each for each in needed if each not in (None, *sealer.key_ids))
    if missing:
        raise _foreign(source, " and ".join(missing), sealer.key_ids)
    try:
        if unlabelled is not None:
            sealer.open(unlabelled)
        if row is not None:
            mac_key = base64.b64decode(sealer.open(row.mac_key)[_MAC])
            return Sealer(keys, mac_key, source)
    except InternalError as error:
        raise _foreign(source, "unknown", sealer.key_ids) from error
    mac_key = mac_key_of(keys[-1])
    first = key_id(keys[0])
    sealed = sealer.seal({_MAC: base64.b64encode(mac_key).decode()}, first)
    tx.connection.execute(sa.insert(sealing).values(id=1, key_id=first, mac_key=sealed))
    return Sealer(keys, mac_key, source)


def _foreign(source: Source, wanted: str, have: list[str]) -> InputError:
    found = f"has {', '.join(have)}" if have else "is not there"
    message = (
        f"The database's .env values are encrypted with the key {wanted}. {source.name} {found}."
    )
    hint = "Give it the ring that encrypted them: --secret-key-from (MULTINODE_SECRET_KEY_FROM), or the file of a backup."
    return InputError(message, hint)


def prepare(tx: Transaction, sealer: Sealer, source: Source, request_key: str) -> str:
    """Sees to it that the ring has the key that comes next, and is the one of this request: its id. No value has it yet.

    It is the newest of the ring already where a rotation was broken off, or was put there by hand. Raises Conflict where the ring
    can be changed only by hand.
    """
    row = tx.connection.execute(sa.select(sealing)).one()
    keys = list(_ring(source))
    sealer.take(keys)
    if _is_asked_again(row, request_key):
        return str(row.key_id)
    is_begun = key_id(keys[0]) != row.key_id or _is_any_left(tx.connection, row.key_id)
    if not is_begun and source.is_writable:
        keys.insert(0, new_key())
        source.write(keys)
        sealer.take(keys)
    elif not is_begun and len(keys) == 1:
        raise Conflict(*_by_hand(source))
    return key_id(keys[0])


def _ring(source: Source) -> tuple[bytes, ...]:
    """What is in the ring. Raises Conflict where it is there no more: it must not be made anew from what is in memory alone."""
    keys = source.read()
    if not keys:
        raise _gone(source, "is not there any more")
    return keys


def _gone(source: Source, what: str) -> Conflict:
    message = f"{source.name}, which had the keys of .env values when this control plane was started, {what}."
    hint = (
        "Put the ring back from a copy, then run `multinode server rotate-key` again. Until it ends, "
        "the control plane still has the keys: do not stop it."
    )
    return Conflict(message, hint)


def begin(
    tx: Transaction, sealer: Sealer, source: Source, target: str, request_key: str
) -> Rotation:
    """Makes `prepare`'s key the current one. Raises Conflict where it has left the ring meanwhile."""
    row = tx.connection.execute(sa.select(sealing)).one()
    if _is_asked_again(row, request_key):
        return Rotation(row.key_id, tuple(row.retiring), is_known=True)
    ids = [key_id(key) for key in _ring(source)]
    if target not in ids:
        raise _overtaken()
    retiring = [each for each in ids if each != target]
    tx.connection.execute(
        sa.update(sealing).values(
            key_id=target,
            mac_key=sealer.reseal(row.mac_key, target),
            request_key=request_key,
            retiring=retiring,
            resealed=0,
        )
    )
    return Rotation(target, tuple(retiring))


def _is_asked_again(row: sa.Row[Any], request_key: str) -> bool:
    return bool(request_key) and row.request_key == request_key


def _overtaken() -> Conflict:
    message = "Another key has become the current one meanwhile."
    return Conflict(message, "Run `multinode server rotate-key` again.")


def _is_old(target: str) -> sa.ColumnElement[bool]:
    return sa.or_(versions.c.sealed_with.is_(None), versions.c.sealed_with != target)


def _is_any_left(connection: sa.Connection, target: str) -> bool:
    query = sa.select(versions.c.version_id).where(_is_old(target)).limit(1)
    return connection.execute(query).first() is not None


def _by_hand(source: Source) -> tuple[str, str]:
    message = f"{source.name} has one key, and the server cannot add another."
    hint = (
        f"Put a new key before the one in it, with a comma between (one is made by: {NEW_KEY}), restart the "
        "control plane (all of them, where several share a database), then run this again."
    )
    return message, hint


def go_on(tx: Transaction, sealer: Sealer, rotation: Rotation) -> bool:
    """Encrypts some versions anew: whether there were any. Raises Conflict where another rotation was begun."""
    if current(tx.connection) != rotation.key_id:
        raise _overtaken()
    query = sa.select(versions).where(_is_old(rotation.key_id)).limit(BATCH)
    found = list(tx.connection.execute(query))
    for row in found:
        tx.connection.execute(
            sa.update(versions)
            .where(versions.c.version_id == row.version_id)
            .values(
                dotenv=sealer.reseal(row.dotenv, rotation.key_id, row.sealed_with),
                sealed_with=rotation.key_id,
            )
        )
    if found:
        count = sa.func.coalesce(sealing.c.resealed, 0) + len(found)
        tx.connection.execute(sa.update(sealing).values(resealed=count))
    return bool(found)


def end(tx: Transaction, sealer: Sealer, source: Source, rotation: Rotation) -> int | None:
    """Takes the old keys out of the ring, if nothing is left that they encrypt, and says how many versions were encrypted anew,
    by all attempts. None: something was left, call it again.
    """
    if go_on(tx, sealer, rotation):
        return None
    keys = _ring(source)
    kept = [key for key in keys if key_id(key) == rotation.key_id]
    if not kept:  # somebody has put another ring there
        raise _gone(source, f"has the key {rotation.key_id} no more")
    if source.is_writable and len(kept) < len(keys):
        source.write(kept)
    return tx.connection.execute(sa.select(sealing.c.resealed)).scalar() or 0
