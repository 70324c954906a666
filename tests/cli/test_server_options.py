"""The options of `server run` and `server start` are those that the server itself reads."""

from pathlib import Path

import pytest
from tests import command_tree

from multinode_cli.commands.server_options import OPTIONS
from multinode_control_plane.settings import parser

FOREIGN = {"--profile", "--debug", "--json"}


@pytest.mark.parametrize("words", ["server run", "server start"])
def test_each_option_is_one_of_the_servers(words):
    takes_a_value = {
        flag: action.nargs is None for action in parser()._actions for flag in action.option_strings
    }
    found = {
        flag: not item.is_flag
        for item in command_tree.commands()[words].params
        for flag in item.opts
    }
    own = {flag: takes for flag, takes in found.items() if flag not in FOREIGN}
    assert len(own) == len(OPTIONS)
    assert own == {flag: takes_a_value[flag] for flag in own}


def given(name, value):
    (option,) = (option for option in OPTIONS if option.name == name)
    return option.argument(value)


def test_what_is_given_goes_on_to_the_server(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert given("port", "0") == ["--port=0"]
    assert given("port", None) == []
    assert given("allow_http", True) == ["--allow-http"]
    assert given("allow_http", False) == []


def test_paths_are_those_of_the_folder_in_which_they_were_typed(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert given("data_dir", "data") == [f"--data-dir={tmp_path}/data"]
    assert given("data_dir", "") == []
    assert given("secret_key_from", "file:ring") == [f"--secret-key-from=file:{tmp_path}/ring"]
    assert given("secret_key_from", "file:~/ring") == [f"--secret-key-from=file:{Path.home()}/ring"]
    assert given("secret_key_from", "env:RING") == ["--secret-key-from=env:RING"]
