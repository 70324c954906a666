"""Sixty clients at once are sixty clients served, and those that wait cost the control plane no threads."""

from __future__ import annotations

import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest
from tests.faults.installation import Installation, wait_until

CLIENTS = 60
READERS = 4
"""Threads that the store reads with; they are made when they are needed first."""


def threads_of(pid: int) -> int:
    return len(os.listdir(f"/proc/{pid}/task"))


def sockets_of(pid: int) -> set[str]:
    """Each by its number, which the kernel gives once."""
    links = set()
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(FileNotFoundError):  # closed meanwhile
            links.add(str(path.readlink()))
    return {link for link in links if link.startswith("socket:")}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_sixty_clients_at_once(shared: Installation):
    shared.start()
    shared.until_led()
    held = shared.function("impatient").start("held", "go-held")
    shared.wait_for("held", "start")
    threads, sockets = threads_of(shared.pid), sockets_of(shared.pid)

    def call(number: int) -> str:
        return shared.function("returns").call_remote(f"client-{number}")

    def wait(_number: int) -> str:
        return shared.function("impatient").await_result(held)

    with ThreadPoolExecutor(2 * CLIENTS) as pool:
        waiting = [pool.submit(wait, number) for number in range(CLIENTS)]
        # New ones: of those from before, a worker's for instance, some may be closed meanwhile.
        wait_until(
            lambda: len(sockets_of(shared.pid) - sockets) >= CLIENTS, "sixty clients that wait"
        )
        assert threads_of(shared.pid) <= threads + READERS
        called = list(pool.map(call, range(CLIENTS)))
        assert called == [f"client-{number}" for number in range(CLIENTS)]
        assert not any(each.done() for each in waiting)
        shared.give("go-held")
        assert [each.result() for each in waiting] == ["held"] * CLIENTS
    wait_until(lambda: shared.server_info().workers == 0, "every worker is gone")
    effects = shared.effects()
    for label in called:
        assert [effect.what for effect in effects[label]] == ["start", "end"]
