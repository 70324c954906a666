"""A worker from its launch to its end, as the control plane sees it."""

import io
import json
import os
import signal
import socket
import sys
import tarfile
from pathlib import Path

import pytest

from multinode.codec import decode
from multinode.wire import Assignment

ADD = """
@mn.function()
def f(a, b):
    return a + b
"""


@pytest.mark.parametrize("how", ["starter", "fresh", "interpreter"])
def test_returns_what_the_function_returned(bench, how):
    run = bench.run(ADD, 1, 2, how=how)
    assert run.result() == 3
    assert run.gone() == 0
    assert run.record.exchanges == 1
    assert run.record.claims[0].import_ms > 0
    assert run.record.end.run_ms >= 0
    assert run.record.end.peak_memory_bytes > 1024 * 1024


def test_short_function_costs_no_watch(bench):
    """Of ten at least one: on a busy machine the others may have waited for a processor."""

    def watches():
        run = bench.run(ADD, 1, 2)
        assert run.gone() == 0
        return run.record.watches

    assert any(watches() == 0 for _ in range(10))


@pytest.mark.parametrize(
    "source",
    [
        "async def f():\n    await asyncio.sleep(0)\n    return 7",
        "def f():\n    yield 5\n    yield 7\n    return 9",
        "async def f():\n    yield 5\n    await asyncio.sleep(0)\n    yield 7",
    ],
    ids=["coroutine", "generator", "async_generator"],
)
def test_every_kind_of_function_runs(bench, source):
    run = bench.run(f"@mn.function()\n{source}")
    assert run.result() == 7
    if "yield" in source:
        assert run.values() == [5, 7]


def test_generator_without_values_has_the_result_none(bench):
    assert bench.run("@mn.function()\ndef f():\n    yield from ()").result() is None


def test_values_are_seen_while_the_function_runs_and_numbers_run_on(bench):
    source = """
    @mn.function()
    def f():
        value = {"n": 0}
        for value["n"] in range(3):
            yield value
            mark()
    """
    run = bench.run(source, first_value_number=8, attempt=2)
    for number in (8, 9, 10):
        bench.plane.wait_for(lambda n=number: n in run.record.values)
        run.mark()
    assert run.result() == {"n": 2}
    assert run.values() == [{"n": 0}, {"n": 1}, {"n": 2}]
    assert {value.attempt for value in run.record.values.values()} == {2}


def test_many_values_go_in_few_requests_and_none_is_lost(bench):
    run = bench.run("@mn.function()\ndef f():\n    yield from range(5000)")
    assert run.result() == 4999
    assert run.values() == list(range(5000))
    assert len(run.record.reports) < 1000


def test_generator_waits_while_too_much_is_unsent(bench):
    source = """
    @mn.function()
    def f():
        for n in range(3000):
            if n in (2, 2999):
                mark(n)
            yield "x" * 10_000
    """
    run = bench.run(source)
    assert run.mark() == "2"
    bench.plane.go_away()
    bench.listener.settimeout(1.0)
    with pytest.raises(TimeoutError if sys.version_info >= (3, 10) else socket.timeout):
        run.mark()
    bench.listener.settimeout(15)
    bench.plane.come_back()
    assert run.mark() == "2999"
    assert run.end().outcome == "succeeded"
    assert len(run.record.values) == 3000


def test_function_sees_its_environment(bench):
    source = """
    import data.words

    @mn.function()
    def f():
        with open("new.txt", "w") as file:
            file.write("private")
        return {
            "word": data.words.WORD,
            "read": open("data/text.txt").read(),
            "env": os.environ["SECRET"],
            "zone": time.tzname[0],
            "argv": os.path.basename(sys.argv[0]),
            "stdin": sys.stdin.read(),
            "cwd": os.getcwd(),
            "file": os.path.basename(__file__),
            "path": sys.path[0],
            "launch": "MULTINODE_LAUNCH" in os.environ,
            "sigint": signal.getsignal(signal.SIGINT) is signal.default_int_handler,
            "sigterm": signal.getsignal(signal.SIGTERM) is signal.SIG_DFL,
        }
    """
    files = {"data/words.py": "WORD = 'hello'", "data/text.txt": "text"}
    run = bench.run(source, files=files, dotenv={"SECRET": "s3", "TZ": "XYZ-3"}, how="interpreter")
    found = run.result()
    assert found == {
        "word": "hello",
        "read": "text",
        "env": "s3",
        "zone": "XYZ",
        "argv": "main.py",
        "stdin": "",
        "cwd": run.launch.work_dir,
        "file": "main.py",
        "path": run.launch.code_dir,
        "launch": False,
        "sigint": True,
        "sigterm": True,
    }
    assert sorted(os.listdir(run.launch.code_dir)) == ["data", "main.py"]


