"""How invocations end, on a real server: cancellation, timeouts, retries, and what is left of their processes.

Where workers are containers or tasks nobody here knows their pids. What lives holds a lock on a file of the folder that all share.
"""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance.product import Product

from multinode import Invocation, get_deployed_function
from multinode.errors import (
    InvocationCancelledError,
    InvocationFailedError,
    InvocationTimedOutError,
)

pytestmark = pytest.mark.timeout(400)
"""The first test on ECS waits for an image."""
GRACE_S = 1
MAIN = """
import asyncio, fcntl, os, signal, socket, subprocess, time
from datetime import timedelta
from pathlib import Path
from multinode import Multinode
from multinode.errors import InvocationCancelledError

mn = Multinode()

def hold_lock(path):
    file = open(path, "a")
    fcntl.flock(file, fcntl.LOCK_SH)
    return file

if Path("{gate}").exists():
    imported = hold_lock("{gate}")
    time.sleep(60)

def note(path, text="x"):
    with open(path, "a") as file:
        file.write(text + " ")

def hold_in(place):
    if place == "busy loop":
        while True: pass
    if place == "sleep":
        time.sleep(60)
    if place == "socket":
        a, b = socket.socketpair()
        a.recv(1)

@mn.function(max_concurrency=20)
def hold(place, folder):
    note(folder + "/ready")
    try:
        hold_in(place)
    except InvocationCancelledError:
        note(folder + "/told")
        raise

@mn.function()
async def hold_await(place, folder):
    note(folder + "/ready")
    try:
        await asyncio.sleep(60)
    except InvocationCancelledError:
        note(folder + "/told")
        raise

@mn.function()
def hold_yielding(place, folder):
    note(folder + "/ready")
    try:
        while True:
            yield place
    except InvocationCancelledError:
        note(folder + "/told")
        raise

@mn.function(max_concurrency=1)
def alone(folder):
    note(folder + "/ready")
    time.sleep(60)

@mn.function(cpu=8)
def fill(folder):
    note(folder + "/ready")
    time.sleep(60)

@mn.function(queue_timeout=timedelta(seconds=1))
def impatient():
    return "ran"

@mn.function()
def stubborn(folder):
    for apart in (False, True):
        with hold_lock(folder + "/lives-" + str(apart)) as file:
            subprocess.Popen(["sleep", "1000"], start_new_session=apart, pass_fds=[file.fileno()])
    own = hold_lock(folder + "/lives-itself")
    note(folder + "/ready")
    while True:
        try:
            time.sleep(60)
        except BaseException:
            note(folder + "/told")

@mn.function()
def parent(folder):
    ids = [hold.start("sleep", folder), hold.start("busy loop", folder)]
    note(folder + "/ids", " ".join(ids))
    for invocation_id in ids:
        hold.await_result(invocation_id)

@mn.function(timeout=timedelta(seconds=0.5), max_retries=3)
def slow(folder):
    note(folder + "/tries")
    time.sleep(60)

@mn.function(max_retries=2, retry_delay=timedelta(seconds=0.3))
def flaky(folder):
    note(folder + "/tries", str(time.time()))
    if len(Path(folder, "tries").read_text().split()) < 3:
        raise ValueError("not yet")
    return "at last"

@mn.function(max_retries=2, retry_on=[OSError], no_retry_on=[FileNotFoundError])
def picky(kind, folder):
    note(folder + "/tries")
    if kind == "killed":
        os.kill(os.getpid(), signal.SIGKILL)
    raise {{"OSError": OSError, "reset": ConnectionResetError, "missing": FileNotFoundError, "value": ValueError}}[kind]("no")

@mn.function(start_timeout=timedelta(seconds=3))
def starts_slowly():
    return "started"

@mn.function(cpu=16)
def greedy():
    return "ran"
"""


@pytest.fixture(scope="module")
def product(make_product: Callable[[Path], Product], tmp_path_factory: Any) -> Iterator[Product]:
    made = make_product(tmp_path_factory.mktemp("endings"))
    made.folder.chmod(0o755)  # for the gate
    made.environ |= {"MULTINODE_GRACE": str(GRACE_S), "MULTINODE_CAPACITY": "cpu=8,memory=3GiB"}
    made.write({"tasks/main.py": MAIN.format(gate=made.folder / "gate")})
    try:
        made.run("server", "start", "--port", "0")
        assert made.json("deploy")["created"]
        yield made
    finally:
        made.run("server", "stop", "--now")


