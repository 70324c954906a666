"""A disk that is full where the control plane stores things gives errors, not corruption; with room again, all goes on."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from tests.faults.clients import Caller, history
from tests.faults.conftest import make_installation, use
from tests.faults.history import Call, problems
from tests.faults.installation import Installation, wait_until
from tests.faults.small_disk import fill_disk, free_disk, small_disk

from multinode.errors import StorageFull

SIZE = "64m"


@pytest.fixture(scope="module")
def disk(tmp_path_factory) -> Iterator[Path]:
    """A small file system of its own."""
    with small_disk(tmp_path_factory.mktemp("disk"), SIZE) as made:
        yield made


@pytest.fixture(scope="module")
def _on_small_disk(disk, tmp_path_factory) -> Iterator[Installation]:
    yield from make_installation(tmp_path_factory.mktemp("small"), disk / "data")


@pytest.fixture
def running(_on_small_disk, monkeypatch) -> Iterator[Installation]:
    use(_on_small_disk, monkeypatch)
    _on_small_disk.start()
    yield _on_small_disk
    free(_on_small_disk)
    _on_small_disk.end()
    assert is_sound(_on_small_disk)


def fill(installation: Installation) -> None:
    """Leaves not a byte of room."""
    fill_disk(installation.data_dir.parent)


def free(installation: Installation) -> None:
    free_disk(installation.data_dir.parent)


def is_sound(installation: Installation) -> bool:
    with closing(sqlite3.connect(installation.data_dir / "multinode.sqlite")) as database:
        return database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def start_until_refused(installation: Installation, caller: Caller, label: str) -> StorageFull:
    """Starts invocations until the store has no room: its last page may have had some."""
    for number in range(1000):
        name = f"{label}-{number}"
        try:
            caller.start("returns", Call(name, "SUCCEEDED", name), delay=1)
        except StorageFull as error:
            return error
    raise AssertionError("it is never full")


def ends_well(installation: Installation, caller: Caller) -> None:
    """Everything that was told has become true."""
    started = {item.invocation_id: item.call for item in caller.told if hasattr(item, "call")}
    wait_until(lambda: installation.server_info().in_flight == 0, "all have ended")
    wait_until(lambda: installation.server_info().workers == 0, "every worker is gone")
    assert problems(history(installation, [caller], list(started))) == []


def test_clients_are_told_and_nothing_is_changed(running):
    caller = Caller(running)
    known = caller.start("returns", Call("known", "SUCCEEDED", "known"))
    caller.wait("returns", known)
    before = set(running.all_invocation_ids())
    fill(running)
    error = start_until_refused(running, caller, "refused")
    assert error.message == "The control plane's disk is full; nothing was changed."
    assert "Free some space" in error.hint
    caller.look("returns", known)
    told = {item.invocation_id for item in caller.told}
    assert set(running.all_invocation_ids()) == before | told
    said = running.run("invoke", "returns", "label=no", "--detach", exit_code=1)
    assert "disk is full" in said.stderr
    assert "Traceback" not in said.stderr
    free(running)
    name = "again"
    caller.wait("returns", caller.start("returns", Call(name, "SUCCEEDED", name)))
    ends_well(running, caller)


def test_what_a_worker_yields_meanwhile_is_not_lost(running):
    caller = Caller(running)
    call = Call("counted", "SUCCEEDED", "end", starts=(1, 1))
    invocation_id = caller.start("counts", call, "go-counted")
    running.wait_for("counted", "at-20")
    fill(running)
    start_until_refused(running, caller, "meanwhile")
    done = len(running.effects()["counted"])
    wait_until(lambda: len(running.effects()["counted"]) >= done + 2, "it goes on")
    running.give("go-counted")
    running.wait_for("counted", "end")
    assert caller.look("counts", invocation_id) == "RUNNING"
    free(running)
    caller.follow("counts", invocation_id)
    caller.wait("counts", invocation_id)
    ends_well(running, caller)


def test_a_control_plane_that_is_killed_while_it_is_full_comes_up_when_there_is_room(running):
    caller = Caller(running)
    held = caller.start("deaf", Call("held", "SUCCEEDED", "held"), "go-full", False)
    running.wait_for("held", "start")
    fill(running)
    start_until_refused(running, caller, "killed")
    running.kill()
    fill(running)
    # Whether there is room for the few bytes that a start writes is the file system's business.
    said = running.run("server", "start", *running.options(), exit_code=None)
    assert said.returncode == 0 or "disk is full" in said.stderr
    running.end()
    free(running)
    running.start()
    running.give("go-full")
    caller.wait("deaf", held)
    ends_well(running, caller)


def test_a_deploy_says_that_the_disk_is_full(running):
    main = running.folder / "tasks/main.py"
    main.write_text(main.read_text() + "# changed\n")
    fill(running)
    said = running.run("deploy", exit_code=1)
    assert "full" in said.stderr
    assert "Traceback" not in said.stderr
    free(running)
    running.run("deploy")
    assert running.function("returns").call_remote("deployed") == "deployed"


def test_a_backup_for_which_there_is_no_room_leaves_nothing_behind(running):
    fill(running)
    said = running.run("server", "backup", str(running.data_dir.parent / "backup"), exit_code=1)
    assert "There is no room on the disk" in said.stderr
    assert not list(running.data_dir.parent.glob("*backup*"))
