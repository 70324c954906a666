"""Traces as a receiver of OTLP sees them, and that without an endpoint nothing of OpenTelemetry is there."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from tests.control_plane.told_plane import Plane, ServedPlane, on_plane

from multinode import wire
from multinode.client import Client
from multinode.errors import MissingExtra
from multinode_control_plane import server
from multinode_control_plane.service import invocations, traceparent
from multinode_control_plane.settings import parser, resolve
from multinode_control_plane.telemetry.tracing import Tracing

TRACE = "0af7651916cd43dd8448eb211c80319c"
CALLER = f"00-{TRACE}-b7ad6b7169203331-01"


class Receiver:
    """Takes spans by OTLP over HTTP (protobuf), as a collector does."""

    def __init__(self) -> None:
        self.spans: list[Any] = []
        self.services: set[str] = set()
        receiver = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                assert (self.path, self.headers["Content-Type"]) == (
                    "/v1/traces", "application/x-protobuf",
                )  # fmt: skip
                receiver.take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_arguments: Any) -> None:
                """Says nothing."""

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever)
        self._thread.start()

    def take(self, request: Any) -> None:
        for resource in request.resource_spans:
            named = {item.key: item.value.string_value for item in resource.resource.attributes}
            self.services.add(named["service.name"])
            for scope in resource.scope_spans:
                self.spans += scope.spans

    def named(self, name: str) -> list[Any]:
        return [span for span in self.spans if span.name == name]

    def one(self, name: str) -> Any:
        [span] = self.named(name)
        return span

    def close(self) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()


@pytest.fixture
def receiver(monkeypatch) -> Iterator[Receiver]:
    made = Receiver()
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", made.url)
    yield made
    made.close()


@pytest.fixture
def traced(tmp_path, receiver) -> Iterator[tuple[ServedPlane, Tracing]]:
    tracing = server.open_tracing()
    served = ServedPlane(tmp_path, traces=True)
    served.tracing = tracing
    served.open()
    yield served, tracing
    served.close()


def attributes(span: Any) -> dict[str, Any]:
    return {item.key: item.value.string_value or item.value.int_value for item in span.attributes}


START = "POST /v1/projects/{project}/functions/{function}/invocations"


def test_a_call_is_one_trace_from_the_caller_to_its_code(traced, receiver):
    served, tracing = traced
    headers = {"Authorization": f"Bearer {served.key('invoke')}", "traceparent": CALLER}
    served.do(served.plane.deploy())
    url = f"{served.url}/v1/projects/shop/functions/f/invocations"
    answer = httpx.post(url, headers=headers, content=wire.dumps(wire.StartRequest(["[[],{}]"])))
    [invocation_id] = answer.json()["invocation_ids"]

    async def run() -> wire.Assignment:
        claimed = await served.plane.claim(invocation_id)
        await served.plane.end(claimed, "failed")
        return claimed[0]

    assignment = served.do(run())
    tracing.close()
    assert receiver.services == {"multinode"}
    request, execution = receiver.one(START), receiver.one("execution f")
    assert request.trace_id.hex() == TRACE
    assert request.parent_span_id.hex() == "b7ad6b7169203331"
    for span in (receiver.one("queue"), receiver.one("worker start"), execution):
        assert span.trace_id.hex() == TRACE
        assert span.parent_span_id == request.span_id
        assert attributes(span)["multinode.invocation_id"] == invocation_id
        assert 0 < span.start_time_unix_nano <= span.end_time_unix_nano
    assert request.span_id in {span.parent_span_id for span in receiver.named("store commit")}
    assert attributes(execution)["multinode.outcome"] == "failed"
    assert execution.status.code == 2
    own = f"00-{TRACE}-{execution.span_id.hex()}-01"
    assert assignment.dotenv["TRACEPARENT"] == own, "the code's spans lie below the execution's"


def test_a_call_without_a_trace_begins_one(traced, receiver):
    served, tracing = traced
    headers = {"Authorization": f"Bearer {served.key('read')}", "traceparent": "00-nonsense"}
    answer = httpx.get(f"{served.url}/v1/projects", headers={**headers, "X-Request-Id": "mine-3"})
    assert answer.status_code == 200
    for path in ("/healthz", "/readyz", "/metrics"):
        httpx.get(served.url + path, headers=headers)
    tracing.close()
    span = receiver.one("GET /v1/projects")
    assert not span.parent_span_id
    assert attributes(span)["multinode.request_id"] == "mine-3"
    assert attributes(span)["http.response.status_code"] == 200
    assert not [span for span in receiver.spans if "z" in span.name or "metrics" in span.name]


def test_where_no_spans_are_made_the_callers_trace_is_handed_on(tmp_path):
    async def test(plane: Plane) -> None:
        await plane.deploy()
        request = wire.StartRequest(["[[],{}]"])
        answer = await plane.store.write(
            lambda tx: invocations.start(
                tx, plane.context.catalog, "shop", "f", request, traceparent=CALLER
            )
        )
        assignment, _ = await plane.claim(answer.invocation_ids[0])
        assert assignment.dotenv["TRACEPARENT"] == CALLER
        assignment, _ = await plane.claim(await plane.start())
        assert "TRACEPARENT" not in assignment.dotenv

    on_plane(tmp_path, test)


@pytest.mark.parametrize(
    ("text", "is_valid"),
    [(CALLER, True), (None, False), ("", False), (CALLER.upper(), False), ("ff" + CALLER[2:], False),
     (CALLER.replace(TRACE, "0" * 32), False), (CALLER + "-x", False), (CALLER + "\n", False)],
)  # fmt: skip
def test_what_is_no_traceparent_is_passed_over(text, is_valid):
    assert (traceparent.valid(text) == text and text is not None) == is_valid


def test_the_sdk_says_which_trace_it_is_part_of(monkeypatch):
    client = Client("http://127.0.0.1:1", "key")
    asked = lambda: client._request("GET", "/v1/projects", None, timeout_s=1).headers  # noqa: E731
    assert "traceparent" not in asked()
    monkeypatch.setenv("TRACEPARENT", CALLER)
    assert asked()["traceparent"] == CALLER
    monkeypatch.setenv("TRACEPARENT", "no\r\nX: y")
    assert "traceparent" not in asked()
    from opentelemetry.sdk.trace import TracerProvider

    provider = TracerProvider(shutdown_on_exit=False)
    with provider.get_tracer("test").start_as_current_span("outer") as span:
        context = span.get_span_context()
        assert (
            asked()["traceparent"]
            == f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
        )


def test_without_an_endpoint_nothing_is_imported(tmp_path):
    code = (
        "import multinode_control_plane.server, multinode_control_plane.api.routes, sys;"
        "sys.exit(any(name.startswith('opentelemetry') for name in sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
    options = parser().parse_args([f"--home={tmp_path}"])
    assert not resolve(options, {}).traces
    there = {"OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"}
    assert resolve(options, there).traces
    assert not resolve(options, {**there, "OTEL_SDK_DISABLED": "true"}).traces


def test_a_missing_extra_is_said_with_the_command(monkeypatch):
    name = "multinode_control_plane.telemetry.tracing"
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(MissingExtra) as caught:
        server.open_tracing()
    assert "pip install opentelemetry-sdk" in caught.value.hint


def test_an_endpoint_that_is_away_breaks_nothing(monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:9")
    tracing = Tracing()
    from multinode_control_plane.telemetry.request import Asked

    asked = Asked("r")
    span = tracing.begin(asked, "GET", "/v1/projects")
    tracing.end(span, asked, 200)
    tracing.close()
