"""A control plane that answers what a test told it to, and remembers what it was asked."""

import json
import sys
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from multinode import wire

NOW = "2026-01-02T03:04:05.000000+00:00"
LATER = "2026-01-02T03:04:06.500000+00:00"


class ScriptedControlPlane:
    """``answers[method, path]`` is what to answer: an instance of ``wire``, a list, bytes, a Refusal, a Foreign, a
    Lines, or a function of the request that returns one of these."""

    def __init__(self):
        self.answers = {}
        self.requests = []
        self.url = ""

    def on(self, method, path, answer):
        self.answers[method, path] = answer

    def bodies(self, method, path):
        """The bodies of the requests to a path, parsed."""
        return [
            json.loads(request.body)
            for request in self.requests
            if (request.method, request.path) == (method, path)
        ]


class Request:
    def __init__(self, method, target, body):
        parts = urlsplit(target)
        self.method, self.path, self.body = method, parts.path, body
        self.query = {name: values[0] for name, values in parse_qs(parts.query).items()}


class Refusal:
    def __init__(self, status, code, message, hint=""):
        self.status = status
        self.body = json.dumps({"error": {"code": code, "message": message, "hint": hint}}).encode()


class Foreign:
    """What answers is no control plane (``version`` None), or one of another version."""

    def __init__(self, status, body, version=None):
        self.status, self.body, self.version = status, body, version


class Lines:
    """A stream of instances of ``wire``."""

    def __init__(self, *items):
        self.items = items


def server_info(**changes):
    given = {
        "version": "2.0.0", "runner": "process", "database": "sqlite", "pid": 1, "started_at": NOW,
        "key_name": "local", "role": "admin", "workers": 0, "in_flight": 0, "cpu_capacity": 4.0,
        "memory_capacity_mib": 8192, "enforces": ["cpu", "memory"], "clock": NOW,
    }  # fmt: skip
    return wire.ServerInfo(**{**given, **changes})


def environment(**changes):
    given = {
        "digest": "e" * 64, "python": "3.11", "python_served": "3.11.7", "packages": [], "warnings": [],
        "created_at": NOW,
    }  # fmt: skip
    return wire.EnvironmentInfo(**{**given, **changes})


def function(name="add", parameters=("a", "b"), **settings):
    return wire.FunctionDescription(
        name,
        wire.FunctionSettings(**settings),
        [wire.Parameter(item, "positional_or_keyword") for item in parameters],
    )


def version(functions=None, **changes):
    given = {
        "project": "billing", "version_id": "ver-1", "number": 1, "created_at": NOW, "is_latest": True,
        "bundle_digest": "b" * 64, "environment": environment(), "dotenv_names": [],
        "functions": functions or [function()],
    }  # fmt: skip
    return wire.VersionInfo(**{**given, **changes})


def invocation(status="SUCCEEDED", **changes):
    is_ended = status in wire.FINAL_STATUSES
    given = {
        "invocation_id": "inv-1", "project": "billing", "function": "add", "version_id": "ver-1",
        "status": status, "result": "3" if status == "SUCCEEDED" else None, "error": None,
        "pending_reason": None, "num_failed_attempts": 0, "created_at": NOW,
        "started_at": None if status == "PENDING" else NOW, "finished_at": LATER if is_ended else None,
        "terminated": is_ended, "num_values": 0, "revision": 1,
    }  # fmt: skip
    return wire.InvocationInfo(**{**given, **changes})


@contextmanager
def running():
    """A plane that listens on loopback."""
    plane = ScriptedControlPlane()
    server = _Server(("127.0.0.1", 0), _handler(plane))
    plane.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield plane
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingHTTPServer):
    def handle_error(self, request, client_address):
        if not isinstance(sys.exc_info()[1], ConnectionError):  # an interrupted command has gone
            super().handle_error(request, client_address)


def _handler(plane):
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def answer(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            request = Request(self.command, self.path, body)
            plane.requests.append(request)
            missing = Refusal(
                404, "not_found", f"{request.method} {request.path} is not answered here."
            )
            answer = plane.answers.get((request.method, request.path), missing)
            self.send(answer(request) if callable(answer) else answer)

        def send(self, answer):
            status, body, version = 200, b"", "2.0.0"
            if isinstance(answer, Refusal):
                status, body = answer.status, answer.body
            elif isinstance(answer, Foreign):
                status, body, version = answer.status, answer.body, answer.version
            elif isinstance(answer, Lines):
                body = b"".join(wire.dumps(item) + b"\n" for item in answer.items)
            elif isinstance(answer, bytes):
                body = answer
            else:
                body = wire.dumps(answer)
            self.send_response(status)
            if version is not None:
                self.send_header("Multinode-Version", version)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_):
            pass

        do_GET = do_POST = do_PUT = do_DELETE = do_HEAD = answer

    return Handler
