"""The stand-in's ECS: a task lives, fails and ends as AWS's documentation has it."""

import time
from contextlib import suppress

import botocore.exceptions
import pytest

IMAGE = "python:3.8-bullseye"
SAY = "print('said', flush=True)"
ROLE = "arn:aws:iam::123456789012:role/execution"
MISSING = "arn:aws:ecs:eu-west-2:123456789012:task/fargate/" + "0" * 32


@pytest.fixture(scope="module")
def image(aws, engine, login_of, push):
    """Its name by digest."""
    ecr = aws.client("ecr")
    with suppress(ecr.exceptions.RepositoryAlreadyExistsException):  # of when this file was here
        ecr.create_repository(repositoryName="tasks")
    (found,) = ecr.describe_repositories(repositoryNames=["tasks"])["repositories"]
    repository = found["repositoryUri"]
    return f"{repository}@{push(engine, IMAGE, repository, 'python', login_of(ecr))}"


@pytest.fixture(scope="module")
def ecs(aws):
    client = aws.client("ecs")
    client.create_cluster(clusterName="fargate")
    logs = aws.client("logs")
    with suppress(logs.exceptions.ResourceAlreadyExistsException):
        logs.create_log_group(logGroupName="/fargate")
    return client


@pytest.fixture(scope="module")
def define(ecs, image):
    def made(code, **changes):
        sizes = {name: changes.pop(name) for name in ("cpu", "memory") if name in changes}
        log = {
            "awslogs-group": changes.pop("group", "/fargate"),
            "awslogs-region": "eu-west-2",
            "awslogs-stream-prefix": "ecs",
        }
        container = {
            "name": "main",
            "image": image,
            "entryPoint": ["python", "-u", "-c", code],
            "stopTimeout": 2,
            "linuxParameters": {"initProcessEnabled": True},
            "logConfiguration": {"logDriver": "awslogs", "options": log},
            **changes,
        }
        return ecs.register_task_definition(
            family="tasks",
            networkMode="awsvpc",
            requiresCompatibilities=["FARGATE"],
            executionRoleArn=ROLE,
            containerDefinitions=[container],
            **{"cpu": "256", "memory": "512", **sizes},
        )["taskDefinition"]["taskDefinitionArn"]

    return made


@pytest.fixture(scope="module")
def run(ecs):
    def ran(definition, **changes):
        network = {"subnets": ["subnet-1"], "securityGroups": ["sg-1"]}
        return ecs.run_task(
            cluster="fargate",
            taskDefinition=definition,
            networkConfiguration={"awsvpcConfiguration": network},
            **{"launchType": "FARGATE", **changes},
        )["tasks"][0]["taskArn"]

    return ran


@pytest.fixture(scope="module")
def until(ecs):
    def seen(arn, status="STOPPED"):
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            found = ecs.describe_tasks(cluster="fargate", tasks=[arn], include=["TAGS"])
            if found["tasks"] and found["tasks"][0]["lastStatus"] == status:
                return found["tasks"][0]
            time.sleep(0.2)
        raise AssertionError(f"{arn} is not {status}: {found}")

    return seen


def override(**environment):
    given = [{"name": name, "value": value} for name, value in environment.items()]
    return {"containerOverrides": [{"name": "main", "environment": given}]}


def test_a_task_runs_and_its_output_is_in_its_stream(aws, define, run, until):
    code = "import os; print('hello', os.environ['WHO'], flush=True); raise SystemExit(3)"
    tags = [{"key": "a", "value": "b"}]
    arn = run(define(code), overrides=override(WHO="you"), tags=tags)
    task = until(arn)
    assert (task["stopCode"], task["containers"][0]["exitCode"]) == ("EssentialContainerExited", 3)
    assert (task["tags"], task["cpu"], task["memory"]) == (tags, "256", "512")
    stream = f"ecs/main/{arn.rpartition('/')[2]}"
    found = aws.client("logs").get_log_events(logGroupName="/fargate", logStreamName=stream)
    assert [event["message"] for event in found["events"]] == ["hello you"]


def test_more_memory_than_it_has_kills_it(define, run, until):
    container = until(run(define("x = bytearray(b'x') * 700_000_000")))["containers"][0]
    assert (container["exitCode"], container["reason"][:17]) == (137, "OutOfMemoryError:")


@pytest.mark.parametrize(
    ("code", "exit_code"),
    [("import time; time.sleep(60)", 143), ("import signal, time; signal.signal(15, lambda *_: print('no')); time.sleep(60)", 137)],
)  # fmt: skip
def test_a_task_that_is_stopped_has_its_time(ecs, define, run, until, code, exit_code):
    arn = run(define("print('x');" + code))
    until(arn, "RUNNING")
    time.sleep(1)  # its handler
    ecs.stop_task(cluster="fargate", task=arn, reason="enough")
    task = until(arn)
    assert (task["stopCode"], task["stoppedReason"]) == ("UserInitiated", "enough")
    assert task["containers"][0]["exitCode"] == exit_code


