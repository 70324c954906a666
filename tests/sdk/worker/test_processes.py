"""What the operating system tells of processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from multinode.worker import processes

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")


@pytest.mark.parametrize(
    ("cgroup", "file"),
    [
        ("0::/app\n", "app/memory.events"),
        ("0::/\n", "memory.events"),
        ("4:memory:/app\n0::/\n", "memory/app/memory.oom_control"),
        ("4:cpu,memory:/docker/x\n", "memory/memory.oom_control"),
    ],
)
def test_oom_kills_are_counted_in_both_versions_of_cgroups(tmp_path, cgroup, file):
    (tmp_path / "cgroup").write_text(cgroup)
    events = tmp_path / "cgroups" / file
    events.parent.mkdir(parents=True)
    events.write_text("oom 7\noom_kill 2\noom_group_kill 0\n")
    counter = processes.OomCounter(str(tmp_path), str(tmp_path / "cgroups"))
    assert not counter.has_risen()
    events.write_text("oom 8\noom_kill 3\n")
    assert counter.has_risen()


def test_without_cgroups_nothing_is_counted(tmp_path):
    assert not processes.OomCounter(str(tmp_path), str(tmp_path)).has_risen()


def test_children_and_their_start():
    with subprocess.Popen(["sleep", "60"]) as process:
        assert process.pid in processes.children()
        assert processes.children(process.pid) == []
        assert processes.start_of(process.pid) >= processes.start_of(os.getpid()) > 0
        process.kill()
    assert processes.start_of(process.pid) == 0


def test_boot_id_is_stable():
    assert processes.boot_id() == processes.boot_id() != ""


def test_remaining_children_are_killed_with_what_they_leave():
    code = """
import os, subprocess
from multinode.worker import processes
processes.adopt_orphans()
subprocess.Popen(["sh", "-c", "setsid sleep 600 & setsid sh -c 'sleep 601 & sleep 602' & exec sleep 603"])
processes.kill_remaining_children()
print(processes.children())
"""
    source = str(Path(processes.__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": source},
        capture_output=True,
        text=True,
        timeout=15,
    )
    assert (done.stdout, done.returncode) == ("[]\n", 0)
