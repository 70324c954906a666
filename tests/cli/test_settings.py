"""Which control plane is meant, and the profiles of ``multinode login``."""

import json
import os
from pathlib import Path

import pytest

from multinode.errors import NotLoggedIn, ProfileNotFound
from multinode.settings import Profile, read_credentials
from multinode_cli import settings
from multinode_cli.settings import COMMAND_RETRY_S, Settings

TEAM = Profile("team", "https://team.example.com", "key-team")
HOME = Profile("home", "https://home.example.com", "key-home")
IN_ENVIRONMENT = {"MULTINODE_API_URL": "https://env.example.com", "MULTINODE_API_KEY": "key-env"}


@pytest.fixture
def folder():
    return Path(os.environ["MULTINODE_HOME"])


@pytest.fixture
def profiles(folder):
    """``team``, and ``home``, which is the current one."""
    settings.save_profile(folder, TEAM)
    settings.save_profile(folder, HOME)
    return folder


def given(folder, profile=None, **environ):
    return Settings(folder, {"MULTINODE_HOME": str(folder), **environ}, profile)


# --- precedence ---


def test_the_profile_option_wins_over_everything(profiles):
    found = given(profiles, "team", **IN_ENVIRONMENT).connection("home")
    assert (found.url, found.key) == (TEAM.url, TEAM.key)


def test_the_environment_wins_over_files(profiles):
    found = given(profiles, **IN_ENVIRONMENT).connection("team")
    assert (found.url, found.key) == (
        IN_ENVIRONMENT["MULTINODE_API_URL"],
        IN_ENVIRONMENT["MULTINODE_API_KEY"],
    )


def test_the_profile_of_multinode_toml_wins_over_the_current_one(profiles):
    assert given(profiles).connection("team").url == TEAM.url
    assert given(profiles).connection(None).url == HOME.url


def test_a_profile_that_is_not_there_is_no_reason_to_take_another(profiles):
    with pytest.raises(ProfileNotFound, match="nobody"):
        given(profiles, "nobody", **IN_ENVIRONMENT).connection(None)
    with pytest.raises(ProfileNotFound, match="nobody"):
        given(profiles).connection("nobody")


def test_nobody_logged_in_and_no_local_server(folder):
    assert given(folder).is_logged_out()
    with pytest.raises(NotLoggedIn):
        given(folder).connection(None)


@pytest.mark.parametrize("name", ["MULTINODE_API_URL", "MULTINODE_API_KEY"])
def test_half_of_the_environment_does_not_start_a_local_server(folder, name):
    """Somebody meant a control plane: that the other half is missing has to be said."""
    assert not given(folder, **{name: IN_ENVIRONMENT[name]}).is_logged_out()


def test_a_profile_counts_as_logged_in(profiles):
    assert not given(profiles).is_logged_out()
    settings.remove_profile(profiles, None)
    assert given(profiles).is_logged_out()
    assert not given(profiles, "team").is_logged_out()


def test_commands_give_up_sooner_than_the_sdk(profiles):
    assert given(profiles).connection(None).retry_s == COMMAND_RETRY_S
    assert given(profiles, MULTINODE_RETRY_SECONDS="60").connection(None).retry_s == 60


# --- credentials.json ---


def test_a_saved_profile_is_the_current_one_and_for_this_user_alone(profiles):
    kept = read_credentials(profiles)
    assert (kept.current, kept.profiles) == ("home", {"team": TEAM, "home": HOME})
    assert (profiles / "credentials.json").stat().st_mode & 0o777 == 0o600
    assert [path.name for path in profiles.iterdir()] == ["credentials.json"]


def test_saving_again_replaces(profiles):
    newer = Profile("team", "https://new.example.com", "key-new")
    settings.save_profile(profiles, newer)
    assert read_credentials(profiles).profiles["team"] == newer


def test_removing_the_current_one_chooses_no_other(profiles):
    assert settings.remove_profile(profiles, None) == "home"
    kept = read_credentials(profiles)
    assert (kept.current, list(kept.profiles)) == (None, ["team"])


def test_removing_another_leaves_the_current_one(profiles):
    assert settings.remove_profile(profiles, "team") == "team"
    assert read_credentials(profiles).current == "home"


def test_removing_what_is_not_there(folder):
    with pytest.raises(NotLoggedIn, match="Nobody is logged in"):
        settings.remove_profile(folder, None)
    with pytest.raises(NotLoggedIn, match="'team'"):
        settings.remove_profile(folder, "team")


def test_using_a_profile(profiles):
    assert settings.use_profile(profiles, "team") == TEAM
    assert read_credentials(profiles).current == "team"
    with pytest.raises(ProfileNotFound):
        settings.use_profile(profiles, "nobody")
    assert read_credentials(profiles).current == "team"


def test_a_write_that_fails_leaves_the_old_file(profiles, monkeypatch):
    before = (profiles / "credentials.json").read_text()

    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(json, "dump", fail)
    with pytest.raises(OSError, match="No space"):
        settings.save_profile(profiles, Profile("x", "https://x", "k"))
    assert (profiles / "credentials.json").read_text() == before
    assert [path.name for path in profiles.iterdir()] == ["credentials.json"]


def test_keys_are_not_shown(profiles):
    shown = repr(given(profiles, **IN_ENVIRONMENT)) + repr(given(profiles).connection(None))
    assert "key-" not in shown
