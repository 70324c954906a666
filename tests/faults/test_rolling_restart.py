"""Two control planes behind the proxy that infra/ has for them, restarted one after the other under load: clients that do not
retry see nothing of it."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections import Counter
from contextlib import closing, suppress
from pathlib import Path

import pytest
from tests.acceptance.product import COMMAND, Product
from tests.postgres import PostgresServer

from multinode.client import path_of
from multinode.wire import InvocationInfo

PROXY = Path(__file__).parents[2] / "infra/server/haproxy.cfg"
CLIENTS = 20
RATE = 200
"""Requests a second, of all clients together."""
STOP_DELAY_S = 2
MAIN = """
import time
from pathlib import Path
from multinode import Multinode

mn = Multinode()

@mn.function(max_concurrency=20)
def add(a, b):
    return a + b

@mn.function()
def wait_for(path):
    i = 0
    while not Path(path).exists():
        yield (i := i + 1)
        time.sleep(0.1)
"""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


class Member(Product):
    """One of the two processes, with a home of its own, and the data folder and the database of both."""

    def __init__(self, folder: Path, name: str, shared: dict[str, str]) -> None:
        super().__init__(folder)
        self.home = folder / name
        self.port = free_port()
        self.environ |= {
            **shared,
            "MULTINODE_HOME": str(self.home),
            "MULTINODE_PORT": str(self.port),
        }
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def server(self) -> dict[str, str]:
        return json.loads((self.home / "server.json").read_text())

    def begin(self) -> None:
        """Returns when it is ready."""
        log = (self.folder / f"{self.home.name}.log").open("ab")
        self.process = subprocess.Popen([COMMAND, "server", "run"], env=self.environ, stderr=log)
        log.close()
        deadline = time.monotonic() + 40
        while not is_ready(self.port):
            assert self.process.poll() is None, self.log()
            assert time.monotonic() < deadline, self.log()
            time.sleep(0.05)

    def end(self) -> None:
        """As a service manager does it."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(timeout=40) == 0, self.log()

    def log(self) -> str:
        return (self.folder / f"{self.home.name}.log").read_text()[-4000:]


def is_ready(port: int) -> bool:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    with suppress(OSError, http.client.HTTPException), closing(connection):
        connection.request("GET", "/readyz")
        with connection.getresponse() as answer:
            answer.read()
            return answer.status == 200
    return False


@pytest.fixture
def members(tmp_path):
    """Both of them, and the port of the proxy before them."""
    proxy = shutil.which("haproxy")
    if proxy is None:
        missing = "haproxy is not installed"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)
    server, port = PostgresServer(), free_port()
    shared = {
        "MULTINODE_DATA_DIR": str(tmp_path / "data"),
        "MULTINODE_WORKER_URL": f"http://127.0.0.1:{port}",
        "MULTINODE_STOP_DELAY": str(STOP_DELAY_S),
    }
    proxied, both = None, []
    try:
        server.start()
        shared["MULTINODE_DATABASE"] = server.new_database(empty=True)
        both += [Member(tmp_path, name, shared) for name in "ab"]
        for member in both:
            member.begin()
        variables = {
            "MULTINODE_BIND": f"127.0.0.1:{port}",
            "MULTINODE_A": f"127.0.0.1:{both[0].port}",
            "MULTINODE_B": f"127.0.0.1:{both[1].port}",
        }
        proxied = subprocess.Popen([proxy, "-f", PROXY, "-db"], env={**os.environ, **variables})
        yield both, port
    finally:
        for member in both:
            # Nothing goes on afterwards: the leader cancels what runs, and ends when every worker is gone.
            member.call("server", "stop", "--now")
            if member.process is not None:
                member.process.wait(timeout=40)
        if proxied is not None:
            proxied.kill()
            proxied.wait()
        server.close()


class Client(threading.Thread):
    """Asks over one connection, again and again, and never twice for one thing. ``seen``: each status, or how it failed."""

    def __init__(self, port: int, key: str, over: threading.Event) -> None:
        super().__init__()
        self.seen: Counter[str] = Counter()
        self.started: list[str] = []
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
        self._headers = {"Authorization": f"Bearer {key}", "Host": "localhost"}
        self._over = over

    def run(self) -> None:
        next_at, turn = time.monotonic(), 0
        while not self._over.is_set():
            turn += 1
            try:
                self._ask(turn)
            except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                self.seen[f"{type(error).__name__}: {error}"] += 1
                self._connection.close()
            next_at += CLIENTS / RATE
            time.sleep(max(0.0, next_at - time.monotonic()))
        self._connection.close()

    def _ask(self, turn: int) -> None:
        if turn % 4 == 0:
            body = {
                "inputs": ['[{"py/tuple":[1,2]},{}]'],
                "delay_s": 0.0 if turn % 40 == 0 else 3600.0,
            }
            path = "/v1/projects/shop/functions/add/invocations"
            self.started += self._answer("POST", path, body)["invocation_ids"]
        elif self.started and turn % 10 == 1:
            self._answer("GET", f"/v1/invocations/{self.started[-1]}?wait_s=0.5&revision=99")
        elif self.started:
            self._answer("GET", f"/v1/invocations/{self.started[-1]}")
        else:
            self._answer("GET", "/v1/projects")

    def _answer(self, method: str, path: str, body: object = None) -> dict:
        data = None if body is None else json.dumps(body)
        self._connection.request(method, path, data, self._headers)
        answer = self._connection.getresponse()
        content = answer.read()
        self.seen[str(answer.status)] += 1
        if answer.status != 200:
            self.seen[f"{answer.status} {method}: {content[:200]!r}"] += 1
        return json.loads(content)


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_clients_that_do_not_retry_see_no_error(members, tmp_path, record_summary):
    both, port = members
    both[0].write({"tasks/main.py": MAIN})
    url = {
        "MULTINODE_API_URL": f"http://127.0.0.1:{port}",
        "MULTINODE_API_KEY": both[0].server["key"],
    }
    for member in both:
        member.environ |= url
    both[0].run("deploy")
    running = both[0].run("invoke", "wait_for", str(tmp_path / "go"), "--detach").strip()
    over = threading.Event()
    clients = [Client(port, both[0].server["key"], over) for _ in range(CLIENTS)]
    began = time.monotonic()
    for client in clients:
        client.start()
    try:
        time.sleep(2)
        for member in both:
            member.end()
            member.begin()
            time.sleep(2)
    finally:
        over.set()
        for client in clients:
            client.join()
    spent_s = time.monotonic() - began
    seen = sum((client.seen for client in clients), Counter())
    assert set(seen) == {"200"}, seen
    rate = seen["200"] / spent_s
    record_summary(f"rolling restart: {seen['200']} requests, {rate:.0f} a second, no error")
    assert (
        seen["200"] > RATE
    )  # what a busy machine has in half a minute; alone it is that much each second
    (tmp_path / "go").touch()
    asking = both[1].client()
    path = path_of("invocations", running)
    while not (ended := asking.call(InvocationInfo, "GET", path)).terminated:
        time.sleep(0.05)
    asking.close()
    assert (ended.status, ended.num_failed_attempts) == ("SUCCEEDED", 0)
