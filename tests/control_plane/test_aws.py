"""What AWS's refusals are told as, seen through boto3 itself."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.control_plane import scripted_aws
from tests.control_plane.scripted_aws import ScriptedAws, refusal

from multinode.errors import AwsFailed, MissingExtra
from multinode_control_plane.aws import Service, refused

WHAT = "The images cannot be listed"


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedAws]:
    with scripted_aws.running() as made:
        scripted_aws.log_in(monkeypatch, made.url)
        yield made


@pytest.fixture
def ecr(aws: ScriptedAws) -> Iterator[Service]:
    made = Service("ecr", attempts=2)
    yield made
    made.close()


def fails(service: Service) -> AwsFailed:
    with pytest.raises(AwsFailed) as caught:
        service.call("describe_images", WHAT, repositoryName="envs")
    return caught.value


def test_an_answer_is_given_as_it_is(aws: ScriptedAws, ecr: Service) -> None:
    aws.on("DescribeImages", {"imageDetails": [{"imageDigest": "sha256:a"}]})
    answer = ecr.call("describe_images", WHAT, repositoryName="envs")
    assert answer["imageDetails"] == [{"imageDigest": "sha256:a"}]
    assert aws.asked == [("DescribeImages", {"repositoryName": "envs"})]
    assert ecr.region == scripted_aws.REGION


def test_a_right_that_is_missing_is_named_with_the_statement_that_grants_it(
    aws: ScriptedAws, ecr: Service
) -> None:
    words = (
        "User: arn:aws:sts::123456789012:assumed-role/control-plane/x is not authorized to perform: "
        "ecr:DescribeImages on resource: arn:aws:ecr:eu-west-2:123456789012:repository/envs because no "
        "identity-based policy allows the ecr:DescribeImages action"
    )
    aws.on("DescribeImages", refusal("AccessDeniedException", words))
    error = fails(ecr)
    assert error.message == f"{WHAT}: the control plane's AWS role may not ecr:DescribeImages."
    statement = '{"Effect": "Allow", "Action": "ecr:DescribeImages", "Resource": "arn:aws:ecr:eu-west-2:123456789012:repository/envs"}'
    assert statement in error.hint
    assert (error.reason, error.is_passing) == ("AccessDenied", False)
    assert aws.count("DescribeImages") == 1


def test_a_right_of_another_action_is_told_as_that_one() -> None:
    words = "User: u is not authorized to perform: iam:PassRole on resource: arn:aws:iam::1:role/r because …"
    error = refused(answer("AccessDeniedException", words), "No task", "ecs:RunTask")
    assert "may not iam:PassRole" in error.message
    assert '"Action": "iam:PassRole", "Resource": "arn:aws:iam::1:role/r"' in error.hint


def test_a_policy_that_denies_is_not_told_to_be_extended() -> None:
    words = "u is not authorized to perform: ecs:RunTask on resource: arn:aws:ecs:x with an explicit deny in a service control policy"
    error = refused(answer("AccessDeniedException", words), "No task", "ecs:RunTask")
    assert error.hint.startswith("A policy denies it:")
    assert "Effect" not in error.hint


def test_a_refusal_that_names_nothing_is_told_with_the_call() -> None:
    error = refused(answer("403", "", status=403), "No task", "ecs:RunTask")
    assert '{"Effect": "Allow", "Action": "ecs:RunTask", "Resource": "*"}' in error.hint


@pytest.mark.parametrize(
    "told",
    [
        refusal("ThrottlingException", "Rate exceeded"),
        refusal("ClientException", "Rate exceeded"),
        refusal("TooManyRequestsException"),
        refusal("Unknown", status=429),
    ],
)
def test_a_throttle_is_known_in_every_wrapping(told: tuple[int, Any]) -> None:
    code, words = told[1]["__type"], told[1]["message"]
    error = refused(answer(code, words, status=told[0]), "No task", "ecs:RunTask")
    assert (error.reason, error.is_passing) == ("Throttled", True)


def test_a_throttle_is_tried_again(aws: ScriptedAws, ecr: Service) -> None:
    throttle = refusal("ThrottlingException", "Rate exceeded")
    aws.on("DescribeImages", throttle, {"imageDetails": []})
    assert ecr.call("describe_images", WHAT, repositoryName="envs")["imageDetails"] == []
    aws.on("DescribeImages", throttle)
    assert fails(ecr).reason == "Throttled"
    assert aws.count("DescribeImages") == 4


def test_a_fault_of_aws_passes(aws: ScriptedAws, ecr: Service) -> None:
    aws.on("DescribeImages", refusal("ServerException", "Oops.", status=500))
    error = fails(ecr)
    assert error.message == f"{WHAT}: AWS failed (ServerException: Oops)."
    assert error.is_passing


def test_what_aws_refuses_otherwise_keeps_its_code(aws: ScriptedAws, ecr: Service) -> None:
    aws.on("DescribeImages", refusal("RepositoryNotFoundException", "The repository is not there."))
    error = fails(ecr)
    assert (error.reason, error.is_passing) == ("RepositoryNotFoundException", False)
    assert "AWS refuses ecr:DescribeImages" in error.message
    assert error.hint == ""


def test_a_cluster_that_is_not_there_is_told_with_what_names_it() -> None:
    told = {"Error": {"Code": "ClusterNotFoundException", "Message": "Cluster not found."}}
    error = refused(told, "Tasks cannot be listed", "ecs:ListTasks")
    assert "Cluster not found" in error.message
    assert error.hint == "Is --ecs-cluster right, and AWS_REGION?"


def test_credentials_that_aws_does_not_take_are_told(aws: ScriptedAws, ecr: Service) -> None:
    aws.on("DescribeImages", refusal("UnrecognizedClientException", "The token is invalid."))
    error = fails(ecr)
    assert "does not accept the control plane's credentials" in error.message
    assert "AWS_PROFILE" in error.hint


def test_without_credentials_it_is_told_who_needs_them(
    aws: ScriptedAws, ecr: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    error = fails(ecr)
    assert "the control plane has no AWS credentials" in error.message
    assert "Who deploys needs none" in error.hint
    assert aws.asked == []


@pytest.mark.parametrize("region", ["", "eu west"])
def test_a_region_that_is_none_is_told(
    aws: ScriptedAws, ecr: Service, monkeypatch: pytest.MonkeyPatch, region: str
) -> None:
    monkeypatch.delenv("AWS_REGION")
    monkeypatch.setenv("AWS_DEFAULT_REGION", region)
    error = fails(ecr)
    assert (error.reason, error.hint) == ("NoRegion", "Set AWS_REGION where it runs.")


def test_an_aws_that_does_not_answer_is_told_with_its_region(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    scripted_aws.log_in(monkeypatch, "http://127.0.0.1:1")
    began = time.monotonic()
    error = fails(Service("ecr", attempts=1))
    assert "AWS's ecr in eu-west-2 does not answer" in error.message
    assert not error.message.endswith("..")
    assert "AWS_REGION" in error.hint
    assert (error.reason, error.is_passing) == ("Away", True)
    assert time.monotonic() - began < 20


def test_without_boto3_the_command_to_install_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(MissingExtra, match="needs boto3") as caught:
        Service("ecr").call("describe_images", WHAT)
    assert "[aws]" in caught.value.hint


def answer(code: str, words: str, *, status: int = 400) -> dict[str, Any]:
    return {
        "Error": {"Code": code, "Message": words},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
