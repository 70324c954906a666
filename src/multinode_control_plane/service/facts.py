"""What was committed, for whoever looks in: metrics and traces. Nothing here has an effect of its own.

A use case hands a fact to ``tx.after_commit``, beside its effects. So a fact is told once, by the process that committed it, and
not at all where that died meanwhile: counts are of a process, and begin anew with it. Spans are in seconds.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fact:
    """Something that happened in a project."""

    project: str


@dataclass(frozen=True)
class Attempt:
    """Which one. ``traceparent`` is that of the start of its invocation, None where that had none."""

    invocation_id: str
    execution_id: str
    worker_id: str
    function: str
    number: int
    traceparent: str | None


@dataclass(frozen=True)
class InvocationsStarted(Fact):
    """``count`` new ones, in one request."""

    count: int


@dataclass(frozen=True)
class InvocationEnded(Fact):
    """With a final status."""

    status: str


@dataclass(frozen=True)
class AttemptClaimed(Fact):
    """A worker has it, since ``at`` (POSIX time): it waited ``queued_s`` for a slot and room, then ``starting_s`` until its worker's claim."""

    attempt: Attempt
    at: float
    queued_s: float
    starting_s: float


@dataclass(frozen=True)
class AttemptEnded(Fact):
    """It ended ``at``. ``outcome`` is ``succeeded``, ``failed``, ``lost``, ``timed_out`` or ``cancelled``; ``lasted_s`` is since its claim, None where it had none."""

    attempt: Attempt
    at: float
    outcome: str
    lasted_s: float | None


@dataclass(frozen=True)
class WorkerNotMade(Fact):
    """It could not be made, or was lost before its claim: another one will be."""
