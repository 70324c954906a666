"""Cancellation, timeout and SIGTERM arrive in the function, once, wherever it is."""

import os
import signal
import sys
import time

import pytest

from multinode.codec import decode

# Each waits after it has told its place; then it is cancelled. `told` are the exceptions that it saw.
QUICK_S = 8.0
"""Without its watch a worker hears of a cancellation after ten seconds; how quick it is in truth is tested further below."""
PLACES = {
    "busy loop": "while True: pass",
    "sleep": "time.sleep(60)",
    "socket": "a, b = socket.socketpair()\na.recv(1)",
    "join": "t = threading.Thread(target=time.sleep, args=(60,), daemon=True)\nt.start()\nt.join()",
    "lock": "lock = threading.Lock()\nlock.acquire()\nlock.acquire()",
    "subprocess": "subprocess.run(['sleep', '60'])",
    "own loop": "asyncio.run(asyncio.sleep(60))",
    "callback": "sorted(range(10), key=lambda n: time.sleep(60))",
}

ASYNC_PLACES = {
    "await": "await asyncio.sleep(60)",
    "busy coroutine": "while True: pass",
    "short awaits": "while True: await asyncio.sleep(0)",
    "gather": "await asyncio.gather(asyncio.sleep(60), asyncio.sleep(60))",
    "another task": "await asyncio.create_task(asyncio.sleep(60))",
    "wait_for": "await asyncio.wait_for(asyncio.sleep(60), 50)",
    "executor": "await asyncio.get_running_loop().run_in_executor(None, time.sleep, 2)",
    "another task is busy": "asyncio.create_task(busy())\nawait asyncio.sleep(60)",
}


def function(body, *, prefix="def", before="mark()"):
    lines = [f"        {line}" for line in f"{before}\n{body}".splitlines()]
    return "\n".join(
        [
            "told = []",
            "async def busy():",
            "    for _ in range(300): time.sleep(0.001); await asyncio.sleep(0)",
            "@mn.function()",
            f"{prefix} f():",
            "    try:",
            *lines,
            "    except InvocationCancelledError as error:",
            "        print('told', error, error.invocation_id)",
            "        raise",
        ]
    )


def check_cancelled(run, asked_at):
    end = run.end()
    assert (end.outcome, end.error, end.result) == ("cancelled", None, None)
    assert (
        run.log() == f"told The invocation was cancelled. {run.record.assignment.invocation_id}\n"
    )
    assert run.gone() == 0
    return run.record.ended_at - asked_at


@pytest.mark.parametrize("place", PLACES)
def test_cancellation_arrives_in(bench, place):
    run = bench.run(function(PLACES[place]), grace_s=20.0)
    run.mark()
    bench.plane.wait_for(lambda: run.record.watches)
    assert check_cancelled(run, run.cancel()) < QUICK_S


@pytest.mark.parametrize("place", ASYNC_PLACES)
def test_cancellation_arrives_in_a_coroutine_in(bench, place):
    run = bench.run(function(ASYNC_PLACES[place], prefix="async def"), grace_s=20.0)
    run.mark()
    assert check_cancelled(run, run.cancel()) < QUICK_S


@pytest.mark.parametrize("prefix", ["def", "async def"])
@pytest.mark.parametrize("pause", ["pass", "time.sleep(0.001)", "time.sleep(60)"])
def test_cancellation_arrives_in_a_generator(bench, prefix, pause):
    body = f"n = 0\nwhile True:\n    yield n\n    n += 1\n    if n == 3: mark()\n    if n >= 3: {pause}"
    run = bench.run(function(body, prefix=prefix, before=""), grace_s=20.0)
    run.mark()
    assert check_cancelled(run, run.cancel()) < QUICK_S
    values = run.values()
    assert values == list(range(len(values)))


def test_generator_yields_while_it_cleans_up(bench):
    source = """
    @mn.function()
    def f():
        try:
            yield 1
            mark()
            while True:
                yield 2
        finally:
            yield 3
            yield 4
    """
    run = bench.run(source)
    run.mark()
    run.cancel()
    assert run.end().outcome == "cancelled"
    assert run.values()[-2:] == [3, 4]


