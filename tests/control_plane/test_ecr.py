"""The repository in ECR: its logins, its images, what is made where it is missing. With moto's ECR, and with a scripted one."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
import urllib.request
from collections.abc import Iterator
from typing import Any

import pytest
from moto.server import ThreadedMotoServer
from tests.control_plane import scripted_aws
from tests.control_plane.scripted_aws import ScriptedAws, refusal

from multinode.errors import AwsFailed
from multinode.wire import Registry
from multinode_control_plane.runners.ecr import EcrRepository, good_until
from multinode_control_plane.runners.registry import RegistryAway

URI = "123456789012.dkr.ecr.eu-west-2.amazonaws.com/envs"
DIGEST = "sha256:" + "a" * 64
ENVIRONMENT = "e" * 64
HOUR = 3600.0


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedAws]:
    with scripted_aws.running() as made:
        scripted_aws.log_in(monkeypatch, made.url)
        made.on("DescribeRepositories", {"repositories": [{"repositoryUri": URI}]})
        yield made


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ecr(aws: ScriptedAws, clock: Clock) -> Iterator[EcrRepository]:
    made = EcrRepository("envs", clock=clock)
    yield made
    made.close()


def token(password: str, expires_at: float) -> dict[str, Any]:
    text = base64.b64encode(f"AWS:{password}".encode()).decode()
    data = {"authorizationToken": text, "expiresAt": expires_at, "proxyEndpoint": "https://x"}
    return {"authorizationData": [data]}


# --- logins ---------------------------------------------------------------------------------------------


def test_a_login_is_handed_out_for_half_its_life(
    aws: ScriptedAws, ecr: EcrRepository, clock: Clock
) -> None:
    begin = clock.now
    aws.on(
        "GetAuthorizationToken",
        token("first:with:colons", begin + 12 * HOUR),
        token("second", begin + 18 * HOUR),
    )
    assert ecr.login() == Registry(URI, "AWS", "first:with:colons")
    clock.now = begin + 6 * HOUR - 1
    assert ecr.login().key == "first:with:colons"
    clock.now = begin + 6 * HOUR
    assert ecr.login().key == "second"
    assert aws.count("GetAuthorizationToken") == 2
    assert aws.count("DescribeRepositories") == 1


def test_a_login_that_is_refused_is_made_anew_but_not_again_and_again(
    aws: ScriptedAws, ecr: EcrRepository, clock: Clock
) -> None:
    """A role's session may end before its token does."""
    answers = [token(str(number), clock.now + 12 * HOUR) for number in range(3)]
    aws.on("GetAuthorizationToken", *answers)
    assert [ecr.login().key, ecr.login(is_refused=True).key] == ["0", "0"]
    clock.now += 6
    assert [ecr.login(is_refused=True).key, ecr.login(is_refused=True).key] == ["1", "1"]
    assert aws.count("GetAuthorizationToken") == 2


@pytest.mark.parametrize(("life_s", "until_s"), [(12 * HOUR, 6 * HOUR), (HOUR, HOUR / 2), (-5, 0)])
def test_half_of_a_life(life_s: float, until_s: float) -> None:
    assert good_until(100.0, 100.0 + life_s) == 100.0 + until_s


