"""Which runner serves: ``--runner`` on machines with and without a Docker engine."""

import asyncio
import os
from dataclasses import replace

import pytest
from tests.control_plane.bench import make_settings
from tests.control_plane.fake_engine import FakeEngine
from tests.hand_made_image import needs_engine
from tests.images.bench import engine_socket, relay

from multinode.errors import InputError
from multinode_control_plane.runners.choice import choose
from multinode_control_plane.runners.docker import DockerRunner
from multinode_control_plane.settings import Capacity, whole_machine

NO_ENGINE = {"DOCKER_HOST": "unix:///nowhere/docker.sock"}


def chosen(settings, environ, kept=""):
    """The runner's name, the settings and the reason."""

    async def main():
        made = await choose(settings, environ, kept)
        if made.runner.name == "docker":
            made.runner.engine.close()
        return made.runner.name, made.settings, made.reason

    return asyncio.run(main())


def test_auto_takes_processes_where_no_engine_answers_and_says_so(tmp_path):
    name, settings, reason = chosen(make_settings(tmp_path, runner="auto"), NO_ENGINE)
    assert (name, settings.runner) == ("process", "process")
    assert reason == (
        "No Docker engine answers at unix:///nowhere/docker.sock (no such file or directory)"
    )
    assert settings.capacity == whole_machine()


def test_auto_takes_docker_where_an_engine_answers(tmp_path):
    needs_engine()
    name, settings, reason = chosen(make_settings(tmp_path, runner="auto"), os.environ)
    assert (name, settings.runner, reason) == ("docker", "docker", "a Docker engine answers")
    assert settings.capacity.cpu >= 2


def test_docker_without_an_engine_is_an_error_that_names_the_cure(tmp_path):
    with pytest.raises(InputError, match="No Docker engine answers") as caught:
        chosen(make_settings(tmp_path, runner="docker"), NO_ENGINE)
    assert "--runner process" in caught.value.hint


def test_auto_stays_with_the_runner_whose_workers_may_live(tmp_path):
    settings = make_settings(tmp_path, runner="auto")
    assert chosen(settings, os.environ, "process")[::2] == ("process", "its workers live")
    with pytest.raises(InputError, match="may be running in its containers") as caught:
        chosen(settings, NO_ENGINE, "docker")
    assert "give them up: --runner process" in caught.value.hint


def test_a_runner_that_is_named_is_taken_whatever_lives(tmp_path):
    settings = make_settings(tmp_path, runner="process")
    assert chosen(settings, os.environ, "docker")[::2] == ("process", "")


def test_a_capacity_that_was_asked_for_stays(tmp_path):
    settings = replace(make_settings(tmp_path, runner="auto"), asked_capacity="cpu=1,memory=1GiB")
    assert chosen(settings, NO_ENGINE)[1].capacity == Capacity(1.0, 1024)


def test_auto_without_an_engine_is_no_way_around_the_loopback_rule(tmp_path):
    settings = make_settings(tmp_path, runner="auto", host="0.0.0.0")
    with pytest.raises(InputError, match="isolates nothing"):
        chosen(settings, NO_ENGINE)


def test_a_runner_that_was_named_needs_no_reason(tmp_path):
    assert chosen(make_settings(tmp_path), NO_ENGINE)[::2] == ("process", "")


def test_an_engine_that_may_be_elsewhere_needs_a_worker_url(tmp_path):
    needs_engine()

    async def main():
        runner = (await choose(make_settings(tmp_path, runner="docker"), os.environ)).runner
        facts = replace(runner.engine.facts, url="tcp://elsewhere:2376")
        runner.engine.facts = facts
        with pytest.raises(InputError, match="may not reach this machine") as caught:
            await runner.worker_address()
        assert "--worker-url" in caught.value.hint
        runner.engine.facts = replace(facts, url="unix:///run/user/7/docker.sock", is_rootless=True)
        with pytest.raises(InputError, match="may not reach this machine"):
            await runner.worker_address()
        runner.engine.facts = replace(facts, is_desktop=True)
        assert (await runner.worker_address()).name == "host.docker.internal"
        runner.engine.close()

    asyncio.run(main())


def test_auto_takes_processes_where_containers_may_not_reach_this_machine(tmp_path):
    needs_engine()
    with relay(engine_socket()) as (address, _):
        settings = make_settings(tmp_path, runner="auto")
        name, _, reason = chosen(settings, {"DOCKER_HOST": address})
        assert (name, "no --worker-url says how they can" in reason) == ("process", True)
        settings = replace(settings, worker_url="http://10.0.0.5:9470")
        assert chosen(settings, {"DOCKER_HOST": address})[0] == "docker"


def test_an_engine_without_cgroups_enforces_nothing_and_says_so(tmp_path):
    """As rootless Docker is on a machine with cgroups of version 1."""
    engine = FakeEngine()
    engine.facts = replace(engine.facts, limits=())
    runner = DockerRunner(tmp_path, engine)
    assert runner.enforces == ()
    assert "no cgroups" in runner.unenforced_reason
