"""What is imported when: an application's and a worker's start are paid for each time."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SOURCES = Path(__file__).parents[2] / "src"

DEFINITION = """
import multinode
from multinode import Multinode
from multinode.errors import InvocationCancelledError

mn = Multinode()

@mn.function(memory="1 GiB", timeout=60)
def double(x: int) -> int:
    return 2 * x

assert double(2) == 4
"""

HEAVY = {
    "asyncio", "dataclasses", "email", "http", "http.client", "httpx", "inspect",
    "json", "jsonpickle", "logging", "re", "socket", "ssl", "typing", "urllib", "multinode.wire",
    "multinode.client", "multinode.codec", "multinode.invocation", "multinode.settings",
}  # fmt: skip


def modules_after(code):
    """The modules that a fresh interpreter has after ``code``, beyond those that it has anyway."""
    show = "\nimport sys; print(*sys.modules)"
    runs = [
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", f"import sys; sys.path.insert(0, {str(SOURCES)!r})\n{text}{show}"],
            capture_output=True,
            text=True,
            check=True,
            env=dict(os.environ),
        ).stdout.split()
        for text in (code, "")
    ]  # fmt: skip
    return set(runs[0]) - set(runs[1])


@pytest.mark.parametrize("code", ["import multinode", DEFINITION])
def test_defining_a_function_imports_nothing_heavy(code):
    assert modules_after(code) & HEAVY == set()


def test_plain_values_are_encoded_and_decoded_without_jsonpickle():
    code = "from multinode import codec; codec.decode(codec.encode_input((1, {2}), {'a': [None]}))"

    assert "jsonpickle" not in modules_after(code)


def test_the_client_is_imported_without_http_ssl_and_asyncio():
    heavy = {"http.client", "ssl", "asyncio", "httpx", "jsonpickle"}

    assert modules_after("import multinode.client") & heavy == set()
