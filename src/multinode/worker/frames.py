"""The messages between supervisor and child: 4 bytes of length, then JSON in ASCII.

What each kind of message holds is said here and nowhere else. To the child:

=============  ====================================================================================
``assignment``  ``assignment`` (``wire.Assignment``), ``api_url``, ``code_dir``, ``work_dir``
``run``         ``number``: the worker's so-manyth invocation begins now; ``task`` (``wire.Task``), or null for the assignment's own
``leave``       nothing: there will be no more to run
=============  ====================================================================================

From the child:

=============  ====================================================================================
``ready``       ``import_ms``: ``main.py`` is imported and has the function
``unready``     ``error`` (``wire.FunctionError``): it could not be imported
``again``       nothing: the child becomes a new interpreter and wants its assignment once more
``described``   ``described`` (``wire.Described``)
``interrupted`` nothing: the interrupt was raised in the function
``value``       ``value``: jsonpickle text of one yielded value
``end``         ``result`` (jsonpickle text or null), ``error`` (``wire.FunctionError`` or null), ``retryable``, ``peak_memory_bytes``
``restored``    ``unclean``: why the worker has to be replaced, empty where it is as it was after the import of ``main.py``; not after the last
=============  ====================================================================================
"""

from __future__ import annotations

import json
import socket

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List

    Frame = Dict[str, Any]

MAX_FRAME_BYTES = 64 * 1024 * 1024
"""A longer one is not ours: somebody else wrote into the socket."""

_LENGTH_BYTES = 4


class NotAFrame(Exception):
    """What came through the socket was not written by this module."""


def send(channel: socket.socket, kind: str, **fields: Any) -> None:
    """Sends one message; blocks while the other side does not read. Raises OSError where it is gone."""
    fields["kind"] = kind
    payload = json.dumps(fields, separators=(",", ":")).encode("ascii")
    channel.sendall(len(payload).to_bytes(_LENGTH_BYTES, "big") + payload)


def receive(channel: socket.socket) -> Frame:
    """The next message; blocks. Raises EOFError where the other side is gone."""
    length = int.from_bytes(_receive_exactly(channel, _LENGTH_BYTES), "big")
    return _parse(_receive_exactly(channel, length))


class FrameBuffer:
    """Turns what is read from a socket, in pieces of any size, into messages."""

    def __init__(self) -> None:
        self._unread = bytearray()

    def feed(self, data: bytes) -> List[Frame]:
        """The messages that are complete now. Raises NotAFrame."""
        self._unread += data
        complete = []
        while len(self._unread) >= _LENGTH_BYTES:
            length = int.from_bytes(self._unread[:_LENGTH_BYTES], "big")
            if length > MAX_FRAME_BYTES:
                message = f"a message of {length} bytes"
                raise NotAFrame(message)
            end = _LENGTH_BYTES + length
            if len(self._unread) < end:
                break
            complete.append(_parse(bytes(self._unread[_LENGTH_BYTES:end])))
            del self._unread[:end]
        return complete


def _parse(payload: bytes) -> Frame:
    try:
        frame = json.loads(payload)
    except ValueError as error:
        raise NotAFrame(str(error)) from error
    if not isinstance(frame, dict) or not isinstance(frame.get("kind"), str):
        message = "a message without a kind"
        raise NotAFrame(message)
    return frame


def _receive_exactly(channel: socket.socket, size: int) -> bytes:
    data = bytearray()
    while len(data) < size:
        piece = channel.recv(size - len(data))
        if not piece:
            raise EOFError
        data += piece
    return bytes(data)
