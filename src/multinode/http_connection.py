"""One HTTP/1.1 connection of the blocking client: a request, its answer's head, its body in pieces.

``http.client`` does the same and more, and costs 22 ms of CPU to import: half of what a worker may cost in all, and a fifth of a
second where it has a tenth of a CPU. What a control plane, or a proxy before it, answers is understood: bodies with a length, in
chunks, or up to the end of the connection; 1xx answers are skipped. Redirects and compression are not asked for.
"""

from __future__ import annotations

import socket
from contextlib import suppress

from .records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from typing import Dict, Iterator, Mapping, Optional

MAX_HEAD_BYTES = 64 * 1024
_PIECE_BYTES = 64 * 1024
_FIRST_BYTES = b"HTTP/1."


class NotHttp(Exception):
    """What came back is no answer of HTTP/1, or stops in its middle."""


class ClosedUnanswered(NotHttp):
    """The other side closed the connection before the first byte of an answer."""


class Head(Record):
    """An answer's beginning; header names are in lower case."""

    status: int
    headers: Dict[str, str]
    is_last: bool
    """Whether the connection ends with this answer."""


class HttpConnection:
    """A connection to ``host``, for one exchange after another: ``send``, then ``body`` to its end.

    Raises OSError (also at a timeout) and NotHttp; after either, and where the last body was not read to its end
    (``is_reusable``), it has to be closed.
    """

    def __init__(
        self, host: str, port: int, *, timeout_s: float, tls: Optional[ssl.SSLContext] = None
    ) -> None:
        """Connects. Raises OSError."""
        # As bytes: for a text Python imports its IDNA tables, whatever the name.
        address = host.encode("ascii") if host.isascii() else host
        connection = socket.create_connection((address, port), timeout_s)  # type: ignore[arg-type]
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket = tls.wrap_socket(connection, server_hostname=host) if tls else connection
        except BaseException:
            connection.close()
            raise
        default_port = 443 if tls else 80
        name = f"[{host}]" if ":" in host else host
        self._host = name if port == default_port else f"{name}:{port}"
        self._unread = b""
        self._head: Optional[Head] = None
        self._has_body = False
        self.is_reusable = True

    def send(
        self,
        method: str,
        path: str,
        headers: Mapping[str, str],
        body: Optional[bytes],
        timeout_s: float,
    ) -> Head:
        """Sends a request and waits for the head of its answer; ``timeout_s`` bounds each silence, also of the body."""
        self.is_reusable = False
        self._has_body = method != "HEAD"
        lines = [f"{method} {path} HTTP/1.1", f"Host: {self._host}", "Accept-Encoding: identity"]
        lines += [f"{name}: {value}" for name, value in headers.items()]
        if body is not None or method in ("POST", "PUT", "PATCH"):
            lines.append(f"Content-Length: {len(body or b'')}")
        self._socket.settimeout(timeout_s)
        try:
            self._socket.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + (body or b""))
        except ConnectionError as error:  # a server may refuse a body, and close, before it is sent
            self._head = self._answer_to_part(error)
        else:
            self._head = self._read_head()
        return self._head

    def body(self) -> Iterator[bytes]:
        """The body of the answer, in pieces as they come."""
        assert self._head is not None, "no answer was waited for"
        headers = self._head.headers
        if self._head.status in (204, 304) or not self._has_body:
            pieces: Iterator[bytes] = iter(())
        elif headers.get("transfer-encoding", "").lower() == "chunked":
            pieces = self._read_chunks()
        elif "content-length" in headers:
            pieces = self._read_exactly(_number(headers["content-length"], 10))
        else:
            pieces = self._read_to_end()
        yield from pieces
        self.is_reusable = not self._head.is_last

    def close(self) -> None:
        """Closes the connection."""
        with suppress(OSError):
            self._socket.close()

    # --- the head ---

    def _answer_to_part(self, error: ConnectionError) -> Head:
        try:
            return self._read_head().replace(is_last=True)
        except (OSError, NotHttp):
            raise error from None

    def _read_head(self) -> Head:
        while True:
            head = self._read_one_head()
            if not 100 <= head.status < 200:
                return head

    def _read_one_head(self) -> Head:
        end = self._unread.find(b"\r\n\r\n")
        while end < 0:
            if len(self._unread) > MAX_HEAD_BYTES:
                message = f"a head of over {MAX_HEAD_BYTES} bytes"
                raise NotHttp(message)
            is_first = not self._unread
            piece = self._socket.recv(_PIECE_BYTES)
            if not piece:
                message = "the connection was closed"
                raise ClosedUnanswered(message) if is_first else NotHttp(message)
            self._unread += piece
            if not self._unread.startswith(_FIRST_BYTES[: len(self._unread)]):
                message = f"an answer that begins with {self._unread[:40]!r}"
                raise NotHttp(message)
            end = self._unread.find(b"\r\n\r\n")
        text, self._unread = self._unread[:end].decode("latin-1"), self._unread[end + 4 :]
        return _parse_head(text)

    # --- the body ---

    def _receive(self) -> bytes:
        """What comes next, at least a byte."""
        if self._unread:
            piece, self._unread = self._unread, b""
            return piece
        piece = self._socket.recv(_PIECE_BYTES)
        if not piece:
            message = "the answer broke off"
            raise NotHttp(message)
        return piece

    def _read_exactly(self, size: int) -> Iterator[bytes]:
        while size > 0:
            piece = self._receive()
            piece, self._unread = piece[:size], piece[size:]
            size -= len(piece)
            yield piece

    def _read_chunks(self) -> Iterator[bytes]:
        while True:
            size = _number(self._read_line().partition(";")[0], 16)
            if size == 0:
                break
            yield from self._read_exactly(size)
            self._read_line()
        while self._read_line():  # trailers
            pass

    def _read_line(self) -> str:
        line = b""
        while b"\r\n" not in line:
            if len(line) > MAX_HEAD_BYTES:
                message = "a line without an end"
                raise NotHttp(message)
            line += self._receive()
        line, _, self._unread = line.partition(b"\r\n")
        return line.decode("latin-1")

    def _read_to_end(self) -> Iterator[bytes]:
        yield self._unread
        self._unread = b""
        while True:
            piece = self._socket.recv(_PIECE_BYTES)
            if not piece:
                return
            yield piece


def _parse_head(text: str) -> Head:
    first, *lines = text.split("\r\n")
    version, _, rest = first.partition(" ")
    headers: Dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    connection = headers.get("connection", "").lower()
    has_end = "content-length" in headers or "transfer-encoding" in headers
    status = _number(rest[:3], 10)
    is_kept = version == "HTTP/1.1" or "keep-alive" in connection
    is_last = "close" in connection or not is_kept or not (has_end or status in (204, 304))
    return Head(status, headers, is_last)


def _number(text: str, base: int) -> int:
    try:
        number = int(text.strip(), base)
    except ValueError:
        number = -1
    if number < 0:
        message = f"{text[:40]!r} where a number belongs"
        raise NotHttp(message)
    return number
