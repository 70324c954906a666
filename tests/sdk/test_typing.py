"""What mypy says of users' programs: calls are checked against the function's own signature."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("mypy", reason="mypy is not installed (it needs Python 3.9)")

ROOT = Path(__file__).parents[2]

PROGRAM = """
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from multinode import Function, Multinode, get_deployed_function

mn = Multinode()

@mn.function(memory="1 GiB", timeout=timedelta(minutes=1), retry_delay=3, retry_on=[OSError])
def double(x: int, *, times: int = 2) -> int:
    return x * times

@mn.function()
async def adouble(x: int) -> int:
    return 2 * x

@mn.function()
def count(to: int) -> Iterator[str]:
    yield str(to)

@mn.function()
async def acount(to: int) -> AsyncIterator[str]:
    yield str(to)
"""

RIGHT = """
plain: int = double(1, times=3)
result: int = double.call_remote(1, times=3)
started: str = double.with_options(delay=1.5).start(2)
awaited: int = double.await_result(started, timeout=3)
remote: int = adouble.call_remote(1)
value: str = count.call_remote(3)
avalue: str = acount.call_local(3)
values: list[str] = list(count.progress("inv-1"))
numbered: list[tuple[int, str]] = list(count.numbered_progress("inv-1"))
mapped: list[int] = list(double.map([1, 2]))
found = double.get("inv-1")
when = found.finished_at.isoformat() if found.finished_at else found.status.value
deployed: Function = get_deployed_function(project_name="p", function_name="f")
anything = deployed.call_remote(1, "x")
more: str | None = double.list(status="FAILED").next_offset

async def main() -> None:
    one: int = await double.aio.call_remote(1)
    two: int = await adouble(1)
    three = [number + 1 async for number in double.aio.map([1])]
    identity: str = await double.aio.start(1)
    for value in count(3):
        value.upper()
"""

WRONG = {
    'double.call_remote("x")': 'has incompatible type "str"; expected "int"',
    'double.start("x")': 'has incompatible type "str"; expected "int"',
    'double.aio.start("x")': 'has incompatible type "str"; expected "int"',
    'double("x")': 'has incompatible type "str"; expected "int"',
    "double.call_remote(1, 2)": "Too many positional arguments",
    "double.start(1, size=2)": "Unexpected keyword argument",
    "double.call_remote().upper()": "Missing positional argument",
    "double.call_remote(1).upper()": '"int" has no attribute "upper"',
    "adouble.call_remote(1).upper()": '"int" has no attribute "upper"',
    "count.call_remote(1) + 1": "Unsupported operand types",
    "acount.await_result('inv-1') + 1": "Unsupported operand types",
    "double.with_options(key=1)": "Unexpected keyword argument",
    "@mn.function(memory=256)\ndef f() -> None: ...": "expected",
    "@mn.function(gpu=1)\ndef f() -> None: ...": "Unexpected keyword argument",
}


@pytest.fixture(scope="module")
def complaints(tmp_path_factory):
    """What mypy says of each program, by its text."""
    folder = tmp_path_factory.mktemp("programs")
    programs = {f"wrong_{number}.py": text for number, text in enumerate(WRONG)}
    programs["right.py"] = RIGHT
    for name, text in programs.items():
        (folder / name).write_text(PROGRAM + text + "\n")
    options = ["--strict", "--python-version", "3.10", "--config-file", "", "--no-error-summary"]
    cache = ["--cache-dir", str(folder / "cache")]
    run = subprocess.run(
        [sys.executable, "-m", "mypy", *options, *cache, *sorted(programs)],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env={"MYPYPATH": str(ROOT / "src"), "PATH": ""},
    )
    assert not run.stderr, run.stderr
    return {
        text: [line for line in run.stdout.splitlines() if line.startswith(name)]
        for name, text in programs.items()
    }


def test_a_right_program_is_right(complaints):
    assert complaints[RIGHT] == []


@pytest.mark.parametrize("text", WRONG)
def test_a_wrong_call_is_an_error(complaints, text):
    assert any(WRONG[text] in line for line in complaints[text]), complaints[text]
