"""The life of a task: secrets, its log stream, its image, and a container of the Docker engine, until that has ended."""

from __future__ import annotations

import queue
import threading
import time
from contextlib import suppress
from datetime import datetime
from typing import Any, Callable

import docker
import docker.errors
from tests.aws.calls import AwsError, Moto
from tests.aws.fargate import Task

LABEL = "multinode.stand-in"
SIGNAL_AGAIN_S = 1.0
"""A signal in the first milliseconds of a container, before its init has handlers, is dropped by the kernel."""
MAX_EVENTS, MAX_BYTES = 1000, 900_000


class NotStarted(Exception):
    """Why a task does not start, as AWS says it."""


class Lives:
    """Gives tasks their lives on an engine."""

    def __init__(
        self, moto: Moto, mark: str, registry: str, login: Callable[[], dict[str, str]]
    ) -> None:
        self._moto = moto
        self._registry = registry
        self._mark = mark
        self._login = login
        self.engine = docker.APIClient(
            **docker.utils.kwargs_from_env(), version="auto", timeout=600, num_pools=100
        )
        self._cores = int(self.engine.info()["NCPU"])
        self.cold_start_s = 0.0
        self.log_delay_s = 0.1
        self.deprovision_s = 0.0
        self.shared_folder = ""

    def live(self, task: Task) -> None:
        """All of it. Blocks until the task has stopped."""
        name = f"fargate-{task.task_id}"
        try:
            self._start(task, name)
            if task.status == "RUNNING":
                self._run(task, name)
        except NotStarted as error:
            task.stop("TaskFailedToStart", str(error))
        except Exception as error:
            task.stop("TaskFailedToStart", f"ServerException: {type(error).__name__}: {error}")
        finally:
            with suppress(docker.errors.APIError):
                self.engine.remove_container(name, force=True, v=True)
            task.desired = "STOPPED"
            task.container["lastStatus"] = "STOPPED"
            task.times["executionStoppedAt"] = time.time()
            task.status = "DEPROVISIONING"
            time.sleep(self.deprovision_s)
            task.times["stoppedAt"] = time.time()
            task.status = "STOPPED"

    def clear(self) -> None:
        """Removes all containers, and all images that are of the registry."""
        label = {"label": f"{LABEL}={self._mark}"}
        for container in self.engine.containers(all=True, filters=label):
            with suppress(docker.errors.APIError):
                self.engine.remove_container(container["Id"], force=True, v=True)

        for image in self.engine.images():
            for name in (*(image["RepoTags"] or ()), *(image["RepoDigests"] or ())):
                if name.startswith(f"{self._registry}/"):
                    with suppress(docker.errors.APIError):
                        self.engine.remove_image(name, force=True)

    # --- coming up -------------------------------------------------------------------------------------

    def _start(self, task: Task, name: str) -> None:
        orders, container = task.orders, task.definition["containerDefinitions"][0]
        task.stopping.wait(orders.get("cold_start_s", self.cold_start_s))
        if orders.get("stopped_reason"):
            raise NotStarted(orders["stopped_reason"])
        task.status = "PENDING"
        environment = self._environment(task, container)
        self._open_log(task, container)
        self._pull(container["image"])
        self._create(task, container, environment, name)
        if task.stopping.is_set():
            return
        self.engine.start(name)
        task.container["lastStatus"] = "RUNNING"
        task.times["startedAt"] = time.time()
        task.status = "RUNNING"

    def _environment(self, task: Task, container: dict[str, Any]) -> list[str]:
        given = list(container.get("environment", []))
        for override in task.asked.get("overrides", {}).get("containerOverrides", []):
            given += override.get("environment", [])
        found = {item["name"]: item["value"] for item in given}
        for secret in container.get("secrets", []):
            found[secret["name"]] = self._secret(secret["valueFrom"])
        found["AWS_EXECUTION_ENV"] = "AWS_ECS_FARGATE"
        return [f"{name}={value}" for name, value in found.items()]

    def _secret(self, source: str) -> str:
        try:
            asked = {"SecretId": ":".join(source.split(":")[:7])}
            return str(self._moto.ask("secretsmanager", "GetSecretValue", asked)["SecretString"])
        except AwsError as error:
            message = f"ResourceInitializationError: unable to pull secrets or registry auth: {error.message}"
            raise NotStarted(message) from error

    def _open_log(self, task: Task, container: dict[str, Any]) -> None:
        try:
            self._moto.ask("logs", "CreateLogStream", _stream_of(task, container))
        except AwsError as error:
            message = (
                f"ResourceInitializationError: failed to validate logger args: {error.message}"
            )
            raise NotStarted(message) from error

    def _pull(self, image: str) -> None:
        try:
            for event in self.engine.pull(
                image, stream=True, decode=True, auth_config=self._login()
            ):
                if "error" in event:
                    raise NotStarted(f"CannotPullContainerError: {event['error']}")
        except docker.errors.APIError as error:
            message = f"CannotPullContainerError: pull image manifest has been retried 1 time(s): {error.explanation}"
            raise NotStarted(message) from error

    def _create(
        self, task: Task, container: dict[str, Any], environment: list[str], name: str
    ) -> None:
        cpu, memory = int(task.definition["cpu"]), int(task.definition["memory"])
        linux = container.get("linuxParameters", {})
        memory_bytes = int(container.get("memory") or memory) << 20
        labels = {item["key"]: item["value"] for item in task.tags}
        self.engine.create_container_from_config(
            {
                "Image": container["image"],
                "Entrypoint": container.get("entryPoint"),
                "Cmd": container.get("command"),
                "Env": environment,
                "User": container.get("user", ""),
                "WorkingDir": container.get("workingDirectory", ""),
                "Labels": {**labels, LABEL: self._mark, "fargate.task": task.arn},
                "HostConfig": {
                    "NanoCpus": min(cpu * 10**9 // 1024, self._cores * 10**9),
                    "Memory": memory_bytes,
                    "MemorySwap": memory_bytes,
                    "CapDrop": linux.get("capabilities", {}).get("drop"),
                    "Init": bool(linux.get("initProcessEnabled")),
                    "ReadonlyRootfs": bool(container.get("readonlyRootFilesystem")),
                    "Binds": [f"{self.shared_folder}:{self.shared_folder}"]
                    if self.shared_folder
                    else [],
                },
            },
            name,
        )

    # --- running, ending -------------------------------------------------------------------------------

    def _run(self, task: Task, name: str) -> None:
        container = task.definition["containerDefinitions"][0]
        shipping = Shipping(self._moto, _stream_of(task, container), self.log_delay_s)
        shipping.start(self.engine.logs(name, stream=True, follow=True, timestamps=True))
        patience_s = container.get("stopTimeout", 30)
        stopper = threading.Thread(target=self._end, args=(task, name, patience_s), daemon=True)
        stopper.start()
        exit_code = self.engine.wait(name)["StatusCode"]
        shipping.finish()
        state = self.engine.inspect_container(name)["State"]
        if state["OOMKilled"] and exit_code == 137:
            task.container["reason"] = "OutOfMemoryError: Container killed due to memory usage"
        task.container["exitCode"] = exit_code
        task.container["lastStatus"] = "STOPPED"
        task.stop("EssentialContainerExited", "Essential container in task exited")

    def _end(self, task: Task, name: str, patience_s: float) -> None:
        """SIGTERM, and SIGKILL when its time is over."""
        task.stopping.wait()
        deadline = time.monotonic() + patience_s
        again_at = time.monotonic() + SIGNAL_AGAIN_S
        with suppress(docker.errors.APIError):
            self.engine.kill(name, "SIGTERM")
            while time.monotonic() < deadline:
                if not self.engine.inspect_container(name)["State"]["Running"]:
                    return
                if again_at and time.monotonic() > again_at:
                    again_at = 0.0
                    self.engine.kill(name, "SIGTERM")
                time.sleep(0.05)
            self.engine.kill(name, "SIGKILL")


class Shipping:
    """What a container writes, on its way to CloudWatch: in batches, each line (or 16 KiB of one) an event."""

    def __init__(self, moto: Moto, stream: dict[str, str], delay_s: float) -> None:
        self._moto, self._stream, self._delay_s = moto, stream, delay_s
        self._events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self._threads: list[threading.Thread] = []

    def start(self, output: Any) -> None:
        for act, arguments in ((self._read, (output,)), (self._ship, ())):
            thread = threading.Thread(target=act, args=arguments, daemon=True)
            thread.start()
            self._threads.append(thread)

    def finish(self) -> None:
        """Until all is in CloudWatch."""
        for thread in self._threads:
            thread.join(60)

    def _read(self, output: Any) -> None:
        try:
            for line in output:
                stamp, _, text = line.decode("utf-8", "replace").rstrip("\n").partition(" ")
                at = datetime.fromisoformat(stamp[:26] + "+00:00").timestamp()
                self._events.put({"timestamp": int(at * 1000), "message": text or " "})
        finally:
            self._events.put(None)

    def _ship(self) -> None:
        is_over = False
        while not is_over:
            batch = [self._events.get()]
            time.sleep(self._delay_s)
            size = 0
            while len(batch) < MAX_EVENTS and size < MAX_BYTES and batch[-1] is not None:
                try:
                    batch.append(self._events.get_nowait())
                except queue.Empty:
                    break
                size += len(batch[-1]["message"]) if batch[-1] else 0
            is_over = batch[-1] is None
            events = [event for event in batch if event is not None]
            if events:
                self._moto.ask("logs", "PutLogEvents", {**self._stream, "logEvents": events})


def _stream_of(task: Task, container: dict[str, Any]) -> dict[str, str]:
    options = container["logConfiguration"]["options"]
    prefix = options["awslogs-stream-prefix"]
    name = f"{prefix}/{container['name']}/{task.task_id}"
    return {"logGroupName": options["awslogs-group"], "logStreamName": name}
