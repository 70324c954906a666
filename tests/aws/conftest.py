"""A stand-in that all tests here share, and an engine."""

import base64

import docker
import pytest
from tests.aws.stand_in import StandIn
from tests.hand_made_image import needs_engine


@pytest.fixture(scope="session")
def aws(tmp_path_factory):
    with StandIn(tmp_path_factory.mktemp("aws")) as made:
        yield made


@pytest.fixture(scope="session")
def engine():
    needs_engine()
    api = docker.APIClient(**docker.utils.kwargs_from_env(), version="auto", timeout=600)
    yield api
    api.close()


@pytest.fixture(scope="session")
def login_of():
    return login


@pytest.fixture(scope="session")
def push():
    return pushed


def login(ecr):
    """User and password of a token of ECR's."""
    (data,) = ecr.get_authorization_token()["authorizationData"]
    user, _, password = base64.b64decode(data["authorizationToken"]).decode().partition(":")
    return {"username": user, "password": password}


def pushed(engine, image, repository, tag, user):
    """Pushes an image, which keeps no name of it here, and returns its digest."""
    engine.tag(image, repository, tag)
    try:
        for event in engine.push(repository, tag, stream=True, decode=True, auth_config=user):
            assert "error" not in event, event["error"]
            if "aux" in event:
                return event["aux"]["Digest"]
    finally:
        engine.remove_image(f"{repository}:{tag}")
    raise AssertionError("no digest")
