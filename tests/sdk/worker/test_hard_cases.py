"""Functions that do what they should not: each ends in a clear state with a clear error, and nothing is left."""

import os
import signal
import sys
from pathlib import Path

import pytest

from multinode.limits import MAX_ERROR_CHARACTERS


def end_of(bench, *body, **assignment):
    lines = "\n".join(f"    {line}" for text in body for line in text.splitlines())
    run = bench.run(f"@mn.function()\ndef f(*args):\n{lines}", **assignment)
    end = run.end()
    assert run.gone() == 0
    return end


@pytest.mark.parametrize(
    ("body", "message", "exit_code", "number"),
    [
        ("os._exit(3)", "exited with code 3", 3, None),
        ("os._exit(0)", "exited with code 0", 0, None),
        ("import ctypes; ctypes.string_at(0)", "killed by signal 11", None, 11),
        ("os.kill(os.getpid(), signal.SIGKILL)", "killed by signal 9", None, 9),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)", "killed by signal 15", None, 15),
        ("os.abort()", "killed by signal 6", None, 6),
    ],
)
def test_death_of_the_process_is_lost(bench, body, message, exit_code, number):
    end = end_of(bench, body)
    assert (end.outcome, end.retryable, end.result) == ("lost", True, None)
    assert (end.error.message, end.error.type, end.error.traceback) == (message, "", "")
    assert (end.exit_code, end.signal) == (exit_code, number)
    assert end.peak_memory_bytes > 1024 * 1024


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ValueError('bad bound')", "ValueError: bad bound"),
        ("sys.exit(3)", "SystemExit: 3"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("os.kill(os.getpid(), signal.SIGINT); time.sleep(9)", "KeyboardInterrupt"),
        ("raise GeneratorExit", "GeneratorExit"),
        ("raise MemoryError", "MemoryError"),
        ("def g(): g()\ng()", "RecursionError: maximum recursion depth exceeded"),
        ("raise InvocationCancelledError('own')", "multinode.errors.InvocationCancelledError: own"),
        ("raise asyncio.CancelledError", "asyncio.exceptions.CancelledError"),
        ("return open('/dev/null')", "multinode.errors.EncodingError: "),
        ("return 'x' * 300_000", "multinode.errors.FunctionOutputSizeLimitExceeded: "),
        ("class E(Exception):\n    def __str__(self): raise OSError\nraise E", "f.<locals>.E: <its __str__ raised>"),
        ("raise StopIteration(1)", "StopIteration: 1"),
    ],
)  # fmt: skip
def test_exception_is_a_failure(bench, body, message):
    end = end_of(bench, body)
    assert end.outcome == "failed"
    assert end.error.message.startswith(message)
    assert (end.exit_code, end.signal) == (None, None)


def test_traceback_begins_at_the_users_first_frame(bench):
    error = end_of(bench, "def g(): raise ValueError(1)\ng()").error
    assert error.type == "ValueError"
    lines = error.traceback.splitlines()
    assert lines[0] == "Traceback (most recent call last):"
    assert lines[1].startswith('  File "main.py", line ')
    assert lines[-1] == "ValueError: 1"
    assert "multinode" not in error.traceback


def test_traceback_of_a_coroutine_begins_at_the_users_first_frame(bench):
    source = "@mn.function()\nasync def f():\n    await asyncio.sleep(0)\n    raise ValueError(1)"
    error = bench.run(source).end().error
    assert error.traceback.splitlines()[1].startswith('  File "main.py", line ')


def test_cause_of_an_exception_is_in_the_traceback(bench):
    body = "try: 1 / 0\nexcept ZeroDivisionError as error: raise ValueError(1) from error"
    traceback = end_of(bench, body).error.traceback
    assert "ZeroDivisionError: division by zero" in traceback
    assert "direct cause" in traceback


def test_huge_message_is_shortened_and_cleaned(bench):
    error = end_of(bench, r"raise ValueError('\x00\ud800' + 'x' * 1_000_000)").error
    assert error.message.startswith("ValueError: \\x00\\ud800xxx")
    assert len(error.message) <= MAX_ERROR_CHARACTERS
    assert len(error.traceback) <= MAX_ERROR_CHARACTERS
    assert "characters left out" in error.message


def test_retry_settings_decide_retryable(bench):
    source = "@mn.function(no_retry_on=(ValueError,))\ndef f(x):\n    raise (ValueError if x else KeyError)('x')"
    assert bench.run(source, True).end().retryable is False
    assert bench.run(source, False).end().retryable is True


def test_input_that_cannot_be_decoded_is_a_failure(bench):
    text = '[{"py/tuple": [{"py/object": "nowhere.Point", "x": 1}]}, {}]'
    end = end_of(bench, "return 1", input=text)
    assert end.outcome == "failed"
    assert end.error.type == "multinode.errors.DecodingError"
    assert "nowhere.Point" in end.error.message


def test_arguments_that_do_not_fit_are_a_failure(bench):
    end = bench.run("@mn.function()\ndef f(): pass", 1).end()
    assert (end.outcome, end.error.type) == ("failed", "TypeError")


def test_value_that_cannot_be_encoded_is_raised_at_the_yield(bench):
    source = """
    @mn.function()
    def f():
        yield 1
        yield open("/dev/null")
        yield 3
    """
    run = bench.run(source)
    end = run.end()
    assert (end.outcome, end.error.type) == ("failed", "multinode.errors.EncodingError")
    assert 'yield open("/dev/null")' in end.error.traceback
    assert run.values() == [1]


