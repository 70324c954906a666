"""Invocations, times and settings as people read them, and invocations as ``--json`` has them."""

from __future__ import annotations

import json
import re
from datetime import datetime, timezone
from typing import Any

from multinode.errors import (
    InputError,
    InvocationFailedError,
    MultinodeError,
    RemoteInvocationCancelledError,
    RemoteInvocationTimedOutError,
)
from multinode.wire import (
    CANCELLED,
    FAILED,
    TIMED_OUT,
    FunctionSettings,
    InvocationInfo,
    InvocationItem,
    WorkerSize,
    to_plain,
)


def invocation_data(invocation: InvocationInfo | InvocationItem) -> dict[str, Any]:
    """An invocation for ``--json``: as on the wire, with ``result`` parsed into plain data."""
    data: dict[str, Any] = to_plain(invocation)
    data.pop("revision", None)
    if isinstance(invocation, InvocationInfo):
        from multinode.codec import plain  # lazy: `list` and `ps` show no results

        data["result"] = None if invocation.result is None else plain(invocation.result)
    return data


def value_text(text: str | None) -> str:
    """A result or value for a terminal: texts as they are, everything else as JSON."""
    from multinode.codec import plain  # lazy, as above

    value = None if text is None else plain(text)
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def failure(invocation: InvocationInfo) -> MultinodeError | None:
    """The error that an ended invocation amounts to; None where it succeeded or goes on."""
    name = invocation.invocation_id
    hint = f"`multinode describe {name}` shows its attempts, `multinode logs {name}` its output."
    said = f": {invocation.error.message}" if invocation.error else ""
    if invocation.status == FAILED:
        return InvocationFailedError(f"{name} FAILED{said}", hint, invocation_id=name)
    if invocation.status == CANCELLED:
        return RemoteInvocationCancelledError(
            f"{name} was CANCELLED{said}", hint, invocation_id=name
        )
    if invocation.status == TIMED_OUT:
        return RemoteInvocationTimedOutError(f"{name} TIMED_OUT{said}", hint, invocation_id=name)
    return None


def moment(text: str | None) -> datetime | None:
    """A time of the wire."""
    return datetime.fromisoformat(text.replace("Z", "+00:00")) if text else None


def age(text: str | None, now: datetime | None = None) -> str:
    """How long ago a time is: ``12 s``, ``5 min``, ``3 h``, ``2 d``."""
    at = moment(text)
    if at is None:
        return ""
    return span(((now or datetime.now(timezone.utc)) - at).total_seconds(), exact=False)


def between(start: str | None, end: str | None) -> str:
    """The span from one time to another, to a millisecond; empty where one is missing."""
    first, last = moment(start), moment(end)
    return span((last - first).total_seconds()) if first and last else ""


def span(seconds: float, *, exact: bool = True) -> str:
    """A span as people say it."""
    seconds = max(0.0, seconds)
    if exact and seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s" if exact else f"{seconds:.0f} s"
    for unit, size in (("min", 60), ("h", 3600), ("d", 86400)):
        if seconds < 120 * size or unit == "d":
            return f"{seconds / size:.1f} {unit}" if exact else f"{seconds / size:.0f} {unit}"
    return ""


def memory(mib: float) -> str:
    """``512 MiB``, ``2 GiB``, ``18.8 GiB``."""
    if mib >= 10 * 1024:
        return f"{mib / 1024:.4g} GiB"
    return f"{mib / 1024:g} GiB" if mib >= 1024 and mib % 512 == 0 else f"{mib:.4g} MiB"


def size_text(size: WorkerSize) -> str:
    """``0.25 vCPU and 512 MiB``."""
    return f"{size.cpu:g} vCPU and {memory(size.memory_mib)}"


def settings_text(settings: FunctionSettings, size: WorkerSize | None = None) -> str:
    """cpu and memory, what is paid for where that is another ``size``, and every other setting that is not the default."""
    default = FunctionSettings()
    parts = [f"cpu {settings.cpu:g}", f"memory {memory(settings.memory_mib)}"]
    if size is not None:
        parts[-1] += f" (paid: {size_text(size)})"
    for field in FunctionSettings.fields[2:]:
        value = getattr(settings, field)
        if value == getattr(default, field):
            continue
        name = field.removesuffix("_s")
        text = span(value) if field.endswith("_s") and value is not None else value
        parts.append(f"{name} {', '.join(text) if isinstance(text, list) else text}")
    return ", ".join(parts)


def counted(number: int, noun: str) -> str:
    """``1 version``, ``2 versions``."""
    return f"{number} {noun}{'' if number == 1 else 's'}"


def ended_line(invocation: InvocationInfo) -> str:
    """``SUCCEEDED inv-… after 3.2 s (waited 0.1 s)``."""
    ran = between(invocation.started_at, invocation.finished_at)
    waited = between(invocation.created_at, invocation.started_at or invocation.finished_at)
    times = f"ran {ran}, waited {waited}" if ran else f"never ran, waited {waited}"
    retries = invocation.num_failed_attempts
    failed = f", {counted(retries, 'failed attempt')}" if retries else ""
    return f"{invocation.status}  {invocation.invocation_id}  {times}{failed}"


def money(amount: float, currency: str) -> str:
    """``0 USD``, ``0.000206 USD``, ``0.0412 USD``, ``12.35 USD``."""
    if amount == 0:
        return f"0 {currency}"
    digits = 2 if amount >= 10 else 4 if amount >= 0.01 else 6
    return f"{amount:,.{digits}f} {currency}"


def used(vcpu_s: float, gb_s: float) -> str:
    """``15 vCPU s, 30 GB s``."""
    return f"{span_of(vcpu_s)} vCPU s, {span_of(gb_s)} GB s"


def span_of(seconds: float) -> str:
    """``0.0131``, ``12.3``, ``1,234``."""
    return f"{seconds:,.0f}" if seconds >= 100 else f"{seconds:.3g}"


def span_s(text: str, option: str = "--since") -> float:
    """Seconds of ``30s``, ``10m``, ``2h`` or ``1d``. Raises InputError."""
    matched = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd])", text.strip())
    if matched is None:
        message = f"{option} {text!r} is no span of time."
        raise InputError(message, "Write it like 30s, 10m, 2h or 1d.")
    return float(matched[1]) * _UNITS_S[matched[2]]


_UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86400}
