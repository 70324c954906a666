"""How a contract test ends: as it says, or killed in the middle.

Each test makes a situation, and then waits for a worker's end (``Ends.of``). Run in another way it gets no further than that: there
every worker is killed, or the runner with all that it knows, and nothing of the situation may be left.
"""

from __future__ import annotations

import asyncio
import os
import signal
import traceback
import warnings

import pytest

WORKERS_KILLED, RUNNER_KILLED = "workers killed", "runner killed"
SKIPPED = 77
"""A child's exit code."""
ENDINGS = ["", WORKERS_KILLED, RUNNER_KILLED]
ONLY_ITS_OWN = pytest.mark.parametrize("ending", [""], indirect=True)
"""What has no worker whose end it waits for."""


class Over(BaseException):
    """Unwinds a test."""


def run(stage, test):
    """Runs a test that is to be killed in its situation, on a stage with an ``ending``."""
    {WORKERS_KILLED: _kill_workers, RUNNER_KILLED: _kill_runner}[stage.ending](stage, test)


def _kill_workers(stage, test):
    """kill -9 of the first process of each worker; the runner that has made them sees to the rest."""

    async def kill():
        while stage.runner._workers:  # one may be about to appear
            for worker_id in stage.present():
                stage.kill(worker_id)
            await asyncio.sleep(0.01)
        await stage.until_nothing_is_left()
        raise Over

    stage.in_the_situation = kill
    with pytest.raises(Over):
        test()


def _kill_runner(stage, test):
    """kill -9 of a process in which the test runs, and the control plane; others adopt all that is there.

    The next control plane knows none of the workers: one that comes up only then is refused, and ends.
    """
    stage.plane.go_away()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of threads
        pid = os.fork()
    if pid == 0:
        _be_killed(stage, test)
    try:
        _, status = os.waitpid(pid, 0)
    except BaseException:
        os.kill(pid, signal.SIGKILL)
        raise
    if status == SKIPPED << 8:
        pytest.skip("as it is where it is not killed")
    assert os.WIFSIGNALED(status), "it did not get to its situation"
    assert os.WTERMSIG(status) == signal.SIGKILL
    stage.plane.come_back()
    asyncio.run(_adopt_and_end(stage))


def _be_killed(stage, test):
    async def die():
        os.kill(os.getpid(), signal.SIGKILL)

    try:
        stage.renew()
        stage.in_the_situation = die
        test()
    except pytest.skip.Exception:
        os._exit(SKIPPED)
    except BaseException:
        traceback.print_exc()
    os._exit(1)


async def _adopt_and_end(stage):
    async with stage.opened(*stage.present()) as runner:
        for worker_id in stage.adopted:
            await runner.stop(worker_id, 0.0)
        for worker_id in stage.adopted:
            await stage.ends.of(worker_id)
        await stage.until_nothing_is_left()
    await stage.until_nothing_runs()
