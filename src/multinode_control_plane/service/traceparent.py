"""The ``traceparent`` of W3C Trace Context: taken from a caller at a start, kept with the invocation, handed on to its workers.

https://www.w3.org/TR/trace-context/#traceparent-header (2026-11-24). Pure; what makes spans is `telemetry.tracing`.
"""

from __future__ import annotations

import re

VARIABLE = "TRACEPARENT"
"""In a worker's environment, where tracing libraries look for it."""
_FORM = re.compile(r"(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}")


def valid(text: str | None) -> str | None:
    """``text`` where it is one; else None, as the standard asks: the trace begins anew."""
    return text if text is not None and _FORM.fullmatch(text) else None


def span_id(execution_id: str) -> str:
    """That of the execution's span, 16 hexadecimal digits: known before the span is made, when the execution has ended."""
    return execution_id.rpartition("-")[2][:16]


def of_execution(stored: str, execution_id: str) -> str:
    """What a worker is told: spans of its code lie below the execution's."""
    version, trace, _, flags = stored.split("-")
    return f"{version}-{trace}-{span_id(execution_id)}-{flags}"
