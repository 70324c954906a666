"""What the control plane costs idle and under waiting clients, and a worker in a fresh interpreter."""

from __future__ import annotations

import json
import os
import resource
import selectors
import socket
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks.harness import Figure, Installation, p50
from multinode.wire import Assignment, Order, to_plain
from multinode.worker.launch import ARGUMENTS, Launch


def figures(at: Installation, quick: bool) -> list[Figure]:
    memory = _memory_mib(at.pid)
    idle = _idle_percent(at.pid, 5 if quick else 20)
    threads, kilobytes = _waiting(at, 200 if quick else 1000)
    worker, bare = _worker_cpu(at, 5 if quick else 20)
    return [
        Figure("memory, after a deploy", memory, "MiB", 90),
        Figure("CPU idle, of a core", idle, "%", 0.1),
        Figure("threads more, per 1,000 waiting clients", threads, "", 50),
        Figure("memory more, per waiting client", kilobytes, "KB", 20),
        Figure("python -c pass, CPU (floor)", bare, "ms"),
        Figure("worker's own CPU, over python -c pass", worker - bare, "ms", 40, bare),
    ]


def _status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1])
    message = f"/proc/{pid}/status has no {name}"
    raise RuntimeError(message)


def _memory_mib(pid: int) -> float:
    return _status(pid, "VmRSS") / 1024


def _cpu_s(pid: int) -> float:
    """CPU time to the nanosecond: the first number of each thread's schedstat."""
    tasks = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks) / 1e9


def _idle_percent(pid: int, seconds: float) -> float:
    """Nothing is waited for here: that span is what is measured."""
    before = _cpu_s(pid)
    time.sleep(seconds)
    return 100 * (_cpu_s(pid) - before) / seconds


def _waiting(at: Installation, count: int) -> tuple[float, float]:
    """More threads per 1,000, and KB each, of clients that wait for one invocation's end over plain sockets."""
    function = at.function("sleep")
    invocation_id = function.start(60)
    _limit_files(count)
    before = _status(at.pid, "VmRSS"), _status(at.pid, "Threads")
    connections = [_ask(at, invocation_id) for _ in range(count)]
    _request_is_through(at)
    after = _status(at.pid, "VmRSS"), _status(at.pid, "Threads")
    function.cancel(invocation_id)
    _read_all(connections)
    return 1000 * (after[1] - before[1]) / count, (after[0] - before[0]) / count


def _limit_files(count: int) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, max(soft, count + 200)), hard))


def _ask(at: Installation, invocation_id: str) -> socket.socket:
    server = json.loads((at.folder / "home/server.json").read_text())
    address = urlsplit(server["url"])
    body = json.dumps({"invocation_ids": [invocation_id], "wait_s": 25}).encode()
    head = (
        f"POST /v1/invocations/wait HTTP/1.1\r\nHost: {address.netloc}\r\n"
        f"Authorization: Bearer {server['key']}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(body)}\r\n\r\n"
    )
    connection = socket.create_connection((address.hostname, address.port), timeout=30)
    connection.sendall(head.encode() + body)
    return connection


def _request_is_through(at: Installation) -> None:
    """A request that comes after the others is answered when they have been read."""
    for _ in range(5):
        at.function("sleep")


def _read_all(connections: list[socket.socket]) -> None:
    with selectors.DefaultSelector() as selector:
        for connection in connections:
            selector.register(connection, selectors.EVENT_READ)
        deadline = time.monotonic() + 30
        while selector.get_map() and time.monotonic() < deadline:
            for key, _ in selector.select(1):
                assert key.fileobj.recv(64).startswith(b"HTTP/1.1 200"), "a waiting client failed"
                selector.unregister(key.fileobj)
                key.fileobj.close()


# --- a worker in a fresh interpreter ---


class _Stub(BaseHTTPRequestHandler):
    """The least of a control plane that a worker needs; it runs in this process, whose CPU time is not counted."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        answer = to_plain(ASSIGNMENT if self.path.endswith("exchange") else Order())
        body = json.dumps(answer).encode()
        self.wfile.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nMultinode-Version: 2.0.0\r\n"
            b"Content-Length: %d\r\n\r\n%s" % (len(body), body)
        )

    def log_message(self, *_args) -> None:
        """Says nothing."""


ASSIGNMENT = Assignment(
    token="token", kind="invocation", project="bench", version_id="ver-1", bundle_digest="0" * 64,
    dotenv={}, function="add", execution_id="exe-1", invocation_id="inv-1", input="[[1, 2], {}]",
)  # fmt: skip


def _worker_cpu(at: Installation, count: int) -> tuple[float, float]:
    """CPU ms of a worker as runners start it, with its child, and of ``python -c pass``."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Stub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    worker = [_cpu_ms(*_worker(at, server.server_port, turn)) for turn in range(count + 1)][1:]
    bare = [_cpu_ms([sys.executable, "-c", "pass"]) for _ in range(count)]
    server.shutdown()
    return p50(worker), p50(bare)


def _worker(at: Installation, port: int, turn: int) -> tuple[list[str], bytes]:
    launch = Launch(
        worker_id=f"wrk-{turn}",
        claim_code="code",
        api_url=f"http://127.0.0.1:{port}",
        code_dir=str(at.project / "tasks"),
        work_dir=str(at.folder / f"work-{turn}"),
        log_file=str(at.folder / f"log-{turn}"),
    )
    return [sys.executable, *ARGUMENTS, "--launch-fd", "0"], launch.to_json().encode()


def _cpu_ms(command: list[str], text: bytes = b"") -> float:
    """User and system time of a command and of the children that it has waited for."""
    process = subprocess.Popen(command, stdin=subprocess.PIPE)
    process.stdin.write(text)
    process.stdin.close()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    assert process.returncode == 0, f"{command} ended with {process.returncode}"
    return (usage.ru_utime + usage.ru_stime) * 1000
