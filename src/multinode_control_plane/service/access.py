"""API keys and roles: who is asking, and what each role may do."""

from __future__ import annotations

import re
import secrets
from dataclasses import dataclass

import sqlalchemy as sa

from multinode import wire
from multinode.errors import Conflict, InvalidName, InvalidRequest, KeyNotFound
from multinode_control_plane import model
from multinode_control_plane.model import keys
from multinode_control_plane.service.executions import WorkerIdentity, hash_secret
from multinode_control_plane.store import Transaction

RANK = {role: rank for rank, role in enumerate(reversed(wire.ROLES))}
"""``read`` 0, ``invoke`` 1, ``deploy`` 2, ``admin`` 3: each may do what the lower ones may."""


@dataclass(frozen=True)
class Caller:
    """Who is asking. ``worker`` is set for a worker's token, whose ``role`` is ``worker``."""

    name: str
    role: str
    worker: WorkerIdentity | None = None

    @property
    def within(self) -> str | None:
        """The only project that the caller may see; None is all of them."""
        return self.worker.project if self.worker else None


def permits(caller: Caller, *, role: str | None, worker: bool) -> bool:
    """Whether the caller may use a route that asks for ``role`` (None: no role will do) or a worker's token."""
    if caller.worker is not None:
        return worker
    return role is not None and RANK[caller.role] >= RANK[role]


def create_key(
    tx: Transaction, request: wire.KeyRequest, *, key: str | None = None
) -> wire.KeyInfo:
    """A new key, told this once. Raises Conflict where the name is in use."""
    if not re.fullmatch(r"[A-Za-z0-9_.-]{1,63}", request.name):
        message = f"{request.name!r:.100} is not a key's name."
        raise InvalidName(message, "Use 1 to 63 of: A-Z a-z 0-9 . - _")
    if request.role not in wire.ROLES:
        message = f"There is no role {request.role!r:.100}."
        raise InvalidRequest(message, f"One of: {', '.join(wire.ROLES)}.")
    existing = tx.connection.execute(sa.select(keys).where(keys.c.name == request.name)).first()
    if existing is not None and existing.revoked_at is None:
        message = f"There is a key {request.name!r} already."
        raise Conflict(message, "Revoke it first, or take another name.")
    tx.connection.execute(sa.delete(keys).where(keys.c.name == request.name))
    secret = key or "mnk_" + secrets.token_urlsafe(32)
    tx.connection.execute(
        sa.insert(keys).values(
            name=request.name, role=request.role, hash=hash_secret(secret), created_at=tx.now
        )
    )
    return wire.KeyInfo(request.name, request.role, model.to_time(tx.now), key=secret)


def revoke_key(tx: Transaction, name: str) -> wire.KeyInfo:
    """Makes the key void. Revoking it twice changes nothing."""
    row = tx.connection.execute(sa.select(keys).where(keys.c.name == name)).first()
    if row is None:
        message = f"There is no key {name!r:.100}."
        raise KeyNotFound(message, "`multinode key list` shows all.")
    revoked_at = row.revoked_at if row.revoked_at is not None else tx.now
    tx.connection.execute(sa.update(keys).where(keys.c.name == name).values(revoked_at=revoked_at))
    return wire.KeyInfo(
        row.name, row.role, model.to_time(row.created_at), model.to_time(revoked_at)
    )


def list_keys(connection: sa.Connection) -> list[wire.KeyInfo]:
    """All keys by name, without their secrets."""
    return [
        wire.KeyInfo(
            row.name,
            row.role,
            model.to_time(row.created_at),
            model.to_time_or_none(row.revoked_at),
        )
        for row in sorted(connection.execute(sa.select(keys)), key=lambda row: str(row.name))
    ]


def callers(connection: sa.Connection) -> dict[str, Caller]:
    """Hash of each valid key to who that is."""
    found = connection.execute(sa.select(keys).where(keys.c.revoked_at.is_(None)))
    return {row.hash: Caller(row.name, row.role) for row in found}
