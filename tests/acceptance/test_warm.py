"""Workers that serve several invocations, on a real server: on processes, in containers, in tasks.

Where workers are containers nobody here knows their pids; a worker is known by what its module holds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance.product import Product

from multinode import get_deployed_function
from multinode.errors import InvocationCancelledError, InvocationFailedError

pytestmark = pytest.mark.timeout(400)
"""The first test on ECS waits for an image."""
MAIN = """
import os, subprocess, time, uuid
from datetime import timedelta
from multinode import Multinode

mn = Multinode()
worker = uuid.uuid4().hex
calls = 0
several = mn.function(max_concurrency=1, max_invocations_per_worker=0, idle_timeout=timedelta(seconds=60))

def called():
    global calls
    calls += 1
    return [worker, calls]

@several
def short(word):
    print("word", word)
    return called()

@several
def changes(n):
    before = [sorted(os.listdir()), os.environ.get("LEFT"), os.umask(0o22)]
    open("left.txt", "w").close()
    os.environ["LEFT"] = "1"
    subprocess.Popen(["sleep", "600"])
    print("changed", n)
    return [worker, before]

@several
def crashes(kind):
    print("kind", kind)
    if kind == "crash":
        os._exit(3)
    if kind == "fail":
        raise ValueError(kind)
    return called()

@several
def waits(seconds):
    print("waits")
    yield "waiting"
    time.sleep(seconds)
    yield called()

@mn.function(max_concurrency=1, max_invocations_per_worker=3)
def three():
    return called()

@mn.function(max_concurrency=2, max_invocations_per_worker=0, min_workers=1)
def ahead():
    return [worker, os.environ.get("TRACEPARENT")]

@mn.function(max_concurrency=4, max_invocations_per_worker=0)
def many(n):
    print("line", n)
    return worker
"""


@pytest.fixture(scope="module")
def product(make_product: Callable[[Path], Product], tmp_path_factory: Any) -> Iterator[Product]:
    made = make_product(tmp_path_factory.mktemp("warm"))
    made.folder.chmod(0o755)
    made.environ |= {"MULTINODE_GRACE": "1", "MULTINODE_CAPACITY": "cpu=8,memory=4GiB"}
    made.write({"tasks/main.py": MAIN})
    try:
        made.run("server", "start", "--port", "0")
        assert made.json("deploy")["created"]
        yield made
    finally:
        made.run("server", "stop", "--now")


@pytest.fixture
def fn(product: Product, monkeypatch: Any) -> Callable[[str], Any]:
    """A deployed function by name."""
    monkeypatch.setenv("MULTINODE_API_URL", product.server["url"])
    monkeypatch.setenv("MULTINODE_API_KEY", product.server["key"])
    return lambda name: get_deployed_function(project_name="shop", function_name=name)


def logs(product: Product, invocation_id: str) -> str:
    return product.run("logs", invocation_id)


def until(fact: Callable[[], Any], seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := fact()):
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.02)
    return found


def test_one_worker_serves_one_after_another(product: Product, fn: Any) -> None:
    short = fn("short")
    ids = []
    for number in range(1, 4):
        ids.append(short.start(number))
        assert short.await_result(ids[-1])[1] == number
        until(lambda: short.get(ids[-1]).terminated)
    assert [logs(product, each) for each in ids] == [f"word {n}\n" for n in range(1, 4)]
    details = [product.json("describe", each) for each in ids]
    assert len({detail["executions"][0]["worker_id"] for detail in details}) == 1


def test_what_one_leaves_the_next_does_not_find(fn: Any) -> None:
    changes = fn("changes")
    found = [changes.call_remote(n) for n in range(3)]
    assert len({worker for worker, _ in found}) == 1
    assert found[0] == found[1] == found[2]


def test_a_crash_costs_its_own_invocation_and_the_worker(product: Product, fn: Any) -> None:
    crashes = fn("crashes")
    first, _ = crashes.call_remote("good")
    with pytest.raises(InvocationFailedError, match="ValueError: fail"):
        crashes.call_remote("fail")
    assert crashes.call_remote("good") == [first, 2]
    crashed = crashes.start("crash")
    with pytest.raises(InvocationFailedError, match="exited with code 3"):
        crashes.await_result(crashed)
    assert logs(product, crashed) == "kind crash\n"
    other, calls = crashes.call_remote("good")
    assert (other != first, calls) == (True, 1)


def test_the_second_can_be_cancelled_and_yields_its_own_values(product: Product, fn: Any) -> None:
    waits = fn("waits")
    first = waits.start(0)
    worker, _ = waits.await_result(first)
    second = waits.start(600)
    until(lambda: waits.get(second).result == "waiting")
    assert logs(product, second) == "waits\n"
    waits.cancel(second)
    with pytest.raises(InvocationCancelledError):
        waits.await_result(second)
    assert waits.call_remote(0)[0] != worker, "it is replaced"
    third = waits.start(0)
    assert list(waits.progress(third)) == ["waiting", waits.await_result(third)]


def test_a_worker_ends_after_its_number(fn: Any) -> None:
    three = fn("three")
    found = [three.call_remote() for _ in range(5)]
    assert [calls for _, calls in found] == [1, 2, 3, 1, 2]
    assert len({worker for worker, _ in found}) == 2


def test_a_worker_is_there_before_it_is_asked_for(product: Product, fn: Any) -> None:
    until(product.workers_left, 120)
    ahead = fn("ahead")
    found = [ahead.call_remote() for _ in range(3)]
    assert len({worker for worker, _ in found}) == 1
    assert found[0][1] is None


def test_many_short_ones_are_each_there_once_with_their_own_output(
    product: Product, fn: Any
) -> None:
    many = fn("many")
    ids = [many.start(n) for n in range(200)]
    workers = [many.await_result(each) for each in ids]
    assert len(set(workers)) <= 4
    for n in (0, 57, 120, 199):
        assert logs(product, ids[n]) == f"line {n}\n"


def test_a_worker_of_an_old_version_is_not_asked_any_more(product: Product, fn: Any) -> None:
    short = fn("short")
    before, _ = short.call_remote("old")
    product.write({"tasks/main.py": MAIN + "\n# another version\n"})
    assert product.json("deploy")["created"]
    after, calls = short.call_remote("new")
    assert (after != before, calls) == (True, 1)
