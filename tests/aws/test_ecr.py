"""The stand-in's ECR, and what can be spoilt of any API: as AWS's documentation has it."""

import io
import secrets

import boto3
import botocore.exceptions
import docker
import pytest
from botocore.config import Config
from tests.aws.calls import AwsError, Call
from tests.aws.gate import Gate
from tests.aws.stand_in import StandIn

DOCKERFILE = b"FROM scratch\nLABEL multinode.test=ecr-stand-in\n"


@pytest.fixture(scope="module")
def image(engine):
    """An empty image."""
    name = f"multinode-test-{secrets.token_hex(4)}:latest"
    for event in engine.build(fileobj=io.BytesIO(DOCKERFILE), tag=name, decode=True):
        assert "error" not in event, event
    yield name
    engine.remove_image(name, force=True)


@pytest.fixture
def ecr(aws):
    return aws.client("ecr")


def test_what_is_pushed_is_an_image_until_it_is_deleted(aws, ecr, engine, image, login_of, push):
    made = ecr.create_repository(repositoryName="multinode", imageTagMutability="IMMUTABLE")
    repository = made["repository"]["repositoryUri"]
    assert repository == f"{aws.registry}/multinode"
    digest = push(engine, image, repository, "one", login_of(ecr))
    asked = {"repositoryName": "multinode", "imageIds": [{"imageTag": "one"}]}
    (found,) = ecr.describe_images(**asked)["imageDetails"]
    assert (found["imageDigest"], found["imageTags"]) == (digest, ["one"])
    by_digest = [{"imageDigest": digest}]
    deleted = ecr.batch_delete_image(repositoryName="multinode", imageIds=by_digest)
    assert [item["imageDigest"] for item in deleted["imageIds"]] == [digest]
    with pytest.raises(ecr.exceptions.ImageNotFoundException):
        ecr.describe_images(**asked)
    with pytest.raises(docker.errors.APIError, match=r"not found|unknown"):
        engine.inspect_distribution(f"{repository}@{digest}", auth_config=login_of(ecr))


def test_a_token_that_has_expired_lets_nobody_in(aws, ecr, engine, image, login_of, push):
    made = ecr.create_repository(repositoryName="expiring")["repository"]["repositoryUri"]
    login = login_of(ecr)
    aws.expire_tokens()
    with pytest.raises(AssertionError, match=r"unauthorized|no basic auth"):
        push(engine, image, made, "one", login)
    assert push(engine, image, made, "one", login_of(ecr))


def test_tags_can_be_kept_as_they_are(tmp_path, engine, image, login_of, push):
    with StandIn(tmp_path, keeps_tags=True) as aws:
        ecr = aws.client("ecr")
        made = ecr.create_repository(repositoryName="kept")["repository"]["repositoryUri"]
        push(engine, image, made, "one", login_of(ecr))
        container = engine.create_container(image, ["x"])["Id"]
        other = engine.commit(container, changes=["LABEL a=b"])
        engine.remove_container(container)
        with pytest.raises(AssertionError, match="immutable"):
            push(engine, other["Id"], made, "one", login_of(ecr))


def test_errors_and_answers_can_be_ordered(aws, ecr):
    aws.fault("DescribeRepositories", "error", code="ThrottlingException", message="Rate exceeded")
    with pytest.raises(botocore.exceptions.ClientError) as caught:
        ecr.describe_repositories()
    assert caught.value.response["Error"]["Code"] == "ThrottlingException"
    aws.fault("DescribeRepositories", "answer", body={"repositories": []}, skip=1)
    ecr.describe_repositories()
    assert ecr.describe_repositories()["repositories"] == []
    assert aws.calls("DescribeRepositories")[-1] == {}


@pytest.mark.parametrize(("kind", "is_there"), [("lost", True), ("unheard", False)])
def test_an_answer_is_lost_after_or_before_the_act(aws, ecr, kind, is_there):
    aws.fault("CreateRepository", kind)
    with pytest.raises(botocore.exceptions.ConnectionClosedError):
        ecr.create_repository(repositoryName=kind)
    names = [item["repositoryName"] for item in ecr.describe_repositories()["repositories"]]
    assert (kind in names) == is_there


def test_a_slow_answer_comes_too_late_for_a_client_that_is_in_a_hurry(aws):
    hurried = Config(read_timeout=0.2, retries={"total_max_attempts": 1})
    ecr = boto3.client("ecr", **client_options(aws), config=hurried)
    aws.fault("DescribeRepositories", "slow", seconds=1)
    with pytest.raises(botocore.exceptions.ReadTimeoutError):
        ecr.describe_repositories()


def client_options(aws):
    """As a program has them from ``environ``."""
    return {
        "endpoint_url": aws.environ["AWS_ENDPOINT_URL"],
        "region_name": aws.environ["AWS_DEFAULT_REGION"],
        "aws_access_key_id": aws.environ["AWS_ACCESS_KEY_ID"],
        "aws_secret_access_key": aws.environ["AWS_SECRET_ACCESS_KEY"],
    }


def test_an_account_has_its_rates():
    gate, call = Gate(), Call("ecs", "RegisterTaskDefinition", {})
    for _ in range(20):
        gate.pass_through(call, dict)
    with pytest.raises(AwsError, match="Rate exceeded"):
        gate.pass_through(call, dict)
