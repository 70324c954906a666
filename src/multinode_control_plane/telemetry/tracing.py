"""Traces, through OpenTelemetry, where an endpoint is set; imported only then.

A span for each request, for each commit that a request waited for, and, from the facts of an attempt when they are known, for its
wait in the queue, its worker's start and its execution. The library sends them from a thread of its own; where the endpoint is away
they are lost, and nothing else.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Mapping

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import RandomIdGenerator
from opentelemetry.trace import Span, SpanKind, Status, StatusCode
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from multinode_control_plane import __version__
from multinode_control_plane.service import traceparent
from multinode_control_plane.service.facts import Attempt, AttemptClaimed, AttemptEnded, Fact
from multinode_control_plane.telemetry.request import Asked

UNTRACED = ("/healthz", "/readyz", "/metrics")
EXPORT_S = 5.0
_NS = 1_000_000_000
_PROPAGATOR = TraceContextTextMapPropagator()


class _Ids(RandomIdGenerator):
    """Random ones, but for a span whose id is known already: that of this thread's next one."""

    def __init__(self) -> None:
        self._next = threading.local()

    def use(self, span_id: str) -> None:
        """The next span of this thread has this id."""
        self._next.span_id = int(span_id, 16)

    def generate_span_id(self) -> int:
        """One id."""
        known, self._next.span_id = getattr(self._next, "span_id", None), None
        return known or super().generate_span_id()


class Tracing:
    """Makes spans and sends them. May be used from the event loop and from the store's writer thread."""

    def __init__(self, exporter: SpanExporter | None = None) -> None:
        self._ids = _Ids()
        # What is set by OTEL_RESOURCE_ATTRIBUTES and OTEL_SERVICE_NAME wins.
        resource = Resource.create({"service.version": __version__})
        if str(resource.attributes.get("service.name", "")).startswith("unknown_service"):
            resource = resource.merge(Resource({"service.name": "multinode"}))
        self._provider = TracerProvider(
            resource=resource, id_generator=self._ids, shutdown_on_exit=False
        )
        self._exporter = exporter or OTLPSpanExporter(timeout=EXPORT_S)
        self._provider.add_span_processor(BatchSpanProcessor(self._exporter))
        self._tracer = self._provider.get_tracer("multinode", __version__)

    def close(self) -> None:
        """Sends what is left, for a few seconds at most. Blocks."""
        self._provider.force_flush(int(EXPORT_S * 1000))
        self._provider.shutdown()

    # --- requests -----------------------------------------------------------------------------------

    def begin(self, asked: Asked, method: str, route: str) -> Span | None:
        """The span of a request, whose ``traceparent`` becomes its own; None for what is asked all the time."""
        if route in UNTRACED:
            return None
        span = self._tracer.start_span(
            f"{method} {route}",
            context=_context(asked.traceparent),
            kind=SpanKind.SERVER,
            attributes={"http.request.method": method, "http.route": route},
        )
        asked.traceparent = _traceparent(span)
        return span

    def end(self, span: Span | None, asked: Asked, status: int) -> None:
        """Its answer is ready."""
        if span is None:
            return
        span.set_attribute("http.response.status_code", status)
        span.set_attribute("multinode.waited_s", round(asked.waited_s, 6))
        span.set_attributes(_named(asked.ids()))
        if status >= 500:
            span.set_status(Status(StatusCode.ERROR))
        span.end()

    # --- the store ----------------------------------------------------------------------------------

    def committed(self, waiting: Iterable[Asked | None], jobs: int, lasted_s: float) -> None:
        """A commit, for each of the requests that waited for it."""
        now_ns = time.time_ns()
        traced = {asked.request_id: asked for asked in waiting if asked and asked.traceparent}
        for asked in traced.values():
            self._record(
                "store commit",
                asked.traceparent,
                (now_ns / _NS - lasted_s, now_ns / _NS),
                {"multinode.jobs": jobs},
            )

    # --- attempts -----------------------------------------------------------------------------------

    def note(self, fact: Fact) -> None:
        """Spans of what is over, where the invocation was started in a trace."""
        match fact:
            case AttemptClaimed(project, attempt, at, queued_s, starting_s) if attempt.traceparent:
                about = _about(project, attempt)
                made_at = at - starting_s
                self._record("queue", attempt.traceparent, (made_at - queued_s, made_at), about)
                self._record("worker start", attempt.traceparent, (made_at, at), about)
            case AttemptEnded(project, attempt, at, outcome, lasted_s) if attempt.traceparent:
                if lasted_s is None:
                    return
                about = {**_about(project, attempt), "multinode.outcome": outcome}
                self._ids.use(traceparent.span_id(attempt.execution_id))
                self._record(
                    f"execution {attempt.function}",
                    attempt.traceparent,
                    (at - lasted_s, at),
                    about,
                    is_error=outcome in ("failed", "lost", "timed_out"),
                )

    def _record(
        self,
        name: str,
        parent: str | None,
        span_of_time: tuple[float, float],
        attributes: Mapping[str, str | int],
        *,
        is_error: bool = False,
    ) -> None:
        begin, end = (int(at * _NS) for at in span_of_time)
        span = self._tracer.start_span(
            name, context=_context(parent), start_time=begin, attributes=attributes
        )
        if is_error:
            span.set_status(Status(StatusCode.ERROR))
        span.end(end)


def _about(project: str, attempt: Attempt) -> dict[str, str | int]:
    return {
        "multinode.project": project,
        "multinode.function": attempt.function,
        "multinode.invocation_id": attempt.invocation_id,
        "multinode.execution_id": attempt.execution_id,
        "multinode.worker_id": attempt.worker_id,
        "multinode.attempt": attempt.number,
    }


def _named(ids: Mapping[str, str | None]) -> dict[str, str]:
    return {f"multinode.{name}": value for name, value in ids.items() if value}


def _context(parent: str | None) -> Context:
    """That of a traceparent; without one a trace begins."""
    carrier = {} if parent is None else {"traceparent": parent}
    return _PROPAGATOR.extract(carrier, Context())


def _traceparent(span: Span) -> str:
    context = span.get_span_context()
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
