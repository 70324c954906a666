"""RQ with its fork per job, and Celery with its pool of processes, on Redis in memory: each in a virtual environment and a folder of its
own, nothing installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.harness import Figure, quiet

PACKAGES = ("redis-server", "redis-tools", "libjemalloc2", "liblzf1", "liblua5.1-0",
            "lua-cjson", "lua-bitop")  # fmt: skip
CLIENT = """
import json, statistics, sys, time
from redis import Redis
from rq import Queue
import rq_jobs
queue = Queue(connection=Redis(port=int(sys.argv[1])))
def trip():
    began = time.perf_counter()
    job = queue.enqueue(rq_jobs.add, 1, 2)
    result = job.latest_result(timeout=30)
    assert result.return_value == 3
    return (time.perf_counter() - began) * 1000
trip()
trips = sorted(trip() for _ in range(int(sys.argv[2])))
began = time.perf_counter()
jobs = [queue.enqueue(rq_jobs.add, 1, 2) for _ in range(int(sys.argv[3]))]
for job in jobs:
    assert job.latest_result(timeout=60).return_value == 3
rate = len(jobs) / (time.perf_counter() - began)
print(json.dumps([statistics.median(trips), trips[int(len(trips) * 0.95)], rate]))
"""


CELERY_JOBS = """
from celery import Celery
app = Celery("celery_jobs", broker="redis://127.0.0.1:16399/0", backend="redis://127.0.0.1:16399/1")
@app.task
def add(a, b):
    return a + b
"""
CELERY_CLIENT = """
import json, statistics, sys, time
from celery import group
from celery_jobs import add
def trip():
    began = time.perf_counter()
    assert add.delay(1, 2).get(timeout=30) == 3
    return (time.perf_counter() - began) * 1000
[trip() for _ in range(20)]
trips = sorted(trip() for _ in range(int(sys.argv[2])))
many = int(sys.argv[3])
began = time.perf_counter()
assert group(add.s(1, 2) for _ in range(many)).apply_async().get(timeout=120) == [3] * many
rate = many / (time.perf_counter() - began)
print(json.dumps([statistics.median(trips), trips[int(len(trips) * 0.95)], rate]))
"""
PORT = "16399"


def rq_figures(folder: Path, count: int, many: int) -> list[Figure]:
    """Round trip and rate of RQ with two workers; nothing, with the reason on stderr, where it cannot be had."""
    worker = ["-m", "rq.cli", "worker", "--quiet", "--url", f"redis://127.0.0.1:{PORT}"]
    files = {"rq_jobs.py": "def add(a, b):\n    return a + b\n", "client.py": CLIENT}
    counts = (count, min(many, 300))
    return _figures("RQ 3, fork per job", folder, ("rq==3.0.0", files, [worker, worker]), counts)


def celery_figures(folder: Path, count: int, many: int) -> list[Figure]:
    """As `rq_figures`, of Celery with a pool of two processes, whose results are kept in Redis."""
    worker = ["-m", "celery", "-A", "celery_jobs", "worker", "-c", "2", "-l", "ERROR"]
    files = {"celery_jobs.py": CELERY_JOBS, "client.py": CELERY_CLIENT}
    peer = ("celery[redis]==5.5.3", files, [worker])
    return _figures("Celery 5, two processes", folder, peer, (count, many))


Peer = tuple[str, dict[str, str], list[list[str]]]
"""What is installed, the files beside it, and the workers' commands."""


def _figures(name: str, folder: Path, peer: Peer, counts: tuple[int, int]) -> list[Figure]:
    try:
        p50, p95, rate = _measure(folder / "peer", _redis(folder / "redis"), peer, counts)
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        print(f"{name} is left out: {error}", file=sys.stderr)
        return []
    return [
        Figure(f"{name} (peer), p50", p50, "ms"),
        Figure(f"{name} (peer), p95", p95, "ms"),
        Figure(f"{name} (peer), many", rate, "/s", is_rate=True),
    ]


def _with(package: str, folder: Path) -> Path:
    """A Python that has it."""
    uv = Path(sys.executable).with_name("uv")
    quiet([uv, "venv", "--quiet", "--python", sys.executable, folder])
    quiet([uv, "pip", "install", "--quiet", "--python", folder / "bin/python", package])
    return folder / "bin/python"


def _redis(folder: Path) -> list[str]:
    """The command of a Redis server: the machine's, or Debian's packages unpacked into ``folder``."""
    installed = shutil.which("redis-server")
    if installed:
        return [installed]
    if not shutil.which("apt-get"):
        message = "there is no redis-server, and no Debian to have it from"
        raise RuntimeError(message)
    folder.mkdir()
    quiet(["apt-get", "download", *PACKAGES], cwd=folder)
    for package in folder.glob("*.deb"):
        quiet(["dpkg-deb", "-x", package, folder])
    (libraries,) = {path.parent for path in folder.glob("usr/lib/*/liblzf.so.1")}
    return ["env", f"LD_LIBRARY_PATH={libraries}", str(folder / "usr/bin/redis-server")]


def _measure(folder: Path, server: list[str], peer: Peer, counts: tuple[int, int]) -> list[float]:
    package, files, workers = peer
    python = _with(package, folder)
    for name, text in files.items():
        (folder / name).write_text(text)
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    options = ["--port", PORT, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with ExitStack() as stack:
        redis = stack.enter_context(_running([*server, *options], folder, environment))
        for line in redis.stdout:
            if b"Ready to accept" in line:
                break
        for worker in workers:
            stack.enter_context(_running([python, *worker], folder, environment))
        client = [python, "client.py", PORT, *map(str, counts)]
        measured: list[float] = json.loads(quiet(client, cwd=folder, env=environment))
        return measured


@contextmanager
def _running(command, folder: Path, environment) -> Iterator[subprocess.Popen]:
    process = subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        yield process
    finally:
        process.terminate()
        process.wait(30)
