"""An engine whose containers see a folder of this machine: a proxy before the real one that adds a bind to each.

Functions in tests of the product tell what they do through files; with it they can in containers too, and the product itself
needs no option for it.
"""

from __future__ import annotations

import json
import re
import socket
import threading
from contextlib import suppress
from pathlib import Path

import docker

END = b"\r\n\r\n"
_CREATE = re.compile(rb"POST \S*/containers/create[? ]")
_LENGTH = re.compile(rb"(?i)\r\ncontent-length: *(\d+)")
_CONNECTION = re.compile(rb"(?i)\r\nconnection: *[^\r]*")


class SharingEngine:
    """Listens at ``url``; containers that are made through it have ``folder`` under its own path."""

    def __init__(self, at: Path, folder: Path, engine_url: str = "") -> None:
        self.url = f"unix://{at}"
        self._folder = folder
        default = docker.utils.kwargs_from_env().get("base_url", "unix:///var/run/docker.sock")
        self._engine = engine_url or default
        self._door = socket.socket(socket.AF_UNIX)
        self._door.bind(str(at))
        self._door.listen(100)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Takes no more connections."""
        self._door.shutdown(socket.SHUT_RDWR)
        self._door.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._door.accept()
            except OSError:  # closed
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """One request, and whatever goes either way until both have said their last."""
        engine = socket.socket(socket.AF_UNIX)
        # It may be away: a test may have stopped it. The other side sees a connection that ends.
        with client, engine, suppress(OSError):
            received = b""
            while END not in received:
                more = client.recv(65536)
                if not more:
                    return
                received += more
            engine.connect(self._engine.partition("://")[2])
            engine.sendall(self._changed(client, received))
            back = threading.Thread(target=_copy, args=(engine, client), daemon=True)
            back.start()
            _copy(client, engine)
            back.join()

    def _changed(self, client: socket.socket, received: bytes) -> bytes:
        """The request as the engine gets it: the last one of its connection, so that the next one is seen here too."""
        head, _, body = received.partition(END)
        if b"upgrade" not in head.lower():
            head = _CONNECTION.sub(b"", head) + b"\r\nConnection: close"
        if not _CREATE.match(head):
            return head + END + body
        length = _LENGTH.search(head)
        assert length is not None, head
        while len(body) < int(length[1]):
            body += client.recv(65536)
        asked = json.loads(body)
        binds = asked.setdefault("HostConfig", {}).get("Binds") or []
        asked["HostConfig"]["Binds"] = [*binds, f"{self._folder}:{self._folder}"]
        body = json.dumps(asked).encode()
        head = _LENGTH.sub(b"\r\nContent-Length: %d" % len(body), head)
        return head + END + body


def _copy(source: socket.socket, target: socket.socket) -> None:
    try:
        while data := source.recv(65536):
            target.sendall(data)
        target.shutdown(socket.SHUT_WR)
    except OSError:
        return  # the other end is gone
