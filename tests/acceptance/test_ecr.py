"""Images in ECR, from the real command to the real server, with the tests' stand-in for AWS and a real registry behind it.

The server alone has AWS's variables.
"""

from __future__ import annotations

import base64
import json
import os
import re
import time
import uuid

import pytest
from tests.acceptance.product import Product

from multinode.wire import VersionInfo

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

BUILD_S = 300.0
MAIN = """
import multinode

mn = multinode.Multinode()


@mn.function()
def add(a, b):
    return a + b
"""


@pytest.fixture(scope="module")
def product(engine, aws, tmp_path_factory):
    made = Product(tmp_path_factory.mktemp("product"))
    for name in [each for each in made.environ if each.startswith("AWS_")]:
        del made.environ[name]
    made.environ |= {"MULTINODE_RUNNER": "docker", "DOCKER_BUILDKIT": "0"}
    settings = {"MULTINODE_REGISTRY": "ecr:multinode", "MULTINODE_REGISTRY_CREATE": "1"}
    started = made.call("server", "start", **aws.environ, **settings)
    assert started.returncode == 0, started.stderr
    yield made
    made.run("server", "stop", "--now")
    for image in _images(made, engine):
        engine.images.remove(image.id, force=True)


def _images(product, engine):
    installation = (product.folder / "home/server/installation").read_text()
    return engine.images.list(filters={"label": f"multinode.installation={installation}"})


@pytest.fixture
def deployed(product):
    """The name of a project whose environment nobody else has, and what deploying it said."""
    project = f"p{uuid.uuid4().hex[:8]}"
    yield project, deploy(product, project)
    product.call("undeploy", project, "-y")


def deploy(product, project, *options):
    requirements = f"# {project}: an environment of its own\n"
    files = {"tasks/main.py": MAIN, "tasks/requirements.txt": requirements}
    product.write(files, project=project, python="3.8")
    done = product.call("deploy", *options, timeout_s=BUILD_S)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def image_of(product, project):
    path = f"/v1/projects/{project}/versions/latest"
    return product.client().call(VersionInfo, "GET", path).environment.image


def pushed(aws):
    """The digest of each image in ECR, with its tags."""
    details = aws.client("ecr").describe_images(repositoryName="multinode")["imageDetails"]
    return {each["imageDigest"]: each["imageTags"] for each in details}


def test_an_environment_is_pushed_once_and_run_by_its_digest(product, aws, engine, deployed):
    project, said = deployed
    image = image_of(product, project)
    repository, _, digest = image.partition("@")
    assert repository == f"{aws.registry}/multinode"
    assert f"Pushing the image to {repository}" in said
    (tag,) = pushed(aws)[digest]
    installation = (product.folder / "home/server/installation").read_text()
    assert re.fullmatch(f"{installation}-[0-9a-f]{{64}}", tag)
    assert "Pushing" not in deploy(product, project), "it is there"
    for found in _images(product, engine):
        engine.images.remove(found.id, force=True)
    assert json.loads(product.run("invoke", f"{project}/add", "1", "2")) == 3
    assert image in engine.images.get(image).attrs["RepoDigests"]


def test_the_repository_was_made_as_it_should_be(product, aws, deployed):
    (found,) = aws.client("ecr").describe_repositories()["repositories"]
    assert (found["repositoryName"], found["imageTagMutability"]) == ("multinode", "IMMUTABLE")
    checks = {item["check"]: item["state"] for item in product.json("doctor")}
    assert (checks["ECR repository"], checks["registry"]) == ("ok", "ok")


def test_what_is_made_anew_gets_along_with_tags_that_stay(product, aws, deployed):
    project, _ = deployed
    first = image_of(product, project)
    deploy(product, project, "--no-cache")
    second = image_of(product, project)
    assert first != second
    tags = pushed(aws)
    (own,) = tags[second.partition("@")[2]]
    assert own.startswith(tags[first.partition("@")[2]][0] + "-")
    assert json.loads(product.run("invoke", f"{project}/add", "2", "2")) == 4


def test_a_token_that_is_void_before_its_time_is_asked_for_anew(product, aws, deployed):
    before = len(aws.calls("GetAuthorizationToken"))
    aws.expire_tokens()
    project = f"{deployed[0]}-b"
    deploy(product, project)
    assert len(aws.calls("GetAuthorizationToken")) == before + 1
    assert image_of(product, project).partition("@")[2] in pushed(aws)
    product.run("undeploy", project, "-y")


def test_the_token_is_nowhere(product, aws, deployed, engine):
    (data,) = aws.client("ecr").get_authorization_token()["authorizationData"]
    token = data["authorizationToken"]
    password = base64.b64decode(token).decode().partition(":")[2]
    home = product.folder / "home"
    kept = [path.read_bytes() for path in home.rglob("*") if path.is_file()]
    kept += [deployed[1].encode(), product.run("audit", "--json").encode()]
    kept.append(deploy(product, f"{deployed[0]}-c", "--debug").encode())
    product.run("undeploy", f"{deployed[0]}-c", "-y")
    assert any(kept)
    assert not [each for each in kept if password.encode() in each or token.encode() in each]


def test_what_no_version_uses_is_deleted_in_ecr(product, aws, engine, deployed):
    project, _ = deployed
    digest = image_of(product, project).partition("@")[2]
    assert digest in pushed(aws)
    product.run("undeploy", project, "-y")
    for path in (product.folder / "home/server/images").glob("*.json"):
        if digest in path.read_text():
            os.utime(path, (0, 0))
    items = [item for item in product.json("server", "gc")["items"] if item["kind"] != "layers"]
    assert [(item["kind"], item["note"]) for item in items] == [("environment", "")]
    assert digest not in pushed(aws)


def test_a_right_that_is_missing_is_told_by_doctor(product, aws, deployed):
    words = "User: arn:aws:sts::1:assumed-role/cp/x is not authorized to perform: ecr:GetAuthorizationToken on resource: *"
    aws.fault("GetAuthorizationToken", "error", code="AccessDeniedException", message=words)
    deadline = time.monotonic() + 60
    while True:  # a login that was just made is not made anew
        done = product.call("doctor", "--json")
        (found,) = (item for item in json.loads(done.stdout)["data"] if item["check"] == "ECR repository")  # fmt: skip
        if found["state"] == "FAIL" or time.monotonic() > deadline:
            break
        time.sleep(0.5)
    aws.no_faults()
    assert "AWS role may not ecr:GetAuthorizationToken" in found["finding"]
    assert '{"Effect": "Allow", "Action": "ecr:GetAuthorizationToken", "Resource": "*"}' in found["cure"]  # fmt: skip
    assert done.returncode == 1
