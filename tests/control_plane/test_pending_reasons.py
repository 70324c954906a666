"""Why an invocation is pending: each reason, brought about, as the SDK, ``ps`` and ``describe`` show it."""

from __future__ import annotations

import json
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import pytest
from tests.control_plane.told_plane import Plane, ServedPlane, serving

from multinode import get_deployed_function
from multinode_cli.commands import run
from multinode_control_plane import decide
from multinode_control_plane.runners import NO_CAPACITY, PULLING, WorkerNotMadeError

STATES = Path(__file__).resolve().parents[2] / "docs" / "reference" / "states.md"


async def second_of_one(plane: Plane) -> str:
    await plane.deploy(max_concurrency=1)
    await plane.start()
    return await plane.start()


async def no_cpu_left(plane: Plane) -> str:
    await plane.deploy(cpu=3.0)
    await plane.deploy("other", code="b" * 64, cpu=2.0)
    await plane.start("other")
    return await plane.start()


async def no_memory_left(plane: Plane) -> str:
    await plane.deploy(memory_mib=3000)
    await plane.start()
    return await plane.start()


async def behind_an_older_one(plane: Plane) -> str:
    """There is room for it, but not for the one before it."""
    await plane.deploy("running", code="b" * 64, cpu=3.0)
    await plane.deploy("large", code="c" * 64, cpu=2.0)
    await plane.deploy(cpu=1.0)
    await plane.start("running")
    await plane.start("large")
    return await plane.start()


async def one_failed(plane: Plane) -> str:
    await plane.deploy(max_retries=1, retry_delay_s=60.0)
    invocation_id = await plane.start()
    await plane.end(await plane.claim(invocation_id), "failed")
    return invocation_id


async def later(plane: Plane) -> str:
    await plane.deploy()
    return await plane.start(delay_s=3600.0)


async def being_made(plane: Plane) -> str:
    plane.runner.may_start.clear()
    await plane.deploy()
    return await plane.start()


async def pulling(plane: Plane) -> str:
    return await noted(plane, PULLING)


async def throttled(plane: Plane) -> str:
    return await noted(plane, f"{NO_CAPACITY}AWS has had too many requests (Rate exceeded).")


async def noted(plane: Plane, note: str) -> str:
    """The runner says what the making waits for, before it has made it."""
    invocation_id = await being_made(plane)
    plane.runner.on_note((await plane.launch_of(invocation_id)).worker_id, note)

    async def is_said() -> bool:
        return (await plane.info(invocation_id)).pending_reason == note

    await plane.until(is_said)
    return invocation_id


async def no_longer_pulling(plane: Plane) -> str:
    invocation_id = await pulling(plane)
    plane.runner.on_note((await plane.launch_of(invocation_id)).worker_id, "")

    async def is_over() -> bool:
        return (await plane.info(invocation_id)).pending_reason != PULLING

    await plane.until(is_over)
    return invocation_id


async def made(plane: Plane) -> str:
    await plane.deploy()
    invocation_id = await plane.start()

    async def is_accepted() -> bool:
        return (await plane.info(invocation_id)).pending_reason != "starting a worker"

    await plane.until(is_accepted)
    return invocation_id


async def connected(plane: Plane) -> str:
    await plane.deploy()
    invocation_id = await plane.start()
    await plane.exchange(await plane.launch_of(invocation_id))
    return invocation_id


async def not_made(plane: Plane) -> str:
    plane.runner.start_error = WorkerNotMadeError("no space for its folder")
    await plane.deploy()
    invocation_id = await plane.start()
    await until_no_worker(plane)
    return invocation_id


async def no_capacity(plane: Plane) -> str:
    words = f"{NO_CAPACITY}Fargate has no capacity for it now (AWS: RESOURCE:ENI)"
    plane.runner.start_error = WorkerNotMadeError(words)
    await plane.deploy()
    invocation_id = await plane.start()
    await until_no_worker(plane)
    return invocation_id


async def lost_early(plane: Plane) -> str:
    invocation_id = await connected(plane)
    plane.runner.end((await plane.launched()).worker_id)
    await until_no_worker(plane)
    return invocation_id


