"""When `/readyz` says that a control plane can serve, and why not."""

from __future__ import annotations

import asyncio
import threading

import httpx
import pytest
import sqlalchemy as sa
from tests.control_plane.told_plane import on_plane, serving

from multinode.errors import NotReady, StorageFull
from multinode_control_plane import model
from multinode_control_plane.api import readiness
from multinode_control_plane.api.readiness import DRAINING, READY, STARTING, Readiness
from multinode_control_plane.server import Stop, _until_stopped


class Store:
    """``read`` waits for ``may_answer``, and raises ``error``."""

    def __init__(self) -> None:
        self.reads = 0
        self.may_answer = asyncio.Event()
        self.may_answer.set()
        self.error: Exception | None = None

    async def read(self, _job):
        self.reads += 1
        await self.may_answer.wait()
        if self.error is not None:
            raise self.error


async def why_not(made: Readiness) -> str:
    with pytest.raises(NotReady) as caught:
        await made.check()
    return caught.value.message


def test_it_starts_serves_and_drains_and_never_goes_back():
    async def test() -> None:
        made = Readiness(Store())
        assert made.state == STARTING
        assert await why_not(made) == "It is starting."
        made.open()
        assert made.state == READY
        await made.check()
        made.drain("It was asked to stop.")
        made.open()
        assert made.state == DRAINING
        assert await why_not(made) == "It was asked to stop."

    asyncio.run(test())


def test_a_store_that_hangs_is_asked_by_one_and_told_to_all(monkeypatch):
    monkeypatch.setattr(readiness, "ANSWER_S", 0.05)

    async def test() -> None:
        store = Store()
        made = Readiness(store)
        made.open()
        store.may_answer.clear()
        told = await asyncio.gather(*(why_not(made) for _ in range(5)))
        assert all("has not answered" in text for text in told)
        assert store.reads == 1
        store.may_answer.set()
        await made.check()
        await made.check()
        assert store.reads == 1, "its answer holds for a second"

    asyncio.run(test())


def test_what_the_store_says_is_the_reason_and_it_is_asked_again(monkeypatch):
    monkeypatch.setattr(readiness, "FRESH_S", -1.0)

    async def test() -> None:
        store = Store()
        made = Readiness(store)
        made.open()
        store.error = StorageFull("The disk is full.", "Free some.")
        assert await why_not(made) == "The disk is full."
        store.error = None
        await made.check()
        assert store.reads == 2

    asyncio.run(test())


def test_the_real_store_answers(tmp_path):
    async def test(plane) -> None:
        made = Readiness(plane.store)
        made.open()
        await made.check()

    on_plane(tmp_path, test)


def test_over_http_without_a_key(tmp_path):
    with serving(tmp_path) as served:
        answer = httpx.get(served.url + "/readyz")
        assert (answer.status_code, answer.json()) == (200, {"status": "ready"})
        done = threading.Event()
        served._loop.call_soon_threadsafe(
            lambda: (served.api.readiness.drain("It was asked to stop."), done.set())
        )
        assert done.wait(60)
        answer = httpx.get(served.url + "/readyz")
        assert answer.status_code == 503
        assert answer.json()["error"]["code"] == "not_ready"
        assert answer.json()["error"]["message"] == "It was asked to stop."
        assert httpx.get(served.url + "/healthz").status_code == 200


def test_a_server_that_waits_for_what_runs_is_not_ready(tmp_path):
    with serving(tmp_path) as served:

        async def stop() -> None:
            await served.plane.deploy()
            await served.plane.claim(await served.plane.start())
            asked = Stop(hurry=lambda: None)
            stopping = asyncio.create_task(_until_stopped(served.api, asked, foreground=False))
            asked.ask("drain")
            served.stopping = stopping

        served.do(stop())
        assert httpx.get(served.url + "/readyz").status_code == 503
        assert httpx.get(served.url + "/healthz").status_code == 200

        async def end() -> None:
            served.plane.runner.end(served.plane.runner.launches[-1].worker_id)
            await asyncio.wait_for(served.stopping, 10)

        served.do(end())


def test_a_ring_that_lacks_the_current_key_is_the_reason(monkeypatch, tmp_path):
    monkeypatch.setattr(readiness, "FRESH_S", -1.0)

    async def test(plane) -> None:
        made = Readiness(plane.store, plane.context.sealer)
        made.open()
        await made.check()
        key = "fedcba9876543210"
        await plane.store.write(
            lambda tx: tx.connection.execute(sa.update(model.sealing).values(key_id=key))
        )
        assert f"encrypted with the key {key}" in await why_not(made)

    on_plane(tmp_path, test)
