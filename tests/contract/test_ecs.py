"""What the ``ecs`` runner makes of AWS's faults, and what it leaves in AWS. The promises that all runners keep: ``test_runner``."""

import asyncio
import json
import time

import pytest
from tests.contract import endings
from tests.contract.test_runner import until

from multinode.codec import encode_input
from multinode.errors import InputError
from multinode.wire import Assignment
from multinode_control_plane.runners import WorkerLaunch, WorkerNotMadeError
from multinode_control_plane.runners.ecs_definitions import DEFINITION

pytestmark = endings.ONLY_ITS_OWN
MISSING = "0" * 64


@pytest.fixture
def stage(ecs_stage):
    yield ecs_stage
    ecs_stage.ecs.aws.no_faults()
    ecs_stage.ecs.aws.set(hidden_s=0.0)


@pytest.fixture
def aws(stage):
    stage.ecs.aws.tell("forget-calls")
    return stage.ecs.aws


def runs_of(aws, launch):
    """The bodies of its RunTask, and the tasks that came of them."""
    asked = [body for body in aws.calls("RunTask") if launch.worker_id in json.dumps(body)]
    return asked, [each for each in aws.tasks() if launch.worker_id in json.dumps(each)]


def test_a_run_whose_answer_is_lost_is_one_task(stage, aws):
    async def main():
        async with stage.opened():
            aws.fault("RunTask", "lost", times=2)
            launch = await stage.start("add", 1, 2)
            assert (await stage.ends.of(launch.worker_id)).exit_code == 0
            asked, made = runs_of(aws, launch)
            assert (len(asked), len(made)) == (3, 1)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("code", "message", "status"),
    [
        ("ThrottlingException", "Rate exceeded", 400),
        ("ClientException", "Rate exceeded", 400),
        ("ServerException", "Service Unavailable. Please try again later.", 500),
    ],
)
def test_a_throttled_run_waits_for_its_turn(stage, aws, code, message, status):
    async def main():
        async with stage.opened():
            aws.fault("RunTask", "error", code=code, message=message, status=status, times=2)
            notes = []
            stage.runner.on_note = lambda worker_id, note: notes.append(note)
            launch = await stage.start("add", 1, 2)
            assert (await stage.ends.of(launch.worker_id)).exit_code == 0
            assert len(notes) >= 2
            assert all(("waiting for capacity: " in note) == (status == 400) for note in notes[:2])
            assert all("No task can be run" in note for note in notes[:2])

    asyncio.run(main())


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        ({"kind": "answer", "body": {"tasks": [], "failures": [{"reason": "RESOURCE:ENI"}]}}, "^waiting for capacity: Fargate has no capacity"),
        ({"kind": "answer", "body": {"tasks": [], "failures": [{"reason": "You've reached the limit on the number of vCPUs you can run concurrently"}]}}, "quota of Fargate vCPUs"),
        ({"kind": "error", "code": "AccessDeniedException", "message": "User: x is not authorized to perform: iam:PassRole on resource: arn:aws:iam::1:role/task"}, "may not iam:PassRole"),
        ({"kind": "error", "code": "InvalidParameterException", "message": "The subnet ID 'subnet-0a1b2c3d' does not exist"}, "does not exist"),
    ],
)  # fmt: skip
def test_what_aws_refuses_to_run_is_a_worker_that_is_not_made(stage, aws, fault, words):
    async def main():
        async with stage.opened():
            aws.fault("RunTask", **fault)
            with pytest.raises(WorkerNotMadeError, match=words):
                await stage.start("add", 1, 2)
            assert stage.runner._workers == {}
            assert stage.ends.ends == {}

    asyncio.run(main())


@pytest.mark.parametrize(
    ("reason", "words"),
    [
        ("CannotPullContainerError: pull image manifest: not found", "deploy again"),
        ("ResourceInitializationError: unable to pull secrets or registry auth", "no way to ECR"),
        ("Capacity is unavailable at this time. Please try again later", "no capacity"),
        ("Unexpected EC2 error: InsufficientFreeAddressesInSubnet", "no free address"),
    ],
)
@pytest.mark.parametrize("no_containers", [False, True])
def test_a_task_that_does_not_start_says_why(stage, aws, reason, words, no_containers):
    async def main():
        async with stage.opened():
            aws.next_task(stopped_reason=reason, no_containers=no_containers)
            launch = await stage.start("add", 1, 2)
            end = await stage.ends.of(launch.worker_id)
            assert words in end.detail
            assert reason in end.detail
            assert (end.exit_code, end.signal) == (None, None)

    asyncio.run(main())


