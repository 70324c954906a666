"""Who gets a worker next: the limits of functions over their versions, and the machine's room over all functions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.control_plane.bench import Bench, make_bench

from multinode import wire
from multinode.errors import InvalidRequest
from multinode_control_plane.service import deployments, rows
from multinode_control_plane.settings import Capacity

pytestmark = pytest.mark.usefixtures("database")

A, B = "a" * 64, "b" * 64


def admitted(bench: Bench, *invocation_ids: str) -> list[str]:
    """Those of them that have a worker, in the order given."""
    return [i for i in invocation_ids if bench.look(rows.live_worker, i) is not None]


class TestMaxConcurrency:
    def test_the_oldest_run_first(self, bench: Bench) -> None:
        bench.deploy(f={"max_concurrency": 2})
        ids = [bench.start() for _ in range(4)]
        assert admitted(bench, *ids) == ids[:2]
        bench.run(ids[1])
        assert admitted(bench, *ids) == [ids[0], ids[2]]

    def test_a_lower_limit_of_the_latest_version_counts_for_all(self, bench: Bench) -> None:
        older = bench.deploy(f={"max_concurrency": 3}, code=A)
        running = [bench.start() for _ in range(3)]
        bench.deploy(f={"max_concurrency": 1}, code=B)
        pinned, newest = bench.start(version_id=older), bench.start()
        for invocation_id in running:
            used = len(admitted(bench, *running))
            reason = f"waiting for max_concurrency ({used} of 1 in use)"
            assert bench.info(pinned).pending_reason == reason
            bench.run(invocation_id)
        assert admitted(bench, pinned, newest) == [pinned]
        bench.run(pinned)
        assert admitted(bench, newest) == [newest]

    def test_a_higher_limit_counts_at_once_and_a_rollback_takes_it_back(self, bench: Bench) -> None:
        bench.deploy(f={"max_concurrency": 1}, code=A)
        ids = [bench.start() for _ in range(4)]
        bench.deploy(f={"max_concurrency": 2}, code=B)
        assert admitted(bench, *ids) == ids[:2]
        bench.do(deployments.make_latest, "shop", None)
        bench.run(ids[0])
        assert admitted(bench, *ids) == [ids[1]]

    def test_a_slot_is_free_when_the_worker_is_gone_and_not_before(self, bench: Bench) -> None:
        bench.deploy(f={"max_concurrency": 1})
        first, second = bench.start(), bench.start()
        who = bench.claim(first)
        bench.end(first, who, "succeeded")
        assert admitted(bench, second) == []
        assert bench.info(second).pending_reason == "waiting for max_concurrency (1 of 1 in use)"
        bench.gone(who)
        assert admitted(bench, second) == [second]

    def test_functions_have_limits_of_their_own(self, bench: Bench) -> None:
        bench.deploy(f={"max_concurrency": 1}, g={"max_concurrency": 1})
        bench.deploy("other", f={"max_concurrency": 1})
        ids = [bench.start("f"), bench.start("g"), bench.start("f", "other")]
        assert admitted(bench, *ids) == ids


class TestRoom:
    """Of 4 cpu and 4096 MiB."""

    @pytest.mark.parametrize(
        ("first", "second", "fits"),
        [
            ({"cpu": 2.0}, {"cpu": 2.0}, True),
            ({"cpu": 2.0}, {"cpu": 2.1}, False),
            ({"memory_mib": 2048}, {"memory_mib": 2048}, True),
            ({"memory_mib": 2048}, {"memory_mib": 2049}, False),
            ({"cpu": 16.0}, {"cpu": 0.1}, False),
        ],
    )
    def test_it_bounds_what_runs_over_all_functions(
        self, bench: Bench, first: Any, second: Any, fits: bool
    ) -> None:
        bench.deploy(f=first)
        bench.deploy("other", g=second)
        one, two = bench.start("f"), bench.start("g", "other")
        assert admitted(bench, one, two) == ([one, two] if fits else [one])
        if fits:
            return
        assert bench.info(two).pending_reason == "waiting for room on this machine"
        who = bench.claim(one)
        bench.end(one, who, "succeeded")
        assert admitted(bench, two) == []
        bench.gone(who)
        assert admitted(bench, two) == [two]

    def test_one_that_does_not_fit_holds_younger_ones_back(self, bench: Bench) -> None:
        bench.deploy(small={"cpu": 1.0}, big={"cpu": 4.0})
        running, big, small = bench.start("small"), bench.start("big"), bench.start("small")
        assert admitted(bench, running, big, small) == [running]
        assert bench.info(small).pending_reason == "waiting for room on this machine"
        bench.run(running)
        assert admitted(bench, big, small) == [big]
        bench.run(big)
        assert admitted(bench, small) == [small]

    def test_what_a_running_function_waits_for_overtakes(self, bench: Bench) -> None:
        bench.deploy(parent={"cpu": 1.0}, big={"cpu": 4.0}, child={"cpu": 1.0})
        parent = bench.start("parent")
        bench.claim(parent)
        big, stranger = bench.start("big"), bench.start("child")
        child = bench.start("child", parent_id=parent)
        assert admitted(bench, big, stranger, child) == [child]
        bench.claim(child)
        grandchildren = [bench.start("big", parent_id=child), bench.start("child", parent_id=child)]
        assert admitted(bench, big, stranger, *grandchildren) == grandchildren[1:]

    def test_more_cpu_than_there_is_counts_as_all_of_it(self, bench: Bench) -> None:
        bench.deploy(f={"cpu": 16.0})
        first, second = bench.start(), bench.start()
        assert admitted(bench, first, second) == [first]
        assert bench.look(rows.live_worker, first).cpu == 4.0

    def test_more_memory_than_there_is_is_refused_at_deploy(self, bench: Bench) -> None:
        with pytest.raises(InvalidRequest) as caught:
            bench.deploy(f={"memory_mib": 4097})
        assert caught.value.message == (
            "f asks for 4097 MiB of memory; this control plane has room for 4096 MiB in all."
        )
        assert "--capacity" in caught.value.hint
        assert bench.look(deployments.list_projects) == []

    def test_a_capacity_that_was_lowered_stops_nobody_for_ever(self, tmp_path: Path) -> None:
        before = make_bench(tmp_path)
        before.deploy(f={"memory_mib": 4096})
        before.close()
        bench = make_bench(tmp_path, capacity=Capacity(cpu=4.0, memory_mib=1024))
        first, second = bench.start(), bench.start()
        assert admitted(bench, first, second) == [first]
        bench.run(first)
        assert bench.status(first) == wire.SUCCEEDED
        assert admitted(bench, second) == [second]
        bench.close()