def test_environment_of_the_interpreter_takes_effect(bench):
    source = """
    @mn.function()
    def f():
        return [hash("x"), os.environ["PYTHONHASHSEED"], sys.flags.utf8_mode]
    """
    dotenv = {"PYTHONHASHSEED": "1", "PYTHONUTF8": "1"}
    runs = [bench.run(source, dotenv=dotenv) for _ in range(2)]
    assert runs[0].result() == runs[1].result()
    assert runs[0].result()[1:] == ["1", 1]


def test_bundle_is_fetched_where_the_code_is_not_here(bench, tmp_path):
    archive = io.BytesIO()
    with tarfile.open(fileobj=archive, mode="w:gz") as members:
        for name, text in (
            (
                "main.py",
                "import multinode\nfrom sub import x\nmn = multinode.Multinode()\n@mn.function()\ndef f():\n    return x.A",
            ),
            ("sub/x.py", "A = 4"),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(text)
            members.addfile(member, io.BytesIO(text.encode()))
    bench.plane.bundles["abc"] = archive.getvalue()
    run = bench.run("", bundle_digest="abc", launch={"code_dir": None})
    assert run.result() == 4
    assert run.gone() == 0
    assert not Path(f"/tmp/multinode-{run.id}").exists()


def test_worker_file_is_there_and_locked_while_the_supervisor_lives(bench):
    import fcntl

    run = bench.run("@mn.function()\ndef f():\n    mark()\n    time.sleep(60)")
    run.mark()
    path = Path(run.launch.worker_file)
    found = json.loads(path.read_text())
    fields = Path(f"/proc/{run.pid}/stat").read_text().rpartition(")")[2].split()
    assert (found["worker_id"], found["pid"]) == (run.id, run.pid)
    assert found["start_time"] == int(fields[19])
    assert found["starter_pid"] == bench.starter.process.pid
    with path.open() as file, pytest.raises(BlockingIOError):
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    run.cancel()
    assert run.gone() == 0
    assert not path.exists()


def test_import_that_fails_is_reported_without_a_claim(bench):
    run = bench.run("def g():\n    import nowhere\ng()", files={})
    end = run.end()
    assert (end.outcome, end.retryable, run.record.claims) == ("failed", True, [])
    assert end.error.type == "ModuleNotFoundError"
    assert end.error.message == "ModuleNotFoundError: No module named 'nowhere'"
    assert end.error.traceback.startswith("Traceback")
    assert 'File "main.py", line ' in end.error.traceback
    assert "importlib" not in end.error.traceback
    assert "multinode/worker" not in end.error.traceback
    assert run.gone() == 0


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("os._exit(3)", "main.py could not be imported: exited with code 3"),
        ("os.kill(os.getpid(), 11)", "main.py could not be imported: killed by signal 11"),
        ("sys.exit(3)", "SystemExit: 3"),
        ("", "multinode.errors.InvalidTasks: main.py has no function that is decorated"),
        ("@mn.function()\ndef g(): pass", "multinode.errors.FunctionNotFound: main.py has no function 'f'"),
        ("def (", "SyntaxError: invalid syntax"),
    ],
)  # fmt: skip
def test_import_that_ends_otherwise_is_a_failure(bench, source, message):
    end = bench.run(source).end()
    assert end.outcome == "failed"
    assert end.error.message.startswith(message)


def test_refused_claim_ends_the_worker_quietly(bench):
    run = bench.run("time.sleep(0.01)\n" + ADD, 1, 2)
    bench.plane.refuse(run.id)
    assert run.gone() == 0
    assert run.record.end is None


