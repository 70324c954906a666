"""One HTTP connection that does not wait for ever: for the head of a request, and for its body."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_S = 30.0
"""For a request's head; a new connection has as long to begin. Between requests `KEEP_ALIVE_S` holds."""
BODY_S = 60.0
"""For a body, and a second more for each `BODY_BYTES_PER_S` of it that have come."""
BODY_BYTES_PER_S = 16 * 1024
HEAD, BODY = "head", "body"
"""What was waited for."""


class PatientProtocol(HttpToolsProtocol):
    """uvicorn's protocol with an end to its patience: what does not arrive in time has its connection closed.

    uvicorn itself would hold a connection that sends nothing, or a byte a minute, as long as that likes.
    """

    def __init__(self, *args: Any, on_late: Callable[[str], None], **kwargs: Any) -> None:
        """``on_late`` is told what did not come, when a connection is closed for it."""
        super().__init__(*args, **kwargs)
        self._on_late = on_late
        self._due_at = 0.0
        self._awaited = HEAD
        self._timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Somebody has connected, and has to say what they want."""
        super().connection_made(transport)
        self._expect(HEAD, HEAD_S)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing is waited for any more."""
        self._expect_nothing()
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        self._expect(HEAD, HEAD_S)

    def on_headers_complete(self) -> None:
        """Its head is here."""
        super().on_headers_complete()
        self._expect(BODY, BODY_S)

    def on_body(self, body: bytes) -> None:
        """A part of its body is here."""
        super().on_body(body)
        self._due_at += len(body) / BODY_BYTES_PER_S

    def on_message_complete(self) -> None:
        """All of it is here; the answer may take its time."""
        self._expect_nothing()
        super().on_message_complete()

    def _expect(self, what: str, within_s: float) -> None:
        self._expect_nothing()
        self._awaited = what
        self._due_at = self.loop.time() + within_s
        self._timer = self.loop.call_at(self._due_at, self._look)

    def _expect_nothing(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _look(self) -> None:
        """The body may have got more time meanwhile. While this side does not read, the other is not late."""
        now = self.loop.time()
        if self.flow.read_paused:
            self._due_at = max(self._due_at, now + BODY_S)
        if self._due_at > now:
            self._timer = self.loop.call_at(self._due_at, self._look)
        elif not self.transport.is_closing():
            self._on_late(self._awaited)
            self.transport.abort()
