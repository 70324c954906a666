"""``multinode dev`` as somebody uses it: saves, mistakes, output, Ctrl-C."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
import time
from contextlib import suppress

import pytest
from tests.acceptance.product import COMMAND, Product

MAIN = """\
from multinode import Multinode

mn = Multinode()


@mn.function()
def greet(name):
    print("greeting", name)
    return f"hello {name}"
"""


class Running:
    """The command at a terminal of its own, and what it has said there so far, without colours."""

    def __init__(self, product: Product) -> None:
        self._terminal, inside = os.openpty()
        environ = {**product.environ, "MULTINODE_PORT": "0", "TERM": "xterm-256color"}
        environ.pop("NO_COLOR", None)
        self.process = subprocess.Popen(
            [COMMAND, "dev"], cwd=product.folder, env=environ,
            stdin=inside, stdout=inside, stderr=inside, start_new_session=True,
        )  # fmt: skip
        os.close(inside)
        self.lines: list[str] = []
        self._thread = threading.Thread(target=self._read)
        self._thread.start()

    def _read(self) -> None:
        with open(self._terminal, encoding="utf-8", newline="\n") as lines, suppress(OSError):
            for line in lines:  # until nobody has its other end any more, which is an error
                self.lines.append(re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", line.rstrip("\r\n")))

    def until(self, text: str, count: int = 1) -> None:
        deadline = time.monotonic() + 60
        while sum(text in line for line in self.lines) < count:
            assert self.process.poll() is None, "\n".join(self.lines)
            assert time.monotonic() < deadline, "\n".join(self.lines)
            time.sleep(0.05)

    def end(self) -> int:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        code = self.process.wait(60)
        self._thread.join()
        return code


@pytest.fixture
def product(tmp_path):
    made = Product(tmp_path)
    made.write({"tasks/main.py": MAIN})
    yield made
    made.call("server", "stop", "--now")


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_saves_are_deployed_mistakes_are_told_and_nothing_is_left(product):
    main = product.folder / "tasks" / "main.py"
    running = Running(product)
    try:
        running.until("Deployed shop version 1: greet")
        running.until("Watching")
        assert product.run("invoke", "greet", "ada") == "hello ada\n"
        running.until("| greeting ada")
        running.until("SUCCEEDED hello ada")
        main.write_text(MAIN + "def broken(:\n")
        running.until("The last good version goes on.")
        assert product.run("invoke", "greet", "bob") == "hello bob\n"
        for number in range(5):
            main.write_text(MAIN.replace("hello", f"hi{number}"))
        running.until("Deployed shop version 2: greet")
        assert product.run("invoke", "greet", "eve") == "hi4 eve\n"
    finally:
        code = running.end()
    assert code == 0, running.lines
    assert not [line for line in running.lines if "version 3" in line or "Traceback" in line]
    assert product.call("server", "status").returncode == 1, "its control plane is gone"


@pytest.mark.slow
@pytest.mark.timeout(180)
def test_a_control_plane_that_ran_before_stays(product):
    product.run("server", "start", "--port", "0")
    running = Running(product)
    try:
        running.until("Watching")
    finally:
        assert running.end() == 0, running.lines
    assert product.call("server", "status").returncode == 0
