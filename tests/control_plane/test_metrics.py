"""What is counted, what a scrape reads from the store, and that the reference names all of it."""

from __future__ import annotations

import re
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.control_plane.told_plane import ServedPlane, serving

from multinode import wire
from multinode.errors import StorageFull
from multinode_control_plane.runners import WorkerEnd, WorkerNotMadeError
from multinode_control_plane.service.facts import InvocationEnded, InvocationsStarted
from multinode_control_plane.telemetry import scrape
from multinode_control_plane.telemetry.metrics import MAX_PROJECTS, OTHERS, Metrics, Names

PAGE = Path(__file__).resolve().parents[2] / "docs" / "reference" / "metrics.md"


class Scraped:
    """The samples of one scrape."""

    def __init__(self, served: ServedPlane) -> None:
        answer = httpx.get(
            served.url + "/metrics", headers={"Authorization": f"Bearer {served.key('read')}"}
        )
        assert answer.status_code == 200
        assert answer.headers["content-type"] == scrape.CONTENT_TYPE
        self.families = list(text_string_to_metric_families(answer.text))
        self._found = {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in self.families
            for sample in family.samples
        }

    def __call__(self, name: str, **labels: str) -> float | None:
        return self._found.get((f"multinode_{name}", frozenset(labels.items())))


@pytest.fixture
def served(tmp_path):
    with serving(tmp_path, silence_s=3600.0) as made:
        yield made


def test_an_invocation_is_counted_from_start_to_end(served):
    async def run() -> None:
        plane = served.plane
        await plane.deploy()
        await plane.end(await plane.claim(await plane.start()), "failed")

    served.do(run())
    seen = Scraped(served)
    assert seen("invocations_started_total", project="shop") == 1
    assert seen("invocations_ended_total", project="shop", status="FAILED") == 1
    assert seen("attempts_ended_total", project="shop", outcome="failed") == 1
    for name in ("queue_wait", "worker_start", "attempt_duration"):
        assert seen(f"{name}_seconds_count") == 1
    assert seen("store_commit_duration_seconds_count") >= 4
    assert seen("workers", state="ready") == 1
    assert seen("workers", state="requested") == 0
    assert seen("reserved_memory_bytes") == 256 * 2**20
    assert seen("capacity_cpu_cores") == 4.0
    assert seen("store_size_bytes") > 4096
    assert seen("data_free_bytes") > 0
    assert seen("http_open_requests") == 1, "the scrape itself"


def test_what_waits_for_a_slot_is_the_queue(served):
    async def run() -> None:
        await served.plane.deploy(max_concurrency=1)
        for _ in range(3):
            await served.plane.start()
        await served.plane.start(delay_s=3600.0)
        await served.plane.launched()

    served.do(run())
    seen = Scraped(served)
    assert seen("queue_depth", project="shop") == 2
    assert 0 <= seen("queue_oldest_age_seconds", project="shop") < 60
    assert seen("invocations_started_total", project="shop") == 4


def test_the_age_of_what_was_delayed_begins_when_it_may_run(bench):
    bench.deploy(f={"max_concurrency": 1})
    bench.start()
    bench.start(delay_s=3600.0)
    bench.skew_s = 3700.0
    bench.tick()
    now = bench.do(lambda tx: tx.now)
    found = bench.look(scrape.look, now + 30, Names())
    assert found.queues["shop"].depth == 1
    assert found.queues["shop"].oldest_s == pytest.approx(30, abs=5)


def test_a_worker_that_cannot_be_made_is_counted(served):
    served.plane.runner.start_error = WorkerNotMadeError("the engine is away")

    async def run() -> None:
        await served.plane.deploy()
        await served.plane.start()
        await served.plane.launched()

        async def tried_again() -> bool:
            return served.api.metrics.not_made.labels("shop")._value.get() > 0

        await served.plane.until(tried_again)

    served.do(run())
    seen = Scraped(served)
    assert seen("workers_not_made_total", project="shop") == 1
    assert seen("runner_errors_total", operation="start") == 1
    assert seen("attempts_ended_total", project="shop", outcome="lost") is None


def test_a_lost_attempt_is_counted(served):
    async def run() -> None:
        plane = served.plane
        await plane.deploy()
        invocation_id = await plane.start()
        await plane.claim(invocation_id)
        plane.runner.on_end(WorkerEnd(plane.runner.launches[-1].worker_id, "killed by signal 9"))

        async def is_failed() -> bool:
            return (await plane.info(invocation_id)).status == wire.FAILED

        await plane.until(is_failed)

    served.do(run())
    assert Scraped(served)("attempts_ended_total", project="shop", outcome="lost") == 1


