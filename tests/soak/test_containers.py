"""Thousands of containers, one an invocation: none of them, nor anything else of theirs, stays in the engine.

The short run is one of ``make test``, and has its server killed all the while. ``make soak`` makes the long one, of 10,000, which takes
an hour or more; ``SOAK_INVOCATIONS`` is another number.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.acceptance.docker_product import DockerProduct
from tests.own_engine import own_engine

from multinode import get_deployed_function
from multinode_control_plane.runners.worker_processes import is_living

INVOCATIONS = int(os.environ.get("SOAK_INVOCATIONS", "10000"))
STAGES = 10
MAIN = """
import multinode

mn = multinode.Multinode()


@mn.function(max_concurrency=8)
def add(a, b):
    return a + b
"""


@pytest.fixture
def engine():
    with own_engine() as made:
        yield made


@pytest.fixture
def product(engine, tmp_path, monkeypatch):
    """A server with one function deployed, which has run once; the SDK talks to it."""
    made = DockerProduct(tmp_path, engine.url)
    made.run("server", "start")
    try:
        made.deploy(MAIN)
        monkeypatch.setenv("MULTINODE_API_URL", made.server["url"])
        monkeypatch.setenv("MULTINODE_API_KEY", made.server["key"])
        assert add().call_remote(1, 2) == 3
        yield made
    finally:
        made.run("server", "stop", "--now")


def add():
    return get_deployed_function("shop", "add")


def run(count: int) -> None:
    """Starts so many at once, and has all their results."""
    assert list(add().starmap((number, 1) for number in range(count))) == [
        number + 1 for number in range(count)
    ]


def nothing_but(engine, before: set[str]) -> bool:
    """Whether that is so, as soon as the last containers are removed."""
    deadline = time.monotonic() + 60
    while (more := engine.things() - before) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not more
    return True


@contextmanager
def killed_all_the_while(product: DockerProduct, pause_s: float):
    """Its server is killed (-9) and started again, each time after so long a life; how often, in the end."""
    is_over = threading.Event()
    kills: list[int] = []

    def live() -> None:
        while not is_over.wait(pause_s):
            pid = product.server["pid"]
            os.kill(pid, signal.SIGKILL)
            while is_living(pid):
                time.sleep(0.01)
            kills.append(pid)
            product.run("server", "start")

    thread = threading.Thread(target=live)
    thread.start()
    try:
        yield kills
    finally:
        is_over.set()
        thread.join()


@dataclass(frozen=True)
class Sample:
    """The server after so many invocations."""

    invocations: int
    at: float
    memory_mib: float

    @classmethod
    def take(cls, product: DockerProduct, invocations: int) -> Sample:
        status = Path(f"/proc/{product.server['pid']}/status").read_text()
        kib = next(int(line.split()[1]) for line in status.splitlines() if "VmRSS" in line)
        return cls(invocations, time.monotonic(), kib / 1024)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_sixty_invocations_leave_nothing_although_the_server_is_killed_all_the_while(
    engine, product
):
    before = engine.things()
    with killed_all_the_while(product, 4.0) as kills:
        run(60)
    assert len(kills) >= 2
    assert nothing_but(engine, before)


@pytest.mark.soak
@pytest.mark.timeout(0)
def test_thousands_of_invocations_leave_nothing_and_no_memory_grows(
    engine, product, record_summary
):
    run(INVOCATIONS // 100)
    before, samples = engine.things(), [Sample.take(product, 0)]
    for stage in range(STAGES):
        run(INVOCATIONS // STAGES)
        samples.append(Sample.take(product, (stage + 1) * INVOCATIONS // STAGES))
        print(samples[-1], flush=True)
    assert nothing_but(engine, before)
    spent_s = samples[-1].at - samples[0].at
    memory = ", ".join(f"{each.memory_mib:.0f}" for each in samples)
    record_summary(
        f"{INVOCATIONS} containers in {spent_s:.0f} s ({INVOCATIONS / spent_s:.1f} a second); "
        f"the server's memory on the way: {memory} MiB"
    )
    assert samples[-1].memory_mib < samples[1].memory_mib * 1.2 + 20
