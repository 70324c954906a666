"""What every runner promises (see ``multinode_control_plane.runners``), on real environments and workers.

The control plane is ``tests.fake_control_plane``: the runner is driven as the scheduler drives it. An environment is
made once a session, from the interpreter that runs the tests.
"""

import asyncio
import hashlib
import io
import json
import os
import secrets
import signal
import sys
import tarfile
import threading
import time
from collections.abc import Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path

import docker
import pytest
from tests.contract import endings
from tests.contract.docker_stage import (
    Containers,
    SharingRunner,
    make_environment,
    remove_environment,
    volumes_noted,
)
from tests.contract.ecs_stage import Tasks
from tests.fake_control_plane import FakeControlPlane
from tests.hand_made_image import needs_engine

from multinode.codec import encode_input
from multinode.wire import Assignment, BuildRequest, EnvironmentSpec
from multinode_control_plane.runners import WorkerLaunch, WorkerNotMadeError
from multinode_control_plane.runners.docker_containers import HOME
from multinode_control_plane.runners.docker_engine import Engine
from multinode_control_plane.runners.process import ProcessRunner
from multinode_control_plane.runners.worker_processes import is_held, is_living, read

RUNNERS = ["process", "docker", "ecs"]
ONLY_PROCESS = pytest.mark.parametrize("stage", ["process"], indirect=True)
"""What others do not have: starters, cgroups of their own making, and environments that can be broken."""
ONLY_DOCKER = pytest.mark.parametrize("stage", ["docker"], indirect=True)
WAIT_S = 60.0

MAIN = '''
import os, subprocess, sys, time
from pathlib import Path

import multinode

mn = multinode.Multinode()


@mn.function()
def add(a, b):
    return a + b


@mn.function()
def talk(lines):
    for number in range(lines):
        print(number)
        print(-number, file=sys.stderr)


@mn.function()
def count(numbers, marker):
    """Prints one after another, for a while."""
    for number in range(numbers):
        print(number, flush=True)
        time.sleep(0.02)
        if number == 10:
            Path(marker).write_text("")


@mn.function()
def confined():
    """What the worker may write to, and what an interpreter was started with."""
    writable = []
    for folder in ("/", "/opt/multinode/multinode", "/tmp", os.environ["HOME"], "."):
        try:
            Path(folder, "written").write_text("")
            writable.append(folder)
        except OSError:
            pass
    return writable, os.environ.get("PYTHONHASHSEED"), os.listdir("/work")


@mn.function()
def sleep(marker=""):
    if marker:
        Path(marker).write_text("")
    time.sleep(600)


@mn.function()
def leave(code):
    os._exit(code)


@mn.function()
def spawn(marker):
    """Leaves a process in a session of its own, and goes on itself."""
    process = subprocess.Popen(["sleep", "600"], start_new_session=True)
    Path(marker + ".new").write_text(str(process.pid))
    os.rename(marker + ".new", marker)
    time.sleep(600)


@mn.function()
def scatter(marker):
    """Leaves processes in sessions of their own: a fork, a program, and a program without environment."""
    pids = [
        subprocess.Popen(["sleep", "600"], start_new_session=True, env=env).pid
        for env in (None, {})
    ]
    pid = os.fork()
    if pid == 0:
        os.setsid()
        time.sleep(600)
        os._exit(0)
    Path(marker + ".new").write_text(" ".join(map(str, [*pids, pid])))
    os.rename(marker + ".new", marker)
    time.sleep(600)


@mn.function()
def fill(mib):
    """Takes that much memory."""
    return len(bytearray(b"x") * (mib * 1024 * 1024)) // (1024 * 1024)


@mn.function()
def fill_later(mib, marker):
    """The same, when it is given the sign."""
    Path(marker + ".new").write_text(str(os.getpid()))
    os.rename(marker + ".new", marker)
    while not Path(marker).with_name("go").exists():
        time.sleep(0.01)
    return fill(mib)


@mn.function()
def spin(seconds):
    """Uses all the cpu that it gets; how much that was."""
    began, ends_at = time.process_time(), time.monotonic() + seconds
    while time.monotonic() < ends_at:
        pass
    return time.process_time() - began


@mn.function()
def stubborn(marker):
    """Does not end when it is interrupted."""
    while True:
        try:
            Path(marker).write_text("")  # not before it is safe from an interrupt
            time.sleep(600)
        except BaseException:
            pass


@mn.function()
def look():
    return [os.getcwd(), sorted(os.environ), Path("data.txt").read_text()]
'''


def bundle():
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for name, text in {"main.py": MAIN, "data.txt": "here"}.items():
            item = tarfile.TarInfo(name)
            item.size = len(text.encode())
            tar.addfile(item, io.BytesIO(text.encode()))
    return made.getvalue()


BUNDLE = bundle()
BUNDLE_DIGEST = hashlib.sha256(BUNDLE).hexdigest()


