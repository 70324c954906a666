"""A control plane that speaks TLS: for others on its port, for this machine on a door of its own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import docker
import psycopg
import pytest
from tests.acceptance.docker_product import DockerProduct
from tests.acceptance.product import Product
from tests.hand_made_image import needs_engine
from tests.images.certificates import write_certificates

FUNCTION = """
from multinode import Multinode

mn = Multinode()


@mn.function()
def add(a: int, b: int) -> int:
    print("adding", flush=True)
    return a + b
"""


TLS = ("--tls-cert", "server.pem", "--tls-key", "server.pem")


@pytest.fixture
def product(tmp_path):
    made = Product(tmp_path)
    yield made
    made.call("server", "stop", "--now")


def from_afar(product):
    """The variables of somebody on another machine, but for whom to trust."""
    return {
        "MULTINODE_HOME": str(product.folder / "other"),
        "MULTINODE_API_URL": f"https://127.0.0.1:{product.server['port']}",
        "MULTINODE_API_KEY": product.server["key"],
        "MULTINODE_RETRY_SECONDS": "0",
    }


def test_it_is_used_with_tls_and_from_this_machine_without(product, tmp_path):
    write_certificates(tmp_path)
    product.write({"tasks/main.py": FUNCTION})
    product.run("server", "start", "--runner", "process", "--port", "0", *TLS)
    server = product.server
    assert server["url"].startswith("http://127.0.0.1:")
    assert f":{server['port']}" not in server["url"]
    product.run("deploy")
    assert product.json("invoke", "add", "2", "3")["result"] == 5
    far = from_afar(product)
    done = product.call("invoke", "add", "2", "3", "--json", SSL_CERT_FILE="ca.pem", **far)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["data"]["result"] == 5
    refused = product.call("list", **far)
    assert (refused.returncode, "SSL_CERT_FILE" in refused.stderr) == (5, True)
    product.run("server", "restart")
    again = product.server
    assert (again["url"], again["port"]) == (server["url"], server["port"])
    assert again["options"]["tls_cert"] == os.fspath(tmp_path / "server.pem")
    assert product.json("invoke", "add", "2", "4")["result"] == 6


MAIN_IN_CONTAINERS = """
import multinode

mn = multinode.Multinode()


@mn.function()
def add(a, b):
    print("adding", flush=True)
    return a + b


@mn.function()
def start_a_sibling():
    return add.call_remote(3, 4)
"""


@pytest.fixture
def in_containers(tmp_path):
    needs_engine()
    made = DockerProduct(tmp_path)
    write_certificates(tmp_path)
    made.run("server", "start", "--port", "0", *TLS)
    label = {"label": made.label}
    yield made
    made.call("server", "stop", "--now")
    engine = docker.from_env()
    for image in engine.images.list(filters=label):
        engine.images.remove(image.id, force=True)
    assert engine.containers.list(all=True, filters=label, ignore_removed=True) == []
    engine.close()


def test_containers_reach_it_without_tls_on_an_address_of_theirs(in_containers):
    in_containers.deploy(MAIN_IN_CONTAINERS)
    trusting = {**from_afar(in_containers), "SSL_CERT_FILE": "ca.pem"}
    done = in_containers.call("invoke", "shop/start_a_sibling", "--json", **trusting)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["data"]["result"] == 7
    invocation_id = json.loads(done.stdout)["data"]["invocation_id"]
    assert in_containers.json("describe", invocation_id)["status"] == "SUCCEEDED"


@pytest.fixture
def pair(tmp_path, postgres_server):
    """Two control planes on one database and with one certificate; the first leads."""
    write_certificates(tmp_path)
    url, products = postgres_server.new_database(), []
    for name in ("a", "b"):
        made = Product(tmp_path / name)
        made.folder.mkdir()
        made.environ |= {
            "MULTINODE_DATABASE": url,
            "MULTINODE_DATA_DIR": str(tmp_path / "data"),
            "MULTINODE_TLS_CERT": str(tmp_path / "server.pem"),
            "MULTINODE_TLS_KEY": str(tmp_path / "server.pem"),
            "MULTINODE_RUNNER": "process",
        }
        made.write({"tasks/main.py": FUNCTION})
        products.append(made)
    try:
        for made in products:
            made.run("server", "start", "--port", "0")
        assert leader(url) == from_afar(products[0])["MULTINODE_API_URL"]
        yield url, *products
    finally:
        for made in reversed(products):
            made.call("server", "stop", "--now")


def leader(url):
    with psycopg.connect(url) as connection:
        return connection.execute("SELECT url FROM leader").fetchone()[0]


def test_two_that_share_a_certificate_pass_on_to_the_one_that_leads(pair, tmp_path):
    url, first, second = pair
    trusting = {**from_afar(second), "SSL_CERT_FILE": str(Path(tmp_path, "ca.pem"))}
    done = second.call("deploy", **trusting)
    assert done.returncode == 0, done.stderr
    done = second.call("invoke", "add", "2", "3", "--json", **trusting)
    assert json.loads(done.stdout)["data"]["result"] == 5
    invocation_id = json.loads(done.stdout)["data"]["invocation_id"]
    done = second.call("logs", invocation_id, **trusting)
    assert (done.returncode, "adding" in done.stdout) == (0, True)
    first.run("server", "stop")
    assert leader(url) == trusting["MULTINODE_API_URL"]
    assert second.json("invoke", "add", "2", "4")["result"] == 6