def test_plain_except_exception_does_not_swallow_it(bench):
    body = "while True:\n    try: time.sleep(60)\n    except Exception: pass"
    run = bench.run(function(body))
    run.mark()
    check_cancelled(run, run.cancel())


def test_function_that_returns_after_it_is_cancelled_with_a_result(bench):
    source = """
    @mn.function()
    def f():
        try:
            mark()
            time.sleep(60)
        except InvocationCancelledError:
            return "partial"
    """
    run = bench.run(source)
    run.mark()
    run.cancel()
    end = run.end()
    assert (end.outcome, end.error, decode(end.result)) == ("cancelled", None, "partial")


def test_function_that_raises_something_else_after_it_keeps_that_as_error(bench):
    source = """
    @mn.function()
    def f():
        try:
            mark()
            time.sleep(60)
        finally:
            raise ValueError("while cleaning up")
    """
    run = bench.run(source)
    run.mark()
    run.cancel()
    end = run.end()
    assert (end.outcome, end.error.message) == ("cancelled", "ValueError: while cleaning up")


def test_it_is_raised_once(bench):
    source = """
    @mn.function()
    def f():
        try:
            mark()
            time.sleep(60)
        finally:
            time.sleep(1.2)
            print("cleaned up")
    """
    run = bench.run(source, timeout_s=1.0, grace_s=20.0)
    run.mark()
    run.cancel()
    assert (run.end().outcome, run.end().error) == ("cancelled", None)
    assert run.log() == "cleaned up\n"


def test_timeout_is_raised(bench):
    source = """
    @mn.function()
    def f():
        try:
            time.sleep(60)
        except InvocationTimedOutError as error:
            print(error)
            raise
    """
    run = bench.run(source, timeout_s=0.3)
    end = run.end()
    assert (end.outcome, end.error, end.retryable) == ("timed_out", None, False)
    assert run.log() == "The timeout of 0.3 s is over.\n"
    assert 300 <= end.run_ms < 10_000


def test_timeout_in_a_generator_that_waits_for_the_control_plane(bench):
    source = """
    @mn.function()
    def f():
        try:
            for n in range(100_000):
                yield n
                if n == 0: mark()
        except InvocationTimedOutError:
            print("told")
            raise
    """
    run = bench.run(source, timeout_s=1.5, grace_s=20.0)
    run.mark()
    bench.plane.go_away()
    deadline = time.monotonic() + 60
    while run.log() != "told\n" and time.monotonic() < deadline:
        time.sleep(0.02)  # the log file has no other bell
    bench.plane.come_back()
    assert run.end().outcome == "timed_out"
    assert run.values() == list(range(len(run.values())))
    assert len(run.values()) < 20_000


@pytest.mark.parametrize(
    "setup",
    [
        "signal.signal(signal.SIGUSR2, signal.SIG_IGN)",
        "signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2, signal.SIGTERM])",
        "signal.signal(signal.SIGTERM, signal.SIG_IGN); signal.signal(signal.SIGUSR2, print)",
    ],
)
def test_function_that_does_not_listen_is_killed_after_the_grace(bench, setup):
    run = bench.run(
        f"@mn.function()\ndef f():\n    {setup}\n    mark()\n    time.sleep(60)", grace_s=0.5
    )
    run.mark()
    run.cancel()
    end = run.end()
    assert (end.outcome, end.signal) == ("cancelled", 9)
    assert end.error.message == "killed: it had not ended 0.5 s after it was interrupted"
    assert run.gone() == 0


def test_function_that_swallows_it_is_killed_after_the_grace_with_all_it_started(bench):
    source = """
    @mn.function()
    def f():
        subprocess.Popen(["setsid", "sleep", "600"])
        subprocess.Popen(["sh", "-c", "setsid setsid sleep 600 & sleep 600"])
        while True:
            try:
                mark()
                time.sleep(60)
            except InvocationCancelledError:
                os.environ["MARK"] = "1"
                while True: time.sleep(60)
    """
    run = bench.run(source, grace_s=0.5)
    run.mark()
    run.cancel()
    assert run.end().outcome == "cancelled"
    assert run.gone() == 0
    assert run.leftovers() == []