@dataclass
class Ends:
    """What a runner has told of ends, and when."""

    in_the_situation: Callable = None
    """Awaited before any end is, where a test is to get no further."""
    ends: dict = field(default_factory=dict)
    at: dict = field(default_factory=dict)
    told: asyncio.Event = field(default_factory=asyncio.Event)

    def __call__(self, end):
        assert end.worker_id not in self.ends, "told twice"
        self.ends[end.worker_id] = end
        self.at[end.worker_id] = time.monotonic()
        self.told.set()

    async def of(self, worker_id, timeout_s=WAIT_S):
        if self.in_the_situation is not None:
            await self.in_the_situation()

        async def wait():
            while worker_id not in self.ends:
                self.told.clear()
                await self.told.wait()

        await asyncio.wait_for(wait(), timeout_s)
        return self.ends[worker_id]


class Stage:
    """A data folder with an environment and a bundle, a control plane, and the runners that are opened on it."""

    line_within_s = 5.0
    noticed_within_s = 5.0
    """How soon the runner sees that a worker has gone: a tenth of it, if nothing else runs on the machine."""
    kills_at_once = True
    killed_within_s = (0.45, 10.0)
    """Of a stop with a grace of half a second that the function outlasts."""
    least_cpu, least_memory_mib = 0.1, 64
    """The smallest worker that the tests ask for."""

    def __init__(self, data_dir, environment, plane, ending):
        self.data_dir = data_dir
        self.environment = environment
        self.plane = plane
        self.ending = ending
        self.in_the_situation = None
        self.runner = None
        self.ends = None

    def renew(self):
        """Makes anew what does not get through a fork."""
        self.plane.come_back()

    def make_runner(self):
        return ProcessRunner(self.data_dir)

    @asynccontextmanager
    async def opened(self, *adopted):
        self.runner = self.make_runner()
        self.ends = Ends(self.in_the_situation)
        loop = asyncio.get_running_loop()
        self.plane.on_exchange = partial(loop.call_soon_threadsafe, self.runner.claimed)
        await self.runner.open(self.ends, self.plane.url)
        self.past_ends = await self.runner.adopt(adopted)
        self.adopted = set(adopted) - self.past_ends.keys()
        try:
            yield self.runner
        finally:
            self.plane.on_exchange = lambda worker_id: None
            await self.runner.close()

    async def put_bundle(self):
        async def chunks():
            yield BUNDLE

        self.plane.bundles[BUNDLE_DIGEST] = BUNDLE
        await self.runner.bundles.put(BUNDLE_DIGEST, chunks())

    def launch(self, function, *args, **changes):
        """A launch of a worker for one call, whose execution the control plane knows."""
        assignment = Assignment(
            token="",
            kind="invocation",
            execution_id=f"exe-{secrets.token_hex(4)}",
            project="p",
            version_id="v",
            bundle_digest=BUNDLE_DIGEST,
            dotenv={},
            function=function,
            input=encode_input(args, {}),
            grace_s=60.0,
            memory_mib=changes.get("memory_mib", 256),
        )
        known = self.plane.assign(assignment, worker_id=f"wrk-{secrets.token_hex(4)}")
        record = self.plane.record(known.worker_id)
        return WorkerLaunch(
            **{
                "worker_id": known.worker_id,
                "claim_code": known.claim_code,
                "environment_digest": self.environment,
                "bundle_digest": BUNDLE_DIGEST,
                "execution_id": record.assignment.execution_id,
                "cpu": 0.1,
                "memory_mib": 256,
                **changes,
            }
        )

    async def start(self, function, *args, **changes):
        await self.put_bundle()
        launch = self.launch(function, *args, **changes)
        await self.runner.start(launch)
        return launch

    async def start_and_wait_for(self, path, function, *args, **changes):
        """Starts a function that writes a file at ``path`` once it runs."""
        launch = await self.start(function, *args, **changes)
        await until(path.exists)
        return launch

    async def logs(self, launch, **options):
        return [item async for item in self.runner.logs(launch.execution_id, 2, **options)]

    def supervisor(self, launch):
        path = self.data_dir / "workers" / f"{launch.worker_id}.json"
        return json.loads(path.read_text())

    def pid(self, launch, marker):
        """The process whose pid the function wrote into ``marker``, as this machine knows it."""
        return int(marker.read_text())

    def work_dir(self, launch):
        return str(self.data_dir / "work" / launch.worker_id)

    def has_ended(self, launch):
        """Whether a runner that is opened now would see that the worker is gone.

        Its first process's death is not enough: its threads end later, and with the last of them its lock is free.
        """
        return not is_held(self.data_dir / "workers" / f"{launch.worker_id}.json")

    def left(self):
        """What there is of workers."""
        return [path for name in ("workers", "work") for path in (self.data_dir / name).iterdir()]

    def present(self):
        """Ids of workers that there is something of."""
        return {path.stem for path in (self.data_dir / "workers").glob("*.json")}

    def kill(self, worker_id):
        """kill -9 of its first process, if it is there."""
        found = read(self.data_dir / "workers" / f"{worker_id}.json")
        if found is not None and found.is_running:
            os.kill(found.pid, signal.SIGKILL)

    async def until_nothing_is_left(self):
        await until(lambda: not self.left())

    async def until_nothing_runs(self):
        """Without a runner: also what had come up too late for it to see."""
        folder = (self.data_dir / "environments").resolve()
        await until(lambda: not running_from(folder))


