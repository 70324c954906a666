"""Warm workers, two of them: round trips and map of no-ops, beside Celery's prefork pool on Redis, and pipes to a process."""

from __future__ import annotations

import multiprocessing

from benchmarks import peers
from benchmarks.harness import Figure, Installation, map_rate, p50, p95, times


def figures(at: Installation, quick: bool) -> list[Figure]:
    count, many = (100, 1000) if quick else (1000, 10_000)
    with multiprocessing.get_context("fork").Pool(1) as pool:
        pipes = times(count, lambda: pool.apply(max, (1, 2)), warm=20)
    add = at.function("add_warm")
    map_rate(add, 200)  # both workers are there
    trips = times(count, lambda: add.call_remote(1, 2), warm=50)
    return [
        Figure("pipes to a process (floor), p50", p50(pipes), "ms"),
        *peers.celery_figures(at.folder, count, min(many, 3000)),
        Figure("warm worker, round trip, p50", p50(trips), "ms", 3, p50(pipes)),
        Figure("warm worker, round trip, p95", p95(trips), "ms", 5, p95(pipes)),
        Figure("warm workers, map of 1000", map_rate(add, 1000), "/s", 5000, is_rate=True),
        Figure(f"warm workers, map of {many}", map_rate(add, many), "/s", is_rate=True),
    ]
