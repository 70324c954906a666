"""The Docker engine is stopped, killed and started again under a control plane whose functions run in its containers.

The engine is the test's own. Without live-restore, an engine that is stopped ends its containers, and one that was killed ends them
when it comes up; with it, they live on without it.
"""

from __future__ import annotations

import json
import os
import signal
import time

import pytest
from tests.acceptance.docker_product import DockerProduct
from tests.own_engine import own_engine

from multinode.codec import encode_input
from multinode.wire import InvocationInfo, StartAnswer, StartRequest
from multinode_control_plane.runners.worker_processes import is_living

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

AWAY = "The Docker engine does not answer"
MAIN = """
import time

import multinode

mn = multinode.Multinode()


@mn.function()
def add(a, b):
    return a + b


@mn.function()
def sleep(seconds):
    print("begun", flush=True)
    time.sleep(seconds)
    return "slept"


@mn.function(max_retries=2, retry_delay=0.1)
def sleep_again(seconds):
    print("begun", flush=True)
    time.sleep(seconds)
    return "slept"


@mn.function()
def count(numbers):
    print("begun", flush=True)
    for number in range(numbers):
        print(number, flush=True)
        time.sleep(0.01)
    return numbers
"""


@pytest.fixture(scope="module")
def engine():
    with own_engine() as made:
        yield made


@pytest.fixture(scope="module")
def module_product(engine, tmp_path_factory):
    made = DockerProduct(tmp_path_factory.mktemp("restarts"), engine.url)
    made.run("server", "start")
    try:
        made.deploy(MAIN)
        assert json.loads(made.run("invoke", "shop/add", "1", "2")) == 3
        yield made
    finally:
        made.run("server", "stop", "--now")


@pytest.fixture
def product(engine, module_product):
    """A server that runs, and an engine that does; nothing is left of a test in either."""
    before = engine.things()
    yield module_product
    assert json.loads(module_product.run("invoke", "shop/add", "1", "2")) == 3
    deadline = time.monotonic() + 60
    while (more := engine.things() - before) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not more
    engine.options = ()


def wait_for(fact, what, timeout_s=90):
    deadline = time.monotonic() + timeout_s
    while not (found := fact()):
        assert time.monotonic() < deadline, f"waited in vain: {what()}"
        time.sleep(0.05)
    return found


def info(product, invocation_id):
    return product.client().call(InvocationInfo, "GET", f"/v1/invocations/{invocation_id}")


def start(product, function, *arguments):
    request = StartRequest(inputs=[encode_input(arguments, {})])
    path = f"/v1/projects/shop/functions/{function}/invocations"
    return product.client().call(StartAnswer, "POST", path, request).invocation_ids[0]


def start_and_see(product, function, *arguments):
    """Its id, once it runs."""
    invocation_id = start(product, function, *arguments)

    def look():
        return info(product, invocation_id)

    wait_for(lambda: look().status == "RUNNING", look)
    return invocation_id


def ended(product, invocation_id):
    """What it is, once its worker is gone too."""

    def look():
        return info(product, invocation_id)

    return wait_for(lambda: (found := look()).terminated and found, look)


def start_while_it_is_away(product):
    """An invocation that is pending because of that, and says so."""
    invocation_id = start(product, "add", 3, 4)

    def reason():
        return info(product, invocation_id).pending_reason

    wait_for(lambda: AWAY in (reason() or ""), reason)
    return invocation_id


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_what_ran_is_lost_where_the_engine_ends_its_containers(product, engine, end):
    lost = start_and_see(product, "sleep", 600)
    again = start_and_see(product, "sleep_again", 6)
    getattr(engine, end)()
    waiting = start_while_it_is_away(product)
    engine.start()
    assert ended(product, waiting).result == "7"
    found = ended(product, lost)
    assert found.status == "FAILED"
    found = ended(product, again)
    assert (found.status, found.num_failed_attempts) == ("SUCCEEDED", 1)


@pytest.mark.parametrize("end", ["stop", "kill"])
def test_what_runs_goes_on_where_the_engine_lets_its_containers_live(product, engine, end):
    restart(engine, "--live-restore")
    running = start_and_see(product, "count", 1000)
    short = start_and_see(product, "sleep", 1)
    getattr(engine, end)()
    waiting = start_while_it_is_away(product)
    wait_for(lambda: info(product, short).finished_at, lambda: "its end without the engine")
    engine.start()
    assert ended(product, waiting).result == "7"
    for invocation_id, result in ((running, "1000"), (short, '"slept"')):
        found = ended(product, invocation_id)
        assert (found.status, found.result, found.num_failed_attempts) == ("SUCCEEDED", result, 0)
    assert product.run("logs", running, "--tail=2000").split() == ["begun", *map(str, range(1000))]


def test_a_control_plane_that_starts_without_its_engine_says_so_and_adopts_later(product, engine):
    restart(engine, "--live-restore")
    running = start_and_see(product, "count", 1500)
    engine.kill()
    pid = product.server["pid"]
    os.kill(pid, signal.SIGKILL)
    wait_for(lambda: not is_living(pid), lambda: "its end")
    done = product.call("server", "start")
    assert done.returncode == 2
    assert f"No Docker engine answers at {engine.url}" in done.stderr
    engine.start()
    product.run("server", "start")
    found = ended(product, running)
    assert (found.status, found.num_failed_attempts) == ("SUCCEEDED", 0)
    assert product.run("logs", running, "--tail=2000").split() == ["begun", *map(str, range(1500))]


def restart(engine, *options):
    engine.stop()
    engine.options = options
    engine.start()