class DockerStage(Stage):
    """The same with containers, which see the data folder (the test's ``tmp_path``) under its own path."""

    def __init__(self, data_dir, environment, plane, ending, image):
        super().__init__(data_dir, environment, plane, ending)
        self.containers = Containers(data_dir)
        self.image = image

    def renew(self):
        super().renew()
        self.containers = Containers(self.data_dir)

    def make_runner(self):
        return SharingRunner(self.data_dir, Engine.connect(os.environ), self.data_dir)

    def supervisor(self, launch):
        return {"pid": self.containers.pid(launch.worker_id)}

    def pid(self, launch, marker):
        return self.containers.host_pid(launch.worker_id, int(marker.read_text()))

    def work_dir(self, launch):
        return f"{HOME}/{launch.worker_id}"

    def has_ended(self, launch):
        return not self.containers.is_running(launch.worker_id)

    def left(self):
        return self.containers.left()

    async def until_nothing_runs(self):
        await self.until_nothing_is_left()

    def present(self):
        return {name.replace("multinode-", "") for name in self.left()}

    def kill(self, worker_id):
        with suppress(docker.errors.NotFound, ProcessLookupError):
            pid = self.containers.pid(worker_id)
            if pid:  # else it has ended: 0 would be this process's own group
                os.kill(pid, signal.SIGKILL)


class EcsStage(Stage):
    """The same with tasks of the stand-in for AWS, whose containers see the data folder, too."""

    line_within_s = 15.0
    noticed_within_s = 15.0
    kills_at_once = False
    killed_within_s = (1.5, 25.0)
    least_cpu, least_memory_mib = 0.25, 512

    def __init__(self, data_dir, environment, plane, ending):
        super().__init__(data_dir, environment.digest, plane, ending)
        self.ecs = environment
        self.tasks = Tasks(environment.aws)

    def renew(self):
        super().renew()
        self.tasks = Tasks(self.ecs.aws)

    def make_runner(self):
        return self.ecs.make_runner(self.data_dir)

    def supervisor(self, launch):
        return {"pid": self.tasks.pid(launch.worker_id)}

    def pid(self, launch, marker):
        return self.tasks.host_pid(launch.worker_id, int(marker.read_text()))

    def work_dir(self, launch):
        return f"{HOME}/{launch.worker_id}"

    def has_ended(self, launch):
        return launch.worker_id not in self.present()

    def left(self):
        return self.tasks.containers()

    async def until_nothing_runs(self):
        await self.until_nothing_is_left()

    def present(self):
        return self.tasks.present()

    def kill(self, worker_id):
        self.tasks.kill(worker_id)


async def until(fact, timeout_s=WAIT_S):
    deadline = time.monotonic() + timeout_s
    while not fact():
        assert time.monotonic() < deadline, f"{fact} did not become true"
        await asyncio.sleep(0.005)


@pytest.fixture(scope="session")
def environment(tmp_path_factory):
    """A data folder's ``environments`` and the digest of one that is in it."""
    folder = tmp_path_factory.mktemp("environments")

    async def main():
        runner = ProcessRunner(folder)
        await runner.open(lambda end: None, "")
        spec = EnvironmentSpec(python=f"3.{sys.version_info[1]}")
        events = [event async for event in runner.build(BuildRequest(spec))]
        await runner.close()
        assert events[-1].error is None, events[-1].error
        return events[-1].environment.digest

    return folder / "environments", asyncio.run(main())


@pytest.fixture(scope="session")
def docker_environment(tmp_path_factory):
    needs_engine()
    made = make_environment(tmp_path_factory.mktemp("docker"))
    yield made
    remove_environment(made)


@pytest.fixture(params=RUNNERS)
def stage(request, ending, tmp_path):
    return request.getfixturevalue(f"{request.param}_stage")


@pytest.fixture
def docker_stage(tmp_path, docker_environment, ending):
    docker_environment.lend(tmp_path)
    tmp_path.chmod(0o777)
    threads = threading.active_count()
    with FakeControlPlane(docker_environment.gateway) as plane:
        digest, image = docker_environment.digest, docker_environment.image
        stage = DockerStage(tmp_path, digest, plane, ending, image)
        before = stage.containers.images_and_networks()
        yield stage
    left, after = stage.containers.left(), stage.containers.images_and_networks()
    volumes = stage.containers.volumes()
    stage.containers.close()
    assert not left, "containers were left behind"
    assert after == before
    assert not volumes & volumes_noted(tmp_path), "volumes were left behind"
    assert threading.active_count() <= threads


