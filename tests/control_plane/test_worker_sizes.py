"""What is told and refused of functions where the runner makes workers in sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.control_plane.told_plane import serving

from multinode import wire
from multinode.client import Client
from multinode.errors import InvalidRequest
from multinode_control_plane.runners.fargate_sizes import size_for

BUNDLE = "a" * 64


@pytest.fixture
def served(tmp_path: Path):
    with serving(tmp_path) as made:
        made.bundles.path = lambda digest: tmp_path  # as if it were here
        made.do(made.plane.deploy("shop", cpu=0.1, memory_mib=300))
        yield made


def latest(client: Client) -> wire.VersionInfo:
    return client.call(wire.VersionInfo, "GET", "/v1/projects/shop/versions/latest")


def register(client: Client, cpu: float) -> wire.RegisterAnswer:
    described = wire.FunctionDescription("f", wire.FunctionSettings(cpu=cpu), [])
    request = wire.RegisterRequest("e" * 64, BUNDLE, {}, [described])
    return client.call(wire.RegisterAnswer, "POST", "/v1/projects/shop/versions", request)


def test_a_version_says_what_its_workers_are_made_with(served) -> None:
    client = served.client(served.key("deploy"))
    assert latest(client).sizes is None
    served.plane.runner.size_for = size_for
    assert latest(client).sizes == {"f": wire.WorkerSize(0.25, 512)}


def test_a_function_that_no_size_holds_is_refused_by_its_name(served) -> None:
    client = served.client(served.key("deploy"))
    assert register(client, 17).created  # where there are no sizes
    served.plane.runner.size_for = size_for
    with pytest.raises(InvalidRequest, match=r"f: Fargate has no size with 18 CPUs"):
        register(client, 18)
    assert latest(client).sizes is None
