"""A control plane in memory that speaks the worker's routes (`/v1/worker/*`, `/v1/bundles/*`), for tests.

    with FakeControlPlane() as plane:
        launch = plane.assign(Assignment(token="", kind="invocation", …), code_dir=…)
        …start a worker with launch…
        record = plane.record(launch.worker_id)
        plane.wait_for(lambda: record.end)

Runs on Python 3.8, because the worker's tests do.
"""

import itertools
import json
import socket
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Callable, Dict, List, Optional, Tuple

from multinode import wire
from multinode.worker.launch import Launch

Answer = Tuple[int, Any]


@dataclass
class Record:
    """All that one worker has said. Times are ``time.monotonic()``."""

    worker_id: str
    claim_code: str
    assignment: wire.Assignment
    nonce: Optional[str] = None
    exchanges: int = 0
    exchanged_at: float = 0.0
    claims: List[wire.Claim] = field(default_factory=list)
    claimed_at: float = 0.0
    reports: List[wire.Report] = field(default_factory=list)
    values: Dict[int, wire.Value] = field(default_factory=dict)
    value_times: Dict[int, float] = field(default_factory=dict)
    end: Optional[wire.ExecutionEnd] = None
    ended_at: float = 0.0
    watches: int = 0
    described: Optional[wire.Described] = None
    order: Optional[str] = None
    refused: bool = False
    """Whether claims, reports and watches are refused from now on."""
    nexts: List[wire.NextRequest] = field(default_factory=list)
    queue: List[wire.Task] = field(default_factory=list)
    """Tasks for the worker that it has not been handed."""
    handed: Dict[int, List[wire.Task]] = field(default_factory=dict)
    """By the number that was asked for."""
    leave: bool = False


class FakeControlPlane:
    """Give it assignments; it remembers what their workers say. All methods may be called from any thread."""

    def __init__(self, host: str = "127.0.0.1") -> None:
        self.records: Dict[str, Record] = {}
        self.bundles: Dict[str, bytes] = {}
        self.changed = threading.Condition()
        self.on_exchange: Callable[[str], object] = lambda worker_id: None
        """Called with the id of a worker that has its assignment, in the plane's thread."""
        self._ids = itertools.count(1)
        self._server: Optional[_Server] = None
        self._host, self._port = host, 0

    def __enter__(self) -> "FakeControlPlane":
        self.come_back()
        return self

    def __exit__(self, *_: object) -> None:
        self.go_away()

    @property
    def url(self) -> str:
        return f"http://{self._host}:{self._port}"

    def assign(
        self, assignment: wire.Assignment, *, is_ahead: bool = False, **launch: Any
    ) -> Launch:
        """A launch whose claim code gives ``assignment``; token and ids are made up where they are empty.

        ``is_ahead``: the worker is made for no execution.
        """
        number = next(self._ids)
        worker_id = launch.pop("worker_id", f"wrk-{number}")
        assignment = assignment.replace(
            token=assignment.token or f"token-{number}",
            execution_id="" if is_ahead else assignment.execution_id or f"exe-{number}",
            invocation_id="" if is_ahead else assignment.invocation_id or f"inv-{number}",
        )
        record = Record(worker_id=worker_id, claim_code=f"code-{number}", assignment=assignment)
        with self.changed:
            self.records[worker_id] = record
        return Launch(worker_id=worker_id, claim_code=record.claim_code, api_url=self.url, **launch)

    def record(self, worker_id: str) -> Record:
        return self.records[worker_id]

    def wait_for(self, predicate: Callable[[], Any], timeout_s: float = 60.0) -> Any:
        """What ``predicate`` returns once it is true; it is asked after every request."""
        with self.changed:
            found = self.changed.wait_for(predicate, timeout_s)
        assert found, f"nothing within {timeout_s} s; known: {list(self.records.values())}"
        return found

    def hand(self, worker_id: str, **task: Any) -> Record:
        """Gives a worker one more invocation, when it asks; the record of what is said of it, which `records` has by the execution's id."""
        number = next(self._ids)
        made = wire.Task(0, f"exe-{number}", f"inv-{number}", **task)
        with self.changed:
            record = self.records[worker_id]
            its = Record(worker_id, "", record.assignment.replace(execution_id=made.execution_id))
            self.records[made.execution_id] = its
            record.queue.append(made)
            self.changed.notify_all()
        return its

    def dismiss(self, worker_id: str) -> None:
        """Orders a worker to leave, when it asks."""
        with self.changed:
            self.records[worker_id].leave = True
            self.changed.notify_all()

    def cancel(self, worker_id: str) -> float:
        """Orders a cancel and returns when."""
        with self.changed:
            self.records[worker_id].order = "cancel"
            self.changed.notify_all()
        return time.monotonic()

    def refuse(self, worker_id: str) -> None:
        """Refuses whatever this worker asks for from now on, and answers its watch so."""
        with self.changed:
            self.records[worker_id].refused = True
            self.changed.notify_all()

    def go_away(self) -> None:
        """Closes the listener and every connection."""
        server, self._server = self._server, None
        if server is not None:
            with self.changed:
                server.closing = True
                self.changed.notify_all()
            server.shutdown()
            server.close_connections()
            server.server_close()

    def come_back(self) -> None:
        """Listens again, on the same port; what was known is still known."""
        self._server = _Server(self, self._host, self._port)
        self._port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    # --- routes, called with the lock held -----------------------------------------------------------

    def exchange(self, body: bytes, _: str) -> Answer:
        request = wire.loads(wire.ExchangeRequest, body)
        record = self.records.get(request.worker_id)
        if record is None or record.claim_code != request.claim_code:
            return _refusal(401, "not_logged_in", "unknown claim code")
        if record.nonce not in (None, request.nonce):
            return _refusal(409, "claim_refused", "the claim code is used up")
        record.nonce = request.nonce
        record.exchanges += 1
        record.exchanged_at = time.monotonic()
        self.on_exchange(record.worker_id)
        return 200, record.assignment

    def claim(self, body: bytes, token: str) -> Answer:
        claim = wire.loads(wire.Claim, body)
        record = self._of(claim.execution_id, token)
        if record is None or record.refused:
            return _refusal(409, "claim_refused", "it has ended")
        record.claims.append(claim)
        record.claimed_at = record.claimed_at or time.monotonic()
        return 200, wire.Order(record.order)

    def report(self, body: bytes, token: str) -> Answer:
        report = wire.loads(wire.Report, body)
        record = self._of(report.execution_id, token)
        if record is None or record.refused:
            return _refusal(409, "claim_refused", "it has ended")
        self._note(record, report)
        return 200, wire.Order(record.order)

    def next(self, body: bytes, token: str) -> Answer:
        request = wire.loads(wire.NextRequest, body)
        record = next((r for r in self.records.values() if r.assignment.token == token), None)
        if record is None or record.refused:
            return _refusal(409, "claim_refused", "it has ended")
        record.nexts.append(request)
        for report in request.reports or []:
            its = self._of(report.execution_id, token)
            assert its is not None, f"{report} is of nobody"
            self._note(its, report)
        server = self._server
        self.changed.notify_all()
        self.changed.wait_for(
            lambda: (
                record.refused
                or request.number in record.handed
                or record.queue
                or record.leave
                or server is not self._server
            ),
            request.wait_s,
        )
        if record.refused:
            return _refusal(409, "claim_refused", "it has ended")
        if request.number not in record.handed and record.queue:
            taken, record.queue = record.queue[: request.most], record.queue[request.most :]
            record.handed[request.number] = [
                task.replace(number=request.number + place) for place, task in enumerate(taken)
            ]
        tasks = record.handed.get(request.number)
        return 200, wire.Next(tasks, leave=record.leave and not tasks)

    def _note(self, record: Record, report: wire.Report) -> None:
        record.reports.append(report)
        for value in report.values or []:
            record.values.setdefault(value.number, value)
            record.value_times.setdefault(value.number, time.monotonic())
        if report.end is not None and record.end is None:
            record.end = report.end
            record.ended_at = time.monotonic()

    def watch(self, body: bytes, token: str) -> Answer:
        watch = wire.loads(wire.Watch, body)
        record = self._of(watch.execution_id, token)
        if record is None:
            return _refusal(404, "execution_not_found", "no such execution")
        record.watches += 1
        server = self._server
        self.changed.notify_all()
        self.changed.wait_for(
            lambda: record.order or record.refused or record.end or server is not self._server,
            watch.wait_s,
        )
        if record.refused or record.end:
            return _refusal(409, "claim_refused", "it has ended")
        return 200, wire.Order(record.order)

    def described(self, body: bytes, token: str) -> Answer:
        record = next((r for r in self.records.values() if r.assignment.token == token), None)
        if record is None:
            return _refusal(401, "not_logged_in", "unknown token")
        record.described = wire.loads(wire.Described, body)
        return 200, wire.Empty()

    def _of(self, execution_id: str, token: str) -> Optional[Record]:
        for record in self.records.values():
            if (record.assignment.execution_id, record.assignment.token) == (execution_id, token):
                return record
        return None


