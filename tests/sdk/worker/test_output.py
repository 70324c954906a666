"""What is printed reaches the log: at once, in order, completely, up to the limit."""

import json
import os
import resource
import signal
import sys
import time
from datetime import datetime

import pytest

from multinode.worker.output import Log, Output


def test_everything_is_there_when_the_end_is_visible(bench):
    source = """
    @mn.function()
    def f():
        for n in range(500):
            print(n)
        print("no newline", end="", flush=True)
        subprocess.run(["echo", "from a program"])
        print("oops \\ud800", file=sys.stderr)
        os.write(1, b"\\xff\\n")
    """
    run = bench.run(source)
    assert run.end().outcome == "succeeded"
    lines = run.log().splitlines()
    assert lines[:500] == [str(n) for n in range(500)]
    assert lines[500:] == ["no newlinefrom a program", "\ufffd"]
    assert run.log("stderr") == "oops \\ud800\n"
    for record in run.records():
        assert datetime.fromisoformat(record["at"]).utcoffset().total_seconds() == 0


def test_lines_are_there_while_the_function_runs(bench):
    run = bench.run("@mn.function()\ndef f():\n    print('early')\n    mark()\n    time.sleep(60)")
    run.mark()
    deadline = time.monotonic() + 60
    while run.log() != "early\n" and time.monotonic() < deadline:
        pass  # the log file has no bell
    assert run.log() == "early\n"
    run.cancel()


def test_ten_megabytes_are_complete(bench):
    source = """
    @mn.function()
    def f():
        print("é" * 5_000_000)
        print("x" * 99 + "\\n", end="", file=sys.stderr)
    """
    run = bench.run(source)
    assert run.end().outcome == "succeeded"
    assert run.log() == "é" * 5_000_000 + "\n"
    assert run.log("stderr") == "x" * 99 + "\n"


def test_output_over_the_limit_is_cut_with_one_note(bench):
    run = bench.run(
        "@mn.function()\ndef f():\n    for n in range(2000): print('x' * 99)", log_limit_bytes=1024
    )
    assert run.end().outcome == "succeeded"
    assert run.gone() == 0
    assert len(run.log()) == 1024
    assert run.log("system") == "Output over 0.000976562 MiB was cut here."


def test_worker_without_a_log_file_writes_to_its_own_stdout(bench, tmp_path):
    out = tmp_path / "out"
    redirected = ["sh", "-c", 'exec "$@" > "$0"', str(out)]
    run = bench.run(
        "@mn.function()\ndef f(): print('hello')", launch={"log_file": None}, how=redirected
    )
    assert run.end().outcome == "succeeded"
    assert run.gone() == 0
    records = map(json.loads, out.read_text().splitlines())
    told = [(record["stream"], record["text"]) for record in records]
    assert told == [("stdout", "hello\n"), ("end", "")], "the last says that no more will come"


def test_reader_that_is_gone_does_not_break_a_print(bench):
    redirected = ["sh", "-c", '{ "$@"; echo $? > "$0"; } | true', str(bench.folder / "status")]
    source = "@mn.function()\ndef f():\n    for _ in range(1000): print('x' * 1000)\n    return 1"
    run = bench.run(source, launch={"log_file": None}, how=redirected)
    assert run.result() == 1
    run.gone()
    assert (bench.folder / "status").read_text() == "0\n"


def test_prints_of_the_import_are_logged(bench):
    run = bench.run("print('importing')\n1 / 0")
    assert run.end().outcome == "failed"
    assert run.log() == "importing\n"


def test_segmentation_fault_says_where_it_came_from(bench):
    run = bench.run("@mn.function()\ndef f():\n    import ctypes\n    ctypes.string_at(0)")
    assert run.end().error.message == "killed by signal 11"
    assert "Segmentation fault" in run.log("stderr")
    assert "main.py" in run.log("stderr")


def test_characters_that_are_split_over_reads_come_out_whole(tmp_path):
    reading, writing = os.pipe()
    other, unused = os.pipe()
    os.close(unused)
    output = Output(reading, other, Log(str(tmp_path / "log")))
    for byte in "é".encode():
        os.write(writing, bytes([byte]))
        output.pump(reading)
    os.close(writing)
    output.drain()
    assert output.fds == []
    (line,) = (tmp_path / "log").read_text().splitlines()
    assert json.loads(line)["text"] == "é"


def test_full_disk_costs_output_and_is_noted_when_it_works_again(tmp_path):
    path = tmp_path / "log"
    log = Log(str(path))
    log.write("stdout", "first\n")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 5, before[1]))
        log.write("stdout", "second\n")
        log.write("stdout", "third\n")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    log.write("stdout", "fourth\n")
    good, torn = [], []
    for line in path.read_text().splitlines():
        try:
            good.append(json.loads(line))
        except ValueError:
            torn.append(line)
    assert [(item["stream"], item["text"]) for item in good if item["stream"] == "stdout"] == [
        ("stdout", "first\n"),
        ("stdout", "fourth\n"),
    ]
    assert torn == ['{"at"']
    (note,) = (item["text"] for item in good if item["stream"] == "system")
    assert note.endswith("bytes of output were lost: the log could not be written.")


@pytest.mark.skipif(sys.platform != "linux", reason="needs /dev/full")
def test_log_that_is_always_full_does_not_hurt_the_worker(bench):
    run = bench.run(
        "@mn.function()\ndef f():\n    print('x')\n    return 1", launch={"log_file": "/dev/full"}
    )
    assert run.result() == 1
    assert run.gone() == 0
