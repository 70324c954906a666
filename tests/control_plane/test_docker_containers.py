"""How a worker's container is made, and how its end reads."""

import json

import pytest

from multinode_control_plane.runners import WorkerLaunch
from multinode_control_plane.runners.docker_containers import (
    ContainerPlan,
    end_of,
    make_config,
    make_launch,
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
    assert host["NanoCpus"] == 500_000_000
    assert host["Memory"] == host["MemorySwap"] == 256 * 2**20


@pytest.mark.parametrize(("cpu", "nano_cpus"), [(16.0, 2_000_000_000), (0.001, 10_000_000)])
def test_cpu_is_what_the_engine_takes(cpu, nano_cpus):
    assert make_config(PLAN, launch(cpu=cpu), "x")["HostConfig"]["NanoCpus"] == nano_cpus


def test_memory_is_no_less_than_the_engine_takes():
    assert make_config(PLAN, launch(memory_mib=1), "x")["HostConfig"]["Memory"] == 6 * 2**20


def test_no_secret_is_in_what_inspect_shows():
    made = launch(interpreter_env=(("PYTHONHASHSEED", "hidden"),), fresh_interpreter=True)
    shown = json.dumps(make_config(PLAN, made, "x"))
    assert "secret-code" not in shown
    assert "hidden" not in shown
    told = make_launch(made, "http://gateway:1")
    assert told.claim_code == "secret-code"
    assert told.interpreter_env == {"PYTHONHASHSEED": "hidden"}


@pytest.mark.parametrize(
    ("exit_code", "is_out_of_memory", "detail", "number"),
    [
        (0, False, "", None),
        (0, True, "", None),  # only a child was killed, which the supervisor has reported
        (1, False, "its supervisor exited with code 1: no module", None),
        (139, False, "its supervisor was killed by signal 11", 11),
        (137, False, "its supervisor was killed by signal 9", 9),
        (137, True, "killed: out of memory at its limit of 64 MiB", 9),
    ],
)
def test_an_end_says_what_is_known_of_it(exit_code, is_out_of_memory, detail, number):
    state = ContainerState("c", {}, "exited", exit_code, is_out_of_memory, memory_mib=64)
    end = end_of("wrk-1", state, "no module\n")
    assert (end.detail, end.signal) == (detail, number)
    assert end.exit_code == (exit_code if number is None else None)
    assert end.out_of_memory == (is_out_of_memory and number == 9)
