"""The request that is being answered: what its parts say of it to whoever looks in, without each being handed it."""

from __future__ import annotations

import re
import secrets
import time
from contextvars import ContextVar
from dataclasses import dataclass, field

IDS = ("request_id", "project", "invocation_id", "execution_id", "worker_id")
"""What a log line may be about, in this order."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")


def request_id_of(header: str | None) -> str:
    """That of the ``X-Request-Id`` header where it is 1 to 64 of ``A-Z a-z 0-9 . _ -``, else a new one."""
    if header is not None and _REQUEST_ID.fullmatch(header):
        return header
    return f"req-{secrets.token_hex(8)}"


@dataclass
class Asked:
    """One request. ``waited_s`` is how long the client asked to wait for a change, and did."""

    request_id: str
    began_at: float = field(default_factory=time.perf_counter)
    waited_s: float = 0.0
    traceparent: str | None = None
    """Of the caller, valid; then of the request's own span, where spans are made."""
    project: str | None = None
    invocation_id: str | None = None
    worker_id: str | None = None
    address: str = ""
    """Of the client."""
    counted_as: str | None = None
    """The key under which it is counted as open, until it is answered."""

    def worked_s(self) -> float:
        """Since it came, without waiting."""
        return time.perf_counter() - self.began_at - self.waited_s

    def ids(self) -> dict[str, str | None]:
        """What it is about, as far as that is known by now."""
        return {
            "request_id": self.request_id,
            "project": self.project,
            "invocation_id": self.invocation_id,
            "worker_id": self.worker_id,
        }


current: ContextVar[Asked | None] = ContextVar("asked", default=None)
"""Of this task. Tasks that a request starts inherit it."""


def waited(seconds: float) -> None:
    """The request that is being answered, if any, waited for so long for a change."""
    asked = current.get()
    if asked is not None:
        asked.waited_s += seconds


def trace() -> str | None:
    """The traceparent of the request that is being answered, kept with what it starts."""
    asked = current.get()
    return asked.traceparent if asked else None