def test_a_task_that_ecs_does_not_know_yet_is_not_gone(stage, aws):
    async def main():
        async with stage.opened():
            aws.set(hidden_s=2.0)
            launch = await stage.start("add", 1, 2)
            assert (await stage.ends.of(launch.worker_id)).exit_code == 0
            assert stage.plane.record(launch.worker_id).end.outcome == "succeeded"

    asyncio.run(main())


def test_a_stop_before_ecs_knows_of_the_task_is_sent_again(stage, aws):
    async def main():
        async with stage.opened():
            aws.set(hidden_s=2.0)
            launch = await stage.start("sleep")
            await stage.runner.stop(launch.worker_id, 30.0)
            await stage.ends.of(launch.worker_id)
            assert len(aws.calls("StopTask")) > 1

    asyncio.run(main())


def test_an_aws_that_is_away_makes_no_worker_gone(stage, aws, tmp_path):
    async def main():
        async with stage.opened():
            marker = tmp_path / "marker"
            launch = await stage.start_and_wait_for(marker, "sleep", str(marker))
            aws.fault("DescribeTasks", "unheard", times=4)
            aws.fault("DescribeTasks", "error", code="ThrottlingException", times=7)
            await until(lambda: len(aws.calls("DescribeTasks")) > 12)
            assert stage.ends.ends == {}
            await stage.runner.stop(launch.worker_id, 30.0)
            assert (await stage.ends.of(launch.worker_id)).exit_code == 0

    asyncio.run(main())


def test_spot_capacity_that_is_taken_away_is_a_lost_attempt(stage, aws, tmp_path):
    async def main():
        async with stage.opened():
            marker = tmp_path / "marker"
            launch = await stage.start_and_wait_for(marker, "sleep", str(marker))
            (task,) = runs_of(aws, launch)[1]
            aws.interrupt(task["arn"])
            assert (await stage.ends.of(launch.worker_id)).exit_code == 0
            end = stage.plane.record(launch.worker_id).end
            assert (end.outcome, end.retryable) == ("lost", True)
            assert "taken away" in end.error.message

    asyncio.run(main())


def test_a_task_that_somebody_stops_is_told_as_that(stage, aws, tmp_path):
    async def main():
        async with stage.opened():
            marker = tmp_path / "marker"
            launch = await stage.start_and_wait_for(marker, "stubborn", str(marker))
            (task,) = runs_of(aws, launch)[1]
            cluster = stage.ecs.settings.cluster
            aws.client("ecs").stop_task(cluster=cluster, task=task["arn"], reason="too dear")
            end = await stage.ends.of(launch.worker_id)
            assert end.detail.startswith("somebody stopped its task: too dear")

    asyncio.run(main())


def test_a_task_that_nobody_knows_is_swept_and_others_are_not(stage, aws, tmp_path):
    async def main():
        async with stage.opened():
            marker = tmp_path / "marker"
            launch = await stage.start_and_wait_for(marker, "sleep", str(marker))
            kept = await stage.start_and_wait_for(
                tmp_path / "kept", "sleep", str(tmp_path / "kept")
            )
            stage.runner._workers.pop(launch.worker_id)
            await stage.runner.sweep()
            await until(lambda: stage.present() == {kept.worker_id})
            await stage.runner.stop(kept.worker_id, 30.0)
            await stage.ends.of(kept.worker_id)

    asyncio.run(main())


def test_there_is_a_definition_for_each_size_and_none_for_each_run(stage, aws):
    async def main():
        async with stage.opened() as runner:
            for memory_mib in (256, 300, 256, 1024):
                launch = await stage.start("add", 1, 2, memory_mib=memory_mib)
                await stage.ends.of(launch.worker_id)
            kinds = [item.kind for item in await runner.stored([stage.environment])]
            assert kinds.count(DEFINITION) == 2
            assert len(aws.calls("RegisterTaskDefinition")) <= 2

    asyncio.run(main())


def test_a_definition_that_was_removed_is_made_anew(stage, aws):
    async def main():
        async with stage.opened() as runner:
            await stage.ends.of((await stage.start("add", 1, 2)).worker_id)
            found = [item for item in await runner.stored([]) if item.kind == DEFINITION]
            for item in found:
                assert (await runner.discard(item)).is_gone
            assert not [item for item in await runner.stored([]) if item.kind == DEFINITION]
            ecs = aws.client("ecs")
            await stage.ends.of((await stage.start("add", 1, 2)).worker_id)
            for family in await runner._tasks.families():  # another process does
                ecs.deregister_task_definition(taskDefinition=f"{family}:2")
            await stage.ends.of((await stage.start("add", 1, 2)).worker_id)

    asyncio.run(main())