async def until_no_worker(plane: Plane) -> None:
    async def is_free() -> bool:
        return await plane.workers() == 0

    await plane.until(is_free)


async def stopping(plane: Plane) -> str:
    plane.scheduler.draining = True
    await plane.deploy()
    return await plane.start()


@dataclass(frozen=True)
class Case:
    """``documented`` is the reason as the docs have it; ``said`` is what it is here, as a pattern."""

    arrange: Callable[[Plane], Awaitable[str]]
    documented: str
    said: str
    due_in_s: float | None = None
    """In how many seconds it is tried again; None where that is not known."""


CASES = [
    Case(second_of_one, "waiting for max_concurrency (10 of 10 in use)", r".*\(1 of 1 in use\)"),
    Case(no_cpu_left, "waiting for room on this machine", ".*"),
    Case(no_memory_left, "waiting for room on this machine", ".*"),
    Case(behind_an_older_one, "waiting for room on this machine", ".*"),
    Case(one_failed, "retry in 8 s", "retry in (60|5.) s", 60),
    Case(later, "delayed until 2026-01-31 12:00:00 UTC", ".*", 3600),
    Case(being_made, "starting a worker", ".*"),
    Case(pulling, "pulling image", ".*"),
    Case(no_longer_pulling, "starting a worker", ".*"),
    Case(
        throttled,
        "waiting for capacity: …",
        r"waiting for capacity: AWS has had too many requests \(Rate exceeded\)\.",
    ),
    Case(
        no_capacity,
        "waiting for capacity: …",
        r"waiting for capacity: Fargate has .*ENI\) \(next try in \d+ s\)",
        60,
    ),
    Case(made, "waiting for its worker to come up", ".*"),
    Case(connected, "importing main.py", ".*"),
    Case(
        not_made,
        "… (next try in 4 s)",
        r"worker could not be made: no space for its folder \(next try in \d+ s\)",
        60,
    ),
    Case(
        lost_early,
        "… (next try in 4 s)",
        r"worker could not be made: it ended before it was ready \(next try in \d+ s\)",
        60,
    ),
    Case(stopping, "waiting for the next start of the control plane, which is stopping", ".*"),
]


def documented() -> set[str]:
    table = STATES.read_text().partition("## Why it is pending")[2].partition("\n## ")[0]
    return set(re.findall(r"^\| `(.+?)` \|", table, re.MULTILINE))


def test_a_note_that_comes_late_changes_nothing(served: ServedPlane) -> None:
    async def look(plane: Plane) -> list[str | None]:
        await plane.deploy(max_retries=1, retry_delay_s=60.0)
        invocation_id = await plane.start()
        claimed = await plane.claim(invocation_id)
        worker_id = claimed[1].worker_id
        plane.runner.on_note(worker_id, PULLING)
        await plane.end(claimed, "failed")
        plane.runner.on_note(worker_id, PULLING)
        await plane.store.write(lambda tx: None)
        return [(await plane.info(invocation_id)).pending_reason]

    (reason,) = served.do(look(served.plane))
    assert reason is not None
    assert reason.startswith("retry in")


def test_every_documented_reason_has_a_case() -> None:
    assert {case.documented for case in CASES} == documented()


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ServedPlane]:
    with serving(tmp_path) as made:
        yield made


