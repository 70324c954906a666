"""What stands before the stand-in: it remembers calls, throttles as AWS does, and spoils what a test wants spoilt.

A fault is a JSON object; ``operation`` and ``kind`` have to be there:

    error      answered with ``code``, ``message`` and ``status``, and not acted on
    answer     answered with ``body``, and not acted on
    lost       acted on, and the connection is closed without an answer
    unheard    the connection is closed, and nothing was done
    slow       acted on after ``seconds``

``times`` (1) is how many calls it meets, ``skip`` (0) how many go through before.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field
from typing import Any, Callable

from tests.aws.calls import AwsError, Call

BUCKETS = {
    ("RunTask", "StopTask"): (100.0, 40.0),
    ("DescribeTasks", "ListTasks"): (100.0, 20.0),
    ("RegisterTaskDefinition",): (20.0, 1.0),
    ("GetLogEvents",): (25.0, 25.0),
    ("CreateLogStream",): (50.0, 50.0),
}
"""How many calls at once, and how many a second:
https://docs.aws.amazon.com/AmazonECS/latest/APIReference/request-throttling.html and
https://docs.aws.amazon.com/AmazonCloudWatch/latest/logs/cloudwatch_limits_cwl.html, 2026-11-24"""


class Hang(Exception):
    """The connection is to be closed without an answer."""


@dataclass
class Bucket:
    """Tokens that come back with time."""

    burst: float
    rate: float
    tokens: float = -1.0
    at: float = 0.0

    def take(self, now: float) -> bool:
        if self.tokens < 0:
            self.tokens, self.at = self.burst, now
        self.tokens = min(self.burst, self.tokens + (now - self.at) * self.rate)
        self.at = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


@dataclass
class Gate:
    """See the module. From any thread."""

    faults: list[dict[str, Any]] = field(default_factory=list)
    seen: list[dict[str, Any]] = field(default_factory=list)
    _buckets: dict[str, Bucket] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __post_init__(self) -> None:
        for operations, (burst, rate) in BUCKETS.items():
            bucket = Bucket(burst, rate)
            self._buckets.update(dict.fromkeys(operations, bucket))

    def pass_through(self, call: Call, act: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """What ``act`` answers, or what the fault says. Raises AwsError and Hang."""
        with self._lock:
            self.seen.append({"operation": call.operation, "body": call.body, "at": time.time()})
            bucket = self._buckets.get(call.operation)
            is_throttled = bucket is not None and not bucket.take(time.monotonic())
            fault = self._fault_of(call.operation)
        if is_throttled:
            raise AwsError("ThrottlingException", "Rate exceeded")
        kind = fault.get("kind")
        if kind == "error":
            raise AwsError(fault["code"], fault.get("message", ""), fault.get("status", 400))
        if kind == "answer":
            return fault["body"]
        if kind == "unheard":
            raise Hang
        if kind == "slow":
            time.sleep(fault["seconds"])
        answer = act()
        if kind == "lost":
            raise Hang
        return answer

    def _fault_of(self, operation: str) -> dict[str, Any]:
        for fault in self.faults:
            if fault["operation"] not in (operation, "*") or fault.get("times", 1) <= 0:
                continue
            if fault.get("skip", 0) > 0:
                fault["skip"] -= 1
                continue
            fault["times"] = fault.get("times", 1) - 1
            return fault
        return {}