@pytest.fixture(autouse=True)
def _others_may_write(tmp_path: Path) -> None:
    """A task runs as another user."""
    tmp_path.chmod(0o777)


@pytest.fixture
def fn(product: Product, monkeypatch: Any) -> Callable[..., Any]:
    """A deployed function by name."""
    monkeypatch.setenv("MULTINODE_API_URL", product.server["url"])
    monkeypatch.setenv("MULTINODE_API_KEY", product.server["key"])
    return lambda name, project="shop": get_deployed_function(
        project_name=project, function_name=name
    )


@pytest.fixture
def gate(product: Product) -> Iterator[Path]:
    """While it exists, an import of main.py hangs."""
    path = product.folder / "gate"
    path.touch()
    path.chmod(0o666)
    yield path
    path.unlink(missing_ok=True)


def until(fact: Callable[[], Any], seconds: float = 20) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := fact()):
        assert time.monotonic() < deadline, "it did not become true"
        time.sleep(0.02)
    return found


def ended(function: Any, invocation_id: str) -> Invocation:
    """The invocation when it is over, its worker gone too."""
    return until(lambda: (found := function.get(invocation_id)).terminated and found)


def words(path: Path) -> list[str]:
    return path.read_text().split() if path.exists() else []


def lives(path: Path) -> bool:
    """Whether some process holds the lock on this file."""
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


# --- cancellation ---


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("hold", "busy loop"),
        ("hold", "sleep"),
        ("hold", "socket"),
        ("hold_await", "await"),
        ("hold_yielding", "yield"),
    ],
)
def test_cancel_arrives_in_a_function(fn: Any, tmp_path: Path, name: str, place: str) -> None:
    function = fn(name)
    invocation_id = function.start(place, str(tmp_path))
    until((tmp_path / "ready").exists)
    function.cancel(invocation_id)
    found = ended(function, invocation_id)
    assert (found.status, found.error) == ("CANCELLED", None)
    assert words(tmp_path / "told") == ["x"]
    with pytest.raises(InvocationCancelledError) as caught:
        function.await_result(invocation_id)
    assert caught.value.invocation_id == invocation_id


def test_cancel_of_a_pending_one_ends_it_at_once(fn: Any, tmp_path: Path) -> None:
    function = fn("alone")
    running_id = function.start(str(tmp_path))
    until((tmp_path / "ready").exists)
    pending_id = function.start(str(tmp_path))
    function.cancel(pending_id)
    found = function.get(pending_id)
    assert (found.status, found.terminated, found.started_at) == ("CANCELLED", True, None)
    function.cancel(running_id)
    ended(function, running_id)
    assert words(tmp_path / "ready") == ["x"]


def test_cancel_while_the_worker_starts(fn: Any, gate: Path) -> None:
    function = fn("greedy")
    invocation_id = function.start()
    until(lambda: function.get(invocation_id).pending_reason == "importing main.py")
    until(lambda: lives(gate))
    function.cancel(invocation_id)
    assert function.get(invocation_id).status == "CANCELLED"
    assert ended(function, invocation_id).started_at is None
    assert not lives(gate)


def test_what_ignores_it_is_killed_after_the_grace_with_all_it_started(
    fn: Any, tmp_path: Path
) -> None:
    function = fn("stubborn")
    invocation_id = function.start(str(tmp_path))
    until((tmp_path / "ready").exists)
    processes = sorted(tmp_path.glob("lives-*"))
    assert [lives(each) for each in processes] == [True] * 3
    function.cancel(invocation_id)
    found = ended(function, invocation_id)
    assert found.status == "CANCELLED"
    assert "killed: it had not ended 1 s after it was interrupted" in str(found.error)
    assert words(tmp_path / "told") == ["x"]
    assert [lives(each) for each in processes] == [False] * 3


def test_cancel_of_a_parent_cancels_its_children(fn: Any, tmp_path: Path) -> None:
    parent = fn("parent")
    invocation_id = parent.start(str(tmp_path))
    until(lambda: len(words(tmp_path / "ready")) == 2)
    parent.cancel(invocation_id)
    ids = words(tmp_path / "ids")
    assert ended(parent, invocation_id).status == "CANCELLED"
    assert [ended(fn("hold"), child).status for child in ids] == ["CANCELLED"] * 2
    assert words(tmp_path / "told") == ["x"] * 2