class Shown:
    """What a user sees of an invocation's reason, in each place where it stands."""

    def __init__(self, served: ServedPlane, capsys: Any, monkeypatch: Any) -> None:
        self._capsys = capsys
        monkeypatch.setenv("MULTINODE_API_URL", served.url)
        monkeypatch.setenv("MULTINODE_API_KEY", served.key("admin"))

    def command(self, *argv: str) -> str:
        assert run(list(argv)) == 0
        return str(self._capsys.readouterr().out)

    def data(self, *argv: str) -> Any:
        return json.loads(self.command(*argv, "--json"))["data"]

    def reasons(self, invocation_id: str) -> list[str]:
        fn = get_deployed_function(project_name="shop", function_name="f")
        line = next(x for x in self.command("ps").splitlines() if invocation_id in x)
        title = self.command("describe", invocation_id).splitlines()[0]
        listed = [x for x in self.data("ps") if x["invocation_id"] == invocation_id]
        return [
            str(fn.get(invocation_id).pending_reason),
            str(listed[0]["pending_reason"]),
            str(self.data("describe", invocation_id)["pending_reason"]),
            re.split(r" {2,}", line.strip())[-1],
            title.partition("PENDING (")[2].rpartition(")")[0],
        ]

    def times(self, invocation_id: str) -> list[datetime | None]:
        """When it is tried again, in each place where that stands."""
        fn = get_deployed_function(project_name="shop", function_name="f")
        lines = self.command("describe", invocation_id).splitlines()
        told = [x.partition("next try")[2].strip() for x in lines if x.startswith("  next try")]
        listed = [x for x in self.data("ps") if x["invocation_id"] == invocation_id]
        texts = [
            told[0] if told else None,
            listed[0]["next_try_at"],
            self.data("describe", invocation_id)["next_try_at"],
        ]
        found = [datetime.fromisoformat(text) if text else None for text in texts]
        return [fn.get(invocation_id).next_try_at, *found]


@pytest.fixture
def shown(served: ServedPlane, capsys: Any, monkeypatch: Any) -> Shown:
    return Shown(served, capsys, monkeypatch)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.arrange.__name__)
def test_a_reason_is_shown_everywhere(
    served: ServedPlane, shown: Shown, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        decide, "NOT_MADE_FIRST_DELAY_S", 60.0
    )  # so that it still waits when it is looked at
    invocation_id = served.do(case.arrange(served.plane))
    as_documented = re.sub(r"\d+", r"\\d+", re.escape(case.documented)).replace("…", ".+")
    for reason in shown.reasons(invocation_id):
        assert re.fullmatch(as_documented, reason)
        assert re.fullmatch(case.said, reason)
    (due_at,) = set(shown.times(invocation_id))  # the same everywhere
    if case.due_in_s is None:
        assert due_at is None
    else:
        assert due_at is not None
        in_s = (due_at - datetime.now(timezone.utc)).total_seconds()
        assert case.due_in_s * 0.75 - 10 < in_s < case.due_in_s * 1.25


def test_nothing_is_said_of_what_runs_or_has_ended(served: ServedPlane) -> None:
    async def look(plane: Plane) -> list[str | None]:
        await plane.deploy()
        invocation_id = await plane.start()
        claimed = await plane.claim(invocation_id)
        running = await plane.info(invocation_id)
        await plane.end(claimed, "succeeded")
        ended = await plane.info(invocation_id)
        assert (running.status, ended.status) == ("RUNNING", "SUCCEEDED")
        return [running.pending_reason, ended.pending_reason]

    assert served.do(look(served.plane)) == [None, None]


def test_what_a_running_function_has_started_goes_ahead_of_who_waits_for_room(
    served: ServedPlane,
) -> None:
    async def look(plane: Plane) -> list[str | None]:
        await plane.deploy("large", code="b" * 64, cpu=3.0)
        await plane.deploy(cpu=1.5)
        parent = await plane.start()
        await plane.claim(parent)
        older = await plane.start("large")
        child, orphan = await plane.start(parent_id=parent), await plane.start()
        await plane.exchange(await plane.launch_of(child))
        return [(await plane.info(one)).pending_reason for one in (older, child, orphan)]

    room = "waiting for room on this machine"
    assert served.do(look(served.plane)) == [room, "importing main.py", room]


def test_what_a_running_function_has_started_is_not_held_back_by_a_stop(
    served: ServedPlane,
) -> None:
    async def look(plane: Plane) -> list[str | None]:
        await plane.deploy(max_concurrency=2)
        parent = await plane.start()
        await plane.claim(parent)
        plane.scheduler.draining = True
        children = [await plane.start(parent_id=parent) for _ in range(2)]
        await plane.launch_of(children[0])
        return [(await plane.info(child)).pending_reason for child in children[1:]]

    assert served.do(look(served.plane)) == ["waiting for max_concurrency (2 of 2 in use)"]