def test_requests_are_counted_by_route_without_the_time_that_they_waited(served):
    key = served.key("invoke")
    headers = {"Authorization": f"Bearer {key}"}

    async def start() -> str:
        await served.plane.deploy()
        return await served.plane.start()

    invocation_id = served.do(start())
    revision = served.do(served.plane.info(invocation_id)).revision
    url = f"{served.url}/v1/invocations/{invocation_id}?wait_s=2&revision={revision}"
    assert httpx.get(url, headers=headers).elapsed.total_seconds() >= 2
    httpx.get(served.url + "/v1/invocations/none", headers=headers)
    httpx.get(served.url + "/nothing/here")
    seen = Scraped(served)
    of_route = {"method": "GET", "route": "/v1/invocations/{id}"}
    name = "http_request_duration_seconds"
    assert seen(f"{name}_count", status="2xx", **of_route) == 1
    assert seen(f"{name}_sum", status="2xx", **of_route) < 1.5
    assert seen(f"{name}_count", status="4xx", **of_route) == 1
    assert seen(f"{name}_count", status="4xx", method="none", route="none") == 1


def test_refusals_for_a_key_or_a_limit_are_counted(served):
    key, limits = served.key("read", "reader"), served.api.open_requests

    def ask(secret: str | None, path: str = "/v1/projects", method: str = "GET") -> int:
        headers = {} if secret is None else {"Authorization": f"Bearer {secret}"}
        return httpx.request(method, served.url + path, headers=headers).status_code

    served.api.wrong_keys.limit = 1
    assert [ask(each) for each in (None, "mnk_wrong", "mnk_wrong")] == [401, 401, 429]
    assert ask(key, "/v1/keys") == 403
    limits.limit = 0
    assert ask(key) == 429
    limits.limit = 1000
    exchange = served.url + "/v1/worker/exchange"
    assert httpx.post(exchange, content=b"x" * 70_000).status_code == 413
    assert ask(key, "/v1/projects/none") == 404
    seen = Scraped(served)
    counted = {
        "not_logged_in": 2, "too_many_wrong_keys": 1, "not_allowed": 1, "too_many_requests": 1,
        "request_too_large": 1, "project_not_found": None,
    }  # fmt: skip
    assert {code: seen("http_requests_refused_total", error=code) for code in counted} == counted


def test_the_names_of_projects_are_bounded():
    names = Names(limit=2)
    assert [names(name) for name in ("a", "b", "c", "a", "d")] == ["a", "b", OTHERS, "a", OTHERS]
    metrics = Metrics()
    for number in range(MAX_PROJECTS + 50):
        metrics.note(InvocationsStarted(f"p{number}", 1))
        metrics.note(InvocationEnded(f"p{number}", wire.SUCCEEDED))
    projects = {
        sample.labels["project"]
        for family in metrics.registry.collect()
        for sample in family.samples
        if family.name == "multinode_invocations_started"
    }
    assert len(projects) == MAX_PROJECTS + 1


def test_errors_of_the_store_are_counted_by_code(served):
    served.plane.store.on_failure(StorageFull("full"))
    assert Scraped(served)("store_errors_total", error="storage_full") == 1


def test_a_scrape_reads_by_indexes(sqlite_bench):
    """Whatever has ended, however much: neither query goes over a table of its own."""
    for query in (scrape._QUEUES, scrape._WORKERS):
        sql = query.compile(sqlite_bench.store.engine, compile_kwargs={"literal_binds": True})
        plan = sqlite_bench.look(
            lambda connection, sql=sql: [
                row[3] for row in connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {sql}")
            ]
        )
        assert not [
            line for line in plan if re.match(r"SCAN (invocations|workers)(?! USING INDEX)", line)
        ], plan


def described() -> set[str]:
    text = PAGE.read_text(encoding="utf-8")
    cells = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `multinode_")]
    return {name for cell in cells for name in re.findall(r"`(multinode_\w+)`", cell)}


def test_the_reference_names_every_metric_and_no_other(served):
    names = {
        family.name + ("_total" if family.type == "counter" else "")
        for family in Scraped(served).families
        if family.name.startswith("multinode_")
    }
    assert described() == names
