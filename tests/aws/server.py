"""AWS on loopback: ``python -m tests.aws.server``; what it is to know comes as JSON through stdin, its URL goes to stdout.

moto answers, but for what ``ecr`` and ``fargate`` answer instead. Below ``/stand-in/`` the tests say what is to happen (``StandIn``).
"""

from __future__ import annotations

import json
import logging
import signal
import socket
import sys
from contextlib import suppress
from io import BytesIO
from typing import Any, Callable

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from tests.aws.calls import AwsError, Moto, read_call
from tests.aws.ecr import Ecr
from tests.aws.fargate import Fargate
from tests.aws.gate import Gate, Hang
from tests.aws.task_life import Lives
from werkzeug.serving import make_server

_REASONS = {200: "OK", 400: "Bad Request", 404: "Not Found", 500: "Internal Server Error"}


class Server:
    """The WSGI application."""

    def __init__(self, known: dict[str, Any]) -> None:
        self._app = DomainDispatcherApplication(create_backend_app)
        moto = Moto(self._app)
        self.gate = Gate()
        self.ecr = Ecr(moto, known["registry"], known["password"])
        self._moto = moto
        self.lives: Lives | None = None
        self.fargate = Fargate(moto, lambda task: self._lives().live(task))
        self._mark, self._registry = known["mark"], known["registry"]
        self._services: dict[str, Callable[..., dict[str, Any]]] = {
            "ecr": self.ecr.handle,
            "ecs": self.fargate.handle,
        }

    def _lives(self) -> Lives:
        """Not before the first task: ECR alone needs no engine."""
        if self.lives is None:
            self.lives = Lives(self._moto, self._mark, self._registry, self._login)
        return self.lives

    def _login(self) -> dict[str, str]:
        return {"username": "AWS", "password": self.ecr.password}

    def __call__(self, environ: dict[str, Any], start_response: Callable[..., Any]) -> list[bytes]:
        content = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        path = environ.get("PATH_INFO", "")
        call = read_call(environ, content)
        try:
            if path.startswith("/stand-in/"):
                told = self._told(path.removeprefix("/stand-in/"), json.loads(content or b"{}"))
                return _answer(start_response, 200, told)
            if call is None:
                environ["wsgi.input"] = BytesIO(content)
                return self._app(environ, start_response)
            handle = self._services.get(call.service)
            if handle is None:
                found = self.gate.pass_through(
                    call, lambda: self._moto.ask(call.service, call.operation, call.body)
                )
            else:
                found = self.gate.pass_through(call, lambda: handle(call))
            return _answer(start_response, 200, found)
        except AwsError as error:
            return _answer(start_response, error.status, error.body())
        except Hang:
            with suppress(OSError):
                environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
            return _answer(start_response, 500, {})

    def _told(self, what: str, body: dict[str, Any]) -> Any:
        """What a test says, or asks."""
        if what == "fault":
            self.gate.faults.append(body)
        elif what == "no-faults":
            self.gate.faults.clear()
        elif what == "calls":
            return [item for item in self.gate.seen if item["operation"] == body["operation"]]
        elif what == "forget-calls":
            self.gate.seen.clear()
        elif what == "password":
            self.ecr.password = body["password"]
        elif what == "next-task":
            self.fargate.orders.append(body)
        elif what == "interrupt":
            self._interrupt(body["task"])
        elif what == "tasks":
            return [
                {"arn": each.arn, "status": each.status, "tags": each.tags}
                for each in self.fargate.tasks()
            ]
        elif what == "forget-tasks":
            self.fargate.forget()
        elif what == "set":
            for name, value in body.items():
                setattr(self.fargate if name == "hidden_s" else self._lives(), name, value)
        else:
            raise AwsError("NotFound", what, 404)
        return {}

    def _interrupt(self, arn: str) -> None:
        for task in self.fargate.tasks():
            if task.arn == arn:
                task.stop("SpotInterruption", "Your Spot Task was interrupted.")

    def close(self) -> None:
        if self.lives is not None:
            self.lives.clear()


def _answer(start_response: Callable[..., Any], status: int, body: Any) -> list[bytes]:
    content = json.dumps(body).encode()
    headers = [
        ("Content-Type", "application/x-amz-json-1.1"),
        ("Content-Length", str(len(content))),
    ]
    start_response(f"{status} {_REASONS.get(status, 'Error')}", headers)
    return [content]


def main() -> None:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    server = Server(json.loads(sys.stdin.readline()))
    listening = make_server("127.0.0.1", 0, server, threaded=True)
    print(json.dumps({"url": f"http://127.0.0.1:{listening.server_port}"}), flush=True)
    try:
        listening.serve_forever()
    finally:
        server.close()


if __name__ == "__main__":
    main()
