"""The ``process`` runner and its starters, which are a script here (``fake_starter``).

What holds for every runner is in ``tests/contract/test_runner.py``, with real workers.
"""

import asyncio
import os
import signal
import sys
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from multinode_control_plane.runners import WorkerLaunch, WorkerNotMadeError, starters
from multinode_control_plane.runners.process import ProcessRunner
from multinode_control_plane.runners.worker_processes import WatchedProcess, is_held, is_living

DIGEST = "e" * 64
CODE = "c" * 64


def launch(worker_id):
    return WorkerLaunch(worker_id, "code", DIGEST, CODE, "exe-1", cpu=0.1, memory_mib=256)


@pytest.fixture
def data_dir(tmp_path):
    make_generation(tmp_path, "g1")
    return tmp_path


def make_generation(data_dir, name):
    """An environment whose Python runs the script."""
    python = data_dir / "environments" / DIGEST / name / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    script = Path(__file__).with_name("fake_starter.py")
    python.write_text(f'#!/bin/sh\nexec {sys.executable} {script} "$@"\n')
    python.chmod(0o755)
    link = data_dir / "environments" / DIGEST / "current"
    link.unlink(missing_ok=True)
    link.symlink_to(name)


@asynccontextmanager
async def opened(data_dir, **options):
    """A runner, and the list into which it tells ends."""
    runner, ends = ProcessRunner(data_dir, **options), []
    await runner.open(ends.append, "http://127.0.0.1:1")
    (data_dir / "code" / CODE).mkdir(exist_ok=True)
    try:
        yield runner, ends
    finally:
        await runner.close()


async def until(fact):
    deadline = time.monotonic() + 60
    while not fact():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


def starter_of(runner):
    (starter,) = runner._starters.values()
    return starter


def test_workers_of_one_environment_share_a_starter_which_ends_with_the_runner(data_dir):
    async def main():
        async with opened(data_dir) as (runner, ends):
            await asyncio.gather(*(runner.start(launch(f"wrk-short-{n}")) for n in range(5)))
            pid = starter_of(runner).pid
            await until(lambda: len(ends) == 5)
        assert not is_living(pid)

    asyncio.run(main())


def test_an_end_is_told_after_start_has_returned(data_dir):
    async def main():
        async with opened(data_dir) as (runner, ends):
            await runner.start(launch("wrk-short-1"))
            assert ends == []
            await until(lambda: ends)
            (end,) = ends
            assert (end.worker_id, end.exit_code, end.signal) == ("wrk-short-1", 1, None)
            assert end.detail == "its supervisor exited with code 1"

    asyncio.run(main())


@pytest.mark.parametrize(("kind", "said"), [("refused", "no room"), ("crash", "starter ended")])
def test_a_worker_that_is_not_made_has_no_end(data_dir, kind, said):
    async def main():
        async with opened(data_dir) as (runner, ends):
            with pytest.raises(WorkerNotMadeError, match=said):
                await runner.start(launch(f"wrk-{kind}-1"))
            assert not await runner.alive(f"wrk-{kind}-1")
            await runner.start(launch("wrk-short-1"))
            await until(lambda: ends)
            assert [end.worker_id for end in ends] == ["wrk-short-1"]

    asyncio.run(main())


def test_a_starter_that_does_not_answer_is_killed_and_another_serves(data_dir, monkeypatch):
    monkeypatch.setattr(starters, "START_TIMEOUT_S", 0.3)

    async def main():
        async with opened(data_dir) as (runner, ends):
            with pytest.raises(WorkerNotMadeError, match="did not answer"):
                await runner.start(launch("wrk-silent-1"))
            monkeypatch.setattr(starters, "START_TIMEOUT_S", 10.0)
            await runner.start(launch("wrk-short-1"))
            await until(lambda: ends)

    asyncio.run(main())


def test_an_idle_starter_is_stopped_and_one_with_workers_is_not(data_dir):
    async def main():
        async with opened(data_dir, starter_idle_s=0.05) as (runner, ends):
            await runner.start(launch("wrk-ok-1"))
            await runner.start(launch("wrk-short-1"))
            await until(lambda: ends)
            starter = starter_of(runner)
            await asyncio.sleep(0.15)
            assert is_living(starter.pid)
            await runner.stop("wrk-ok-1", 0.0)
            await until(lambda: not is_living(starter.pid))
            assert runner._starters == {}
            await runner.start(launch("wrk-short-2"))
            await until(lambda: len(ends) == 3)

    asyncio.run(main())


