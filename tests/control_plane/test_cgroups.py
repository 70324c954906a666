"""Where cgroups can be made, on trees of plain files. What limits do is in ``tests/contract/test_runner.py``."""

import os
import subprocess

import pytest

from multinode.worker import processes
from multinode.worker.cgroup import Cgroup
from multinode_control_plane.runners import cgroups
from multinode_control_plane.runners.cgroups import OWN_FOLDER, CannotLimitError, places


@pytest.fixture(autouse=True)
def no_systemd(tmp_path, monkeypatch):
    monkeypatch.setattr(cgroups, "SYSTEMD", tmp_path / "systemd")


@pytest.fixture
def proc(tmp_path):
    """A process's ``/proc`` folder in which a test says what it sees."""

    def make(*, cgroup, mounts):
        (tmp_path / "cgroup").write_text(cgroup)
        lines = (
            f"31 23 0:28 {root} {top} rw,relatime shared:9 - {kind} none {options}\n"
            for kind, root, top, options in mounts
        )
        (tmp_path / "mountinfo").write_text(
            "24 1 8:1 / / rw - ext4 /dev/root rw\n" + "".join(lines)
        )
        return tmp_path

    return make


def second(path, *, controllers="cpu io memory pids", enabled="", inside=""):
    """A folder of version 2."""
    path.mkdir(parents=True, exist_ok=True)
    (path / "cgroup.controllers").write_text(controllers + "\n")
    (path / "cgroup.subtree_control").write_text(enabled)
    (path / "cgroup.procs").write_text(inside)
    return path


def busy(path):
    """A folder of version 2 that has processes, so that its folders cannot have limits."""
    second(path, inside="1\n2\n")
    (path / "cgroup.subtree_control").unlink()
    (path / "cgroup.subtree_control").mkdir()  # writing to it fails
    return path


def test_version_2_enables_both_controllers_in_its_own_cgroup(proc, tmp_path):
    top = tmp_path / "top"
    own = second(second(top) / "service")
    seen = proc(cgroup="0::/service\n", mounts=[("cgroup2", "/", top, "rw")])
    assert places(seen) == [own]
    assert (own / "cgroup.subtree_control").read_text() == "+cpu +memory"


def test_a_cgroup_with_other_processes_is_passed_over_for_one_above_it(proc, tmp_path):
    top = tmp_path / "top"
    above = second(top / "app.slice", enabled="cpu memory pids")
    terminal = busy(above / "terminal.scope")
    second(top)
    seen = proc(cgroup="0::/app.slice/terminal.scope\n", mounts=[("cgroup2", "/", top, "rw")])
    assert places(seen) == [above]
    assert not (terminal / OWN_FOLDER).exists()


def test_a_process_that_is_alone_in_its_cgroup_moves_down(proc, tmp_path):
    top = busy(tmp_path / "top")
    (top / "cgroup.procs").write_text(str(os.getpid()))
    seen = proc(cgroup="0::/\n", mounts=[("cgroup2", "/", top, "rw")])
    with pytest.raises(CannotLimitError, match="has other processes"):  # since files cannot know
        places(seen)
    assert (top / OWN_FOLDER / "cgroup.procs").read_text() == str(os.getpid())


def test_after_a_restart_in_its_own_folder_the_one_above_serves(proc, tmp_path):
    top = second(tmp_path / "top", enabled="cpu memory")
    second(top / OWN_FOLDER)
    seen = proc(cgroup=f"0::/{OWN_FOLDER}\n", mounts=[("cgroup2", "/", top, "rw")])
    assert places(seen) == [top]


def test_memory_alone_is_taken_where_cpu_is_not_delegated(proc, tmp_path):
    top = second(tmp_path / "top", controllers="memory pids")
    places(proc(cgroup="0::/\n", mounts=[("cgroup2", "/", top, "rw")]))
    assert (top / "cgroup.subtree_control").read_text() == "+memory"


