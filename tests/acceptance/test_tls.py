"""A control plane that speaks TLS: for others on its port, for this machine on a door of its own."""

from __future__ import annotations

import json
import os

import pytest
from tests.acceptance.product import Product
from tests.images.certificates import write_certificates

FUNCTION = """
from multinode import Multinode

mn = Multinode()


@mn.function()
def add(a: int, b: int) -> int:
    print("adding", flush=True)
    return a + b
"""


@pytest.fixture
def product(tmp_path):
    made = Product(tmp_path)
    yield made
    made.call("server", "stop", "--now")


def test_it_is_used_with_tls_and_from_this_machine_without(product, tmp_path):
    write_certificates(tmp_path)
    product.write({"tasks/main.py": FUNCTION})
    tls = ("--tls-cert", "server.pem", "--tls-key", "server.pem")
    product.run("server", "start", "--runner", "process", "--port", "0", *tls)
    server = product.server
    assert server["url"].startswith("http://127.0.0.1:")
    assert f":{server['port']}" not in server["url"]
    product.run("deploy")
    assert product.json("invoke", "add", "2", "3")["result"] == 5
    far = {
        "MULTINODE_HOME": str(tmp_path / "other"),
        "MULTINODE_API_URL": f"https://127.0.0.1:{server['port']}",
        "MULTINODE_API_KEY": server["key"],
        "MULTINODE_RETRY_SECONDS": "0",
    }
    done = product.call("invoke", "add", "2", "3", "--json", SSL_CERT_FILE="ca.pem", **far)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["data"]["result"] == 5
    refused = product.call("list", **far)
    assert (refused.returncode, "certificate" in refused.stderr.lower()) == (5, True)
    product.run("server", "restart")
    again = product.server
    assert (again["url"], again["port"]) == (server["url"], server["port"])
    assert again["options"]["tls_cert"] == os.fspath(tmp_path / "server.pem")
    assert product.json("invoke", "add", "2", "4")["result"] == 6
