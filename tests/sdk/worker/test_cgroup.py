"""What is written into a worker's cgroup, on plain files."""

import subprocess

import pytest

from multinode.worker.cgroup import Cgroup, cpu_quota

SECOND = {"cpu.max": "20000 100000", "memory.max": "67108864", "memory.swap.max": "0"}
FIRST = {
    "cpu.cfs_period_us": "100000",
    "cpu.cfs_quota_us": "20000",
    "memory.limit_in_bytes": "67108864",
    "memory.memsw.limit_in_bytes": "67108864",
}


def folder(path, *names):
    path.mkdir()
    for name in names:
        (path / name).write_text("")
    return str(path)


@pytest.mark.parametrize("expected", [SECOND, FIRST])
def test_limits_of_both_versions(tmp_path, expected):
    cgroup = Cgroup([folder(tmp_path / "one", *expected)])
    assert cgroup.limit(0.2, 64) == {"cpu", "memory"}
    assert {path.name: path.read_text() for path in (tmp_path / "one").iterdir()} == expected


def test_what_is_not_there_is_not_limited(tmp_path):
    cgroup = Cgroup([folder(tmp_path / "one", "memory.max"), folder(tmp_path / "two")])
    assert cgroup.limit(0.2, 64) == {"memory"}


@pytest.mark.parametrize(
    ("cpu", "quota"),
    [
        (0.1, (10_000, 100_000)),
        (16, (1_600_000, 100_000)),
        (0.01, (1_000, 100_000)),
        (0.005, (5_000, 1_000_000)),
        (0.000001, (1_000, 1_000_000)),
    ],
)
def test_the_kernel_takes_every_cpu_setting(cpu, quota):
    assert cpu_quota(cpu) == quota


def test_one_that_cannot_be_made_leaves_nothing(tmp_path):
    parents = [str(tmp_path / "one"), str(tmp_path / "missing")]
    (tmp_path / "one").mkdir()
    with subprocess.Popen(["sleep", "600"]) as process:
        with pytest.raises(OSError, match="No such file"):
            Cgroup.make(parents, process.pid)
        process.kill()
    assert list((tmp_path / "one").iterdir()) == []


def test_peak_and_oom_events_are_found_in_either_folder(tmp_path):
    cgroup = Cgroup([folder(tmp_path / "cpu"), folder(tmp_path / "memory", "memory.events")])
    assert cgroup.oom_events() == str(tmp_path / "memory" / "memory.events")
    assert cgroup.peak_bytes() == 0
    (tmp_path / "memory" / "memory.peak").write_text("123\n")
    assert cgroup.peak_bytes() == 123
