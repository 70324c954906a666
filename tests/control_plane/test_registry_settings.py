"""``--registry``: which registry is meant, and what does not go with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from multinode.errors import InputError
from multinode.wire import Registry
from multinode_control_plane.runners.choice import repository_of
from multinode_control_plane.runners.ecr import EcrRepository
from multinode_control_plane.runners.registry import FixedRepository
from multinode_control_plane.settings import Settings, parser, resolve


def settings(home: Path, *argv: str, **environ: str) -> Settings:
    return resolve(parser().parse_args(["--home", str(home), *argv]), environ)


def test_without_one_images_stay_in_the_engine(tmp_path: Path) -> None:
    assert repository_of(settings(tmp_path)) is None


def test_any_registry_has_the_login_of_the_settings(tmp_path: Path) -> None:
    argv = ("--registry", "r.example.com:5000/team/envs", "--registry-username", "ci")
    found = repository_of(settings(tmp_path, *argv, MULTINODE_REGISTRY_KEY="k"))
    assert isinstance(found, FixedRepository)
    assert found.login() == Registry("r.example.com:5000/team/envs", "ci", "k")
    assert found.images("multinode") == []


@pytest.mark.parametrize("name", ["multinode", "team/multinode-envs", "a1/b.c/d_e"])
def test_a_repository_of_aws_is_named(tmp_path: Path, name: str) -> None:
    found = repository_of(settings(tmp_path, MULTINODE_REGISTRY=f"ecr:{name}"))
    assert isinstance(found, EcrRepository)
    assert found.name == name


def test_a_registry_on_a_host_that_is_called_ecr_is_any_registry(tmp_path: Path) -> None:
    found = repository_of(settings(tmp_path, "--registry", "ecr/envs"))
    assert isinstance(found, FixedRepository)


@pytest.mark.parametrize("text", ["ecr:", "ecr:a", "ecr:Team", "ecr:team//envs", "ecr:5000/envs-", "ecr:" + "a" * 257, "https://r/x", "envs"])  # fmt: skip
def test_what_is_none_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match="cannot be read") as caught:
        settings(tmp_path, "--registry", text)
    assert "ecr:multinode" in caught.value.hint


def test_a_repository_of_aws_has_no_user_of_its_own(tmp_path: Path) -> None:
    for more in ({"MULTINODE_REGISTRY_USERNAME": "AWS"}, {"MULTINODE_REGISTRY_KEY": "k"}):
        with pytest.raises(InputError, match="comes from AWS"):
            settings(tmp_path, "--registry", "ecr:envs", **more)


def test_only_repositories_of_aws_are_made(tmp_path: Path) -> None:
    assert settings(
        tmp_path, "--registry", "ecr:envs", MULTINODE_REGISTRY_CREATE="1"
    ).registry_create
    with pytest.raises(InputError, match="of ECR alone"):
        settings(tmp_path, "--registry", "r.example.com/x", "--registry-create")
