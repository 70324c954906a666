"""How a task is defined and run, and how its end reads: the pure part of the ``ecs`` runner."""

import json
from datetime import datetime, timezone

import pytest

from multinode.wire import WorkerSize
from multinode_control_plane.ecs_settings import EcsSettings
from multinode_control_plane.prices import TARIFFS
from multinode_control_plane.runners import WorkerLaunch
from multinode_control_plane.runners.ecs_logs import Pieces
from multinode_control_plane.runners.ecs_tasks import (
    HOME,
    TaskPlan,
    billed_s,
    end_of,
    explain,
    explain_failure,
    has_ended,
    make_definition,
    make_launch,
    make_run,
    waits_for,
)
from multinode_control_plane.runners.token_bucket import TokenBucket

ROLE = "arn:aws:iam::123456789012:role/x"
SETTINGS = EcsSettings("cluster", ("subnet-1",), ROLE, "/log", ("sg-1",), ROLE)
PLAN = TaskPlan(SETTINGS, "eu-west-2")
SIZE = WorkerSize(0.25, 512)
IMAGE = "r/multinode@sha256:" + "a" * 64
LAUNCH = WorkerLaunch(
    "wrk-1", "claim-code", "d" * 64, "b" * 64, "exe-1", 0.1, 256, True, (("PYTHONHASHSEED", "7"),)
)


def plan(**changes):
    return TaskPlan(EcsSettings(**{**vars(SETTINGS), **changes}), "eu-west-2")


def test_a_definition_is_of_an_environment_and_a_size_and_of_nothing_else():
    first = make_definition(PLAN, IMAGE, SIZE)
    assert first == make_definition(PLAN, IMAGE, SIZE)
    families = {
        make_definition(each, image, size)["family"]
        for each, image, size in [
            (PLAN, IMAGE, SIZE),
            (PLAN, IMAGE.replace("a", "b"), SIZE),
            (PLAN, IMAGE, WorkerSize(0.5, 1024)),
            (plan(architecture="ARM64"), IMAGE, SIZE),
            (plan(task_role=""), IMAGE, SIZE),
        ]
    }
    assert len(families) == 5
    assert first["family"].startswith("multinode-multinode-worker-")
    assert len(first["family"]) <= 255
    assert (first["cpu"], first["memory"]) == ("256", "512")


def test_a_run_holds_ids_and_the_claim_code_and_no_secret_of_a_function():
    told = make_launch(LAUNCH, "https://mn.example", SIZE)
    run = make_run(PLAN, "arn:definition", LAUNCH, told)
    (override,) = run["overrides"]["containerOverrides"]
    (variable,) = override["environment"]
    given = {name: value for name, value in json.loads(variable["value"]).items() if value}
    assert given == {
        "worker_id": "wrk-1",
        "claim_code": "claim-code",
        "api_url": "https://mn.example",
        "work_dir": f"{HOME}/wrk-1",
        "memory_mib": 512,
        "asks_for_env": True,
    }
    assert len(json.dumps(run["overrides"])) < 1000
    assert "claim-code" not in json.dumps({**run, "overrides": {}})
    assert (run["clientToken"], run["launchType"]) == ("wrk-1", "FARGATE")


def test_spot_and_public_addresses_are_settings():
    told = make_launch(LAUNCH, "https://mn.example", SIZE)
    run = make_run(plan(spot=True, public_ip=True, security_groups=()), "arn", LAUNCH, told)
    assert run["capacityProviderStrategy"][0]["capacityProvider"] == "FARGATE_SPOT"
    assert "launchType" not in run
    network = {"subnets": ["subnet-1"], "assignPublicIp": "ENABLED"}
    assert run["networkConfiguration"] == {"awsvpcConfiguration": network}


def task(status="STOPPED", code="EssentialContainerExited", why="", **container):
    containers = [{"name": "worker", "lastStatus": "STOPPED", **container}]
    return {
        "lastStatus": status,
        "stopCode": code,
        "stoppedReason": why,
        "memory": "512",
        "containers": containers,
    }


OUT_OF_MEMORY = "OutOfMemoryError: Container killed due to memory usage"


