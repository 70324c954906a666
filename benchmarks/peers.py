"""RQ with its fork per job, on Redis in memory: in a virtual environment and a folder of its own, nothing installed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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


def rq_figures(folder: Path, count: int, many: int) -> list[Figure]:
    """Round trip and rate of RQ with two workers; nothing, with the reason on stderr, where it cannot be had."""
    try:
        python, server = _rq(folder / "rq"), _redis(folder / "redis")
        p50, p95, rate = _measure(folder / "rq", python, server, count, min(many, 300))
    except (OSError, RuntimeError, subprocess.SubprocessError) as error:
        print(f"RQ is left out: {error}", file=sys.stderr)
        return []
    return [
        Figure("RQ 3, fork per job (peer), p50", p50, "ms"),
        Figure("RQ 3, fork per job (peer), p95", p95, "ms"),
        Figure("RQ 3, fork per job (peer), many", rate, "/s", is_rate=True),
    ]


def _rq(folder: Path) -> Path:
    uv = Path(sys.executable).with_name("uv")
    quiet([uv, "venv", "--quiet", "--python", sys.executable, folder])
    quiet([uv, "pip", "install", "--quiet", "--python", folder / "bin/python", "rq==3.0.0"])
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


def _measure(folder: Path, python: Path, server: list[str], count: int, many: int):
    (folder / "rq_jobs.py").write_text("def add(a, b):\n    return a + b\n")
    (folder / "client.py").write_text(CLIENT)
    port, environment = "16399", {**os.environ, "PYTHONPATH": str(folder)}
    worker = [python, "-m", "rq.cli", "worker", "--quiet", "--url", f"redis://127.0.0.1:{port}"]
    options = ["--port", port, "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"]
    with _running([*server, *options], folder, environment) as redis:
        for line in redis.stdout:
            if b"Ready to accept" in line:
                break
        with (
            _running(worker, folder, environment),
            _running(worker, folder, environment),
        ):
            client = [python, "client.py", port, str(count), str(many)]
            return json.loads(quiet(client, cwd=folder, env=environment))


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
