"""Finding and starting the local control plane. A small script stands for the real one; that is in tests/acceptance."""

import fcntl
import json
import os
import signal
import sys
import threading
from pathlib import Path

import pytest

from multinode.errors import InputError, ServerStartFailed
from multinode_cli.commands import local_server
from multinode_cli.console import Console
from multinode_cli.settings import read_settings

SERVER = """
import fcntl, json, os, signal, sys
home, ready, behaviour = sys.argv[1], int(sys.argv[-1]), os.environ["BEHAVIOUR"]
def say(word):
    os.write(ready, json.dumps(word).encode() + b"\\n")
with open(home + "/starts", "a") as starts:
    starts.write(f"{os.getpid()} {sys.argv[2:-3]}\\n")
if behaviour == "dies":
    sys.exit("cannot: the disk is on fire")
if behaviour == "refuses" or "--port=bad" in sys.argv:
    say({"error": {"code": "invalid_input", "message": "No.", "hint": "Do."}})
    sys.exit(2)
if "--only-check" in sys.argv:
    say({"url": ""})
    sys.exit(0)
os.makedirs(home + "/server", exist_ok=True)
lock = open(home + "/server/lock", "w")
fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
with open(home + "/server.json", "w") as file:
    json.dump({"url": "http://127.0.0.1:1", "key": "k", "pid": os.getpid(), "options": {}}, file)
if behaviour == "leaves":
    lock.close()
say({"url": "http://127.0.0.1:1"})
if behaviour == "leaves":
    sys.exit(0)
os.close(ready)
signal.pause()
"""


@pytest.fixture
def settings():
    return read_settings(profile=None, as_json=False, debug=False)


@pytest.fixture
def server(monkeypatch, tmp_path, settings):
    """The script instead of the control plane; ``server("dies")`` says how it behaves. Ends what it has started."""
    script = tmp_path / "server.py"
    script.write_text(SERVER)

    def command(home, options):
        return [sys.executable, str(script), str(home), *options]

    monkeypatch.setattr(local_server, "command", command)
    monkeypatch.setenv("BEHAVIOUR", "runs")
    yield lambda behaviour: monkeypatch.setenv("BEHAVIOUR", behaviour)
    found = local_server.find(settings.home)
    if found is not None:
        os.kill(found.pid, signal.SIGKILL)
        local_server.wait_until_gone(found)


def starts(settings):
    return (settings.home / "starts").read_text().splitlines()


def start(settings, *options):
    return local_server.start(settings, Console(settings), list(options))


def write_server_json(settings, **changes):
    data = {"url": "http://127.0.0.1:1", "key": "k", "pid": os.getpid(), "options": {}, **changes}
    (settings.home / "server.json").write_text(json.dumps(data))


# --- starting ---


def test_it_is_started_once_and_found_from_then_on(server, settings):
    found, was_started = start(settings)
    assert was_started
    assert local_server.find(settings.home) == found
    assert start(settings) == (found, False)
    assert len(starts(settings)) == 1


def test_two_that_start_at_once_start_one(server, settings):
    outcomes = []
    threads = [threading.Thread(target=lambda: outcomes.append(start(settings))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(was_started for _, was_started in outcomes) == [False, False, False, True]
    assert len({found.pid for found, _ in outcomes}) == 1
    assert len(starts(settings)) == 1


def test_a_command_says_in_one_line_that_it_started_one(server, settings, capsys):
    for expected in (1, 0):
        local_server.ensure(settings, Console(settings))
        said = capsys.readouterr()
        assert said.out == ""
        assert said.err.count("Started a local control plane at http://127.0.0.1:1") == expected


def test_one_that_dies_at_its_start_shows_its_last_words(server, settings):
    server("dies")
    log = settings.home / "server" / "server.log"
    log.parent.mkdir()
    log.write_text("".join(f"old line {i}\n" for i in range(50)))
    with pytest.raises(ServerStartFailed) as caught:
        start(settings)
    assert caught.value.message.splitlines()[-1] == "  cannot: the disk is on fire"
    assert "old line 49" in caught.value.message
    assert "old line 30" not in caught.value.message
    assert str(log) in caught.value.hint


def test_one_that_refuses_is_that_error(server, settings):
    server("refuses")
    with pytest.raises(InputError) as caught:
        start(settings)
    assert (caught.value.message, caught.value.hint) == ("No.", "Do.")


def test_one_that_leaves_at_once_is_an_error(server, settings):
    server("leaves")
    with pytest.raises(ServerStartFailed, match="went away at once"):
        start(settings)


def test_bad_options_are_an_error_while_one_runs(server, settings):
    found, _ = start(settings)
    with pytest.raises(InputError, match=r"No\."):
        start(settings, "--port=bad")
    assert start(settings, "--port=9999") == (found, False)
    assert [line.partition(" ")[2] for line in starts(settings)] == [
        "[]",
        "['--port=bad', '--only-check']",
        "['--port=9999', '--only-check']",
    ]


# --- finding ---


def test_server_json_that_a_crash_has_left_is_none(server, settings):
    """Its pid may be another process's by now: here, this one's."""
    (settings.home / "server").mkdir()
    (settings.home / "server" / "lock").touch()
    write_server_json(settings)
    assert local_server.find(settings.home) is None
    _, was_started = start(settings)
    assert was_started


def test_a_server_is_found_by_its_lock(settings):
    folder = settings.home / "elsewhere"
    folder.mkdir()
    write_server_json(settings, pid=999_999_999, options={"data_dir": str(folder)})
    assert local_server.find(settings.home) is None
    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert local_server.find(settings.home).data_dir == folder


@pytest.mark.parametrize("text", ["", "{", "[]", "null", '{"url": "x"}', '{"url": "x", "key": "k", "pid": "y"}'])  # fmt: skip
def test_an_unreadable_server_json_is_none(settings, text):
    (settings.home / "server.json").write_text(text)
    assert local_server.find(settings.home) is None


def test_the_key_is_not_shown(server, settings):
    found, _ = start(settings)
    assert "'k'" not in repr(found)


# --- its options again ---


def test_a_restart_has_the_same_options():
    options = {
        "home": "/h", "data_dir": "/d", "port": None, "host": "127.0.0.1", "allow_process": True,
        "grace_s": 5.0, "capacity": {"cpu": 4.0, "memory_mib": 2048}, "worker_url": None,
    }  # fmt: skip
    server = local_server.RunningServer("http://127.0.0.1:9470", "k", 1, Path("/d"), options)
    assert set(local_server.restart_options(server)) == {
        "--port=9470",
        "--capacity=cpu=4,memory=2048MiB",
        "--data-dir=/d",
        "--host=127.0.0.1",
        "--allow-process",
        "--grace=5.0",
    }


def test_what_is_missing_and_how_to_install_it(monkeypatch):
    from multinode.errors import MissingExtra

    monkeypatch.setattr(local_server, "_NEEDED", ("json", "no_such_module"))
    with pytest.raises(MissingExtra) as caught:
        local_server.check_installed()
    assert "(no_such_module missing)" in caught.value.message
    assert "[server]" in caught.value.hint