def test_wrong_claim_code_ends_the_worker(bench):
    run = bench.run(ADD, 1, 2)
    assert run.gone() == 0
    bench.launch(run.launch)  # the same launch twice: its code is used up
    bench.starter.wait_for(lambda: bench.starter.gone[run.id] == [0, 0])
    assert run.record.exchanges == 1


def test_worker_that_was_given_up_is_killed_while_it_runs(bench):
    run = bench.run("@mn.function()\ndef f():\n    mark()\n    time.sleep(60)")
    run.mark()
    bench.plane.refuse(run.id)
    assert run.gone() == 0
    assert run.record.end is None


def test_end_is_reported_when_the_control_plane_comes_back(bench):
    run = bench.run("@mn.function()\ndef f():\n    mark()\n    mark()\n    return 5")
    run.mark()  # so the answer to its claim has arrived
    bench.plane.go_away()
    run.mark()
    bench.plane.come_back()
    assert run.result() == 5


def test_order_to_cancel_that_the_claim_brings_keeps_the_function_from_running(bench):
    run = bench.run(
        f"time.sleep(0.2)\n@mn.function()\ndef f():\n    open({str(bench.folder)!r} + '/ran', 'w')"
    )
    run.cancel()
    end = run.end()
    assert (end.outcome, end.error) == ("cancelled", None)
    assert run.gone() == 0
    assert not (bench.folder / "ran").exists()


def test_sigterm_before_the_claim_ends_the_worker(bench):
    run = bench.run("mark()\ntime.sleep(60)")
    run.mark()
    os.kill(run.pid, signal.SIGTERM)
    assert run.gone() == 0
    assert (run.record.claims, run.record.end) == ([], None)


def test_worker_context_names_the_invocation(bench):
    source = """
    from multinode.settings import worker_context
    @mn.function()
    def f():
        context = worker_context()
        return [context.api_url, context.token, context.project, context.invocation_id]
    """
    run = bench.run(source)
    assignment = run.record.assignment
    assert run.result() == [bench.plane.url, assignment.token, "p", assignment.invocation_id]


def test_describe_tells_the_functions(bench):
    source = """
    @mn.function(memory="1 GiB")
    def f(a, b=2):
        "Adds."
    @mn.function()
    async def g(): pass
    """
    run = bench.run(source, kind="describe", function="", input="")
    bench.plane.wait_for(lambda: run.record.described)
    functions = run.record.described.functions
    assert [(item.name, item.kind) for item in functions] == [("f", "function"), ("g", "coroutine")]
    assert functions[0].settings.memory_mib == 1024
    assert run.gone() == 0


@pytest.mark.parametrize(("kind", "left"), [("describe", ["main", "square"]), ("invocation", [])])
def test_bytecode_is_left_by_the_describe_and_by_no_other_worker(bench, kind, left):
    files = {"square.py": "def square(x): return x * x"}
    run = bench.run("import square\n@mn.function()\ndef f(): pass", kind=kind, files=files)
    bench.plane.wait_for(lambda: run.record.described or run.record.end)
    run.gone()
    bytecode = Path(run.launch.code_dir).glob("__pycache__/*.pyc")
    assert sorted(path.name.split(".")[0] for path in bytecode) == left


@pytest.mark.parametrize(
    ("source", "code", "message"),
    [
        ("import nowhere", "import_failed", "main.py could not be imported: ModuleNotFoundError"),
        ("x = 1", "invalid_tasks", "main.py has no function"),
        ("@mn.function(cpu=17)\ndef f(): pass", "invalid_setting", "main.py:13: "),
        ("os._exit(4)", "import_failed", "main.py could not be imported: exited with code 4"),
        ("time.sleep(60)", "import_failed", "main.py could not be imported within 0.5 s."),
    ],
)  # fmt: skip
def test_describe_tells_why_not(bench, source, code, message):
    run = bench.run(source, kind="describe", function="", input="", timeout_s=0.5)
    bench.plane.wait_for(lambda: run.record.described)
    error = run.record.described.error
    assert error.code == code
    assert error.message.startswith(message)
    if "nowhere" in source:
        assert 'File "main.py"' in error.hint
    assert run.gone() == 0


def test_assignment_of_a_later_release_is_understood(bench):
    assert Assignment("t", "invocation", "p", "v", "", {}).first_value_number == 1
    assert decode(bench.run(ADD, "a", "b").end().result) == "ab"
