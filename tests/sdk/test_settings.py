import json
import os
import subprocess
import sys

import pytest

from multinode import errors, settings
from multinode.settings import WorkerContext, resolve

WORKER = WorkerContext("http://plane:1", "token", "shop", "ver-1", "inv-1")


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("MULTINODE_HOME", str(tmp_path))
    return tmp_path


@pytest.fixture
def in_worker():
    settings.set_worker_context(WORKER)
    yield
    settings.set_worker_context(None)


def log_in(home, current="team"):
    profiles = {
        "team": {"url": "https://team", "key": "team-key"},
        "own": {"url": "https://own", "key": "own-key"},
    }
    text = json.dumps({"current": current, "profiles": profiles})
    (home / "credentials.json").write_text(text)


def run_local_server(home, pid):
    text = json.dumps({"url": "http://127.0.0.1:1", "key": "local-key", "pid": pid})
    (home / "server.json").write_text(text)


def test_the_environment_goes_before_the_profile(home, monkeypatch):
    log_in(home)
    monkeypatch.setenv("MULTINODE_API_URL", "https://env")
    monkeypatch.setenv("MULTINODE_API_KEY", "env-key")

    assert (resolve().url, resolve().key) == ("https://env", "env-key")


def test_the_profile_goes_before_the_local_server(home):
    log_in(home)
    run_local_server(home, os.getpid())

    assert (resolve().url, resolve().key) == ("https://team", "team-key")


def test_the_local_server_is_used_where_nobody_has_logged_in(home):
    run_local_server(home, os.getpid())

    assert (resolve().url, resolve().key) == ("http://127.0.0.1:1", "local-key")


def test_a_local_server_that_is_dead_is_none(home):
    gone = subprocess.Popen([sys.executable, "-c", "pass"])
    gone.wait()
    run_local_server(home, gone.pid)

    with pytest.raises(errors.NotLoggedIn, match="multinode server start"):
        resolve()


def test_a_local_server_that_restarts_is_waited_for_by_those_who_used_it(home):
    with pytest.raises(errors.NotLoggedIn):
        resolve(waits_for_local=True)
    run_local_server(home, os.getpid())
    found = resolve(waits_for_local=True)
    (home / "server.json").unlink()

    assert resolve(waits_for_local=True) == found
    with pytest.raises(errors.NotLoggedIn):
        resolve()


def test_without_anything_the_hint_says_what_to_do(home):
    with pytest.raises(errors.NotLoggedIn) as caught:
        resolve()
    assert "multinode login" in caught.value.hint
    assert "MULTINODE_API_URL" in caught.value.hint


def test_a_named_profile_goes_before_everything(home, monkeypatch, in_worker):
    log_in(home)
    monkeypatch.setenv("MULTINODE_API_URL", "https://env")

    assert resolve("own").url == "https://own"


def test_an_unknown_profile_is_an_error_that_lists_the_known(home):
    log_in(home)

    with pytest.raises(errors.ProfileNotFound, match="own, team"):
        resolve("other")


@pytest.mark.parametrize("given", ["URL", "KEY"])
def test_half_of_the_environment_is_an_error(home, monkeypatch, given):
    monkeypatch.setenv(f"MULTINODE_API_{given}", "x")

    with pytest.raises(errors.NotLoggedIn, match="is not"):
        resolve()


def test_a_worker_uses_its_token(home, in_worker):
    log_in(home)

    assert (resolve().url, resolve().key) == ("http://plane:1", "token")
    assert settings.uses_worker_token()


def test_a_workers_own_environment_goes_before_its_token(home, monkeypatch, in_worker):
    monkeypatch.setenv("MULTINODE_API_URL", "https://env")
    monkeypatch.setenv("MULTINODE_API_KEY", "env-key")

    assert resolve().url == "https://env"
    assert not settings.uses_worker_token()


def test_retry_seconds_are_300_unless_set(home, monkeypatch):
    assert settings.retry_s() == 300
    monkeypatch.setenv("MULTINODE_RETRY_SECONDS", "1.5")
    assert settings.retry_s() == 1.5


@pytest.mark.parametrize("text", ["soon", "-1", "nan", "inf"])
def test_a_bad_number_of_retry_seconds_is_named(home, monkeypatch, text):
    monkeypatch.setenv("MULTINODE_RETRY_SECONDS", text)

    with pytest.raises(errors.InputError, match=f"MULTINODE_RETRY_SECONDS is '{text}'"):
        resolve()


@pytest.mark.parametrize("text", ["{", "[]", '{"profiles": {"a": {"url": 1, "key": "k"}}}'])
@pytest.mark.parametrize("name", ["credentials.json", "server.json"])
def test_a_malformed_file_is_named(home, name, text):
    (home / name).write_text(text)

    with pytest.raises(errors.InputError, match=name):
        resolve()


def test_no_repr_shows_a_key(home):
    log_in(home)

    shown = repr(resolve()) + repr(settings.read_credentials(home)) + repr(WORKER)

    assert "team-key" not in shown
    assert "token'" not in shown


def test_home_is_below_the_users_home_by_default(monkeypatch):
    assert str(settings.home({"MULTINODE_HOME": "/a"})) == "/a"
    assert settings.home({}).name == ".multinode"
