"""The starter: what it forks, what it tells, and that nothing outlives a supervisor that is killed."""

import json
import os
import signal
import socket
import time
from pathlib import Path

import pytest
from tests.sdk.worker.bench import Bench, StarterProcess

from multinode.worker import processes

SLEEP = "@mn.function()\ndef f():\n    mark()\n    time.sleep(600)"


@pytest.fixture
def own(tmp_path, plane):
    """A bench with a starter that no other test uses."""
    starter = StarterProcess()
    bench = Bench(tmp_path, starter, plane)
    yield bench
    starter.close()
    bench.listener.close()


def test_many_workers_at_once(own):
    runs = [own.run("@mn.function()\ndef f(n):\n    return n", n) for n in range(30)]
    assert [run.result() for run in runs] == list(range(30))
    assert [run.gone() for run in runs] == [0] * 30


def test_killed_supervisor_takes_everything_with_it(own):
    source = """
    @mn.function()
    def f():
        subprocess.Popen(["setsid", "sh", "-c", "setsid sleep 600 & exec setsid sleep 600"])
        subprocess.Popen(["sh", "-c", "trap '' TERM; sleep 600; sleep 600"])
        mark()
        time.sleep(600)
    """
    run = own.run(source)
    other = own.run(SLEEP)
    run.mark()
    other.mark()
    os.kill(run.pid, signal.SIGKILL)
    assert os.WTERMSIG(run.gone()) == signal.SIGKILL
    assert run.leftovers() == []
    assert len(other.leftovers()) == 1
    other.cancel()
    assert other.gone() == 0


def test_an_ordinary_end_leaves_no_file(own):
    run = own.run(SLEEP)
    run.mark()
    own.starter.connection.shutdown(socket.SHUT_RDWR)  # nobody is there whom it could tell
    os.kill(run.pid, signal.SIGTERM)
    run.end()
    wait_until(lambda: not Path(run.launch.worker_file).exists())
    assert own.starter.process.wait(60) == 0


def test_how_a_supervisor_was_killed_is_noted_in_its_file(own):
    run = own.run(SLEEP)
    run.mark()
    own.starter.connection.shutdown(socket.SHUT_RDWR)
    os.kill(run.pid, signal.SIGKILL)
    assert own.starter.process.wait(60) == 0
    _, noted = Path(run.launch.worker_file).read_text().splitlines()
    assert os.WTERMSIG(json.loads(noted)["status"]) == signal.SIGKILL


def test_killed_child_is_lost_and_its_programs_are_killed(own):
    run = own.run(
        "@mn.function()\ndef f():\n    subprocess.Popen(['setsid', 'sleep', '600'])\n    mark(os.getpid())\n    time.sleep(600)"
    )
    os.kill(int(run.mark()), signal.SIGKILL)
    assert run.end().error.message == "killed by signal 9"
    assert run.gone() == 0
    assert run.leftovers() == []


def test_starter_stays_until_its_last_worker_has_gone(own):
    run = own.run(SLEEP)
    run.mark()
    pid = run.pid
    own.starter.connection.shutdown(2)
    run.cancel()
    assert run.end().outcome == "cancelled"
    assert own.starter.process.wait(60) == 0
    assert not Path(f"/proc/{pid}").exists()


def test_starter_guards_its_workers_after_the_socket_is_closed(own):
    run = own.run(SLEEP)
    run.mark()
    pid = run.pid
    own.starter.connection.shutdown(2)
    os.kill(pid, signal.SIGKILL)
    assert own.starter.process.wait(60) == 0
    assert run.leftovers() == []


def test_idle_starter_ends_with_its_socket_and_leaves_no_spare(own):
    pid = own.starter.process.pid
    run = own.run("@mn.function()\ndef f(): return 1")
    run.gone()
    spares = processes.children(pid)
    own.starter.close()
    wait_until(lambda: not any(is_alive(spare) for spare in spares))


def test_killed_starter_takes_its_spare_along_and_leaves_workers_alone(own):
    run = own.run(SLEEP)
    run.mark()
    spares = [pid for pid in processes.children(own.starter.process.pid) if pid != run.pid]
    own.starter.process.kill()
    own.starter.process.wait()
    wait_until(lambda: not any(is_alive(spare) for spare in spares))
    run.cancel()
    assert run.end().outcome == "cancelled"
    wait_until(lambda: not Path(run.launch.worker_file).exists())


def test_killed_spare_is_replaced(own):
    run = own.run("@mn.function()\ndef f(): return 1")
    run.gone()
    wait_until(lambda: processes.children(own.starter.process.pid))
    spares = processes.children(own.starter.process.pid)
    for pid in spares:
        os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not any(Path(f"/proc/{spare}").exists() for spare in spares))
    assert own.run("@mn.function()\ndef f(): return 2").result() == 2
    wait_until(lambda: processes.children(own.starter.process.pid))


def test_fresh_interpreter_has_the_variables_from_its_start_on(own):
    source = "@mn.function()\ndef f():\n    return [os.environ['PYTHONHASHSEED'], hash('x')]"
    runs = [own.run(source, how="fresh", variables={"PYTHONHASHSEED": "7"}) for _ in range(2)]
    assert runs[0].result() == runs[1].result()
    assert runs[0].result()[0] == "7"
    assert [run.gone() for run in runs] == [0, 0]


def test_workers_do_not_see_each_others_descriptors(own):
    source = "@mn.function()\ndef f():\n    return sorted(os.readlink(f'/proc/self/fd/{n}').split(':')[0] for n in os.listdir('/proc/self/fd') if os.path.exists(f'/proc/self/fd/{n}'))"
    others = [own.run(SLEEP) for _ in range(3)]
    for run in others:
        run.mark()
    run = own.run(source)
    assert run.result() == ["/dev/null", "pipe", "pipe", "pipe", "socket"]
    for run in others:
        run.cancel()
        assert run.gone() == 0


def test_failure_to_make_a_process_is_told(own):
    import resource

    run = own.run("@mn.function()\ndef f(): return 1")
    run.gone()
    wait_until(lambda: processes.children(own.starter.process.pid))
    limits = resource.prlimit(own.starter.process.pid, resource.RLIMIT_NOFILE)
    resource.prlimit(own.starter.process.pid, resource.RLIMIT_NOFILE, (3, limits[1]))
    try:
        failed = own.run("@mn.function()\ndef f(): return 1")
        again = own.run("@mn.function()\ndef f(): return 1")
        own.starter.wait_for(lambda: again.id in own.starter.failures)
        assert "could not be made" in own.starter.failures[again.id]
    finally:
        resource.prlimit(own.starter.process.pid, resource.RLIMIT_NOFILE, limits)
    assert failed.id not in own.starter.failures
    assert own.run("@mn.function()\ndef f(): return 3").result() == 3


def is_alive(pid):
    fields = Path(f"/proc/{pid}/stat")
    return fields.exists() and fields.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_until(fact, timeout_s=15.0):
    """For facts about processes, which have no bell."""
    deadline = time.monotonic() + timeout_s
    while not fact():
        assert time.monotonic() < deadline
        time.sleep(0.01)
