"""infra/aws, applied to an emulator of AWS (moto, in a process of its own): what was made, and what the control plane may do with it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import boto3
import httpx
import pytest
from tests.postgres import PostgresServer
from tests.terraform import iam
from tests.terraform.bench import Workspace

from multinode.errors import AwsFailed
from multinode_control_plane import secret_keys
from multinode_control_plane.database_passwords import AwsPassword
from multinode_control_plane.listening import known_hosts
from multinode_control_plane.runners.ecr import EcrRepository
from multinode_control_plane.settings import parser, resolve

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
ACCOUNT, REGION = "123456789012", "eu-west-2"
NEVER_NAMED = {"MULTINODE_ADMIN_KEY", "MULTINODE_REGISTRY_KEY"}
"""Settings without an option."""


class Emulator:
    """moto's server; ``url`` is its endpoint."""

    def __init__(self, folder: Path) -> None:
        self._log = (folder / "moto.log").open("w+")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", "0"],
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env={**os.environ, "MOTO_ACCOUNT_ID": ACCOUNT},
        )
        self.url = self._found()

    def _found(self) -> str:
        deadline = time.monotonic() + 60
        while True:
            self._log.seek(0)
            text = self._log.read()
            match = re.search(r"Running on (http://127\.0\.0\.1:\d+)", text)
            if match:
                return match[1]
            assert self._process.poll() is None, text
            assert time.monotonic() < deadline, text
            time.sleep(0.05)

    def client(self, service: str, **login: str) -> Any:
        """With the administrator's login, or the one that is given."""
        admin = {"aws_access_key_id": "x", "aws_secret_access_key": "x"}
        return boto3.client(
            service, region_name=REGION, endpoint_url=self.url, **{**admin, **login}
        )

    def enforce(self, *, wanted: bool) -> None:
        """Whether policies count from now on."""
        body = b"0" if wanted else b"inf"
        url, kind = f"{self.url}/moto-api/reset-auth", {"Content-Type": "text/plain"}
        request = urllib.request.Request(url, body, kind, method="POST")
        urllib.request.urlopen(request, timeout=10).close()

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(30)
        self._log.close()


@dataclass
class Applied:
    """What `terraform apply` left."""

    aws: Emulator
    workspace: Workspace
    resources: dict[str, dict[str, Any]]
    state: str

    def policy(self, role: str) -> list[iam.Statement]:
        """The statements of a role's own policy."""
        return iam.statements(self.resources[f"aws_iam_role_policy.{role}"]["policy"])

    @property
    def containers(self) -> dict[str, dict[str, Any]]:
        """Of the control plane's task, by name."""
        text = self.resources["aws_ecs_task_definition.control_plane"]["container_definitions"]
        return {each["name"]: each for each in json.loads(text)}

    @property
    def environment(self) -> dict[str, str]:
        """That a control plane is started with, but for its secrets."""
        each = self.containers["control-plane"]["environment"]
        return {item["name"]: item["value"] for item in each}


@pytest.fixture(scope="module")
def applied(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Applied]:
    """The example `complete`."""
    folder = tmp_path_factory.mktemp("applied")
    aws = Emulator(folder)
    try:
        workspace = Workspace.copy(folder, "complete", aws.url)
        done = workspace.run("apply", "-auto-approve", "-lock=false")
        assert done.code == 0, done
        yield Applied(aws, workspace, *_read(workspace))
    finally:
        aws.end()


def _read(workspace: Workspace) -> tuple[dict[str, dict[str, Any]], str]:
    text = (workspace.root / "terraform.tfstate").read_text()
    found = {}
    for each in json.loads(text)["resources"]:
        for instance in each["instances"]:
            key = f"[{json.dumps(instance['index_key'])}]" if "index_key" in instance else ""
            found[f"{each['type']}.{each['name']}{key}"] = instance["attributes"]
    return found, text


def test_a_second_plan_changes_nothing(applied: Applied) -> None:
    done = applied.workspace.run("plan", "-detailed-exitcode", "-lock=false")
    assert done.code == 0, done


def test_the_outputs_say_how_to_log_in(applied: Applied) -> None:
    done = applied.workspace.run("output", "-raw", "login")
    command, login, key = done.output.strip().splitlines()
    secret = re.search(r"--secret-id (\S+)", command)
    assert secret, done
    found = applied.aws.client("secretsmanager").get_secret_value(SecretId=secret[1])
    assert re.fullmatch(r"[!-~]{32,200}", found["SecretString"])
    assert login == "multinode login https://multinode.example.com"
    assert key.startswith("multinode key create ")