def test_sigterm_from_outside_is_told_and_counts_as_lost(bench):
    body = "time.sleep(60)"
    run = bench.run(function(body))
    run.mark()
    os.kill(run.pid, signal.SIGTERM)
    end = run.end()
    assert (end.outcome, end.retryable) == ("lost", True)
    assert end.error.message == "worker lost: the machine was taken away (SIGTERM)"
    assert run.log().startswith("told The machine is being taken away (SIGTERM).")
    assert run.gone() == 0


def test_sigint_does_not_disturb_a_worker(bench):
    run = bench.run("@mn.function()\ndef f():\n    mark()\n    return 1")
    run.wait_claimed()
    os.kill(run.pid, signal.SIGINT)
    run.mark()
    assert run.result() == 1


def test_function_that_had_finished_is_not_interrupted(bench):
    source = """
    import atexit
    atexit.register(mark)
    @mn.function()
    def f():
        return 5
    """
    run = bench.run(source)
    assert run.result() == 5
    run.cancel()
    run.mark()
    assert run.gone() == 0


def test_value_is_not_interrupted_while_it_is_encoded(bench):
    source = """
    class Slow:
        def __getstate__(self):
            if not told:
                told.append(1)
                mark()
                time.sleep(0.5)
            return {"n": 1}
        def __setstate__(self, state): pass
        def __eq__(self, other): return True
    told = []
    @mn.function()
    def f():
        try:
            yield Slow()
            time.sleep(60)
        except InvocationCancelledError:
            print("at the yield")
            raise
    """
    run = bench.run(source, grace_s=20.0)
    run.mark()
    run.cancel()
    assert run.end().outcome == "cancelled"
    assert run.log() == "at the yield\n"
    assert len(run.record.values) == 1


def test_users_own_cancellations_and_timeouts_are_left_alone(bench):
    source = """
    async def cancelled():
        task = asyncio.current_task()
        asyncio.get_running_loop().call_soon(task.cancel)
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            if hasattr(task, "uncancel"): task.uncancel()
            return "mine"
    @mn.function()
    async def f():
        try:
            await asyncio.wait_for(asyncio.sleep(60), 0.01)
        except asyncio.TimeoutError:
            return [await cancelled(), "timeout"]
    """
    assert bench.run(source).result() == ["mine", "timeout"]


@pytest.mark.skipif(
    sys.version_info < (3, 11), reason="asyncio.timeout and TaskGroup are new in 3.11"
)
@pytest.mark.parametrize("scope", ["asyncio.timeout(50)", "asyncio.TaskGroup()"])
def test_interrupt_passes_through_what_counts_cancellations(bench, scope):
    body = f"    mark()\n    async with {scope}:\n        await asyncio.sleep(60)"
    run = bench.run(f"@mn.function()\nasync def f():\n{body}")
    run.mark()
    run.cancel()
    end = run.end()
    assert (end.outcome, end.error) == ("cancelled", None)


def test_cleaning_up_in_a_coroutine_can_await(bench):
    source = """
    @mn.function()
    async def f():
        try:
            mark()
            await asyncio.sleep(60)
        except InvocationCancelledError:
            await asyncio.sleep(0.05)
            await asyncio.wait_for(asyncio.sleep(0.05), 1)
            return "clean"
    """
    run = bench.run(source)
    run.mark()
    run.cancel()
    end = run.end()
    assert (end.outcome, decode(end.result), end.error) == ("cancelled", "clean", None)


def test_exit_while_cleaning_up_is_still_cancelled(bench):
    source = """
    @mn.function()
    def f():
        try:
            mark()
            time.sleep(60)
        finally:
            os._exit(3)
    """
    run = bench.run(source)
    run.mark()
    run.cancel()
    end = run.end()
    assert (end.outcome, end.exit_code, end.error.message) == ("cancelled", 3, "exited with code 3")


def test_cancellation_is_quick(bench):
    source = """
    @mn.function()
    def f():
        try:
            mark()
            time.sleep(60)
        except InvocationCancelledError:
            print(time.monotonic())
            raise
    """
    waits = []
    for _ in range(10):
        run = bench.run(source)
        run.mark()
        bench.plane.wait_for(lambda run=run: run.record.watches)
        asked_at = run.cancel()
        run.end()
        waits.append(float(run.log()) - asked_at)
    assert sorted(waits)[2] < 0.1  # others have waited for a processor