def _refusal(status: int, code: str, message: str) -> Answer:
    return status, {"error": {"code": code, "message": message, "hint": ""}}


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 128

    def __init__(self, plane: FakeControlPlane, host: str, port: int) -> None:
        self.plane = plane
        self.closing = False
        self.connections: List[socket.socket] = []
        super().__init__((host, port), _Handler)

    def get_request(self) -> Any:
        request, address = super().get_request()
        self.connections.append(request)
        return request, address

    def close_connections(self) -> None:
        for connection in self.connections:
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Broken connections are part of the game."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        token = (self.headers.get("Authorization") or "").replace("Bearer ", "")
        plane = self.server.plane
        routes = {
            "/v1/worker/exchange": plane.exchange,
            "/v1/worker/claim": plane.claim,
            "/v1/worker/report": plane.report,
            "/v1/worker/next": plane.next,
            "/v1/worker/watch": plane.watch,
            "/v1/worker/described": plane.described,
        }
        route = routes.get(self.path)
        if route is None:
            self.send(*_refusal(404, "not_found", self.path))
            return
        with plane.changed:
            if self.server.closing:
                self.close_connection = True
                return
            status, answer = route(body, token)
            plane.changed.notify_all()
        if self.server.closing:
            self.close_connection = True
            return
        self.send(status, answer)

    def do_GET(self) -> None:
        bundle = self.server.plane.bundles.get(self.path.rsplit("/", 1)[-1])
        if bundle is None:
            self.send(*_refusal(404, "bundle_not_found", self.path))
        else:
            self.send_bytes(200, bundle, "application/gzip")

    def send(self, status: int, answer: Any) -> None:
        self.send_bytes(status, json.dumps(wire.to_plain(answer)).encode(), "application/json")

    def send_bytes(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Multinode-Version", "2.0.0")
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def log_message(self, *_: object) -> None:
        """Quiet."""
