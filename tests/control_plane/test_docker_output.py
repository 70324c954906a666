"""What a container writes lands in the file of the execution that it is of, once, however often the copy begins anew."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from multinode_control_plane.runners.docker_logs import DockerLogs
from multinode_control_plane.runners.docker_output import copy_output

OWN, LATER, LAST = (f"exe-{letter * 32}" for letter in "abc")


def line(text: str, execution_id: str = "", stream: str = "stdout") -> bytes:
    key = {"execution": execution_id} if execution_id else {}
    return json.dumps({"at": "now", "stream": stream, "text": text, **key}).encode() + b"\n"


OUTPUT = b"".join(
    [
        line("imported"),
        line("one"),
        line("", stream="end"),
        line("two", LATER),
        line(f'no key: , "execution": "{LAST}"}}', LATER),
        line("", LATER, "end"),
        b"a word of the supervisor's\n",
        line("three", LAST),
        line("x" * 1000, LAST),
    ]
)


class Engine:
    """One container's output, in blocks of one size, up to where it breaks off."""

    def __init__(self, size: int, upto: int = len(OUTPUT)) -> None:
        self.size, self.upto = size, upto

    def output(self, name: str, *, follow: bool) -> Iterator[bytes]:
        for start in range(0, self.upto, self.size):
            yield OUTPUT[start : min(start + self.size, self.upto)]


def texts(folder: Path, execution_id: str) -> list[str]:
    found = []
    for text in (folder / f"{execution_id}.jsonl").read_text().splitlines():
        try:
            found.append(json.loads(text)["text"])
        except ValueError:
            found.append(text)
    return found


def copy(folder: Path, size: int, upto: int = len(OUTPUT)) -> list[str]:
    marks: list[str] = []
    engine: Any = Engine(size, upto)
    copy_output(engine, "c", folder / f"{OWN}.jsonl", on_mark=marks.append)
    return marks


@pytest.mark.parametrize("size", [1, 7, 100, 100_000])
def test_each_execution_has_its_own_file(tmp_path: Path, size: int) -> None:
    assert copy(tmp_path, size) == [OWN, LATER]
    assert texts(tmp_path, OWN) == ["imported", "one", "", "a word of the supervisor's"]
    assert texts(tmp_path, LATER) == ["two", f'no key: , "execution": "{LAST}"}}', ""]
    assert texts(tmp_path, LAST) == ["three", "x" * 1000]


def test_a_copy_that_begins_anew_writes_nothing_twice(tmp_path: Path) -> None:
    once = tmp_path / "once"
    once.mkdir()
    copy(once, 100)
    for upto in range(0, len(OUTPUT), 53):
        copy(tmp_path, 64, upto)
    copy(tmp_path, 64)
    for execution_id in (OWN, LATER, LAST):
        name = f"{execution_id}.jsonl"
        assert (tmp_path / name).read_bytes() == (once / name).read_bytes()


def test_output_that_was_removed_for_want_of_room_does_not_come_again(tmp_path: Path) -> None:
    (tmp_path / f"{LATER}.removed").touch()
    copy(tmp_path, 64)
    assert not (tmp_path / f"{LATER}.jsonl").exists()
    assert texts(tmp_path, LAST)[0] == "three"


def test_a_key_that_is_no_id_names_no_file(tmp_path: Path) -> None:
    class Forged:
        def output(self, name: str, *, follow: bool) -> Iterator[bytes]:
            yield line("mine", "../../etc/passwd")

    engine: Any = Forged()
    copy_output(engine, "c", tmp_path / f"{OWN}.jsonl")
    assert [path.name for path in tmp_path.iterdir()] == [f"{OWN}.jsonl"]


def test_reading_waits_for_the_mark_of_an_execution_that_has_ended(tmp_path: Path) -> None:
    async def read() -> list[str]:
        logs = DockerLogs(tmp_path)
        logs.begin("wrk-1", LATER)
        ended = asyncio.Event()
        ended.set()

        def arrive() -> None:
            copy(tmp_path, 64)
            logs.mark(LATER)

        asyncio.get_running_loop().call_later(0.1, arrive)
        found = [record.text async for record in logs.records(LATER, 1, ended=ended)]
        logs.close()
        return found

    assert asyncio.run(read())[0] == "two"


def test_reading_does_not_wait_where_the_worker_is_gone(tmp_path: Path) -> None:
    async def read() -> list[str]:
        logs = DockerLogs(tmp_path)
        logs.begin("wrk-1", LATER)
        logs.gone("wrk-1")
        copy(tmp_path, 64)
        return [record.text async for record in logs.records(LATER, 1)]

    assert len(asyncio.run(read())) == 2