@pytest.mark.parametrize(
    ("seen", "is_over"),
    [
        (task("RUNNING", lastStatus="RUNNING"), False),
        (task("PENDING", lastStatus="PENDING"), False),
        (task("DEPROVISIONING", exitCode=0), True),
        (task("DEPROVISIONING"), False),
        (task("DEPROVISIONING", exitCode=137), False),
        (task("DEPROVISIONING", exitCode=137, reason=OUT_OF_MEMORY), True),
        (task("STOPPED", exitCode=137), True),
        ({"lastStatus": "STOPPED", "containers": []}, True),
        ({"lastStatus": "PROVISIONING"}, False),
    ],
)
def test_a_worker_is_gone_when_its_container_is_and_how_is_known(seen, is_over):
    assert has_ended(seen) == is_over


@pytest.mark.parametrize(
    ("seen", "said", "was_stopped", "expected"),
    [
        (task(exitCode=0), "", False, ("", 0, None, False)),
        (task(exitCode=1), "no launch", False, ("its supervisor exited with code 1: no launch", 1, None, False)),
        (task(exitCode=137), "", False, ("its supervisor was killed by signal 9", None, 9, False)),
        (task(exitCode=137, reason=OUT_OF_MEMORY), "", False, ("killed: out of memory at its limit of 512 MiB", None, 9, True)),
        (task(exitCode=0, reason=OUT_OF_MEMORY), "", False, ("", 0, None, False)),
        (task(code="SpotInterruption", exitCode=0), "", False, ("", 0, None, False)),
        (task(code="SpotInterruption", exitCode=137), "", False, ("Fargate Spot took its capacity back: its supervisor was killed by signal 9", None, 9, False)),
        (task(code="UserInitiated", exitCode=143, why="by me"), "", False, ("somebody stopped its task: by me: its supervisor was killed by signal 15", None, 15, False)),
        (task(code="UserInitiated", exitCode=137), "", True, ("its supervisor was killed by signal 9", None, 9, False)),
        (task(code="UserInitiated"), "", True, ("it was stopped before its container ran", None, None, False)),
        ({"lastStatus": "STOPPED", "containers": []}, "", False, ("its task ended before its container ran", None, None, False)),
        (task(code="SpotInterruption", why="Your Spot Task was interrupted."), "", False, ("Fargate Spot took its capacity back before it ran (Your Spot Task was interrupted.)", None, None, False)),
    ],
)  # fmt: skip
def test_how_a_task_ended(seen, said, was_stopped, expected):
    end = end_of("wrk-1", seen, said, was_stopped=was_stopped)
    assert (end.detail, end.exit_code, end.signal, end.out_of_memory) == expected


@pytest.mark.parametrize(
    ("words", "meaning"),
    [
        ("CannotPullContainerError: inspect image has been retried 5 time(s): failed to resolve ref r: not found", "deploy again"),
        ("CannotPullContainerError: pull image manifest has been retried 5 time(s): failed to resolve ref: dial tcp 1.2.3.4:443: i/o timeout", "no way to ECR"),
        ("CannotPullContainerError: AccessDeniedException: not authorized to perform: ecr:BatchGetImage", "execution role may not fetch"),
        ("CannotPullContainerError: write /var/lib: no space left on device", "does not fit"),
        ("CannotPullContainerError: no match for platform in manifest", "another CPU architecture"),
        ("CannotPullContainerError: toomanyrequests: Rate exceeded", "too many requests"),
        ("ResourceInitializationError: unable to pull secrets or registry auth: execution resource retrieval failed", "no way to ECR"),
        ("ResourceInitializationError: failed to validate logger args: create stream has been retried 1 times: ResourceNotFoundException: The specified log group does not exist.", "output cannot be written"),
        ("ECS was unable to assume the role 'arn:aws:iam::1:role/x' that was provided for this task.", "trust policy"),
        ("Timeout waiting for network interface provisioning to complete.", "network interface"),
        ("Unexpected EC2 error while attempting to Create Network Interface in subnet 'subnet-1': InsufficientFreeAddressesInSubnet", "no free address"),
        ("Capacity is unavailable at this time. Please try again later or in a different availability zone", "no capacity"),
        ("Rate exceeded", "too many requests"),
        ("Something new", "AWS did not run its task: Something new"),
    ],
)  # fmt: skip
def test_what_aws_says_of_a_task_that_did_not_start(words, meaning):
    text = explain(words)
    assert meaning in text
    assert words.rstrip(".")[:60] in text


