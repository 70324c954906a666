"""An AWS endpoint that answers what a test told it to: for what the stand-ins of AWS never do, its refusals above all."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

REGION = "eu-west-2"


class ScriptedAws:
    """``answers`` of an operation (``DescribeImages``) are given one after another, the last one again and again."""

    def __init__(self) -> None:
        self.answers: dict[str, list[tuple[int, Any]]] = {}
        self.asked: list[tuple[str, Any]] = []
        self.url = ""

    def on(self, operation: str, *answers: Any) -> None:
        """Each is a body, or a refusal of `refusal`."""
        self.answers[operation] = [
            each if isinstance(each, tuple) else (200, each) for each in answers
        ]

    def count(self, operation: str) -> int:
        return [name for name, _ in self.asked].count(operation)


def refusal(code: str, words: str = "", status: int = 400) -> tuple[int, Any]:
    return status, {"__type": code, "message": words}


@contextmanager
def running() -> Iterator[ScriptedAws]:
    aws = ScriptedAws()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            operation = self.headers["X-Amz-Target"].rpartition(".")[2]
            body = self.rfile.read(int(self.headers["Content-Length"]))
            aws.asked.append((operation, json.loads(body)))
            left = aws.answers.get(operation) or [refusal("UnknownOperationException")]
            status, answer = left.pop(0) if len(left) > 1 else left[0]
            content = json.dumps(answer).encode()
            self.send_response(status)
            self.send_header("Content-Type", "application/x-amz-json-1.1")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    aws.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield aws
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def log_in(monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    """This process calls AWS at ``url``, with a login, and without this machine's own settings."""
    for name, value in {
        "AWS_ENDPOINT_URL": url, "AWS_REGION": REGION, "AWS_DEFAULT_REGION": REGION, "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_CONFIG_FILE": "/nonexistent",
        "AWS_SHARED_CREDENTIALS_FILE": "/nonexistent",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_PROFILE", raising=False)
