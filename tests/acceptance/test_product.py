"""The real command against a real server process: init, deploy, invoke, cancel, crash, adoption, stop."""

from __future__ import annotations

import http.client
import json
import os
import signal
import stat
import time
from pathlib import Path

import pytest
from tests.acceptance.product import Product

from multinode import wire

pytestmark = pytest.mark.timeout(400)
"""The first test on ECS waits for an image."""
MAIN = """
import time
from pathlib import Path
from multinode import Multinode
from multinode.errors import InvocationCancelledError

mn = Multinode()

@mn.function()
def add(a, b):
    print("adding")
    return a + b

@mn.function()
def wait_for(path):
    yield "waiting"
    while not Path(path).exists():
        time.sleep(0.02)
    yield "seen"

@mn.function()
def cancelled(path):
    try:
        time.sleep(60)
    except InvocationCancelledError:
        Path(path).write_text("cleaned up")
        raise
"""


@pytest.fixture(scope="module")
def product(make_product, tmp_path_factory):
    made = make_product(tmp_path_factory.mktemp("product"))
    made.write({"tasks/main.py": MAIN})
    made.run("server", "start", "--port", "0")
    assert made.json("deploy")["created"]
    yield made
    made.run("server", "stop", "--now")


@pytest.fixture(autouse=True)
def _others_may_write(tmp_path):
    """A task runs as another user."""
    tmp_path.chmod(0o777)


def until_value(product: Product, invocation_id: str) -> None:
    """Waits for the first yielded value with the control plane's own waiting request."""
    client = product.client()
    path = f"/v1/invocations/{invocation_id}/values?after=0&wait_s=25"
    assert client.call(wire.ValuesAnswer, "GET", path, wait_s=25).values
    client.close()


def until_gone(product: Product, invocation_id: str) -> None:
    """Waits until nothing is left of its worker, which takes a while after its end where that is a task."""
    client = product.client()
    path = f"/v1/invocations/{invocation_id}"
    while not client.call(wire.InvocationInfo, "GET", path).terminated:
        time.sleep(0.02)
    client.close()


def test_the_same_input_is_the_same_version(product):
    assert not product.json("deploy")["created"]


def test_plan_says_what_a_deploy_then_does(tmp_path):
    planned = Product(tmp_path)
    planned.run("server", "start", "--port", "0")
    try:
        planned.write({"tasks/main.py": MAIN, "tasks/.env": "A=1\nB=1\n"})
        assert _plan(planned) == ("new", "made", ["project shop: new", "function add: new", "function wait_for: new", "function cancelled: new"])  # fmt: skip
        planned.run("deploy")
        assert _plan(planned) == ("latest", "kept", [])
        planned.write({"tasks/.env": "A=2\nC=1\n"})
        assert _plan(planned) == ("new", "kept", [".env A: changed", ".env B: gone", ".env C: new"])
        assert planned.json("deploy")["created"]
        planned.write({"tasks/.env": "A=1\nB=1\n", "tasks/new.py": ""})
        assert _plan(planned)[:2] == ("new", "kept")
        (tmp_path / "tasks/new.py").unlink()
        assert _plan(planned)[0] == "existing"
        planned.environ["UV_INDEX"] = "https://x.example/simple"
        version, environment, changes = _plan(planned)
        assert (version, environment) == ("new", "made")
        assert "an index setting" in changes[0]
        assert planned.json("describe", "shop")["versions"][0]["number"] == 2
    finally:
        planned.run("server", "stop", "--now")


def _plan(product):
    data = product.json("deploy", "--plan")
    return data["version"], data["environment"], data["changes"]


def test_invoke_prints_the_result_alone(product):
    assert product.run("invoke", "add", "1", "b=2") == "3\n"
    ended = product.json("invoke", "add", "1", "b=2")
    assert (ended["status"], ended["result"]) == ("SUCCEEDED", 3)
    assert product.run("logs", ended["invocation_id"]) == "adding\n"
    until_gone(product, ended["invocation_id"])  # of which the next two tell
    (execution,) = product.json("describe", ended["invocation_id"])["executions"]
    by_id = ("--execution-id", execution["execution_id"])
    assert product.run("logs", *by_id) == "adding\n"
    assert product.json("describe", *by_id)["executions"] == [execution]


def test_a_killed_control_plane_loses_nothing_and_adopts_its_workers(product, tmp_path):
    marker = tmp_path / "go"
    invocation_id = product.run("invoke", "wait_for", str(marker), "--detach").strip()
    until_value(product, invocation_id)
    pid = product.json("server", "status")["pid"]
    os.kill(pid, signal.SIGKILL)
    product.run("server", "start")
    assert product.json("server", "status")["pid"] != pid
    marker.touch()
    product.run("logs", invocation_id, "--follow")
    described = product.json("describe", invocation_id)
    text = json.dumps(described)
    assert '"SUCCEEDED"' in text
    assert product.run("result", invocation_id) == "seen\n"


def test_a_cancelled_function_cleans_up(product, tmp_path):
    marker = tmp_path / "cleaned"
    invocation_id = product.run("invoke", "cancelled", str(marker), "--detach").strip()
    client = product.client()
    info = client.call(wire.InvocationInfo, "GET", f"/v1/invocations/{invocation_id}")
    while info.status == "PENDING":
        path = f"/v1/invocations/{invocation_id}?wait_s=25&revision={info.revision}"
        info = client.call(wire.InvocationInfo, "GET", path, wait_s=25)
    client.close()
    product.run("cancel", invocation_id)
    product.run("logs", invocation_id, "--follow")
    assert marker.read_text() == "cleaned up"


def test_other_users_of_the_machine_and_web_pages_are_outside(product):
    home = product.folder / "home"
    for name in ("server", "server.json", "server/local.json", "server/secret.key"):
        assert stat.S_IMODE((home / name).stat().st_mode) & 0o077 == 0, name
    known = json.loads((home / "server.json").read_text())
    address = known["url"].removeprefix("http://")
    right = {"Authorization": f"Bearer {known['key']}"}
    for headers, status in (
        (right, 200),
        ({}, 401),
        ({"Authorization": "Bearer mnk_guess"}, 401),
        ({**right, "Host": "evil.example"}, 403),
        ({**right, "Origin": "http://evil.example"}, 403),
    ):
        connection = http.client.HTTPConnection(address, timeout=60)
        connection.request("GET", "/v1/projects", headers=headers)
        assert connection.getresponse().status == status, headers
        connection.close()
    command_line = Path(f"/proc/{known['pid']}/cmdline")
    assert not command_line.exists() or known["key"] not in command_line.read_text()


@pytest.mark.parametrize(
    ("arguments", "exit_code"),
    [
        (("invoke", "nope"), 3),
        (("result", "inv-nope"), 3),
        (("invoke", "add", "1"), 2),
        (("describe", "nowhere"), 3),
    ],
)
def test_what_is_unknown_or_wrong_has_its_exit_code(product, arguments, exit_code):
    product.run(*arguments, exit_code=exit_code)
