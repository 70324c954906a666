"""API keys and roles: who is asking, and what each role may do."""

from __future__ import annotations

import re
import secrets
from collections.abc import Iterable
from dataclasses import dataclass

import sqlalchemy as sa

from multinode import wire
from multinode.errors import Conflict, InvalidName, InvalidRequest, KeyNotFound, NotAllowed
from multinode_control_plane import model
from multinode_control_plane.model import keys
from multinode_control_plane.service.deployments import check_name
from multinode_control_plane.service.executions import WorkerIdentity
from multinode_control_plane.service.hashing import hash_secret, is_same_secret
from multinode_control_plane.store import Transaction

RANK = {role: rank for rank, role in enumerate(reversed(wire.ROLES))}
"""``read`` 0, ``invoke`` 1, ``deploy`` 2, ``admin`` 3: each may do what the lower ones may."""


@dataclass(frozen=True)
class Caller:
    """Who is asking. ``worker`` is set for a worker's token, whose ``role`` is ``worker``; ``project`` for a key of one project."""

    name: str
    role: str
    worker: WorkerIdentity | None = None
    project: str | None = None

    @property
    def within(self) -> str | None:
        """The only project that the caller may see; None is all of them."""
        return self.worker.project if self.worker else self.project

    def check(self, project: str) -> str:
        """``project``. Raises NotAllowed where the caller is for another one, be there such a project or not."""
        if self.within in (None, project):
            return project
        if self.worker is not None:
            message = f"A worker of {self.within!r} may not use the project {project!r:.100}."
            hint = "Use an API key (MULTINODE_API_URL, MULTINODE_API_KEY in .env)."
        else:
            message = f"The key {self.name!r} is for the project {self.within!r} alone, not for {project!r:.100}."
            hint = "Ask an admin for a key for that project."
        raise NotAllowed(message, hint)

    def check_unlimited(self) -> None:
        """Raises NotAllowed where the caller is for one project, and what is asked for is of all of them."""
        if self.within is not None:
            message = (
                f"This is of all projects, and the key {self.name!r} is for {self.within!r} alone."
            )
            raise NotAllowed(message, "Ask an admin for a key without a project.")


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
    if request.project is not None:
        check_name(request.project)
        if request.role == "admin":
            message = "A key for one project cannot have the role admin, which is for all of the control plane."
            raise InvalidRequest(message, "Give it the role deploy, invoke or read.")
    existing = tx.connection.execute(sa.select(keys).where(keys.c.name == request.name)).first()
    if existing is not None and existing.revoked_at is None:
        message = f"There is a key {request.name!r} already."
        raise Conflict(message, "Revoke it first, or take another name.")
    tx.connection.execute(sa.delete(keys).where(keys.c.name == request.name))
    tx.changed("keys")
    secret = key or new_secret()
    tx.connection.execute(
        sa.insert(keys).values(
            name=request.name,
            role=request.role,
            hash=hash_secret(secret),
            created_at=tx.now,
            project=request.project,
        )
    )
    return wire.KeyInfo(
        request.name, request.role, model.to_time(tx.now), key=secret, project=request.project
    )


def new_secret() -> str:
    """A key that nobody has."""
    return "mnk_" + secrets.token_urlsafe(32)


ADMIN_KEY = "admin"


def has_admin_key(connection: sa.Connection) -> bool:
    """Whether there is, or was, a key `ADMIN_KEY`."""
    found = connection.execute(sa.select(keys.c.name).where(keys.c.name == ADMIN_KEY))
    return found.first() is not None


def take_admin_key(tx: Transaction, secret: str, *, only_first: bool = False) -> bool:
    """Makes ``secret`` the key `ADMIN_KEY`; with ``only_first`` where there has been none. Whether it is that key now.

    Raises Conflict where another name has it. What was revoked is not revived.
    """
    hashed = hash_secret(secret)
    owner = tx.connection.execute(sa.select(keys.c.name).where(keys.c.hash == hashed)).scalar()
    if owner is not None and owner != ADMIN_KEY:
        message = f"{owner!r} has the key that the admin key's file names."
        raise Conflict(message, "Write another one into it.")
    if owner is not None or (only_first and has_admin_key(tx.connection)):
        return owner is not None
    tx.connection.execute(sa.delete(keys).where(keys.c.name == ADMIN_KEY))
    create_key(tx, wire.KeyRequest(ADMIN_KEY, "admin"), key=secret)
    return True


def revoke_key(tx: Transaction, name: str) -> wire.KeyInfo:
    """Makes the key void. Revoking it twice changes nothing."""
    row = tx.connection.execute(sa.select(keys).where(keys.c.name == name)).first()
    if row is None:
        message = f"There is no key {name!r:.100}."
        raise KeyNotFound(message, "`multinode key list` shows all.")
    tx.changed("keys")
    revoked_at = row.revoked_at if row.revoked_at is not None else tx.now
    tx.connection.execute(sa.update(keys).where(keys.c.name == name).values(revoked_at=revoked_at))
    return wire.KeyInfo(
        row.name,
        row.role,
        model.to_time(row.created_at),
        model.to_time(revoked_at),
        project=row.project,
    )


def list_keys(connection: sa.Connection) -> list[wire.KeyInfo]:
    """All keys by name, without their secrets."""
    return [
        wire.KeyInfo(
            row.name,
            row.role,
            model.to_time(row.created_at),
            model.to_time_or_none(row.revoked_at),
            project=row.project,
        )
        for row in sorted(connection.execute(sa.select(keys)), key=lambda row: str(row.name))
    ]


class KeyRing:
    """The valid keys by their hashes.

    One is found by the beginning of its hash, then compared whole in constant time: how long a refusal takes says nothing.
    """

    def __init__(self, callers: Iterable[tuple[str, Caller]] = ()) -> None:
        self._by_start: dict[str, list[tuple[str, Caller]]] = {}
        for known, caller in callers:
            self._by_start.setdefault(known[:_START], []).append((known, caller))

    def find(self, secret: str) -> Caller | None:
        """Whose key it is; None for one that is wrong or revoked."""
        given = hash_secret(secret)
        found = None
        for known, caller in self._by_start.get(given[:_START], ()):
            if is_same_secret(known, given):
                found = caller
        return found


_START = 8


def key_ring(connection: sa.Connection) -> KeyRing:
    """The keys that are valid now."""
    found = connection.execute(sa.select(keys).where(keys.c.revoked_at.is_(None)))
    return KeyRing((row.hash, Caller(row.name, row.role, project=row.project)) for row in found)