def test_spot_capacity_is_taken_away(aws, define, run, until):
    arn = run(define("import time; time.sleep(60)"))
    until(arn, "RUNNING")
    aws.interrupt(arn)
    assert until(arn)["stopCode"] == "SpotInterruption"


def test_what_is_missing_is_told_of_the_task(aws, define, run, until):
    secret = "arn:aws:secretsmanager:eu-west-2:123456789012:secret:none-abcdef"
    for changes, reason in [
        ({"image": f"{aws.registry}/tasks:none"}, "CannotPullContainerError"),
        ({"group": "/none"}, "ResourceInitializationError: failed to validate logger"),
        (
            {"secrets": [{"name": "S", "valueFrom": secret}]},
            "ResourceInitializationError: unable to",
        ),
    ]:
        task = until(run(define(SAY, **changes)))
        assert task["stopCode"] == "TaskFailedToStart"
        assert task["stoppedReason"].startswith(reason)
        assert "exitCode" not in task["containers"][0]


def test_a_failure_to_start_can_be_ordered(aws, define, run, until):
    aws.next_task(stopped_reason="Capacity is unavailable at this time.", no_containers=True)
    task = until(run(define(SAY)))
    assert (task["stopCode"], task["containers"]) == ("TaskFailedToStart", [])


def test_the_same_token_is_the_same_task(ecs, define, run, until):
    definition = define(SAY)
    arn = run(definition, clientToken="t-1", startedBy="x")
    assert run(definition, clientToken="t-1", startedBy="x") == arn
    with pytest.raises(ecs.exceptions.ConflictException):
        run(definition, clientToken="t-1", startedBy="y")
    until(arn)
    assert ecs.list_tasks(cluster="fargate", startedBy="x")["taskArns"] == []
    assert arn in ecs.list_tasks(cluster="fargate", desiredStatus="STOPPED")["taskArns"]


def test_a_task_is_missing_at_first_and_after_an_hour(aws, ecs, define, run, until):
    aws.set(hidden_s=3.0)
    arn = run(define(SAY))
    found = ecs.describe_tasks(cluster="fargate", tasks=[arn, MISSING])
    assert found["failures"] == [{"arn": each, "reason": "MISSING"} for each in (arn, MISSING)]
    until(arn)
    aws.set(hidden_s=0.0)
    aws.forget_stopped_tasks()
    assert ecs.describe_tasks(cluster="fargate", tasks=[arn])["failures"]


@pytest.mark.parametrize(
    ("act", "words"),
    [
        (lambda define, run, ecs: define(SAY, memory="8192"), "No Fargate configuration"),
        (lambda define, run, ecs: define(SAY, cpu="100"), "Invalid 'cpu'"),
        (lambda define, run, ecs: define(SAY, stopTimeout=500), "stopTimeout"),
        (lambda define, run, ecs: run(define(SAY), overrides=override(X="x" * 9000)), "8192"),
        (lambda define, run, ecs: ecs.stop_task(cluster="fargate", task=MISSING), "not found"),
        (lambda define, run, ecs: ecs.list_tasks(cluster="none"), "Cluster not found"),
        (lambda define, run, ecs: ecs.list_tasks(cluster="fargate", startedBy="a", desiredStatus="STOPPED"), "only filter"),
        (lambda define, run, ecs: ecs.describe_tasks(cluster="fargate", tasks=[MISSING] * 101), "100"),
    ],
)  # fmt: skip
def test_what_aws_refuses_is_refused(define, run, ecs, act, words):
    with pytest.raises(botocore.exceptions.ClientError, match=words):
        act(define, run, ecs)


def test_a_family_is_its_newest_active_definition(define, ecs):
    first, second = define(SAY), define(SAY)
    ecs.deregister_task_definition(taskDefinition=second)
    found = ecs.describe_task_definition(taskDefinition="tasks")["taskDefinition"]
    assert found["taskDefinitionArn"] == first
    asked = {"familyPrefix": "tasks", "status": "ACTIVE"}
    for arn in ecs.list_task_definitions(**asked)["taskDefinitionArns"]:
        ecs.deregister_task_definition(taskDefinition=arn)
    assert ecs.list_task_definition_families(**asked)["families"] == []
    with pytest.raises(ecs.exceptions.ClientException, match="Unable to describe"):
        ecs.describe_task_definition(taskDefinition="tasks")


def test_an_inactive_definition_starts_nothing(define, run, ecs):
    definition = define(SAY)
    ecs.deregister_task_definition(taskDefinition=definition)
    with pytest.raises(ecs.exceptions.InvalidParameterException, match="inactive"):
        run(definition)