def test_no_log_and_no_repr_has_the_token(
    aws: ScriptedAws, ecr: EcrRepository, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    aws.on("GetAuthorizationToken", token("s3cret", clock.now + HOUR))
    with caplog.at_level(logging.DEBUG, logger="multinode_control_plane"):
        assert ecr.login().key == "s3cret"
    assert "s3cret" not in caplog.text + repr(ecr.login()) + repr(ecr)


def test_a_right_that_is_missing_is_named(aws: ScriptedAws, ecr: EcrRepository) -> None:
    aws.on("GetAuthorizationToken", refusal("AccessDeniedException", "no"))
    with pytest.raises(AwsFailed, match=r"role may not ecr:GetAuthorizationToken") as caught:
        ecr.login()
    assert '"Action": "ecr:GetAuthorizationToken"' in caught.value.hint


# --- the repository -------------------------------------------------------------------------------------


@pytest.fixture
def moto(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of an ECR in this process."""
    import boto3

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    scripted_aws.log_in(monkeypatch, f"http://{host}:{port}")
    reset = urllib.request.Request(f"http://{host}:{port}/moto-api/reset", method="POST")
    urllib.request.urlopen(reset, timeout=60).close()  # what it knows is this process's
    client = boto3.client("ecr")
    yield client
    client.close()
    server.stop()


def made_image(client: Any, tag: str | None, text: str = "a") -> str:
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": "application/vnd.docker.distribution.manifest.v2+json",
            "config": {"size": 1, "digest": f"sha256:{text * 64}", "mediaType": "x"},
            "layers": [],
        }
    )
    tagged = {"imageTag": tag} if tag else {}
    digest = f"sha256:{hashlib.sha256(manifest.encode()).hexdigest()}"  # moto has one for all
    client.put_image(repositoryName="envs", imageManifest=manifest, imageDigest=digest, **tagged)
    return digest


def test_a_repository_that_is_missing_is_told(moto: Any) -> None:
    with pytest.raises(
        AwsFailed, match=r"There is no ECR repository envs in eu-west-2\."
    ) as caught:
        EcrRepository("envs").login()
    assert "MULTINODE_REGISTRY_CREATE=1" in caught.value.hint


def test_a_repository_that_is_missing_is_made_where_it_may_be(moto: Any) -> None:
    made = EcrRepository("envs", makes_it=True)
    assert made.login().repository == URI
    (found,) = moto.describe_repositories()["repositories"]
    assert found["imageTagMutability"] == "IMMUTABLE"
    (rule,) = json.loads(moto.get_lifecycle_policy(repositoryName="envs")["lifecyclePolicyText"])[
        "rules"
    ]
    assert (rule["selection"]["tagStatus"], rule["selection"]["countNumber"]) == ("untagged", 14)
    assert [finding.state for finding in made.checks()] == ["ok"]
    assert EcrRepository("envs", makes_it=True).login().repository == URI


def test_two_that_make_it_at_once_both_have_it(aws: ScriptedAws, ecr: EcrRepository) -> None:
    there = {"repositories": [{"repositoryUri": URI}]}
    aws.on("DescribeRepositories", refusal("RepositoryNotFoundException"), there)
    aws.on("CreateRepository", refusal("RepositoryAlreadyExistsException"))
    aws.on("GetLifecyclePolicy", {"lifecyclePolicyText": "{}"})
    aws.on("GetAuthorizationToken", token("x", 0))
    assert EcrRepository("envs", makes_it=True).login().repository == URI
    assert aws.count("PutLifecyclePolicy") == 0


def test_doctor_says_what_a_repository_of_ones_own_lacks(moto: Any) -> None:
    moto.create_repository(repositoryName="envs")
    (finding,) = EcrRepository("envs").checks()
    assert finding.state == "note"
    assert "IMMUTABLE" in finding.cure
    assert "lifecycle policy" in finding.cure


def test_doctor_says_why_it_cannot_be_used(moto: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    (finding,) = EcrRepository("envs").checks()
    assert (finding.check, finding.state) == ("ECR repository", "FAIL")
    assert "has no AWS credentials" in finding.finding


# --- images ---------------------------------------------------------------------------------------------


def test_an_image_is_found_by_its_digest_with_its_tags(moto: Any) -> None:
    moto.create_repository(repositoryName="envs")
    digest = made_image(moto, ENVIRONMENT)
    repository = EcrRepository("envs")
    found = repository.find(f"{URI}@{digest}")
    assert found is not None
    assert found.name == f"{URI}@{digest}"
    assert f"{URI}:{ENVIRONMENT}" in found.names
    assert repository.find(f"{URI}@{DIGEST}") is None


def test_images_of_the_installation_are_listed_and_no_others(moto: Any) -> None:
    moto.create_repository(repositoryName="envs")
    ours = made_image(moto, f"here-{ENVIRONMENT}", "a")
    anew = made_image(moto, f"here-{ENVIRONMENT}-0123456789ab", "b")
    made_image(moto, "latest", "c")
    made_image(moto, None, "d")
    made_image(moto, f"there-{ENVIRONMENT}", "e")
    made_image(moto, f"not-here-{ENVIRONMENT}", "f")
    repository = EcrRepository("envs")
    assert {each.name for each in repository.images("here")} == {f"{URI}@{ours}", f"{URI}@{anew}"}


def test_all_pages_are_listed_and_a_pull_counts_as_use(
    aws: ScriptedAws, ecr: EcrRepository
) -> None:
    def detail(letter: str, **more: Any) -> dict[str, Any]:
        tags = [f"here-{letter * 64}"]
        return {"imageDigest": f"sha256:{letter * 64}", "imageTags": tags, "imagePushedAt": 5, **more}  # fmt: skip

    first = {"imageDetails": [detail("a", imageSizeInBytes=7)], "nextToken": "more"}
    aws.on("DescribeImages", first, {"imageDetails": [detail("b", lastRecordedPullTime=9)]})
    found = ecr.images("here")
    assert [(each.size_bytes, each.used_at) for each in found] == [(7, 5.0), (0, 9.0)]
    assert aws.asked[-1][1]["nextToken"] == "more"


def test_an_image_is_removed_with_its_tags(moto: Any) -> None:
    moto.create_repository(repositoryName="envs", imageTagMutability="IMMUTABLE")
    digest = made_image(moto, ENVIRONMENT)
    repository = EcrRepository("envs")
    assert repository.remove(f"{URI}@{digest}") == ""
    assert moto.describe_images(repositoryName="envs")["imageDetails"] == []
    assert repository.remove(f"{URI}@{digest}") == "", "one that is gone is no error"


def test_what_is_in_a_repository_that_is_gone_is_gone(moto: Any) -> None:
    moto.create_repository(repositoryName="envs")
    repository = EcrRepository("envs")
    assert repository.login().repository == URI
    moto.delete_repository(repositoryName="envs")
    assert repository.remove(f"{URI}@{DIGEST}") == ""
    assert repository.images("here") == []
    assert repository.find(f"{URI}@{DIGEST}") is None


def test_an_image_of_another_region_is_neither_found_nor_removed(moto: Any) -> None:
    """The same digest may be in both: copies of images keep it."""
    moto.create_repository(repositoryName="envs")
    digest = made_image(moto, ENVIRONMENT)
    repository = EcrRepository("envs")
    elsewhere = f"{URI.replace('eu-west-2', 'us-east-1')}@{digest}"
    assert repository.find(elsewhere) is None
    assert "is in another repository" in repository.remove(elsewhere)
    assert repository.find(f"{URI}@{digest}") is not None


def test_an_image_that_ecr_keeps_is_told(aws: ScriptedAws, ecr: EcrRepository) -> None:
    failure = {"failureCode": "ImageReferencedByManifestList", "failureReason": "An index has it."}
    aws.on("BatchDeleteImage", {"imageIds": [], "failures": [failure]})
    assert ecr.remove(f"{URI}@{DIGEST}") == "The ECR repository envs keeps it: An index has it."
    aws.on("BatchDeleteImage", refusal("ServerException", "Oops", status=500))
    with pytest.raises(RegistryAway, match="AWS failed"):
        ecr.remove(f"{URI}@{DIGEST}")
    aws.on("BatchDeleteImage", refusal("AccessDeniedException", "no"))
    with pytest.raises(AwsFailed, match="role may not ecr:BatchDeleteImage"):
        ecr.remove(f"{URI}@{DIGEST}")
