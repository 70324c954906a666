"""The product with an engine on "another machine", which builds and runs: behind TLS, and behind ssh.

The other machine is this one: the engine is reached through a relay or sshd only, and containers reach the server at an address
of a bridge that is not theirs, as they would over a network.
"""

import json
import uuid
from contextlib import contextmanager, suppress

import docker
import pytest
from tests.acceptance.product import Product
from tests.acceptance.test_docker import wait_for
from tests.hand_made_image import needs_engine
from tests.images.bench import Bench, engine_socket, relay
from tests.images.certificates import server_context, write_certificates
from tests.secure_shell import secure_shell

from multinode.wire import InvocationInfo

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
PORT = 9483
MAIN = """
import time

import multinode

mn = multinode.Multinode()


@mn.function()
def add(a, b):
    print("adding")
    return a + b


@mn.function()
def count(to):
    for number in range(to):
        yield number


@mn.function()
def sleep(seconds):
    print("begun", flush=True)
    time.sleep(seconds)
    print("ended", flush=True)
    return "slept"
"""


@contextmanager
def tls(folder):
    """The variables for an engine behind TLS, and what breaks all connections to it."""
    write_certificates(folder)
    with relay(engine_socket(), server_context(folder)) as (address, connections):

        def cut():
            for pair in connections:
                for end in pair:
                    with suppress(OSError):
                        end.shutdown(2)

        environ = {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(folder)}
        yield {"DOCKER_HOST": address, **environ}, cut


@contextmanager
def ssh(folder):
    """The same for one behind ssh."""
    with secure_shell(folder) as shell:
        address = f"{shell.address}{engine_socket()}"
        yield {"DOCKER_HOST": address, "PATH": shell.path}, shell.cut
        wait_for(lambda: not shell.connections())  # nothing is left of it when the server has ended


@pytest.fixture(scope="module")
def bench():
    needs_engine()
    api = docker.APIClient(**docker.utils.kwargs_from_env(), version="auto", timeout=600)
    with Bench(api).open() as made:
        made.base_image = made.base()
        yield made
    api.close()


@pytest.fixture(scope="module")
def address(bench):
    """One of this machine's, apart from loopback and from the workers' network."""
    name = f"multinode-test-{uuid.uuid4().hex[:8]}"
    network = bench.api.create_network(name, driver="bridge", labels=bench.labels)["Id"]
    yield bench.api.inspect_network(network)["IPAM"]["Config"][0]["Gateway"]
    bench.api.remove_network(network)


@pytest.fixture(scope="module", params=[tls, ssh])
def product(request, bench, address, tmp_path_factory):
    folder = tmp_path_factory.mktemp("remote")
    (folder / "way").mkdir()
    with request.param(folder / "way") as (environ, cut):
        made = Product(folder)
        made.environ.update(environ, MULTINODE_RUNNER="docker")
        made.cut = cut
        made.worker_url = f"http://{address}:{PORT}"
        made.write({"tasks/main.py": MAIN, "tasks/requirements.txt": ""}, python="3.8")
        with open(folder / "multinode.toml", "a") as toml:
            toml.write(f'base_image = "{bench.base_image}"\n')
        made.run("server", "start", "--worker-url", made.worker_url)
        try:
            made.run("deploy")
            yield made
        finally:
            installation = (folder / "home" / "server" / "installation").read_text()
            made.run("server", "stop", "--now")
            label = {"label": f"multinode.installation={installation}"}
            for image in bench.api.images(filters=label):
                bench.api.remove_image(image["Id"], force=True)
        assert bench.api.containers(all=True, filters=label) == []
        assert bench.api.networks(filters=label) == []


def info(product, invocation_id):
    return product.client().call(InvocationInfo, "GET", f"/v1/invocations/{invocation_id}")


def start_sleeping(product, seconds):
    invocation_id = product.run("invoke", "shop/sleep", str(seconds), "--detach").strip()
    wait_for(lambda: "begun" in product.run("logs", invocation_id))
    return invocation_id


def test_functions_run_over_there(product):
    assert json.loads(product.run("invoke", "shop/add", "1", "2")) == 3
    told = product.call("invoke", "shop/count", "3")
    assert json.loads(told.stdout) == 2
    assert [word for word in "012" if f" {word}" in told.stderr] == ["0", "1", "2"], told.stderr


def test_doctor_tries_it_from_a_container_over_there(product):
    found = {item["check"]: item for item in product.json("doctor")}
    assert found["engine"]["finding"].endswith(product.environ["DOCKER_HOST"])
    assert found["containers"]["state"] == "ok"
    assert product.worker_url in found["containers"]["finding"]
    assert "engine's disk" not in found, "which is not this machine's"


def test_a_cancelled_function_ends(product):
    invocation_id = start_sleeping(product, 600)
    product.run("cancel", invocation_id)
    assert wait_for(lambda: info(product, invocation_id).terminated)
    assert info(product, invocation_id).status == "CANCELLED"


def test_a_connection_that_breaks_costs_no_worker_and_no_output(product):
    invocation_id = start_sleeping(product, 3)
    product.cut()
    wait_for(lambda: info(product, invocation_id).terminated)
    found = info(product, invocation_id)
    assert (found.status, found.num_failed_attempts) == ("SUCCEEDED", 0)
    assert product.run("logs", invocation_id) == "begun\nended\n"
    assert json.loads(product.run("invoke", "shop/add", "1", "2")) == 3


def test_workers_are_adopted_after_a_restart(product):
    invocation_id = start_sleeping(product, 4)
    product.run("server", "restart")
    wait_for(lambda: info(product, invocation_id).terminated)
    found = info(product, invocation_id)
    assert (found.status, found.num_failed_attempts) == ("SUCCEEDED", 0)
    assert product.run("logs", invocation_id) == "begun\nended\n"


def test_without_a_worker_url_the_server_does_not_start_and_says_why(product, tmp_path):
    other = Product(tmp_path)
    own = {"MULTINODE_HOME", "MULTINODE_DATABASE"} & other.environ.keys()
    other.environ = {**product.environ, **{name: other.environ[name] for name in own}}
    done = other.call("server", "start")
    assert done.returncode == 2
    assert "may not reach this machine" in done.stderr
    assert "--worker-url" in done.stderr
    other.environ["MULTINODE_RUNNER"] = "auto"
    said = other.run("server", "start")
    other.run("server", "stop", "--now")
    assert "runner process" in said
    assert "no --worker-url says how they can" in said
