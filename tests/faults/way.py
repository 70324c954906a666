"""The way of workers to their control plane, which a test can spoil: a small HTTP proxy that loses, delays, repeats and cuts."""

from __future__ import annotations

import random
import re
import socket
import struct
import threading
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress

END = b"\r\n\r\n"
TROUBLES = ("unheard", "unanswered", "twice", "at once", "late")
"""What befalls a request: it is lost; its answer is; it comes twice, the second time after the first one's answer, or beside it; it and
its answer come late."""
LATEST_S = 0.5
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_CONNECTION = re.compile(rb"(?i)\r\nconnection: *[^\r]*")
_RESET_AT_CLOSE = struct.pack("ii", 1, 0)


class Way:
    """Listens at ``port`` and passes requests on to the control plane at another. ``met`` counts what befell them."""

    def __init__(self, to_port: int, *, host: str = "127.0.0.1", seed: object = None) -> None:
        self.met: Counter[str] = Counter()
        self._to_port = to_port
        self._shares: Mapping[str, float] = {}
        self._rng = random.Random(str(seed))
        self._open = threading.Event()
        self._open.set()
        self._servers: set[socket.socket] = set()
        self._listener = socket.create_server((host, 0), backlog=200)
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def spoil(self, share: float) -> None:
        """From now on each trouble befalls this share of all requests; 0: none."""
        self._shares = dict.fromkeys(TROUBLES, share)

    def always(self, trouble: str) -> None:
        """From now on it befalls each request."""
        self._shares = {trouble: 1.0}

    def part(self) -> None:
        """Nothing comes through until `meet`, and nobody on the workers' side is told: packets vanish."""
        self._open.clear()
        for server in list(self._servers):
            with suppress(OSError):
                server.shutdown(socket.SHUT_RDWR)

    def meet(self) -> None:
        """What waits goes through, and all that comes."""
        self._open.set()

    def lead_to(self, port: int) -> None:
        """From now on requests go there."""
        self._to_port = port

    def close(self) -> None:
        self.meet()
        self._listener.close()

    # --- one connection, one request ---

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError):
            request = _read_request(client)
            self._open.wait()
            if not request:
                return
            trouble = self._draw()
            if trouble == "unheard":
                return _reset(client)
            if trouble == "late":
                time.sleep(LATEST_S * self._rng.random())
            if trouble == "at once":
                threading.Thread(target=self._ask, args=(request,), daemon=True).start()
            answer = self._ask(request)
            if trouble == "twice":
                answer = self._ask(request)
            self._open.wait()
            if trouble == "late":
                time.sleep(LATEST_S * self._rng.random())
            if trouble == "unanswered":
                return _reset(client)
            client.sendall(answer)
        return None

    def _draw(self) -> str:
        at = self._rng.random()
        for trouble, share in self._shares.items():
            at -= share
            if at < 0:
                self.met[trouble] += 1
                return trouble
        return ""

    def _ask(self, request: bytes) -> bytes:
        """The whole answer; nothing where there is none."""
        answer = b""
        with suppress(OSError), socket.create_connection(("127.0.0.1", self._to_port)) as server:
            self._servers.add(server)
            try:
                server.sendall(request)
                while data := server.recv(65536):
                    answer += data
            finally:
                self._servers.discard(server)
        return answer


def _read_request(client: socket.socket) -> bytes:
    """The request as the control plane gets it, the last one of its connection; nothing where it was not sent whole."""
    received = b""
    while END not in received:
        if not (more := client.recv(65536)):
            return b""
        received += more
    head, _, body = received.partition(END)
    length = _LENGTH.search(head)
    while length and len(body) < int(length[1]):
        if not (more := client.recv(65536)):
            return b""
        body += more
    return _CONNECTION.sub(b"", head) + b"\r\nConnection: close" + END + body


def _reset(client: socket.socket) -> None:
    """Cuts the connection, as a router does that has forgotten it."""
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_AT_CLOSE)
