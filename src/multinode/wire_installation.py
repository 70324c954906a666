"""The installation where it crosses the network: API keys, the audit log, the control plane itself; part of ``wire``, which says what holds for all of it."""

from __future__ import annotations

from .records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Optional


class KeyRequest(Record):
    """Body of ``POST /v1/keys``."""

    name: str
    role: str
    project: Optional[str] = None
    """The only project that the key is for; None is all of them."""


class KeyInfo(Record):
    """An API key; ``key`` is there only in the answer that makes it."""

    name: str
    role: str
    created_at: str
    revoked_at: Optional[str] = None
    key: Optional[str] = None
    project: Optional[str] = None
    """The only project that the key is for; None is all of them."""


class AuditLine(Record):
    """Something that somebody did. ``count`` over 1: to so many, of which ``target`` is the first."""

    at: str
    key_name: str
    role: str
    action: str
    """``deploy``, ``rollback``, ``remove``, ``invoke``, ``retry``, ``cancel``, ``make key``, ``revoke key``, ``rotate key`` or ``stop server``."""
    target: str
    project: Optional[str] = None
    count: int = 1


class AuditLog(Record):
    """Answer of ``GET /v1/audit``: a page, newest first. ``next_offset`` is the ``offset`` of the next page."""

    lines: List[AuditLine]
    next_offset: Optional[str] = None


class RotatedKey(Record):
    """Answer of ``POST /v1/server/rotate-key``: the id of the key that encrypts `.env` values now."""

    key_id: str
    versions: int
    """Versions that were encrypted anew."""
    retired: List[str]
    """Ids of the keys that encrypt nothing any more."""
    left: str = ""
    """What is left to do by hand, in a sentence."""


class ServerInfo(Record):
    """Answer of ``GET /v1/server``: the control plane, and who is asking."""

    version: str
    runner: str
    database: str
    pid: int
    started_at: str
    key_name: str
    role: str
    workers: int
    in_flight: int
    cpu_capacity: float
    memory_capacity_mib: int
    enforces: List[str]
    """Which of ``cpu`` and ``memory`` the runner enforces."""
    clock: str = ""
    """The control plane's time."""
    unenforced_reason: str = ""
    """Why ``enforces`` is not all."""
    project: Optional[str] = None
    """The only project that the caller's key is for; ``workers``, ``in_flight`` and ``running`` are those of it."""
    running: Optional[int] = None
    """Those in flight that have a worker, on its way or at work; the others are pending. None: an older control plane."""


class Finding(Record):
    """One line of ``doctor``. ``state``: ``ok``, ``note`` (works, but worth knowing) or ``FAIL``, with its ``cure``."""

    check: str
    state: str
    finding: str
    cure: str = ""


class Collected(Record):
    """Something that nothing needed, and was removed; ``kind`` is ``environment``, ``image``, ``layers``, ``bundle``, or ``output``: all of it in one."""

    kind: str
    name: str
    size_bytes: int
    reason: str = ""
    note: str = ""
    """What is left of it elsewhere, in a sentence."""


class StopRequest(Record):
    """Body of ``POST /v1/server/stop``.

    ``mode``: ``drain`` waits for what runs, ``now`` cancels it, ``restart`` leaves workers running.
    """

    mode: str = "drain"