def test_a_new_generation_of_the_environment_gets_a_starter_of_its_own(data_dir):
    async def main():
        async with opened(data_dir) as (runner, ends):
            await runner.start(launch("wrk-ok-1"))
            old = starter_of(runner)
            make_generation(data_dir, "g2")
            await runner.start(launch("wrk-ok-2"))
            assert {path.name for path in runner._starters} == {"g1", "g2"}
            runner.environments.open()
            assert old.generation.exists(), "a generation that is in use was removed"
            await runner.stop("wrk-ok-1", 0.0)
            await runner.stop("wrk-ok-2", 0.0)
            await until(lambda: len(ends) == 2)
            assert {end.signal for end in ends} == {signal.SIGKILL}
        fresh = ProcessRunner(data_dir)
        fresh.environments.open()
        assert not old.generation.exists()

    asyncio.run(main())


def test_the_ends_of_workers_are_told_when_their_starter_was_killed(data_dir):
    async def main():
        async with opened(data_dir) as (runner, ends):
            await runner.start(launch("wrk-ok-1"))
            os.kill(starter_of(runner).pid, signal.SIGKILL)
            await until(lambda: not runner._starters)
            assert await runner.alive("wrk-ok-1")
            await runner.stop("wrk-ok-1", 0.0)
            await until(lambda: ends)
            assert not await runner.alive("wrk-ok-1")

    asyncio.run(main())


def test_of_two_stops_the_shorter_grace_counts(data_dir):
    async def main():
        async with opened(data_dir) as (runner, ends):
            await runner.start(launch("wrk-ok-1"))
            worker = runner._workers["wrk-ok-1"]
            monotonic = asyncio.get_running_loop().time
            worker.process.send = lambda number: None  # it would die of the SIGTERM
            await runner.stop("wrk-ok-1", 100.0)
            await runner.stop("wrk-ok-1", 50.0)
            await runner.stop("wrk-ok-1", 200.0)
            assert 40 < worker.kill.when() - monotonic() < 51
            del worker.process.send
            await runner.stop("wrk-ok-1", 0.0)
            await until(lambda: ends)

    asyncio.run(main())


def test_a_file_that_nobody_holds_is_removed_with_the_working_folder(data_dir):
    async def main():
        async with opened(data_dir) as (runner, _):
            for name in (
                "workers/wrk-1.json",
                "workers/wrk-2.json.77",
                "work/wrk-1/a",
                "work/wrk-3/a",
            ):
                path = data_dir / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("{}")
            assert (await runner.adopt(["wrk-1"])).keys() == {"wrk-1"}
            assert list((data_dir / "workers").iterdir()) == []
            assert list((data_dir / "work").iterdir()) == []

    asyncio.run(main())


def test_a_pid_that_is_another_process_now_is_not_taken_for_the_worker(data_dir):
    """Its lock is held, as if by a descriptor that has leaked, but the pid in the file has started at another time."""
    import fcntl
    import json

    async def main():
        async with opened(data_dir) as (runner, ends):
            path = data_dir / "workers" / "wrk-1.json"
            content = {"worker_id": "wrk-1", "pid": os.getpid(), "start_time": 1, "boot_id": "x"}
            path.write_text(json.dumps({**content, "starter_pid": 1}))
            with path.open() as file:
                fcntl.flock(file, fcntl.LOCK_EX)
                assert is_held(path)
                assert (await runner.adopt(["wrk-1"])).keys() == {"wrk-1"}
                await runner.stop("wrk-1", 0.0)
            assert not is_held(path)
            assert ends == []

    asyncio.run(main())


def test_a_process_that_has_ended_is_noticed_and_gets_no_signal():
    async def main():
        pid = os.fork()
        if pid == 0:
            signal.pause()
        process, ended = WatchedProcess.open(pid), asyncio.Event()
        process.on_exit(ended.set)
        process.send(signal.SIGKILL)
        await asyncio.wait_for(ended.wait(), 60)
        os.waitpid(pid, 0)
        process.send(signal.SIGKILL)
        process.close()
        process.close()
        process.send(signal.SIGKILL)
        assert WatchedProcess.open(pid) is None

    asyncio.run(main())
