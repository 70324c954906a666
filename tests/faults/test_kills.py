"""kill -9 of the control plane at 200 random moments under load loses nothing that a client was told.

The seed is printed; ``FAULTS_SEED`` has the same kills and calls made again (what falls together is the machine's affair).
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
from tests.faults.clients import Caller, history
from tests.faults.history import Call, problems
from tests.faults.installation import Installation, wait_until

KILLS = 200
RUNS = 4
"""Each with a control plane of its own, so that they can run side by side."""
CALLERS = 10
LONGEST_PAUSE_S = 0.2
"""Of a caller that has lost the control plane: so that there is always something under way."""
MOST_ENDS = 3
"""A control plane lives from when it listens until fewer invocations than so many have ended, and a moment more."""
MOMENT_S = 0.1
LONGEST_LIFE_S = 20.0
"""However few have."""
ALL_S = 400.0
"""In which there are enough kills and enough ends, however slow the machine is: else something does not go on."""


class Load:
    """One caller's script: it goes on, call by call, as ``rng`` says, until it is told to stop."""

    def __init__(self, installation: Installation, name: str, rng: random.Random) -> None:
        self.caller = Caller(installation)
        self._installation = installation
        self._name = name
        self._rng = rng
        self._number = 0
        self._begun: list[tuple[str, str]] = []

    def run(self, is_over: threading.Event) -> None:
        scripts: list[Callable[[str], None]] = [
            self._returns, self._returns_by_key, self._yields, self._flaky, self._sleeps,
            self._naps, self._alone,
        ]  # fmt: skip
        while not is_over.is_set():
            self._number += 1
            self._rng.choice(scripts)(f"{self._name}-{self._number}")
            if self._begun and self._rng.random() < 0.3:
                self.caller.look(*self._rng.choice(self._begun))
        for function, invocation_id in self._begun:
            self.caller.wait(function, invocation_id)
            self.caller.look(function, invocation_id)

    def _start(self, function: str, call: Call, *more: object, **options: object) -> str:
        invocation_id = self.caller.start(function, call, *more, **options)
        self._begun.append((function, invocation_id))
        if self._rng.random() < 0.5:
            self.caller.look(function, invocation_id)
        return invocation_id

    def _returns(self, label: str) -> None:
        self.caller.wait("returns", self._start("returns", Call(label, "SUCCEEDED", label)))

    def _returns_by_key(self, label: str) -> None:
        call = Call(label, "SUCCEEDED", label)
        first = self._start("returns", call, idempotency_key=label)
        again = self.caller.start("returns", call, idempotency_key=label)
        self.caller.wait("returns", again if self._rng.random() < 0.5 else first)

    def _yields(self, label: str) -> None:
        count = self._rng.randrange(1, 12)
        invocation_id = self._start("yields", Call(label, "SUCCEEDED", [label, count]), count)
        self.caller.follow("yields", invocation_id, self._rng.choice([2, 1000]))

    def _flaky(self, label: str) -> None:
        failures = self._rng.randrange(0, 4)
        call = Call(label, "SUCCEEDED", label, starts=(failures + 1, failures + 1))
        if failures == 3:
            call = Call(label, "FAILED", starts=(3, 3))
        self._start("flaky", call, failures)

    def _sleeps(self, label: str) -> None:
        invocation_id = self._start("sleeps", Call(label, "CANCELLED", starts=(0, 1)))
        threading.Event().wait(self._rng.choice([0.0, 0.2 * self._rng.random()]))
        self.caller.cancel("sleeps", invocation_id)
        self.caller.wait("sleeps", invocation_id)

    def _naps(self, label: str) -> None:
        call = Call(label, "SUCCEEDED", label)
        self.caller.wait("naps", self._start("naps", call, 0.3 * self._rng.random()))

    def _alone(self, label: str) -> None:
        self._start("alone", Call(label, "SUCCEEDED", label, is_alone=True))


class Loads:
    """All callers of an installation."""

    def __init__(self, installation: Installation, seed: str, rng: random.Random) -> None:
        self.rng = rng
        """For who kills."""
        self.all = [
            Load(installation, f"c{number}", random.Random(f"{seed}/{number}"))
            for number in range(CALLERS)
        ]
        self._until = time.monotonic() + ALL_S

    @property
    def ended(self) -> int:
        """Of how many invocations the callers know the end."""
        return sum(len(load.caller.ended) for load in self.all)

    def let_live(self) -> None:
        """Returns at a random moment, sooner or later as the machine is fast or slow."""
        enough = self.ended + self.rng.randrange(MOST_ENDS)
        until = time.monotonic() + LONGEST_LIFE_S
        while self.ended < enough and time.monotonic() < until:
            time.sleep(0.01)
        time.sleep(MOMENT_S * self.rng.random())

    def go_on(self, killed: int, kills: int) -> bool:
        """Whether there are to be more kills: there were not enough, or not enough has ended between them."""
        assert time.monotonic() < self._until, f"{killed} kills, {self.ended} ends: it is stuck"
        return killed < kills or self.ended < kills


def kill_again_and_again(installation: Installation, loads: Loads, kills: int) -> int:
    """Kills and restarts the control plane at least so many times; how often it was killed. It runs at the end."""
    killed = 0
    while loads.go_on(killed, kills):
        if loads.rng.random() < 0.1:  # while it comes up
            os.close(installation.begin_start())
            time.sleep(0.3 * loads.rng.random())
        else:
            installation.start()
            loads.let_live()
        installation.kill()
        killed += 1
    installation.start()
    return killed


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("run", range(RUNS))
def test_a_control_plane_that_is_killed_again_and_again_loses_nothing(
    installation, run, monkeypatch, record_summary
):
    monkeypatch.setattr("multinode.client.LONGEST_PAUSE_S", LONGEST_PAUSE_S)
    with under_load(installation, run) as loads:
        installation.kill()
        killed = 1 + kill_again_and_again(installation, loads, KILLS // RUNS - 1)
    assert killed >= KILLS // RUNS
    record_summary(f"kills of the control plane: {killed}, while {loads.ended} invocations ended")


@contextmanager
def under_load(installation: Installation, run: object) -> Iterator[Loads]:
    """Starts it and calls functions all the time; at the end, when all callers have theirs, looks whether all is as it should be."""
    seed = int(os.environ.get("FAULTS_SEED", random.randrange(2**32)))
    print(f"FAULTS_SEED={seed}")
    installation.start()
    loads = Loads(installation, f"{seed}/{run}", random.Random(f"{seed}/{run}"))
    is_over = threading.Event()
    with ThreadPoolExecutor(CALLERS) as pool:
        running = [pool.submit(load.run, is_over) for load in loads.all]
        try:
            yield loads
        finally:
            is_over.set()
        for each in running:
            each.result()
    check(installation, [load.caller for load in loads.all])


def check(installation: Installation, callers: list[Caller]) -> None:
    """All is over, and as it should be; then one more of each, and nothing is left."""
    wait_until(lambda: installation.server_info().workers == 0, "every worker is gone")
    assert problems(history(installation, callers)) == []
    assert installation.function("alone").call_remote("last") == "last"
    assert installation.function("returns").call_remote("last") == "last"
