"""The published client of 2023 itself (multinode 1.0.1), from its own virtual environment, against a real server of ours."""

import json
import os
import subprocess
import sys

import pytest
from tests.acceptance.product import Product

CLIENT = ("multinode==1.0.1", "requests<2.32", "setuptools")
MAIN = """
import time
from multinode import Multinode

mn = Multinode()

@mn.function()
def add(a, b=1):
    print("adding")
    return {"sum": a + b, "pair": (a, b)}

@mn.function(max_retries=1)
def fail(text):
    raise ValueError(text)

@mn.function(max_retries=3, no_retry_on=[ValueError])
def fail_at_once(text):
    raise ValueError(text)

@mn.function(timeout=1)
def sleep_too_long():
    time.sleep(60)

@mn.function()
def count(bound):
    for number in range(1, bound + 1):
        yield number
    while True:
        time.sleep(0.05)
"""
PROGRAM = """
import json, sys, time
from multinode import get_deployed_function
from multinode.core.invocation import InvocationStatus
from multinode import errors

def function(name):
    return get_deployed_function(project_name="shop", function_name=name)

def until(fn, invocation_id, wanted):
    deadline = time.monotonic() + 30
    while True:
        invocation = fn.get(invocation_id)
        if wanted(invocation):
            return invocation
        assert time.monotonic() < deadline, invocation
        time.sleep(0.1)

def told(invocation):
    return [invocation.status.name, invocation.result, invocation.error, invocation.num_failed_attempts]

add, count = function("add"), function("count")
found = {"add": add.call_remote(1, b=2), "map": list(add.starmap([(1, 1), (2, 2)]))}
for name in ("fail", "fail_at_once", "sleep_too_long"):
    fn = function(name)
    started = fn.start(*([] if name == "sleep_too_long" else ["no luck"]))
    found[name] = told(until(fn, started, lambda invocation: invocation.status.finished))
started = count.start(3)
until(count, started, lambda invocation: invocation.result == 3)
found["running"] = told(count.get(started))
count.cancel(started)
found["cancelled"] = told(until(count, started, lambda invocation: invocation.terminated))
listed = add.list()
found["listed"] = len(listed.invocation_ids)
try:
    add.get("inv-none")
except errors.InvocationDoesNotExist:
    found["missing"] = True
try:
    count.cancel(started)
except errors.InvocationIsAlreadyTerminated:
    found["over"] = True
json.dump(found, sys.stdout)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """An interpreter with the client; it needs a package index, which not every machine reaches."""
    folder = tmp_path_factory.mktemp("client")
    uv = os.path.join(os.path.dirname(sys.executable), "uv")
    subprocess.run([uv, "venv", "--quiet", "--python", sys.executable, folder / "env"], check=True)
    made = folder / "env" / "bin" / "python"
    command = [uv, "pip", "install", "--quiet", "--python", made, *CLIENT]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)
    if done.returncode:
        pytest.skip(f"multinode 1.0.1 cannot be installed here: {done.stderr.strip()[-300:]}")
    return made


@pytest.fixture(scope="module")
def product(tmp_path_factory):
    made = Product(tmp_path_factory.mktemp("product"))
    made.write({"tasks/main.py": MAIN})
    made.run("server", "start", "--port", "0")
    made.run("deploy")
    yield made
    made.run("server", "stop", "--now")


def run(product, python, *arguments, **options):
    server = product.server
    environ = {
        **os.environ, "MULTINODE_API_URL": server["url"], "MULTINODE_API_KEY": server["key"],
        "HOME": str(product.folder),
    }  # fmt: skip
    return subprocess.run(
        [python, *arguments], env=environ, capture_output=True, text=True, timeout=100, check=False,
        cwd=python.parent, **options,
    )  # fmt: skip


def test_a_program_of_2023_goes_on_working(product, python):
    done = run(product, python, "-c", PROGRAM)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "add": {"sum": 3, "pair": [1, 2]},
        "map": [{"sum": 2, "pair": [1, 1]}, {"sum": 4, "pair": [2, 2]}],
        "fail": ["FAILED", None, "ValueError: no luck", 2],
        "fail_at_once": ["FAILED", None, "ValueError: no luck", 1],
        "sleep_too_long": ["TIMED_OUT", None, None, 0],
        "running": ["RUNNING", 3, None, 0],
        "cancelled": ["CANCELLED", 3, None, 0],
        "listed": 3,
        "missing": True,
        "over": True,
    }
