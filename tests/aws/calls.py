"""One call of an AWS API that speaks JSON (ECS, ECR, CloudWatch Logs), how it is answered, and moto behind it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any, Callable

from werkzeug.test import create_environ, run_wsgi_app

REGION = "eu-west-2"
ACCOUNT = "123456789012"
PREFIXES = {
    "AmazonEC2ContainerServiceV20141113": "ecs",
    "AmazonEC2ContainerRegistry_V20150921": "ecr",
    "Logs_20140328": "logs",
    "secretsmanager": "secretsmanager",
    "AmazonSSM": "ssm",
}
TARGETS = {service: prefix for prefix, service in PREFIXES.items()}
Answer = "dict[str, Any]"


class AwsError(Exception):
    """What AWS answers where it does not do what it is asked."""

    def __init__(self, code: str, message: str, status: int = 400) -> None:
        super().__init__(message)
        self.code, self.message, self.status = code, message, status

    def body(self) -> dict[str, Any]:
        return {"__type": self.code, "message": self.message}


@dataclass(frozen=True)
class Call:
    """``service`` as boto3 calls it, ``operation`` as AWS does (``RunTask``)."""

    service: str
    operation: str
    body: dict[str, Any]


def read_call(environ: dict[str, Any], content: bytes) -> Call | None:
    """The call of a request; None for those of other kinds, which moto answers."""
    prefix, _, operation = environ.get("HTTP_X_AMZ_TARGET", "").partition(".")
    if prefix not in PREFIXES:
        return None
    return Call(PREFIXES[prefix], operation, json.loads(content or b"{}"))


class Moto:
    """moto's WSGI application, asked from inside of this process."""

    def __init__(self, app: Callable[..., Any]) -> None:
        self._app = app

    def ask(self, service: str, operation: str, body: dict[str, Any]) -> dict[str, Any]:
        """What moto answers. Raises AwsError."""
        kind = "application/x-amz-json-1.1"
        scope = f"Credential=x/20260101/{REGION}/{service}/aws4_request"
        environ = create_environ(
            method="POST",
            base_url=f"http://{service}.{REGION}.amazonaws.com/",
            data=json.dumps(body),
            content_type=kind,
            headers={
                "X-Amz-Target": f"{TARGETS[service]}.{operation}",
                "Authorization": f"AWS4-HMAC-SHA256 {scope}, SignedHeaders=host, Signature=x",
            },
        )
        pieces, status, _ = run_wsgi_app(self._app, environ, buffered=True)
        text = b"".join(pieces).decode()
        number = int(status.split()[0])
        if number == 200:
            return json.loads(text or "{}")
        try:
            found = json.loads(text)
            code = str(found["__type"]).rpartition("#")[2]
            message = found.get("message") or found.get("Message") or ""
        except (ValueError, KeyError):
            code, message = "ServerException", f"moto: {text[:300]}"
        raise AwsError(code, message, number)
