"""Callers that start, follow, cancel and await invocations all the time, as random numbers say, while something is done to what serves them."""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from tests.faults.clients import Caller, history
from tests.faults.history import Call, problems
from tests.faults.installation import Installation, wait_until

CALLERS = 10
LONGEST_PAUSE_S = 0.2
"""Of a caller that has lost the control plane: so that there is always something under way."""
MOST_ENDS = 3
"""A control plane lives from when it listens until fewer invocations than so many have ended, and a moment more."""
MOMENT_S = 0.1
LONGEST_LIFE_S = 20.0
"""However few have."""
ALL_S = 400.0
"""In which there are enough faults and enough ends, however slow the machine is: else something does not go on."""
WIND_DOWN_S = 60.0
"""In which the last workers are gone, and all that was theirs."""


class Load:
    """One caller's script: it goes on, call by call, as ``rng`` says, until it is told to stop."""

    def __init__(self, installation: Installation, name: str, rng: random.Random) -> None:
        self.caller = Caller(installation, is_patient=True)
        self._installation = installation
        self._name = name
        self._rng = rng
        self._number = 0
        self._begun: list[tuple[str, str]] = []

    def run(self, is_over: threading.Event) -> None:
        scripts: list[Callable[[str], None]] = [
            self._returns, self._returns_by_key, self._yields, self._flaky, self._sleeps,
            self._naps, self._stubborn, self._alone, self._crowd, self._wide,
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
        self._start("alone", Call(label, "SUCCEEDED", label))

    def _crowd(self, label: str) -> None:
        self._start("crowd", Call(label, "SUCCEEDED", label), 0.2 * self._rng.random())

    def _wide(self, label: str) -> None:
        self._start("wide", Call(label, "SUCCEEDED", label), 0.2 * self._rng.random())

    def _stubborn(self, label: str) -> None:
        call = Call(label, "SUCCEEDED", label)
        self.caller.wait("stubborn", self._start("stubborn", call, 0.5 * self._rng.random()))


class Loads:
    """All callers of an installation."""

    def __init__(self, installation: Installation, seed: str, callers: int) -> None:
        self.rng = random.Random(seed)
        """For who makes the faults."""
        self.ended_workers: int | None = 0
        """How many workers the faults may have ended so far; None: any number."""
        self.all = [
            Load(installation, f"c{number}", random.Random(f"{seed}/{number}"))
            for number in range(callers)
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


@contextmanager
def under_load(installation: Installation, run: object, callers: int = CALLERS) -> Iterator[Loads]:
    """Calls functions all the time, of one that runs; at the end, when all callers have theirs, looks whether all is as it should be."""
    seed = int(os.environ.get("FAULTS_SEED", random.randrange(2**32)))
    print(f"FAULTS_SEED={seed}")
    loads = Loads(installation, f"{seed}/{run}", callers)
    is_over = threading.Event()
    with ThreadPoolExecutor(callers) as pool:
        running = [pool.submit(load.run, is_over) for load in loads.all]
        try:
            yield loads
        finally:
            is_over.set()
        for each in running:
            each.result()
    check(installation, loads)


def check(installation: Installation, loads: Loads) -> None:
    """All is over, and as it should be; then one more of each, and nothing is left."""
    wind_down(installation)
    callers = [load.caller for load in loads.all]
    found = problems(history(installation, callers, ended_workers=loads.ended_workers))
    assert found == [], "\n".join(found)
    assert installation.function("alone").call_remote("last") == "last"
    assert installation.function("returns").call_remote("last") == "last"


def wind_down(installation: Installation) -> None:
    """Waits until every worker is gone, with all that was its own."""
    wait_until(lambda: installation.server_info().workers == 0, "every worker is gone", WIND_DOWN_S)
    deadline = time.monotonic() + WIND_DOWN_S
    while (left := installation.left()) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert left == []
