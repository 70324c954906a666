"""The request that is being answered: what its parts say of it to whoever looks in, without each being handed it."""

from __future__ import annotations

import time
from contextvars import ContextVar
from dataclasses import dataclass, field


@dataclass
class Asked:
    """One request. ``waited_s`` is how long the client asked to wait for a change, and did."""

    began_at: float = field(default_factory=time.perf_counter)
    waited_s: float = 0.0

    def worked_s(self) -> float:
        """Since it came, without waiting."""
        return time.perf_counter() - self.began_at - self.waited_s


current: ContextVar[Asked | None] = ContextVar("asked", default=None)
"""Of this task. Tasks that a request starts inherit it."""


def waited(seconds: float) -> None:
    """The request that is being answered, if any, waited for so long for a change."""
    asked = current.get()
    if asked is not None:
        asked.waited_s += seconds