# --- secrets ----------------------------------------------------------------------------------------------


def test_secrets_are_in_secrets_manager_and_nowhere_else(applied: Applied) -> None:
    secrets = applied.aws.client("secretsmanager")
    arn = applied.resources["aws_secretsmanager_secret.admin_key"]["arn"]
    admin_key = secrets.get_secret_value(SecretId=arn)["SecretString"]
    arn = database_secret(applied)
    password = json.loads(secrets.get_secret_value(SecretId=arn)["SecretString"])["password"]
    for secret in (admin_key, password):
        assert secret not in applied.state
        assert secret not in json.dumps(applied.containers)


def database_secret(applied: Applied) -> str:
    arn: str = applied.resources["aws_db_instance.this"]["master_user_secret"][0]["secret_arn"]
    return arn


def test_no_variable_of_a_task_is_a_secret(applied: Applied) -> None:
    for container in applied.containers.values():
        names = [each["name"] for each in container["environment"]]
        assert not [name for name in names if re.search(r"(KEY|PASSWORD|TOKEN|SECRET)$", name)]
    handed_over = applied.containers["control-plane"]["secrets"]
    assert [each["name"] for each in handed_over] == ["MULTINODE_ADMIN_KEY"]


# --- the control plane's settings -------------------------------------------------------------------------


def test_every_variable_is_a_setting(applied: Applied) -> None:
    given = {name for name in applied.environment if name.startswith("MULTINODE_")}
    options = {f"MULTINODE_{action.dest.upper()}" for action in parser()._actions}
    assert given <= options | NEVER_NAMED, given - options


def test_the_control_plane_takes_its_settings(applied: Applied) -> None:
    settings = resolve(parser().parse_args([]), applied.environment)
    assert settings.worker_url == "https://multinode.example.com"
    assert settings.registry == "ecr:multinode/functions"
    # What clients and functions name, and what load balancers do that look whether it is ready.
    assert "multinode.example.com" in known_hosts(settings)
    assert "10.42.128.7:9470" in known_hosts(settings)
    assert settings.port == applied.resources['aws_lb_target_group.this["clients"]']["port"]
    assert database_secret(applied) in settings.database
    assert settings.stop_delay_s + 30 < applied.containers["control-plane"]["stopTimeout"]
    balancers = [applied.resources[f"aws_subnet.{kind}[0]"] for kind in ("public", "private")]
    assert {each["cidr_block"] for each in balancers} <= set(settings.trusted_proxies)


def test_a_task_migrates_and_then_serves(applied: Applied) -> None:
    migrate, serves = applied.containers["migrate"], applied.containers["control-plane"]
    assert migrate["entryPoint"] == ["multinode", "server", "migrate"]
    assert not migrate["essential"]
    assert serves["dependsOn"] == [{"containerName": "migrate", "condition": "SUCCESS"}]
    for container in (migrate, serves):
        assert container["readonlyRootFilesystem"]
        assert container["linuxParameters"]["capabilities"]["drop"] == ["ALL"]
        assert container["environment"] == serves["environment"]


def test_functions_have_their_group_and_roles(applied: Applied) -> None:
    environment = applied.environment
    group = applied.resources["aws_security_group.functions"]["id"]
    assert environment["MULTINODE_ECS_SECURITY_GROUPS"].split(",") == [group]
    role = applied.resources["aws_iam_role.functions"]["arn"]
    assert environment["MULTINODE_ECS_TASK_ROLE"] == role
    subnets = {applied.resources[f"aws_subnet.private[{number}]"]["id"] for number in range(2)}
    assert set(environment["MULTINODE_ECS_SUBNETS"].split(",")) == subnets


# --- roles ------------------------------------------------------------------------------------------------