def test_what_systemd_has_not_delegated_is_left_alone(proc, tmp_path, monkeypatch):
    (tmp_path / "systemd").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    top = second(tmp_path / "top")
    seen = proc(cgroup="0::/\n", mounts=[("cgroup2", "/", top, "rw")])
    with pytest.raises(CannotLimitError, match="not delegated"):
        places(seen)
    assert (top / "cgroup.subtree_control").read_text() == ""
    marks = {(top, "user.delegate"): b"1"}

    def getxattr(path, name):
        if (path, name) not in marks:
            raise OSError
        return marks[path, name]

    monkeypatch.setattr(os, "getxattr", getxattr)
    assert places(seen) == [top]


def test_another_users_cgroup_is_left_alone(proc, tmp_path, monkeypatch):
    top = second(tmp_path / "top")
    monkeypatch.setattr(os, "geteuid", lambda: top.stat().st_uid + 1)
    seen = proc(cgroup="0::/\n", mounts=[("cgroup2", "/", top, "rw")])
    with pytest.raises(CannotLimitError, match="not delegated"):
        places(seen)


def test_a_path_counts_from_what_is_mounted(proc, tmp_path):
    top = second(tmp_path / "top")
    seen = proc(cgroup="0::/docker/x\n", mounts=[("cgroup2", "/docker/x", top, "rw")])
    assert places(seen) == [top]


@pytest.mark.parametrize("path", ["/../other", "/docker/xyz"])
def test_a_cgroup_outside_of_what_is_mounted_is_none(proc, tmp_path, path):
    top = second(tmp_path / "top")
    seen = proc(cgroup=f"0::{path}\n", mounts=[("cgroup2", "/docker/x", top, "rw")])
    with pytest.raises(CannotLimitError, match="no cgroups are mounted"):
        places(seen)


def first(tmp_path):
    for name in ("cpu", "memory"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "cgroup.procs").write_text("")
    return [
        ("cgroup", "/docker/x", tmp_path / "cpu", "rw,cpu,cpuacct"),
        ("cgroup", "/docker/x", tmp_path / "memory", "rw,memory"),
    ]


def test_version_1_serves_in_a_container_that_has_the_tree_to_itself(proc, tmp_path):
    cgroup = "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n1:name=systemd:/docker/x\n"
    seen = proc(cgroup=cgroup, mounts=first(tmp_path))
    assert places(seen) == [tmp_path / "cpu", tmp_path / "memory"]


def test_version_1_with_version_2_beside_it_that_limits_nothing(proc, tmp_path):
    unified = second(tmp_path / "unified", controllers="")
    mounts = [*first(tmp_path), ("cgroup2", "/", unified, "rw")]
    cgroup = "4:memory:/docker/x\n3:cpu,cpuacct:/docker/x\n0::/\n"
    assert len(places(proc(cgroup=cgroup, mounts=mounts))) == 2


def test_version_1_leaves_another_programs_cgroup_alone(proc, tmp_path):
    cgroup = "4:memory:/docker/x/job\n3:cpu,cpuacct:/docker/x\n"
    seen = proc(cgroup=cgroup, mounts=first(tmp_path))
    with pytest.raises(CannotLimitError, match="'job', which is another program's"):
        places(seen)


def test_without_cgroups_it_says_so(proc, tmp_path):
    found = cgroups.find(tmp_path, proc=proc(cgroup="", mounts=[]))
    assert (found.parents, found.enforces) == ((), ())
    assert found.reason == "no cgroups are mounted"


def test_cgroups_of_supervisors_that_are_gone_are_swept(tmp_path):
    with subprocess.Popen(["sleep", "600"]) as process:
        living = tmp_path / f"{process.pid}-{processes.start_of(process.pid)}"
        others = [tmp_path / f"{process.pid}-1", tmp_path / f"{2**22 - 1}-7"]
        for folder in (living, *others):
            folder.mkdir()
        found = cgroups.Cgroups((str(tmp_path),))
        found.sweep()
        assert list(tmp_path.iterdir()) == [living]
        found.close()
        assert living.exists()
        process.kill()
        process.wait()
        found.close()
        assert not tmp_path.exists()


def test_what_is_inside_is_killed_where_linux_has_no_cgroup_kill(tmp_path):
    with subprocess.Popen(["sleep", "600"]) as process:
        folder = tmp_path / "worker"
        folder.mkdir()
        (folder / "cgroup.procs").write_text(f"{process.pid}\n")
        assert Cgroup([str(folder)]).kill()
        assert process.wait() == -9