@pytest.fixture
def process_stage(tmp_path, environment, ending):
    folder, digest = environment
    (tmp_path / "environments").symlink_to(folder)
    threads = threading.active_count()
    with FakeControlPlane() as plane:
        stage = Stage(tmp_path, digest, plane, ending)
        yield stage
    deadline = time.monotonic() + 60
    while (left := running_from(folder)) and time.monotonic() < deadline:
        reap()
        time.sleep(0.01)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left, "processes were left behind"
    cgroups = stage.runner._cgroups.parents if stage.runner else ()
    assert not any(map(os.path.exists, cgroups)), "cgroups were left behind"
    while threading.active_count() > threads and time.monotonic() < deadline:
        time.sleep(0.01)  # the plane's, of connections whose workers were killed
    assert threading.active_count() <= threads


def running_from(environments):
    """Every living process that was started from these environments, or by what was."""
    sign = os.fsencode(environments)
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and is_living(int(entry.name)):
            with suppress(OSError):
                seen = (entry / "cmdline").read_bytes() + (entry / "environ").read_bytes()
                if sign in seen:
                    found.add(int(entry.name))
    return found


def reap():
    """Starters that outlive their runner are children of this process."""
    with suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def test_a_worker_runs_and_its_end_is_told(stage):
    async def main():
        async with stage.opened():
            launch = await stage.start("add", 1, 2)
            end = await stage.ends.of(launch.worker_id)
            assert (end.exit_code, end.signal, end.detail) == (0, None, "")
            assert stage.plane.record(launch.worker_id).end.outcome == "succeeded"
            assert not await stage.runner.alive(launch.worker_id)
            await until(lambda: not stage.left())

    asyncio.run(main())