@pytest.mark.parametrize(
    ("failure", "meaning"),
    [
        ({"reason": "RESOURCE:ENI"}, "no capacity"),
        ({"reason": "Capacity is unavailable at this time."}, "no capacity"),
        ({"reason": "You've reached the limit on the number of vCPUs you can run concurrently"}, "quota"),
        ({}, "does not say why"),
    ],
)  # fmt: skip
def test_what_run_task_says_in_its_failures(failure, meaning):
    assert meaning in explain_failure(failure)


def test_a_bucket_gives_what_it_has_and_then_its_rate():
    bucket = TokenBucket(2, 10)
    assert [round(bucket.take(100.0), 3) for _ in range(4)] == [0, 0, 0.1, 0.2]
    assert bucket.take(100.5) == 0
    assert [round(bucket.take(200.0), 3) for _ in range(3)] == [0, 0, 0.1]


def record(stream, text):
    return json.dumps({"at": "2026-11-24T08:00:00.000000+00:00", "stream": stream, "text": text})


def test_records_are_put_together_again_from_the_pieces_of_a_log_driver():
    text = 'a {"at": "x"} é ' * 3000
    lines = [record("stdout", text), record("stderr", "e"), record("end", "")]
    size, pieces, found = 16384, Pieces(), []
    for line in lines:
        for begin in range(0, len(line), size):
            found.append(pieces.add(line[begin : begin + size]))
    assert [each["text"] for each in found if each] == [text, "e"]
    assert pieces.is_over


def test_records_of_another_execution_of_the_same_worker_are_passed_over():
    def of(execution_id, stream, text):
        key = {"execution": execution_id} if execution_id else {}
        return json.dumps({"at": "2026", "stream": stream, "text": text, **key})

    told = [
        of("", "stdout", "own"), of("", "end", ""), of("exe-b", "stdout", "b"), of("exe-c", "stdout", "c"),
        of("exe-b", "end", ""), of("exe-c", "stdout", "d"),
    ]  # fmt: skip
    for execution_id, texts, is_over in (
        ("", ["own"], True),
        ("exe-b", ["b"], True),
        ("exe-c", ["c", "d"], False),
    ):
        pieces = Pieces(execution_id)
        found = [pieces.add(line) for line in told]
        assert [each["text"] for each in found if each] == texts
        assert pieces.is_over == is_over


def test_what_is_no_record_is_a_word_of_the_supervisors_own():
    pieces = Pieces()
    assert pieces.add("multinode worker wrk-1: refused") is None
    torn = record("stdout", "x" * 100)[:50]
    assert pieces.add(torn) is None  # it was killed in the middle of that
    assert pieces.add(record("stdout", "y"))["text"] == "y"
    assert pieces.words == ["multinode worker wrk-1: refused"]


def at(seconds):
    return datetime.fromtimestamp(seconds, timezone.utc)


@pytest.mark.parametrize(
    ("times", "exit_code", "paid_s"),
    [
        ({"pullStartedAt": at(100), "stoppedAt": at(170)}, 0, 70.0),
        ({"pullStartedAt": at(100)}, 0, 130.0),  # now is 200, and 30 more until it is STOPPED
        ({"pullStartedAt": at(100), "stoppedAt": at(130)}, None, 30.0),  # the pull failed
        ({"stoppedAt": at(130)}, None, 0.0),
        ({"stoppedAt": at(130)}, 0, None),
    ],
)
def test_it_is_paid_from_the_pull_until_it_is_stopped(times, exit_code, paid_s):
    container = {"name": "worker", **({} if exit_code is None else {"exitCode": exit_code})}
    assert billed_s({**times, "containers": [container]}, 200.0) == paid_s


def test_each_kind_of_task_has_a_tariff():
    kinds = {
        plan(architecture=architecture, spot=spot).settings.tariff
        for architecture in ("X86_64", "ARM64")
        for spot in (False, True)
    }
    assert kinds == set(TARIFFS)


@pytest.mark.parametrize(
    ("status", "note"),
    [("PROVISIONING", ""), ("PENDING", "pulling image"), ("RUNNING", ""), ("STOPPED", "")],
)
def test_what_a_task_waits_for(status, note):
    assert waits_for({"lastStatus": status}) == note
