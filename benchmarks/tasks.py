"""A new task for each no-op, on the tests' stand-in for AWS: what of a start is our own; needs an engine and a registry.

How long Fargate takes between RunTask and the worker's first request nothing here can say: the stand-in runs a container.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from tests.acceptance.ecs_product import place_in, worker_url
from tests.aws.stand_in import StandIn

from benchmarks.harness import Figure, Installation, installation, p50, p95
from multinode.client import client_for, path_of
from multinode.settings import resolve
from multinode.wire import InvocationDetail

RUNNER = "ecs"
AT_ONCE = 20
OURS_MS = 300.0
"""The target: what is ours before RunTask and after the worker's first request, together."""


@dataclass(frozen=True)
class OnTasks(Installation):
    aws: StandIn | None = None


@dataclass(frozen=True)
class Start:
    """Of one invocation, in ms: from its ``start`` to RunTask at AWS, from there to the worker's first request, from there to its code."""

    before_ms: float
    aws_ms: float
    after_ms: float

    @property
    def ours_ms(self) -> float:
        return self.before_ms + self.after_ms


@contextmanager
def opened(folder: Path) -> Iterator[OnTasks]:
    """A control plane whose functions are tasks of a stand-in of its own."""
    (folder / "aws").mkdir()
    before = dict(os.environ)
    try:
        with StandIn(folder / "aws", keeps_tags=True) as aws:
            os.environ.update(place_in(aws), MULTINODE_WORKER_URL=worker_url())
            with installation(folder, runner=RUNNER) as at:
                yield OnTasks(**vars(at), aws=aws)
    finally:
        os.environ.clear()
        os.environ.update(before)


def figures(at: OnTasks, quick: bool) -> list[Figure]:
    stamp = at.function("stamp")
    stamp.call_remote()  # the first of its size registers the task definition
    began_at: dict[str, float] = {}
    for _ in range(10 if quick else 100):
        invocation_id = stamp.start()
        began_at[invocation_id] = stamp.await_result(invocation_id)
    alone = _starts(at, began_at)
    ids = [stamp.start() for _ in range(AT_ONCE)]
    together = _starts(at, {each: stamp.await_result(each) for each in ids})
    return [*_figures("one task", alone, OURS_MS), *_figures(f"{AT_ONCE} tasks at once", together)]


def _figures(of: str, starts: Sequence[Start], target: float | None = None) -> list[Figure]:
    ours = [each.ours_ms for each in starts]
    before, after = [each.before_ms for each in starts], [each.after_ms for each in starts]
    return [
        Figure(f"{of}: ours of the start, p50", p50(ours), "ms"),
        Figure(f"{of}: ours of the start, p95", p95(ours), "ms", target),
        Figure(f"{of}: start accepted → RunTask, p50", p50(before), "ms"),
        Figure(f"{of}: start accepted → RunTask, p95", p95(before), "ms"),
        Figure(f"{of}: worker's first request → its code, p50", p50(after), "ms"),
        Figure(f"{of}: worker's first request → its code, p95", p95(after), "ms"),
        Figure(f"{of}: the stand-in's container, p50", p50(e.aws_ms for e in starts), "ms"),
    ]


def _starts(at: OnTasks, code_at: dict[str, float]) -> list[Start]:
    """``code_at``: when the code of each invocation began, by its own clock, which is this machine's."""
    asked_at = {
        tag["value"]: call["at"]
        for call in at.aws.tell("calls", operation="RunTask")
        for tag in call["body"]["tags"]
        if tag["key"] == "multinode:execution"
    }
    client = client_for(resolve())
    found = []
    for invocation_id, code in code_at.items():
        path = path_of("invocations", invocation_id, "detail")
        detail = client.run(client.exchange(InvocationDetail, "GET", path))
        (execution,) = detail.executions
        (connected,) = [step for step in execution.timeline if step.name == "worker connected"]
        asked = asked_at[execution.execution_id]
        first = _seconds(connected.at)
        accepted = _seconds(detail.invocation.created_at)
        found.append(
            Start(1000 * (asked - accepted), 1000 * (first - asked), 1000 * (code - first))
        )
    return found


def _seconds(at: str) -> float:
    return datetime.fromisoformat(at.replace("Z", "+00:00")).timestamp()