def test_a_worker_sees_its_bundle_and_none_of_the_servers_secrets(stage, monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")

    async def main():
        async with stage.opened():
            launch = await stage.start("look")
            await stage.ends.of(launch.worker_id)
            result = stage.plane.record(launch.worker_id).end.result
            assert "here" in result
            assert stage.work_dir(launch) in result
            assert "AWS_SECRET" not in result

    asyncio.run(main())


def test_logs_are_complete_and_in_order_with_times(stage):
    async def main():
        async with stage.opened():
            launch = await stage.start("talk", 2_000)
            ended = asyncio.Event()
            following = asyncio.ensure_future(stage.logs(launch, ended=ended))
            await stage.ends.of(launch.worker_id)
            ended.set()
            followed, records = await following, await stage.logs(launch)
            assert followed == records
            for stream, sign in (("stdout", 1), ("stderr", -1)):
                text = "".join(item.text for item in records if item.stream == stream)
                assert text.split() == [str(sign * number) for number in range(2_000)]
            assert [item.at for item in records] == sorted(item.at for item in records)
            assert {item.attempt for item in records} == {2}
            await stage.runner.remove_logs([launch.execution_id])
            assert await stage.logs(launch) == []

    asyncio.run(main())


def test_a_line_is_seen_soon(stage, tmp_path):
    async def main():
        async with stage.opened():
            launch = await stage.start("talk", 3)
            first = await anext(
                aiter(stage.runner.logs(launch.execution_id, 1, ended=asyncio.Event()))
            )
            at = datetime.fromisoformat(first.at).timestamp()
            assert time.time() - at < stage.line_within_s
            await stage.ends.of(launch.worker_id)

    asyncio.run(main())


def test_a_function_that_exits_is_told_as_the_workers_ordinary_end(stage):
    async def main():
        async with stage.opened():
            launch = await stage.start("leave", 3)
            assert (await stage.ends.of(launch.worker_id)).exit_code == 0
            end = stage.plane.record(launch.worker_id).end
            assert (end.outcome, end.exit_code) == ("lost", 3)

    asyncio.run(main())


def test_stop_with_grace_lets_the_function_end(stage, tmp_path):
    async def main():
        async with stage.opened():
            marker = tmp_path / "marker"
            launch = await stage.start_and_wait_for(marker, "sleep", str(marker))
            assert await stage.runner.alive(launch.worker_id)
            asked_at = time.monotonic()
            await stage.runner.stop(launch.worker_id, 30.0)
            assert (await stage.ends.of(launch.worker_id)).exit_code == 0
            assert stage.ends.at[launch.worker_id] - asked_at < 20
            assert stage.plane.record(launch.worker_id).end.outcome == "lost"

    asyncio.run(main())


def test_stop_kills_what_outlasts_the_grace(stage, tmp_path):
    async def main():
        async with stage.opened():
            marker = tmp_path / "marker"
            launch = await stage.start_and_wait_for(marker, "stubborn", str(marker))
            asked_at = time.monotonic()
            await stage.runner.stop(launch.worker_id, 0.5)
            end = await stage.ends.of(launch.worker_id)
            assert end.signal == signal.SIGKILL
            least_s, most_s = stage.killed_within_s
            assert least_s < stage.ends.at[launch.worker_id] - asked_at < most_s

    asyncio.run(main())


def test_stop_without_grace_kills_at_once_and_all_of_it(stage, tmp_path):
    async def main():
        async with stage.opened():
            marker = tmp_path / "marker"
            launch = await stage.start_and_wait_for(marker, "spawn", str(marker))
            grandchild = stage.pid(launch, marker)
            asked_at = time.monotonic()
            await stage.runner.stop(launch.worker_id, 0.0)
            end = await stage.ends.of(launch.worker_id)
            assert end.signal == (signal.SIGKILL if stage.kills_at_once else None)
            assert not is_living(grandchild)
            assert stage.ends.at[launch.worker_id] - asked_at < stage.noticed_within_s

    asyncio.run(main())


def test_stop_of_an_unknown_or_gone_worker_is_no_error(stage):
    async def main():
        async with stage.opened():
            await stage.runner.stop("wrk-unknown", 1.0)
            launch = await stage.start("add", 1, 2)
            await stage.ends.of(launch.worker_id)
            await stage.runner.stop(launch.worker_id, 0.0)
            assert not await stage.runner.alive("wrk-unknown")

    asyncio.run(main())


def test_a_killed_worker_is_noticed_soon_and_nothing_of_it_is_left(stage, tmp_path):
    async def main():
        async with stage.opened():
            marker = tmp_path / "marker"
            launch = await stage.start_and_wait_for(marker, "spawn", str(marker))
            grandchild = stage.pid(launch, marker)
            killed_at = time.monotonic()
            os.kill(stage.supervisor(launch)["pid"], signal.SIGKILL)
            end = await stage.ends.of(launch.worker_id)
            assert (end.signal, end.exit_code) == (signal.SIGKILL, None)
            assert "killed by signal 9" in end.detail
            assert stage.ends.at[launch.worker_id] - killed_at < stage.noticed_within_s
            assert not is_living(grandchild)

    asyncio.run(main())


def test_workers_outlive_the_runner_and_are_adopted(stage, tmp_path):
    async def main():
        marker = tmp_path / "marker"
        async with stage.opened():
            launch = await stage.start_and_wait_for(marker, "spawn", str(marker))
            grandchild = stage.pid(launch, marker)
        async with stage.opened(launch.worker_id, "wrk-unknown"):
            assert stage.adopted == {launch.worker_id}
            assert await stage.runner.alive(launch.worker_id)
            killed_at = time.monotonic()
            os.kill(stage.supervisor(launch)["pid"], signal.SIGKILL)
            end = await stage.ends.of(launch.worker_id)
            assert (end.signal, end.detail) == (9, "its supervisor was killed by signal 9")
            assert stage.ends.at[launch.worker_id] - killed_at < stage.noticed_within_s
            assert not is_living(grandchild)

    asyncio.run(main())


def test_an_adopted_worker_can_be_stopped_with_grace(stage, tmp_path):
    async def main():
        marker = tmp_path / "marker"
        async with stage.opened():
            launch = await stage.start_and_wait_for(marker, "sleep", str(marker))
        async with stage.opened(launch.worker_id):
            await stage.runner.stop(launch.worker_id, 30.0)
            end = await stage.ends.of(launch.worker_id)
            assert (end.exit_code, end.signal, end.detail) == (0, None, "")
            assert stage.plane.record(launch.worker_id).end.outcome == "lost"

    asyncio.run(main())


@endings.ONLY_ITS_OWN
def test_workers_that_are_not_known_any_more_are_killed(stage, tmp_path):
    async def main():
        marker = tmp_path / "marker"
        async with stage.opened():
            launch = await stage.start_and_wait_for(marker, "spawn", str(marker))
            supervisor, grandchild = stage.supervisor(launch)["pid"], stage.pid(launch, marker)
        async with stage.opened():
            assert stage.adopted == set()
            await until(lambda: not is_living(supervisor))
            await until(lambda: not is_living(grandchild))
            await until(lambda: not stage.left())
            assert stage.ends.ends == {}

    asyncio.run(main())


@endings.ONLY_ITS_OWN
def test_a_worker_that_ended_while_no_runner_was_there_is_not_adopted(stage, tmp_path):
    async def main():
        marker = tmp_path / "marker"
        async with stage.opened():
            launch = await stage.start_and_wait_for(marker, "sleep", str(marker))
            supervisor = stage.supervisor(launch)["pid"]
        os.kill(supervisor, signal.SIGKILL)
        await until(lambda: stage.has_ended(launch))
        async with stage.opened(launch.worker_id):
            end = stage.past_ends[launch.worker_id]
            assert (end.signal, end.detail) == (9, "its supervisor was killed by signal 9")
            assert not await stage.runner.alive(launch.worker_id)
            assert not stage.left()

    asyncio.run(main())


@ONLY_PROCESS
def test_workers_outlive_a_killed_starter_and_their_ends_are_told(stage, tmp_path):
    async def main():
        async with stage.opened():
            marker = tmp_path / "marker"
            launch = await stage.start_and_wait_for(marker, "sleep", str(marker))
            os.kill(stage.supervisor(launch)["starter_pid"], signal.SIGKILL)
            try:
                other = await stage.start("add", 1, 2)
            except WorkerNotMadeError:  # its death was not noticed yet; the scheduler tries again
                other = await stage.start("add", 1, 2)
            await stage.ends.of(other.worker_id)
            assert await stage.runner.alive(launch.worker_id)
            assert launch.worker_id not in stage.ends.ends
            await stage.runner.stop(launch.worker_id, 0.0)
            await stage.ends.of(launch.worker_id)

    asyncio.run(main())


@ONLY_PROCESS
def test_a_worker_of_a_killed_starter_is_adopted(stage, tmp_path):
    async def main():
        marker = tmp_path / "marker"
        async with stage.opened():
            launch = await stage.start_and_wait_for(marker, "sleep", str(marker))
            os.kill(stage.supervisor(launch)["starter_pid"], signal.SIGKILL)
        async with stage.opened(launch.worker_id):
            assert stage.adopted == {launch.worker_id}
            await stage.runner.stop(launch.worker_id, 0.0)
            await stage.ends.of(launch.worker_id)

    asyncio.run(main())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing tells of them")
@ONLY_PROCESS
def test_nothing_is_left_where_starter_and_supervisor_are_killed(stage, tmp_path):
    async def main():
        async with stage.opened():
            marker, other_marker = tmp_path / "marker", tmp_path / "other"
            launch = await stage.start_and_wait_for(marker, "scatter", str(marker))
            other = await stage.start_and_wait_for(other_marker, "spawn", str(other_marker))
            kill_both(stage.supervisor(launch))
            end = await stage.ends.of(launch.worker_id)
            assert "so was the starter" in end.detail
            assert not any(map(is_living, findable(stage, marker)))
            assert await stage.runner.alive(other.worker_id)
            assert is_living(int(other_marker.read_text()))
            await stage.runner.stop(other.worker_id, 0.0)
            await stage.ends.of(other.worker_id)
            assert not is_living(int(other_marker.read_text()))

    asyncio.run(main())


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nothing tells of them")
@ONLY_PROCESS
@endings.ONLY_ITS_OWN
def test_what_was_left_while_no_runner_was_there_is_killed_at_the_next_start(stage, tmp_path):
    async def main():
        marker = tmp_path / "marker"
        async with stage.opened():
            launch = await stage.start_and_wait_for(marker, "scatter", str(marker))
        kill_both(stage.supervisor(launch))
        file = stage.data_dir / "workers" / f"{launch.worker_id}.json"
        await until(lambda: not is_held(file))
        assert all(map(is_living, findable(stage, marker)))
        async with stage.opened(launch.worker_id):
            assert stage.adopted == set()
            assert not any(map(is_living, findable(stage, marker)))

    asyncio.run(main())


def kill_both(supervisor):
    for name in ("starter_pid", "pid"):
        os.kill(supervisor[name], signal.SIGKILL)


def findable(stage, marker):
    """The processes that ``scatter`` left; not that without an environment where no cgroup holds it, which is killed here."""
    named, nameless, forked = map(int, marker.read_text().split())
    if stage.runner.enforces:
        return [named, nameless, forked]
    with suppress(ProcessLookupError):
        os.kill(nameless, signal.SIGKILL)
    return [named, forked]


def test_an_adopted_worker_that_ended_by_itself_has_an_ordinary_end(stage, tmp_path):
    async def main():
        marker = tmp_path / "marker"
        async with stage.opened():
            launch = await stage.start_and_wait_for(marker, "sleep", str(marker))
        async with stage.opened(launch.worker_id):
            os.kill(stage.supervisor(launch)["pid"], signal.SIGTERM)
            end = await stage.ends.of(launch.worker_id)
            assert (end.exit_code, end.signal, end.detail) == (0, None, "")

    asyncio.run(main())


def needs(stage, limit):
    """Skips where the machine does not let this limit be set; with CI=true that is a failure where it plainly would."""
    if limit not in stage.runner.enforces:
        reason = f"{limit} is not enforced here: {stage.runner.unenforced_reason}"
        assert not (os.environ.get("CI") == "true" and is_cgroup_handed_over()), reason
        pytest.skip(reason)


def is_cgroup_handed_over():
    """Whether this is a container's root with the whole tree of cgroups (version 2) to itself."""
    top = Path("/sys/fs/cgroup")
    return (
        os.geteuid() == 0
        and not Path("/run/systemd/system").exists()
        and (top / "cgroup.controllers").exists()
        and os.access(top / "cgroup.procs", os.W_OK)
        and (top / "cgroup.subtree_control").read_text().count("memory") > 0
    )


def test_memory_over_its_limit_is_told_as_such(stage):
    async def main():
        async with stage.opened():
            needs(stage, "memory")
            limit = stage.least_memory_mib
            launch = await stage.start("fill", 3 * limit, memory_mib=limit)
            assert (await stage.ends.of(launch.worker_id)).exit_code == 0
            end = stage.plane.record(launch.worker_id).end
            assert end.error.message == f"killed: out of memory at its limit of {limit} MiB"
            assert (end.outcome, end.signal) == ("lost", signal.SIGKILL)
            assert 0.93 * limit < end.peak_memory_bytes / 2**20 <= limit + 1

    asyncio.run(main())


def test_memory_within_its_limit_is_had(stage):
    async def main():
        async with stage.opened():
            needs(stage, "memory")
            limit = stage.least_memory_mib
            launch = await stage.start("fill", limit - 24, memory_mib=limit)
            await stage.ends.of(launch.worker_id)
            assert stage.plane.record(launch.worker_id).end.result == str(limit - 24)

    asyncio.run(main())


@pytest.mark.parametrize("fresh", [False, True])
def test_a_busy_loop_gets_the_cpu_that_it_was_given(stage, fresh):
    async def main():
        async with stage.opened():
            needs(stage, "cpu")
            launch = await stage.start("spin", 1.0, cpu=stage.least_cpu, fresh_interpreter=fresh)
            await stage.ends.of(launch.worker_id)
            used_s = float(stage.plane.record(launch.worker_id).end.result)
            assert 0 < used_s < 2 * stage.least_cpu

    asyncio.run(main())


@ONLY_PROCESS
def test_a_worker_that_is_out_of_cpu_hears_its_supervisor_all_the_same(stage, tmp_path):
    async def main():
        async with stage.opened():
            needs(stage, "cpu")
            marker = tmp_path / "marker"
            launch = await stage.start_and_wait_for(marker, "spawn", str(marker), cpu=0.1)
            supervisor = stage.supervisor(launch)
            inside = [
                int(pid)
                for folder in supervisor["cgroups"]
                for pid in Path(folder, "cgroup.procs").read_text().split()
            ]
            assert int(marker.read_text()) in inside
            assert supervisor["pid"] not in inside
            await stage.runner.stop(launch.worker_id, 0.0)
            await stage.ends.of(launch.worker_id)
            await until(lambda: not any(map(os.path.exists, supervisor["cgroups"])))

    asyncio.run(main())


@ONLY_PROCESS
def test_an_adopted_worker_keeps_its_limits_and_no_cgroup_is_left(stage, tmp_path):
    async def main():
        marker = tmp_path / "marker"
        async with stage.opened():
            needs(stage, "memory")
            launch = await stage.start_and_wait_for(marker, "sleep", str(marker))
            folders = stage.supervisor(launch)["cgroups"]
        async with stage.opened(launch.worker_id):
            assert all(map(os.path.exists, folders))
            await stage.runner.stop(launch.worker_id, 30.0)
            await stage.ends.of(launch.worker_id)
            await until(lambda: not any(map(os.path.exists, folders)))
        assert not any(Path(folder).parent.exists() for folder in folders)

    asyncio.run(main())


def test_many_at_once_all_run_and_all_end(stage):
    async def main():
        async with stage.opened():
            await stage.put_bundle()
            launches = [stage.launch("add", number, 1) for number in range(12)]
            await asyncio.gather(*(stage.runner.start(launch) for launch in launches))
            for launch in launches:
                assert (await stage.ends.of(launch.worker_id)).exit_code == 0
            outcomes = {stage.plane.record(item.worker_id).end.outcome for item in launches}
            assert outcomes == {"succeeded"}

    asyncio.run(main())


@endings.ONLY_ITS_OWN
@pytest.mark.parametrize("missing", ["environment_digest", "bundle_digest"])
def test_what_is_not_here_is_a_worker_that_is_not_made(stage, missing):
    async def main():
        async with stage.opened():
            with pytest.raises(WorkerNotMadeError, match="is not here"):
                await stage.start("add", 1, 2, **{missing: "0" * 64})
            assert stage.ends.ends == {}

    asyncio.run(main())


@ONLY_PROCESS
@endings.ONLY_ITS_OWN
@pytest.mark.parametrize("python", ["#!/bin/sh\necho it is broken >&2; exit 1\n", None])
def test_a_broken_environment_is_a_worker_that_is_not_made(stage, tmp_path, python):
    broken = "b" * 64
    (tmp_path / "environments").unlink()
    path = tmp_path / "environments" / broken / "g1" / "venv" / "bin" / "python"
    path.parent.mkdir(parents=True)
    (tmp_path / "environments" / broken / "current").symlink_to("g1")
    if python is not None:
        path.write_text(python)
        path.chmod(0o755)

    async def main():
        async with stage.opened():
            said = "it is broken" if python else "No such file"
            with pytest.raises(WorkerNotMadeError, match=said):
                await stage.start("add", 1, 2, environment_digest=broken)
            assert stage.ends.ends == {}

    asyncio.run(main())


@ONLY_DOCKER
def test_a_container_is_confined_and_shows_no_secret(stage):
    async def main():
        async with stage.opened():
            env = (("PYTHONHASHSEED", "4711"),)
            launch = await stage.start("confined", fresh_interpreter=True, interpreter_env=env)
            shown = json.dumps(stage.containers.inspect(launch.worker_id))
            assert "4711" not in shown
            assert launch.claim_code not in shown
            await stage.ends.of(launch.worker_id)
            writable, seed, home = json.loads(stage.plane.record(launch.worker_id).end.result)[
                "py/tuple"
            ]
            assert writable == ["/tmp", "/work", "."]
            assert seed == "4711"
            assert ".launch" not in home

    asyncio.run(main())


def test_a_signal_in_the_first_instant_is_not_lost(stage):
    async def main():
        async def start_and_stop(launch):
            await stage.runner.start(launch)
            await stage.runner.stop(launch.worker_id, 60.0)

        async with stage.opened():
            await stage.put_bundle()
            launches = [stage.launch("sleep") for _ in range(16)]
            await asyncio.gather(*map(start_and_stop, launches))
            for launch in launches:
                assert (await stage.ends.of(launch.worker_id)).signal != signal.SIGKILL

    asyncio.run(main())


@ONLY_DOCKER
def test_ends_are_told_after_the_engines_events_broke_off(stage, tmp_path):
    async def main():
        async with stage.opened():
            marker = tmp_path / "marker"
            launch = await stage.start_and_wait_for(marker, "sleep", str(marker))
            stage.runner._workers[launch.worker_id].copy.stop()  # it would tell, too
            stage.runner._deaths.interrupt()
            os.kill(stage.supervisor(launch)["pid"], signal.SIGKILL)
            assert (await stage.ends.of(launch.worker_id)).signal == signal.SIGKILL

    asyncio.run(main())


@ONLY_DOCKER
def test_a_container_that_somebody_removes_is_a_worker_that_is_gone(stage, tmp_path):
    async def main():
        async with stage.opened():
            marker = tmp_path / "marker"
            launch = await stage.start_and_wait_for(marker, "sleep", str(marker))
            stage.containers.remove(launch.worker_id)
            end = await stage.ends.of(launch.worker_id)
            assert end.signal == signal.SIGKILL or end.detail == "its container was removed"

    asyncio.run(main())


@ONLY_DOCKER
@endings.ONLY_ITS_OWN
def test_containers_that_nobody_wants_are_swept_and_those_of_users_are_not(stage, tmp_path):
    async def main():
        async with stage.opened():
            marker = tmp_path / "marker"
            launch = await stage.start_and_wait_for(marker, "sleep", str(marker))
            stage.containers.run_by_hand("by-hand-" + launch.worker_id, stage.image)
            worker = stage.runner._workers.pop(launch.worker_id)
            await stage.runner._compare()
            assert stage.left() == []
            assert stage.containers.removes_by_hand("by-hand-" + launch.worker_id)
            worker.copy.stop()

    asyncio.run(main())


@ONLY_DOCKER
def test_output_is_whole_after_the_control_plane_was_away(stage, tmp_path):
    async def main():
        marker = tmp_path / "marker"
        async with stage.opened():
            launch = await stage.start_and_wait_for(marker, "count", 60, str(marker))
        async with stage.opened(launch.worker_id):
            assert stage.adopted == {launch.worker_id}
            await stage.ends.of(launch.worker_id)
            text = "".join(item.text for item in await stage.logs(launch))
            assert text.split() == [str(number) for number in range(60)]

    asyncio.run(main())


@ONLY_DOCKER
@endings.ONLY_ITS_OWN
def test_out_of_memory_while_the_control_plane_was_away_is_told_with_its_limit(stage, tmp_path):
    """Elsewhere the supervisor, which is outside of the limit, lives to tell it."""

    async def main():
        marker = tmp_path / "marker"
        async with stage.opened():
            launch = await stage.start_and_wait_for(
                marker, "fill_later", 200, str(marker), memory_mib=64
            )
        stage.plane.go_away()
        function = stage.pid(launch, marker)
        marker.with_name("go").touch()
        await until(lambda: not is_living(function))
        stage.kill(launch.worker_id)
        await until(lambda: stage.has_ended(launch))
        stage.plane.come_back()
        async with stage.opened(launch.worker_id):
            end = stage.past_ends[launch.worker_id]
            assert end.out_of_memory
            assert "killed: out of memory at its limit of 64 MiB" in end.detail

    asyncio.run(main())


@ONLY_DOCKER
@endings.ONLY_ITS_OWN
def test_what_ended_while_the_control_plane_was_away_has_its_output_all_the_same(stage, tmp_path):
    async def main():
        marker = tmp_path / "marker"
        async with stage.opened():
            launch = await stage.start_and_wait_for(marker, "count", 20, str(marker))
        await until(lambda: stage.has_ended(launch))
        async with stage.opened(launch.worker_id):
            assert stage.adopted == set()
            text = "".join(item.text for item in await stage.logs(launch))
            assert text.split() == [str(number) for number in range(20)]
            assert stage.left() == []

    asyncio.run(main())


@ONLY_DOCKER
def test_an_adopted_container_has_the_cpu_of_its_function(stage, tmp_path):
    async def main():
        def quota():
            return stage.containers.inspect(launch.worker_id)["HostConfig"]["CpuQuota"]

        marker = tmp_path / "marker"
        async with stage.opened():
            stage.plane.on_exchange = lambda _: None  # it died before it could
            launch = await stage.start_and_wait_for(marker, "sleep", str(marker))
            assert quota() == 100_000
        async with stage.opened(launch.worker_id):
            await until(lambda: quota() == 10_000)
            await stage.runner.stop(launch.worker_id, 0.0)
            await stage.ends.of(launch.worker_id)

    asyncio.run(main())