def test_undeploy_cancels_what_is_in_flight(product: Product, fn: Any, tmp_path: Path) -> None:
    product.run("deploy", "--project-name", "doomed")
    function = fn("hold", "doomed")
    invocation_id = function.start("sleep", str(tmp_path))
    until((tmp_path / "ready").exists)
    product.run("undeploy", "doomed", "-y")
    assert words(tmp_path / "told") == ["x"]
    assert "doomed" not in [item["project"] for item in product.json("list")]
    product.run("describe", invocation_id, exit_code=3)


# --- timeouts ---


def test_a_timeout_is_not_retried(fn: Any, tmp_path: Path) -> None:
    function = fn("slow")
    invocation_id = function.start(str(tmp_path))
    with pytest.raises(InvocationTimedOutError):
        function.await_result(invocation_id)
    assert ended(function, invocation_id).status == "TIMED_OUT"
    assert words(tmp_path / "tries") == ["x"]


def test_queue_timeout_ends_what_waits_too_long(fn: Any, tmp_path: Path) -> None:
    fill, impatient = fn("fill"), fn("impatient")
    running_id = fill.start(str(tmp_path))
    until((tmp_path / "ready").exists)
    waiting_id = impatient.start()  # for room
    with pytest.raises(InvocationTimedOutError, match="queue_timeout"):
        impatient.await_result(waiting_id)
    assert impatient.get(waiting_id).started_at is None
    assert fill.get(running_id).status == "RUNNING"
    fill.cancel(running_id)
    ended(fill, running_id)


def test_start_timeout_gives_a_worker_up_at_no_retrys_cost(fn: Any, gate: Path) -> None:
    function = fn("starts_slowly")
    invocation_id = function.start()
    reason = until(
        lambda: (
            (found := function.get(invocation_id).pending_reason or "")
            and "next try" in found
            and found
        )
    )
    assert "it was not ready within its start_timeout of 3 s" in reason
    assert not lives(gate)
    gate.unlink()
    assert function.await_result(invocation_id) == "started"
    assert function.get(invocation_id).num_failed_attempts == 0


# --- retries ---


def test_retries_wait_longer_each_time(fn: Any, tmp_path: Path) -> None:
    function = fn("flaky")
    invocation_id = function.start(str(tmp_path))
    assert function.await_result(invocation_id) == "at last"
    assert function.get(invocation_id).num_failed_attempts == 2
    first, second, third = map(float, words(tmp_path / "tries"))
    assert second - first >= 0.3
    assert third - second >= 0.6 * 0.8


@pytest.mark.parametrize(
    ("kind", "tries"), [("OSError", 3), ("reset", 3), ("killed", 3), ("missing", 1), ("value", 1)]
)
def test_what_is_retried(fn: Any, tmp_path: Path, kind: str, tries: int) -> None:
    function = fn("picky")
    invocation_id = function.start(kind, str(tmp_path))
    with pytest.raises(InvocationFailedError):
        function.await_result(invocation_id)
    assert len(words(tmp_path / "tries")) == tries
    assert function.get(invocation_id).num_failed_attempts == tries


# --- the machine's room ---


def test_more_cpu_than_there_is_is_clamped_with_a_warning(product: Product, fn: Any) -> None:
    warning = "greedy: cpu=16 is more than the 8 there are, and counts as these"
    assert warning in product.json("deploy")["warnings"]
    assert warning in product.call("deploy").stderr
    assert fn("greedy").call_remote() == "ran"


def test_more_memory_than_there_is_is_refused_at_deploy(product: Product) -> None:
    main = MAIN.format(gate=product.folder / "gate").replace("(cpu=16)", "(memory='4 GiB')")
    toml = (product.folder / "multinode.toml").read_text()
    product.write({"hungry/multinode.toml": toml, "hungry/tasks/main.py": main})
    refused = product.call("deploy", "hungry", "--project-name", "hungry")
    assert refused.returncode == 2
    assert "greedy asks for 4096 MiB of memory" in refused.stderr
    assert "3072 MiB" in refused.stderr
    product.run("describe", "hungry", exit_code=3)


def test_nothing_is_left_when_all_has_ended(product: Product) -> None:
    until(lambda: product.json("server", "status")["workers"] == 0)
    assert product.json("ps") == []
    assert product.workers_left() == []
