"""PostgreSQL with fsync behind the control plane: starts from many clients, new workers, and a second API process beside the first."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg
from tests.postgres import running

from benchmarks.harness import (
    MULTINODE,
    Figure,
    Installation,
    installation,
    map_rate,
    p50,
    p95,
    times,
)
from multinode.client import Client
from multinode.wire import StartAnswer, StartRequest

CLIENTS = 50
CLIENT_PROCESSES = 2
LATER_S = 86_400.0
"""What is started is due after the benchmark: no worker takes part."""
PATH = "/v1/projects/bench/functions/add/invocations"
SPAWN = multiprocessing.get_context("spawn")
TICKS = os.sysconf("SC_CLK_TCK")


@contextmanager
def opened(folder: Path) -> Iterator[Installation]:
    """A control plane on a PostgreSQL server of its own, which waits for the disk at each commit."""
    with (
        running(options=()) as server,
        installation(folder, database=server.new_database(empty=True)) as at,
    ):
        yield at


def figures(at: Installation, quick: bool) -> list[Figure]:
    count, many, seconds = (20, 100, 3.0) if quick else (200, 1000, 10.0)
    add, warm = at.function("add"), at.function("add_warm")
    trips = times(count, lambda: add.call_remote(1, 2), warm=5)
    mapped = map_rate(add, many)
    warm_trips = times(5 * count, lambda: warm.call_remote(1, 2), warm=50)
    warm_mapped = map_rate(warm, 10 * many)
    floor = len(_together(CLIENTS, seconds, _committer(at.database))) / seconds
    alone = _load(at, [at.home], seconds)
    with _second_process(at) as home:
        both = _load(at, [at.home, home], seconds)
    return [
        Figure("new worker, round trip, p50", p50(trips), "ms"),
        Figure("new worker, round trip, p95", p95(trips), "ms"),
        Figure(f"new worker, map of {many}", mapped, "/s", is_rate=True),
        Figure("warm worker, round trip, p50", p50(warm_trips), "ms", 5),
        Figure("warm worker, round trip, p95", p95(warm_trips), "ms"),
        Figure(f"warm workers, map of {10 * many}", warm_mapped, "/s", 2500, is_rate=True),
        Figure(f"a row a commit, {CLIENTS} connections (floor)", floor, "/s", is_rate=True),
        *alone.figures("one process", floor, 800, 100),
        *both.figures("two processes", floor),
    ]


# --- many at once ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Load:
    """Milliseconds of each start, and the CPU seconds that each kind of process took meanwhile."""

    spans: list[float]
    seconds: float
    cpu_s: dict[str, float]

    def figures(
        self, name: str, floor: float, rate: float | None = None, p99_ms: float | None = None
    ) -> list[Figure]:
        started, spans = f"start from {CLIENTS} clients, {name}", sorted(self.spans)
        per_start = 1000 / len(spans)
        return [
            Figure(started, len(spans) / self.seconds, "/s", rate, floor, is_rate=True),
            Figure(f"{started}, p50", p50(spans), "ms"),
            Figure(f"{started}, p99", spans[int(0.99 * len(spans))], "ms", p99_ms),
            *(
                Figure(f"{started}, CPU of {who}, a start", spent * per_start, "ms")
                for who, spent in self.cpu_s.items()
            ),
        ]


def _load(at: Installation, homes: list[Path], seconds: float) -> Load:
    """``CLIENTS`` clients, each with a connection of its own that it keeps, spread over the servers of ``homes``."""
    servers = [json.loads((home / "server.json").read_text()) for home in homes]
    pids = [server["pid"] for server in servers]
    before = _cpu(pids, at.database)
    share = CLIENTS // CLIENT_PROCESSES
    with SPAWN.Pool(CLIENT_PROCESSES) as pool:
        tasks = [
            pool.apply_async(
                _start_for, (servers[i % len(servers) :: len(servers)], share, seconds)
            )
            for i in range(CLIENT_PROCESSES)
        ]
        found = [task.get() for task in tasks]
    after = _cpu(pids, at.database)
    spent = {who: after[who] - before[who] for who in after}
    spent["clients"] = sum(cpu for _, cpu in found)
    return Load([span for spans, _ in found for span in spans], seconds, spent)


def _start_for(
    servers: list[dict[str, str]], count: int, seconds: float
) -> tuple[list[float], float]:
    """Run in a process of its own. Its spans, and its CPU seconds."""
    request = StartRequest(['[{"py/tuple":[1,2]},{}]'], delay_s=LATER_S)
    clients = [Client(servers[i % len(servers)]["url"], servers[0]["key"]) for i in range(count)]

    def starter(index: int) -> Callable[[], object]:
        client = clients[index]
        return lambda: client.call(StartAnswer, "POST", PATH, request)

    began = time.process_time()
    return _together(count, seconds, starter), time.process_time() - began


def _together(
    count: int, seconds: float, actor: Callable[[int], Callable[[], object]]
) -> list[float]:
    """Milliseconds of each call, made over and over from ``count`` threads."""
    spans: list[float] = []
    gate = threading.Barrier(count)

    def work(index: int) -> None:
        act = actor(index)
        act()
        gate.wait()
        until = time.perf_counter() + seconds
        while (began := time.perf_counter()) < until:
            act()
            spans.append((time.perf_counter() - began) * 1000)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return spans


def _committer(database: str) -> Callable[[int], Callable[[], object]]:
    with psycopg.connect(database, autocommit=True) as connection:
        connection.execute("CREATE TABLE floor (id bigserial PRIMARY KEY, text text)")

    def actor(_index: int) -> Callable[[], object]:
        connection = psycopg.connect(database, autocommit=True)
        return lambda: connection.execute("INSERT INTO floor (text) VALUES ('a row')")

    return actor


# --- processes ------------------------------------------------------------------------------------------


@contextmanager
def _second_process(at: Installation) -> Iterator[Path]:
    """Another control plane on the same database and data folder; its home."""
    home = at.folder / "second"
    environ = {**os.environ, "MULTINODE_HOME": str(home)}
    options = [f"--database={at.database}", f"--data-dir={at.data}", "--runner=process", "--port=0"]
    subprocess.run(
        [MULTINODE, "server", "start", *options], env=environ, check=True, capture_output=True
    )
    try:
        yield home
    finally:
        os.kill(json.loads((home / "server.json").read_text())["pid"], signal.SIGTERM)


def _cpu(servers: list[int], database: str) -> dict[str, float]:
    with psycopg.connect(database, autocommit=True) as connection:
        backends = connection.execute("SELECT pid FROM pg_stat_activity").fetchall()
    return {
        "control planes": sum(map(_cpu_s, servers)),
        "PostgreSQL": sum(_cpu_s(pid) for (pid,) in backends),
    }


def _cpu_s(pid: int) -> float:
    """Seconds that a process that lives has used so far."""
    words = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(words[11]) + int(words[12])) / TICKS