ROLES = ("control_plane", "control_plane_execution", "functions_execution")
WITHOUT_RESOURCE = {
    "ecr:GetAuthorizationToken",
    "ecs:DeregisterTaskDefinition",
    "ecs:DescribeTaskDefinition",
    "ecs:ListTaskDefinitionFamilies",
    "ecs:ListTaskDefinitions",
    "ecs:ListTasks",
    "ecs:RegisterTaskDefinition",
}
"""What IAM cannot limit to some resources."""
BY_OTHERS = {
    "ecr:BatchCheckLayerAvailability": "pushes, with the login that it hands out",
    "ecr:BatchGetImage": "pushes, and pulls",
    "ecr:CompleteLayerUpload": "pushes",
    "ecr:GetDownloadUrlForLayer": "pulls",
    "ecr:InitiateLayerUpload": "pushes",
    "ecr:PutImage": "pushes",
    "ecr:UploadLayerPart": "pushes",
    "ecs:TagResource": "RunTask and RegisterTaskDefinition with tags",
    "iam:PassRole": "RunTask and RegisterTaskDefinition with roles",
}
"""Actions that no call of the code is named after."""
NOT_WANTED = {
    "ecr:CreateRepository": "Terraform makes it",
    "ecr:PutLifecyclePolicy": "Terraform makes it",
}
"""Calls of the code that never happen here."""


@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_do_nothing_with_everything(applied: Applied, role: str) -> None:
    for statement in applied.policy(role):
        assert not [action for action in statement.actions if "*" in action], statement
        if "*" in statement.resources:
            assert set(statement.actions) <= WITHOUT_RESOURCE, statement
        for resource in statement.resources:
            assert resource == "*" or resource.startswith("arn:aws:"), statement


def test_roles_are_for_tasks_of_this_account_alone(applied: Applied) -> None:
    for name in ("control_plane", "control_plane_execution", "functions", "functions_execution"):
        (trust,) = json.loads(applied.resources[f"aws_iam_role.{name}"]["assume_role_policy"])[
            "Statement"
        ]
        assert trust["Principal"] == {"Service": "ecs-tasks.amazonaws.com"}
        assert trust["Condition"]["StringEquals"] == {"aws:SourceAccount": ACCOUNT}


def test_only_the_roles_of_functions_are_passed_on_and_only_to_tasks(applied: Applied) -> None:
    (statement,) = (
        each for each in applied.policy("control_plane") if "iam:PassRole" in each.actions
    )
    roles = {
        applied.resources[f"aws_iam_role.{each}"]["arn"]
        for each in ("functions", "functions_execution")
    }
    assert set(statement.resources) == roles
    expected = {"StringEquals": {"iam:PassedToService": "ecs-tasks.amazonaws.com"}}
    assert statement.conditions == expected


def test_tasks_are_run_in_one_cluster_and_of_our_definitions(applied: Applied) -> None:
    cluster = applied.resources["aws_ecs_cluster.this"]["arn"]
    for statement in applied.policy("control_plane"):
        if {"ecs:RunTask", "ecs:StopTask", "ecs:ListTasks"} & set(statement.actions):
            assert statement.conditions == {"ArnEquals": {"ecs:cluster": cluster}}
        if "ecs:RunTask" in statement.actions:
            (family,) = statement.resources
            assert family.endswith(":task-definition/multinode-multinode-worker-*:*")


def test_who_starts_functions_reads_no_secrets(applied: Applied) -> None:
    actions = iam.actions_of(applied.policy("functions_execution"))
    assert not [action for action in actions if action.startswith(("secretsmanager:", "ssm:"))]
    names = applied.aws.client("iam").list_role_policies(RoleName="multinode-functions")
    assert names["PolicyNames"] == []


def test_the_control_plane_may_do_what_its_code_does_and_no_more(applied: Applied) -> None:
    allowed = iam.actions_of(applied.policy("control_plane"))
    called = iam.called() - NOT_WANTED.keys()
    assert {"ecr:GetAuthorizationToken", "ecr:DescribeImages"} <= called
    assert called <= allowed, "the code makes calls that the policy does not allow"
    assert allowed == called | BY_OTHERS.keys(), "the policy allows more than the code does"


