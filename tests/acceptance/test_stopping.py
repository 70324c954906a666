"""A server that is told to end, seen by those who still ask it."""

import http.client
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

COMMAND = Path(sys.executable).with_name("multinode")


@pytest.fixture
def server(tmp_path):
    """``server run`` with a long delay; its process, and where it listens."""
    home = tmp_path / "home"
    environ = {**os.environ, "MULTINODE_HOME": str(home), "MULTINODE_STOP_DELAY": "60"}
    process = subprocess.Popen(
        [COMMAND, "server", "run", "--port", "0"],
        env=environ,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert "Ctrl-C stops it" in process.stderr.readline()
    address = json.loads((home / "server.json").read_text())["url"].partition("://")[2]
    yield process, address
    process.kill()
    process.communicate()


def ask(connection, path):
    connection.request("GET", path)
    answer = connection.getresponse()
    answer.read()
    return answer.status, answer.getheader("connection")


def test_it_serves_on_for_the_delay_and_sends_clients_elsewhere(server):
    process, address = server
    connection = http.client.HTTPConnection(address, timeout=20)
    assert ask(connection, "/readyz") == (200, None)
    process.send_signal(signal.SIGTERM)
    while ask(connection, "/readyz")[0] == 200:  # it has not seen the signal yet
        pass
    assert ask(connection, "/readyz") == (503, "close")
    assert ask(connection, "/healthz") == (200, "close")
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)  # a second one does not wait
    assert process.wait(timeout=20) == 0
    connection.close()