def test_closed_descriptors_are_a_clear_failure(bench):
    end = end_of(bench, "os.closerange(3, 1024)\nopen('new', 'w')\nreturn 1")
    assert end.outcome == "failed"
    assert end.error.message == (
        "the function closed file descriptors of its worker (os.closerange?), "
        "so its result could not be received"
    )


def test_closed_descriptors_are_noticed_while_it_runs_on(bench):
    end = end_of(bench, "os.closerange(3, 1024)\ntime.sleep(60)")
    assert (end.outcome, end.signal) == ("failed", 9)
    assert "os.closerange" in end.error.message


def test_new_file_under_the_channels_descriptor_is_not_written_to(bench):
    body = "os.closerange(3, 1024)\nfor _ in range(40): os.open('/tmp/out', os.O_RDWR | os.O_CREAT)\nreturn 1"
    body = body.replace("/tmp/out", str(bench.folder / "out"))
    assert end_of(bench, body).outcome == "failed"
    assert (bench.folder / "out").read_bytes() == b""


def test_garbage_in_the_channel_does_not_hurt_the_supervisor(bench):
    body = "for fd in range(3, 30):\n    try: os.write(fd, b'x' * 1000)\n    except OSError: pass\ntime.sleep(60)"
    end = end_of(bench, body)
    assert end.outcome == "failed"


def test_closed_standard_streams_do_not_matter(bench):
    end = end_of(
        bench, "sys.stdout.close(); sys.stderr.close(); os.close(1); os.close(2)\nreturn 1"
    )
    assert (end.outcome, end.result) == ("succeeded", "1")


def test_fork_that_returns_reports_nothing(bench):
    source = """
    @mn.function()
    def f():
        pid = os.fork()
        if pid == 0:
            return "copy"
        os.waitpid(pid, 0)
        return "original"
    """
    assert bench.run(source).result() == "original"


def test_fork_that_yields_or_raises_reports_nothing(bench):
    source = """
    @mn.function()
    def f():
        for action in ("yield", "raise"):
            pid = os.fork()
            if pid == 0:
                if action == "yield": yield "copy"
                raise ValueError("copy")
            os.waitpid(pid, 0)
        yield "original"
    """
    run = bench.run(source)
    assert run.result() == "original"
    assert run.values() == ["original"]


def test_daemons_are_killed_when_the_function_has_returned(bench):
    source = """
    @mn.function()
    def f():
        reading, writing = os.pipe()
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                mark()
                os.write(writing, b"!")
                time.sleep(600)
            os._exit(0)
        subprocess.Popen(["setsid", "sh", "-c", "trap '' TERM HUP; sleep 600; sleep 600"])
        os.read(reading, 1)
        return 1
    """
    run = bench.run(source)
    run.mark()
    assert run.result() == 1
    assert run.gone() == 0
    assert run.leftovers() == []


def test_multiprocessing_works(bench):
    source = """
    import multiprocessing
    def square(n): return n * n
    @mn.function()
    def f(method):
        with multiprocessing.get_context(method).Pool(2) as pool:
            return pool.map(square, [1, 2, 3])
    """
    assert bench.run(source, "fork").result() == [1, 4, 9]
    assert bench.run(source, "spawn").result() == [1, 4, 9]


def test_threads_that_do_not_end_do_not_hold_the_worker(bench):
    end = end_of(bench, "threading.Thread(target=time.sleep, args=(600,)).start()\nreturn 1")
    assert end.outcome == "succeeded"


def test_exit_handlers_run_and_are_bounded(bench):
    source = """
    import atexit
    atexit.register(time.sleep, 600)
    atexit.register(print, "bye")
    @mn.function()
    def f():
        return 1
    """
    run = bench.run(source)
    assert run.result() == 1
    assert run.gone(60) == 0
    assert run.log() == "bye\n"


def test_loop_that_does_not_close_does_not_hold_the_end(bench):
    source = """
    async def stubborn():
        while True:
            try: await asyncio.sleep(60)
            except asyncio.CancelledError: pass
    @mn.function()
    async def f():
        task = asyncio.create_task(stubborn())
        await asyncio.sleep(0)
        return 1
    """
    run = bench.run(source)
    assert run.result() == 1
    assert run.record.ended_at - run.record.claimed_at < 8
    assert run.gone(60) == 0


def test_interpreter_that_is_stopped_is_timed_out(bench):
    end = end_of(bench, "os.kill(os.getpid(), signal.SIGSTOP)", timeout_s=0.3, grace_s=0.3)
    assert (end.outcome, end.signal) == ("timed_out", 9)


def _memory_cgroup():
    for line in Path("/proc/self/cgroup").read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "memory":
            return Path("/sys/fs/cgroup/memory" + path)
    return Path("/nowhere")


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or not os.access(_memory_cgroup(), os.W_OK),
    reason="no memory cgroup (v1) that this user may make another one in",
)
def test_out_of_memory_says_so_with_the_limit(bench):
    group = _memory_cgroup() / f"multinode-test-{os.getpid()}"
    group.mkdir()
    try:
        (group / "memory.limit_in_bytes").write_text(str(64 * 1024 * 1024))
        source = "@mn.function()\ndef f():\n    return len(os.urandom(1024) * 1024 * 256)"
        joined = ["sh", "-c", 'echo $$ > "$0" && exec "$@"', str(group / "cgroup.procs")]
        run = bench.run(source, memory_mib=64, how=joined)
        end = run.end()
        assert (end.outcome, end.signal, end.retryable) == ("lost", signal.SIGKILL, True)
        assert end.error.message == "killed: out of memory at its limit of 64 MiB"
        assert run.gone() == 0
    finally:
        group.rmdir()
