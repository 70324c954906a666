"""`multinode cost`, `describe` and `invoke --estimate` on a real server, whose workers cost nothing."""

from __future__ import annotations

import time

import pytest
from tests.acceptance.product import Product

MAIN = """
import time

from multinode import Multinode

mn = Multinode()


@mn.function(cpu=0.5, memory="512 MiB", timeout=60, max_retries=1)
def nap(seconds):
    time.sleep(seconds)
    return seconds
"""


@pytest.fixture
def product(tmp_path):
    """A home with a project that is not deployed; whatever runs in it is stopped."""
    made = Product(tmp_path / "product")
    made.write({"tasks/main.py": MAIN})
    yield made
    made.call("server", "stop", "--now")


def until(fact):
    deadline = time.monotonic() + 30
    while not fact():
        assert time.monotonic() < deadline, "it did not become true"


def test_what_an_invocation_used_is_told_for_it_and_in_sums(product):
    product.run("server", "start", "--port", "0")
    product.run("deploy")
    before = product.json("invoke", "nap", "--estimate")
    assert (before["attempts"], before["timeout_s"], before["history"]) == (2, 60, None)
    assert (before["most"]["vcpu_s"], before["most"]["cost"]) == (60, 0)

    ended = product.json("invoke", "nap", "0.5")["invocation_id"]
    until(lambda: product.json("cost")["total"]["executions"] == 1)  # when its worker is gone
    told = product.call("cost")
    assert "shop/nap" in told.stdout
    assert "nothing is paid for them by the second" in told.stderr
    by_day, by_function = product.json("cost", "--by", "day"), product.json("cost")
    assert by_day["total"] == by_function["total"]
    assert 0.25 <= by_function["total"]["vcpu_s"] < 60
    assert "cost nothing: " in product.run("describe", ended)
    assert product.json("invoke", "nap", "--estimate")["history"]["invocations"] == 1
    product.run("undeploy", "shop", "--yes")
    assert product.json("cost", "--by", "project")["lines"][0]["name"] == "shop"


def test_a_table_of_prices_that_is_none_stops_the_start(product, tmp_path):
    for name, content in (("nobody", None), ("empty", "{}")):
        path = tmp_path / name
        if content is not None:
            path.write_text(content)
        said = product.call("server", "start", "--port", "0", MULTINODE_PRICES=str(path))
        assert said.returncode == 2, said
        assert str(path) in said.stderr