@pytest.fixture
def as_the_control_plane(applied: Applied, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Policies count, and this process has the login of the control plane's role.

    moto compares actions only where the resource is ``*``, and knows no conditions: so the resources are widened first.
    """
    roles = applied.aws.client("iam")
    policy = json.loads(applied.resources["aws_iam_role_policy.control_plane"]["policy"])
    for statement in policy["Statement"]:
        statement["Resource"] = "*"
        statement.pop("Condition", None)
    roles.put_role_policy(
        RoleName="multinode-control-plane",
        PolicyName="control-plane",
        PolicyDocument=json.dumps(policy),
    )
    arn = applied.resources["aws_iam_role.control_plane"]["arn"]
    taken = applied.aws.client("sts").assume_role(RoleArn=arn, RoleSessionName="control-plane")
    login = taken["Credentials"]
    for name, value in {
        "AWS_ENDPOINT_URL": applied.aws.url,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ACCESS_KEY_ID": login["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": login["SecretAccessKey"],
        "AWS_SESSION_TOKEN": login["SessionToken"],
    }.items():
        monkeypatch.setenv(name, value)
    applied.aws.enforce(wanted=True)
    yield
    applied.aws.enforce(wanted=False)


@pytest.mark.usefixtures("as_the_control_plane")
def test_with_its_role_the_code_is_let_in(applied: Applied) -> None:
    environment = applied.environment
    ring = secret_keys.AwsSource(environment["MULTINODE_SECRET_KEY_FROM"].removeprefix("aws:"))
    ring.write((secret_keys.new_key(), *(ring.read() or ring.make())))
    assert len(ring.read()) == 2
    assert AwsPassword(database_secret(applied)).read()
    repository = EcrRepository(environment["MULTINODE_REGISTRY"].removeprefix("ecr:"))
    assert repository.login().username == "AWS"
    assert repository.images("multinode") == []
    assert [finding.state for finding in repository.checks()] == ["ok"]
    repository.close()


@pytest.mark.usefixtures("as_the_control_plane")
def test_what_its_role_lacks_is_refused() -> None:
    """So the test before this one can fail."""
    repository = EcrRepository("another", makes_it=True)
    with pytest.raises(AwsFailed, match="CreateRepository"):
        repository.login()
    repository.close()


@pytest.fixture
def started(
    applied: Applied, as_the_control_plane: None, postgres_server: PostgresServer, tmp_path: Path
) -> Iterator[tuple[str, str]]:
    """A control plane with the task's variables, but for its addresses and folders; its URL, and the admin key."""
    secrets = applied.aws.client(
        "secretsmanager"
    )  # whose login moto lets pass, were it not for `enforce`
    applied.aws.enforce(wanted=False)
    arn = applied.containers["control-plane"]["secrets"][0]["valueFrom"]
    admin_key = secrets.get_secret_value(SecretId=arn)["SecretString"]
    applied.aws.enforce(wanted=True)
    host = applied.resources["aws_db_instance.this"]["address"]
    database = applied.environment["MULTINODE_DATABASE"]
    kept = postgres_server.new_database(empty=True)
    assert f"{host}:5432/multinode?sslmode=require&" in database
    environ = {
        **{name: value for name, value in os.environ.items() if name.startswith(("AWS_", "PATH"))},
        **applied.environment,
        "MULTINODE_ADMIN_KEY": admin_key,
        "MULTINODE_DATABASE": f"{kept}?{database.partition('sslmode=require&')[2]}",
        "MULTINODE_HOME": str(tmp_path / "home"),
        "MULTINODE_HOST": "127.0.0.1",
        "MULTINODE_PORT": "0",
        "TMPDIR": str(tmp_path),
    }
    migrate = [sys.executable, "-m", "multinode_control_plane.migrations"]
    subprocess.run(migrate, env=environ, check=True, timeout=60, stdout=subprocess.DEVNULL)
    with (tmp_path / "log").open("w") as log:
        serve = [sys.executable, "-m", "multinode_control_plane"]
        process = subprocess.Popen(serve, env=environ, stderr=log)
        try:
            yield _url_of(process, tmp_path), admin_key
        finally:
            process.terminate()
            process.wait(60)


def _url_of(process: subprocess.Popen[bytes], folder: Path) -> str:
    server, deadline = folder / "home" / "server.json", time.monotonic() + 60
    while not server.exists():
        assert process.poll() is None, (folder / "log").read_text()
        assert time.monotonic() < deadline, (folder / "log").read_text()
        time.sleep(0.1)
    url: str = json.loads(server.read_text())["url"]
    return url


def test_a_control_plane_starts_with_what_was_made(started: tuple[str, str]) -> None:
    url, admin_key = started
    through_the_load_balancer = {
        "Host": "multinode.example.com",
        "Authorization": f"Bearer {admin_key}",
        "X-Forwarded-Proto": "https",
    }
    assert httpx.get(f"{url}/readyz").status_code == 200
    answer = httpx.get(f"{url}/v1/server/checks", headers=through_the_load_balancer, timeout=30)
    assert answer.status_code == 200, answer.text
    states = {each["check"]: (each["state"], each["finding"]) for each in answer.json()}
    for check in ("ECS cluster", "log group", "ECR repository"):
        assert states[check][0] == "ok", states
