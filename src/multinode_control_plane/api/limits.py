"""How much one caller may ask for: wrong keys from one address, open requests with one key, bytes of one body.

Everything here is of this process alone, and lives on the event loop.
"""

from __future__ import annotations

import logging
import math
from collections import Counter, OrderedDict
from dataclasses import dataclass, field

from starlette.requests import Request

from multinode.errors import RequestTooLarge, TooManyRequests, TooManyWrongKeys

log = logging.getLogger("multinode")

WRONG_KEYS = 30
"""That are answered to one address within `WRONG_KEYS_S`."""
WRONG_KEYS_S = 60.0
OPEN_REQUESTS_S = 1.0
"""After which whoever has too many open requests may ask again."""
LOG_S = 60.0
"""Between two lines about the same caller."""
ADDRESSES = 10_000
"""Of which wrong keys are counted. The one that was counted first is forgotten for one more."""


@dataclass
class _Counted:
    since: float
    wrong: int = 0


@dataclass
class WrongKeys:
    """Counts wrong keys by address, in spans of `WRONG_KEYS_S` that begin with the first one. A valid key is never refused."""

    limit: int = WRONG_KEYS
    _counted: OrderedDict[str, _Counted] = field(default_factory=OrderedDict)

    def note(self, address: str, now: float) -> None:
        """One more, at ``now`` of a monotonic clock. Raises TooManyWrongKeys past the limit."""
        counted = self._counted.get(address)
        if counted is None or now - counted.since >= WRONG_KEYS_S:
            self._counted.pop(address, None)
            counted = self._counted[address] = _Counted(now)
            if len(self._counted) > ADDRESSES:
                self._counted.popitem(last=False)
        counted.wrong += 1
        if counted.wrong <= self.limit:
            return
        if counted.wrong == self.limit + 1:
            log.warning("over %d wrong keys from %s in a minute", self.limit, address)
        left_s = counted.since + WRONG_KEYS_S - now
        message = f"Over {self.limit} wrong API keys came from {address} within a minute."
        raise TooManyWrongKeys(
            message,
            "Correct the key (`multinode login`, or MULTINODE_API_KEY). A valid one is answered at once.",
            retry_after_s=left_s,
        )


@dataclass
class OpenRequests:
    """Counts the requests that are open with each key, and with each worker's token, from `begin` to `end`."""

    limit: int
    _open: Counter[str] = field(default_factory=Counter)
    _logged: dict[str, float] = field(default_factory=dict)
    """When the log was last told of whom."""

    def begin(self, name: str, now: float) -> None:
        """One more, at ``now`` of a monotonic clock. Raises TooManyRequests past the limit; then there is nothing to end."""
        if self._open[name] >= self.limit:
            self._log(name, now)
            message = f"{name} has {self.limit} open requests already."
            raise TooManyRequests(
                message,
                "Ask again when some are answered; --max-open-requests of the server is the limit.",
                retry_after_s=OPEN_REQUESTS_S,
            )
        self._open[name] += 1

    def _log(self, name: str, now: float) -> None:
        if now - self._logged.get(name, -math.inf) >= LOG_S:
            self._logged[name] = now
            log.warning("%s has %d open requests: more are refused", name, self.limit)

    def end(self, name: str) -> None:
        """One less."""
        self._open[name] -= 1
        if not self._open[name]:
            del self._open[name]


async def body_of(request: Request, limit_bytes: int) -> bytes:
    """The whole body. Raises RequestTooLarge past ``limit_bytes``: before it is read, where its length is told."""
    told = request.headers.get("content-length", "")
    size = int(told) if told.isascii() and told.isdecimal() else 0
    parts = []
    if size <= limit_bytes:
        size = 0
        async for part in request.stream():
            size += len(part)
            if size > limit_bytes:
                break
            parts.append(part)
    if size > limit_bytes:
        message = f"The request's body is over {limit_bytes} bytes, the limit here."
        raise RequestTooLarge(message, "Send less at a time.")
    return b"".join(parts)
