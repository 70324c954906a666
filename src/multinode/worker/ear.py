"""The supervisor's end of the channel, as its loop hears the child by it."""

from __future__ import annotations

import selectors
import socket

from . import frames

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Callable, Optional

_PIECE_BYTES = 256 * 1024


class Ear:
    """Takes messages from ``channel`` when the selector says that there are some.

    ``on_lost`` is called where no more will come, with what was wrong with the last one, if anything.
    """

    def __init__(
        self,
        selector: selectors.BaseSelector,
        channel: socket.socket,
        on_frame: Callable[[frames.Frame], None],
        on_lost: Callable[[str], None],
    ) -> None:
        self._selector = selector
        self._channel = channel
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._buffer = frames.FrameBuffer()
        self._is_paused = False
        """Whether the child's messages are left unread for now."""
        self._fault = ""

    def open(self) -> None:
        """Listens."""
        self._selector.register(self._channel, selectors.EVENT_READ, self._read)

    def close(self) -> None:
        """Takes what was said until now, and listens no more."""
        while self._take():
            pass
        self._stop()

    def pause(self, is_paused: bool) -> None:
        """Leaves messages unread, or takes them again; nothing where no more will come."""
        is_reading = self._is_reading()
        if is_paused and is_reading:
            self._selector.unregister(self._channel)
            self._is_paused = True
        elif self._is_paused and not is_paused:
            self._is_paused = False
            self.open()

    def _read(self) -> None:
        if self._take() is None:
            self._stop()
            self._on_lost(self._fault)

    def _take(self) -> Optional[int]:
        """How many bytes were there; None where no more will come."""
        try:
            data = self._channel.recv(_PIECE_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            return 0
        except OSError:
            return None
        try:
            for frame in self._buffer.feed(data):
                self._on_frame(frame)
        except (frames.NotAFrame, LookupError, TypeError, ValueError) as error:
            self._fault = str(error)
            return None
        return len(data) or None

    def _stop(self) -> None:
        self._is_paused = False
        if self._is_reading():
            self._selector.unregister(self._channel)

    def _is_reading(self) -> bool:
        return self._channel.fileno() in self._selector.get_map()
