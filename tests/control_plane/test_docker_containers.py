"""How a worker's container is made, and how its end reads."""

import io
import json
import tarfile

import pytest

from multinode.worker.launch import from_json
from multinode_control_plane.runners import WorkerLaunch, docker_containers
from multinode_control_plane.runners.docker_containers import (
    ContainerPlan,
    cpu_limit,
    end_of,
    make_config,
    make_launch,
    pack,
    pack_code,
)
from multinode_control_plane.runners.docker_engine import ContainerState

PLAN = ContainerPlan(installation="i", network="n", cores=2, log_limit_bytes=1000)


def launch(**changes):
    return WorkerLaunch(
        **{
            "worker_id": "wrk-1",
            "claim_code": "secret-code",
            "environment_digest": "e",
            "bundle_digest": "b",
            "execution_id": "exe-1",
            "cpu": 0.5,
            "memory_mib": 256,
            **changes,
        }
    )


def test_a_container_has_the_limits_of_its_function():
    host = make_config(PLAN, launch(), "sha256:x")["HostConfig"]
    assert (host["CpuQuota"], host["CpuPeriod"], host["CpuShares"]) == (100_000, 100_000, 512)
    assert host["Memory"] == host["MemorySwap"] == 256 * 2**20


@pytest.mark.parametrize(("cpu", "quota"), [(16.0, 200_000), (0.25, 25_000), (0.001, 1_000)])
def test_cpu_is_what_the_engine_takes(cpu, quota):
    assert cpu_limit(cpu, 2) == {"CpuQuota": quota, "CpuPeriod": 100_000}


@pytest.mark.parametrize(("cpu", "quota"), [(16.0, 200_000), (1.5, 150_000), (0.001, 100_000)])
def test_a_container_starts_with_a_whole_cpu_at_the_least(cpu, quota):
    assert make_config(PLAN, launch(cpu=cpu), "x")["HostConfig"]["CpuQuota"] == quota


def test_memory_is_no_less_than_the_engine_takes():
    assert make_config(PLAN, launch(memory_mib=1), "x")["HostConfig"]["Memory"] == 6 * 2**20


def test_no_secret_is_in_what_inspect_shows():
    made = launch(interpreter_env=(("PYTHONHASHSEED", "hidden"),), fresh_interpreter=True)
    shown = json.dumps(make_config(PLAN, made, "x"))
    assert "secret-code" not in shown
    assert "hidden" not in shown
    told = make_launch(made, "http://gateway:1", has_code=True)
    assert told.claim_code == "secret-code"
    assert told.interpreter_env == {"PYTHONHASHSEED": "hidden"}


def test_the_code_goes_along_with_the_launch(tmp_path):
    (tmp_path / "submodule/__pycache__").mkdir(parents=True)
    for name, mode in (("main.py", 0o444), ("submodule/a.py", 0o4777), ("submodule/__pycache__/a.pyc", 0o644)):  # fmt: skip
        (tmp_path / name).write_text(name)
        (tmp_path / name).chmod(mode)
    (tmp_path / "link").symlink_to("main.py")
    told = make_launch(launch(), "http://gateway:1", has_code=True)
    packed = pack(told, pack_code(tmp_path))
    with tarfile.open(fileobj=io.BytesIO(packed)) as tar:
        found = {item.name: item for item in tar}
        assert tar.extractfile(".code/submodule/a.py").read() == b"submodule/a.py"
        assert from_json(tar.extractfile(".launch").read().decode()) == told
    assert sorted(found) == [".code", ".code/link", ".code/main.py", ".code/submodule", ".code/submodule/a.py", ".launch"]  # fmt: skip
    assert (found[".launch"].uid, found[".launch"].mode) == (1000, 0o400)
    assert {(found[name].uid, found[name].mode & 0o7022) for name in found if name != ".launch"} == {(0, 0)}  # fmt: skip


def test_large_code_is_fetched_by_the_worker(tmp_path, monkeypatch):
    monkeypatch.setattr(docker_containers, "MAX_PACKED_BYTES", 20_000)
    (tmp_path / "main.py").write_bytes(bytes(30_000))
    assert pack_code(tmp_path) is None
    with tarfile.open(fileobj=io.BytesIO(pack(make_launch(launch(), "u", has_code=False), None))) as tar:  # fmt: skip
        assert tar.getnames() == [".launch"]
        assert from_json(tar.extractfile(".launch").read().decode()).code_dir is None


@pytest.mark.parametrize(
    ("exit_code", "is_out_of_memory", "detail", "number"),
    [
        (0, False, "", None),
        (0, True, "", None),  # only a child was killed, which the supervisor has reported
        (1, False, "its supervisor exited with code 1", None),
        (139, False, "its supervisor was killed by signal 11", 11),
        (137, False, "its supervisor was killed by signal 9", 9),
        (137, True, "killed: out of memory at its limit of 64 MiB", 9),
    ],
)
@pytest.mark.parametrize("said", ["", "gave up: no such URL"])
def test_an_end_says_what_is_known_of_it(exit_code, is_out_of_memory, detail, number, said):
    state = ContainerState("c", {}, "exited", exit_code, is_out_of_memory, memory_mib=64)
    end = end_of("wrk-1", state, f"{said}\n")
    assert end.detail == (f"{detail}: {said}" if detail and said else detail or said)
    assert end.signal == number
    assert end.exit_code == (exit_code if number is None else None)
    assert end.out_of_memory == (is_out_of_memory and number == 9)