def launch_with(stage, dotenv, function, *args):
    """A launch whose assignment has these variables."""
    launch = stage.launch(function, *args)
    record = stage.plane.record(launch.worker_id)
    assignment = record.assignment
    record.assignment = Assignment(**{**vars(assignment), "dotenv": dotenv})
    return WorkerLaunch(
        **{
            **vars(launch),
            "fresh_interpreter": True,
            "interpreter_env": tuple(dotenv.items()),
        }
    )


def test_no_value_of_dotenv_is_in_aws_and_the_worker_has_it_all_the_same(stage, aws):
    async def main():
        async with stage.opened():
            await stage.put_bundle()
            launch = launch_with(stage, {"PYTHONHASHSEED": "4711"}, "confined")
            await stage.runner.start(launch)
            await stage.ends.of(launch.worker_id)
            result = json.loads(stage.plane.record(launch.worker_id).end.result)["py/tuple"]
            assert result[:2] == [["/tmp", "/work", "."], "4711"]
            asked, _ = runs_of(aws, launch)
            shown = json.dumps([asked, aws.calls("RegisterTaskDefinition")])
            assert "4711" not in shown
            assert encode_input((), {}) not in shown
            assert stage.plane.record(launch.worker_id).exchanges == 2

    asyncio.run(main())


def test_output_is_read_when_the_task_is_long_gone_and_by_another_process(stage, aws):
    async def main():
        async with stage.opened():
            launch = await stage.start("talk", 500)
            await stage.ends.of(launch.worker_id)
        aws.forget_stopped_tasks()
        async with stage.opened():
            aws.fault("GetLogEvents", "error", code="ThrottlingException", times=2)
            aws.fault("DescribeLogStreams", "unheard")
            began = time.monotonic()
            text = "".join(r.text for r in await stage.logs(launch) if r.stream == "stdout")
            assert text.split() == [str(number) for number in range(500)]
            assert time.monotonic() - began < 30

    asyncio.run(main())


def test_who_follows_sees_all_of_a_killed_workers_output_although_aws_throttles(
    stage, aws, tmp_path
):
    async def main():
        async with stage.opened():
            marker = tmp_path / "marker"
            launch = await stage.start("count", 1000, str(marker))
            ended = asyncio.Event()
            following = asyncio.ensure_future(stage.logs(launch, ended=ended))
            await until(marker.exists)
            aws.fault("GetLogEvents", "error", code="ThrottlingException", times=6)
            stage.kill(launch.worker_id)
            await stage.ends.of(launch.worker_id)
            ended.set()
            numbers = "".join(r.text for r in await asyncio.wait_for(following, 60)).split()
            assert numbers == [str(number) for number in range(len(numbers))]
            assert len(numbers) > 10

    asyncio.run(main())


def test_doctor_says_what_is_there_and_what_is_not(stage, aws):
    async def main():
        async with stage.opened() as runner:
            found = {item.check: item.state for item in await runner.checks("")}
            assert (found["ECS cluster"], found["log group"]) == ("ok", "ok")
            aws.fault("DescribeClusters", "answer", body={"clusters": []})
            aws.fault("DescribeLogGroups", "error", code="AccessDeniedException", message="no")
            cluster, group, *_ = await runner.checks("")
            assert (cluster.state, group.state) == ("FAIL", "FAIL")
            assert "not there" in cluster.finding
            assert "logs:DescribeLogGroups" in group.finding

    asyncio.run(main())


def test_a_control_plane_that_cannot_find_out_which_workers_live_does_not_come_up(stage, aws):
    async def main():
        aws.fault("ListTasks", "error", code="AccessDeniedException", message="no")
        with pytest.raises(InputError, match="ecs:ListTasks"):
            async with stage.opened("wrk-1"):
                pass
        await stage.runner.close()

    asyncio.run(main())


def test_what_ecs_does_not_know_after_two_minutes_is_gone(stage, aws, tmp_path):
    async def main():
        async with stage.opened() as runner:
            marker = tmp_path / "marker"
            launch = await stage.start_and_wait_for(marker, "sleep", str(marker))
            aws.set(hidden_s=1000.0)
            runner._workers[launch.worker_id].made_at -= 121
            end = await stage.ends.of(launch.worker_id)
            assert end.detail == "ECS does not know its task any more"
            aws.set(hidden_s=0.0)
            await runner.sweep()

    asyncio.run(main())
