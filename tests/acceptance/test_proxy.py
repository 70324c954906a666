"""``infra/proxy/nginx.conf`` in front of a control plane, as it stands: TLS, values, and logs that come while a function runs.

And ``infra/server/haproxy.cfg``, as the compose file uses it: who asks. `tests/faults/test_rolling_restart.py` does the rest with it.
"""

from __future__ import annotations

import http.client
import json
import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.acceptance.product import COMMAND, Product
from tests.images.certificates import write_certificates

from multinode_control_plane.api.limits import WRONG_KEYS

NGINX = "/usr/sbin/nginx"
HAPROXY = Path(__file__).parents[2] / "infra" / "server" / "haproxy.cfg"
CONFIGURATION = Path(__file__).parents[2] / "infra" / "proxy" / "nginx.conf"
FUNCTIONS = """
from pathlib import Path
import time
from multinode import Multinode

mn = Multinode()


@mn.function()
def count(n: int, file: str):
    print("counting", flush=True)
    while not Path(file).exists():
        time.sleep(0.05)
    yield from range(n)
"""
AROUND = """
daemon off;
{user}
pid {here}/nginx.pid;
error_log {here}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {here}/body;
    proxy_temp_path {here}/proxy;
    fastcgi_temp_path {here}/fastcgi;
    uwsgi_temp_path {here}/uwsgi;
    scgi_temp_path {here}/scgi;
    include {configuration};
}}
"""
HERE = """
listen 127.0.0.1:{port} ssl;
server_name multinode.example.com;
ssl_certificate {folder}/server.pem;
ssl_certificate_key {folder}/server.pem;
set $control_plane {control_plane};
"""


def missing(what: str) -> None:
    said = f"{what} is not installed here"
    pytest.fail(said) if os.environ.get("CI") else pytest.skip(said)


@pytest.fixture
def product(tmp_path: Path) -> Iterator[Product]:
    made = Product(tmp_path)
    yield made
    made.call("server", "stop", "--now")


@pytest.fixture
def url(product: Product, tmp_path: Path) -> Iterator[str]:
    """Of a proxy in front of the product's control plane."""
    if not os.access(NGINX, os.X_OK):
        missing("nginx (nginx-light)")
    write_certificates(tmp_path)
    product.run(
        *("server", "start", "--runner", "process", "--port", "0"),
        *("--trusted-proxies", "127.0.0.1", "--allowed-hosts", "multinode.example.com"),
    )
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    here = tmp_path / "nginx"
    here.mkdir()
    user = "user root;" if os.geteuid() == 0 else ""
    around = AROUND.format(here=here, user=user, configuration=CONFIGURATION)
    (here / "nginx.conf").write_text(around)
    address = product.server["url"].removeprefix("http://")
    made = HERE.format(port=port, folder=tmp_path, control_plane=address)
    (here / "multinode-here.conf").write_text(made)
    arguments = [NGINX, "-p", str(here), "-c", str(here / "nginx.conf")]
    log = here / "error.log"
    with log.open("w") as stderr:
        running = subprocess.Popen(arguments, stderr=stderr)
    try:
        wait_for(port, running, log)
        yield f"https://127.0.0.1:{port}"
    finally:
        running.terminate()
        running.wait(20)


def wait_for(port: int, running: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 20
    while True:
        try:
            socket.create_connection(("127.0.0.1", port), 1).close()
        except OSError:
            assert running.poll() is None, log.read_text()
            assert time.monotonic() < deadline, "the proxy did not come up"
            time.sleep(0.05)
        else:
            return


def test_a_team_works_through_nginx(product: Product, url: str, tmp_path: Path) -> None:
    key = product.server["key"]
    product.write({"tasks/main.py": FUNCTIONS})
    far = {"MULTINODE_HOME": str(tmp_path / "far"), "SSL_CERT_FILE": str(tmp_path / "ca.pem")}
    environ = {**product.environ, **far}
    done = subprocess.run(
        [COMMAND, "login", url, "--key-stdin"], input=key, env=environ, capture_output=True,
        text=True, timeout=60, check=False, cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr

    def run(*arguments: str) -> str:
        done = product.call(*arguments, **far)
        assert done.returncode == 0, (arguments, done.stdout, done.stderr)
        return done.stdout

    (tmp_path / "tasks" / "large.bin").write_bytes(os.urandom(3 * 1024 * 1024))
    run("deploy")
    gate = tmp_path / "go"
    calling = f'[3, "{gate}"]'
    (tmp_path / "input.json").write_text(f"[{calling}, {{}}]")
    started = run("invoke", "count", "--input", "input.json", "--detach", "--json")
    invocation = json.loads(started)["data"]["invocation_id"]
    following = subprocess.Popen(
        [COMMAND, "logs", "-f", invocation], env=environ, cwd=tmp_path, stdout=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        assert "counting" in following.stdout.readline(), "it comes while the function runs"
        gate.touch()
        following.communicate(timeout=60)
    finally:
        following.kill()
        following.wait()
    values = run("invoke", "count", "--input", "input.json", "--json")
    assert json.loads(values)["data"]["num_values"] == 3, values


@pytest.fixture
def haproxy(product: Product, tmp_path: Path) -> Iterator[int]:
    """The port of HAProxy in front of the product's control plane, which it calls from an address that is named."""
    program = shutil.which("haproxy")
    if program is None:
        missing("haproxy")
    trusted = ("--trusted-proxies", "127.0.0.3")
    product.run("server", "start", "--runner", "process", "--port", "0", *trusted)
    with socket.create_server(("127.0.0.1", 0)) as found:
        port = found.getsockname()[1]
    address = product.server["url"].removeprefix("http://")
    variables = {
        "MULTINODE_BIND": f"127.0.0.1:{port}",
        "MULTINODE_SOURCE": "127.0.0.3",
        "MULTINODE_A": address,
        "MULTINODE_B": address,
    }
    log = tmp_path / "haproxy.log"
    with log.open("w") as output:
        running = subprocess.Popen(
            [str(program), "-f", HAPROXY, "-db"],
            env={**os.environ, **variables}, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        wait_for(port, running, log)
        yield port
    finally:
        running.terminate()
        running.wait(20)


def test_haproxy_says_who_asks(product: Product, haproxy: int) -> None:
    client = http.client.HTTPConnection("127.0.0.1", haproxy, 20, ("127.0.0.2", 0))
    forged = {"Authorization": "Bearer mnk_wrong", "X-Forwarded-For": "192.0.2.1"}
    for _ in range(WRONG_KEYS + 1):
        client.request("GET", "/v1/projects", headers=forged)
        answer = client.getresponse()
        said = answer.read().decode()
    client.close()
    assert answer.status == 429
    assert "came from 127.0.0.2 within a minute" in said
