"""The child's end of the channel to its supervisor, which the user's code may have closed, or taken into a fork."""

from __future__ import annotations

import os

from . import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from typing import Any

CHANNEL_LOST = 213
"""Exit code of a child whose end of the channel was closed by the user's code."""


class Channel:
    """The child's end of the channel. A fork that came here is ended; a descriptor that is no longer ours is not written to."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._pid = os.getpid()
        self._identity = self._identify()

    def fileno(self) -> int:
        """The descriptor."""
        return self._connection.fileno()

    def send(self, kind: str, **fields: Any) -> None:
        """Sends a message of ``frames``; ends this process where that cannot be done."""
        self._check()
        try:
            frames.send(self._connection, kind, **fields)
        except OSError:
            os._exit(CHANNEL_LOST)

    def receive(self) -> frames.Frame:
        """The next message. Raises EOFError where the supervisor is gone."""
        self._check()
        return frames.receive(self._connection)

    def _check(self) -> None:
        if os.getpid() != self._pid:
            os._exit(0)
        try:
            is_ours = self._identify() == self._identity
        except OSError:
            is_ours = False
        if not is_ours:
            os._exit(CHANNEL_LOST)

    def _identify(self) -> Any:
        stat = os.fstat(self._connection.fileno())
        return stat.st_dev, stat.st_ino
