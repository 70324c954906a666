"""How an execution ended, decided from what its supervisor saw. Pure."""

from __future__ import annotations

import signal

from ..records import Record
from ..wire import ExecutionEnd, FunctionError, from_plain
from .channel import CHANNEL_LOST

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Optional

TAKEN_AWAY = "worker lost: the machine was taken away (SIGTERM)"

UNSTARTED = ExecutionEnd(outcome="unstarted")
"""The end of a task that is given back."""

_OUTCOMES = {b"c": "cancelled", b"t": "timed_out", b"p": "lost"}


class Death(Record):
    """The end of the child's process. One of ``exit_code`` and ``signal`` is None."""

    exit_code: Optional[int]
    signal: Optional[int]
    peak_memory_bytes: int
    was_killed_by_us: bool = False
    was_out_of_memory: bool = False
    """Whether the cgroup's count of killed processes rose."""

    @property
    def is_out_of_memory(self) -> bool:
        """Whether the kernel killed it because it, and not something else, was out of memory."""
        killed = self.signal == signal.SIGKILL and not self.was_killed_by_us
        return killed and self.was_out_of_memory

    def describe(self, memory_mib: int) -> str:
        """What is known of it, in words."""
        if self.is_out_of_memory:
            return f"killed: out of memory at its limit of {memory_mib} MiB"
        if self.signal is not None:
            return f"killed by signal {self.signal}"
        return f"exited with code {self.exit_code}"


class Interrupt(Record):
    """An order that was rung into the child."""

    order: bytes
    grace_s: float
    """How long the function had from the first ring on."""
    is_delivered: bool
    """Whether the child said that the exception was raised in the function."""


def end_of_frame(
    frame: Dict[str, Any], interrupt: Optional[Interrupt], run_ms: float
) -> ExecutionEnd:
    """The end that the child told of itself; an interrupt that had not reached the function came too late."""
    error = None if frame["error"] is None else from_plain(FunctionError, frame["error"])
    result: Optional[str] = frame["result"]
    peak = frame["peak_memory_bytes"]
    if interrupt is None or not interrupt.is_delivered:
        return ExecutionEnd(
            outcome="succeeded" if error is None else "failed",
            result=result,
            error=error,
            retryable=bool(frame["retryable"]),
            peak_memory_bytes=peak,
            run_ms=run_ms,
        )
    if interrupt.order == b"p":
        error = FunctionError(TAKEN_AWAY)
    return ExecutionEnd(
        outcome=_OUTCOMES[interrupt.order],
        result=result if interrupt.order != b"p" else None,
        error=error,
        retryable=interrupt.order == b"p",
        peak_memory_bytes=peak,
        run_ms=run_ms,
    )


def end_of_death(
    death: Death, interrupt: Optional[Interrupt], memory_mib: int, run_ms: float
) -> ExecutionEnd:
    """The end of an execution whose child died without having told one."""
    outcome = "lost"
    message = death.describe(memory_mib)
    if interrupt is not None:
        outcome = _OUTCOMES[interrupt.order]
        if death.was_killed_by_us:
            message = f"killed: it had not ended {interrupt.grace_s:g} s after it was interrupted"
        if interrupt.order == b"p":
            message = f"{TAKEN_AWAY}; {message}"
    elif death.exit_code == CHANNEL_LOST or death.was_killed_by_us:
        outcome = "failed"
        message = (
            "the function closed file descriptors of its worker (os.closerange?), "
            "so its result could not be received"
        )
    return ExecutionEnd(
        outcome=outcome,
        error=FunctionError(message),
        retryable=outcome in ("lost", "failed"),
        exit_code=death.exit_code,
        signal=death.signal,
        peak_memory_bytes=death.peak_memory_bytes,
        run_ms=run_ms,
    )


def end_before_start(order: bytes) -> ExecutionEnd:
    """The end of an execution that was interrupted when it was claimed, before any code of it ran."""
    if order == b"p":
        return ExecutionEnd(outcome="lost", error=FunctionError(TAKEN_AWAY), run_ms=0.0)
    return ExecutionEnd(outcome=_OUTCOMES[order], retryable=False, run_ms=0.0)


def end_of_import(error: FunctionError) -> ExecutionEnd:
    """The end of an execution whose ``main.py`` could not be imported."""
    return ExecutionEnd(outcome="failed", error=error, retryable=True)
