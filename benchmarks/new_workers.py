"""A new worker for each no-op: round trips and map, beside forks, interpreters and RQ."""

from __future__ import annotations

import multiprocessing
import statistics
import subprocess
import sys
from collections import Counter

from benchmarks import peers
from benchmarks.harness import Figure, Installation, map_rate, p50, p95, times
from multinode.client import client_for, path_of
from multinode.settings import resolve
from multinode.wire import InvocationDetail

FORK = multiprocessing.get_context("fork")


def figures(at: Installation, quick: bool) -> list[Figure]:
    count, many = (30, 200) if quick else (200, 1000)
    fork = times(count, _fork_once)
    interpreter = times(20, _interpreter_once)
    add = at.function("add")
    imported = _import_ms(at)
    trips = [trip - imported for trip in times(count, lambda: add.call_remote(1, 2), warm=5)]
    return [
        Figure("fork per task (floor), p50", p50(fork), "ms"),
        Figure("fork per task (floor), 1,000", 1000 * count / sum(fork), "/s", is_rate=True),
        Figure("new interpreter per task (floor), p50", p50(interpreter), "ms"),
        *peers.rq_figures(at.folder, count, many),
        Figure("new worker, round trip beyond the import, p50", p50(trips), "ms", 10, p50(fork)),
        Figure("new worker, round trip beyond the import, p95", p95(trips), "ms", None, p95(fork)),
        *_parts("round trip", add),
        _map_figure(add, many, 1000 * count / sum(fork)),
        *_parts("map", add),
        Figure("import of main.py (taken off the round trips)", imported, "ms"),
    ]


def _fork_once() -> None:
    reading, writing = FORK.Pipe(duplex=False)
    process = FORK.Process(target=writing.send, args=(1 + 2,))
    process.start()
    reading.recv()
    process.join()


def _interpreter_once() -> None:
    subprocess.run([sys.executable, "-c", "print(1 + 2)"], check=True, capture_output=True)


def _import_ms(at: Installation) -> float:
    """What importing the user's main.py takes where Multinode is imported already, as in a forked worker."""
    code = (
        "import time, sys, multinode.function, multinode.app, dataclasses\n"
        "sys.dont_write_bytecode = True; began = time.perf_counter(); import main\n"
        "print((time.perf_counter() - began) * 1000)"
    )
    command = [sys.executable, "-c", code]
    folder = at.project / "tasks"
    return p50(float(subprocess.check_output(command, cwd=folder)) for _ in range(5))


def _timeline(invocation_id: str) -> dict[str, float]:
    client = client_for(resolve())
    path = path_of("invocations", invocation_id, "detail")
    detail = client.run(client.exchange(InvocationDetail, "GET", path))
    return {step.name: step.ms for step in detail.executions[-1].timeline}


def _parts(of: str, add) -> list[Figure]:
    """Where the time goes, by the invocations' own timelines."""
    sums: Counter[str] = Counter()
    ids = add.list().invocation_ids[:20]
    spent = [_timeline(each) for each in ids]
    names = {name: None for timeline in spent for name in timeline}
    for name in names:
        sums[name] = statistics.median(timeline.get(name, 0.0) for timeline in spent)
    return [Figure(f"timeline of the {of}: {name}", sums[name], "ms") for name in names]


def _map_figure(add, many: int, floor: float) -> Figure:
    rate = map_rate(add, many)
    return Figure(f"new worker, map of {many}", rate, "/s", 200, floor, is_rate=True)
