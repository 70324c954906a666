"""Functions that leave a file for each thing that they did, out of the control plane's reach.

A file is called ``LABEL.WHAT.MONOTONIC_NS``. Files whose names have no dots are signs that a test gives: ``broken`` (the import
fails), ``held`` (the import waits until it is removed), and those that a function waits for.
"""

import os
import signal
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

from multinode import Multinode
from multinode.errors import InvocationCancelledError, InvocationTimedOutError

EFFECTS = Path(os.environ["EFFECTS"])
SIZE = {"cpu": float(os.environ["CPU"]), "memory": os.environ["MEMORY"]}
"""Of what runs at once: a container needs more than a process."""

mn = Multinode()


def note(label, what, text=""):
    """Notes it so that it stays noted whatever happens next."""
    draft = EFFECTS / f".{time.monotonic_ns()}-{os.getpid()}"
    with draft.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    draft.rename(EFFECTS / f"{label}.{what}.{time.monotonic_ns()}")


def wait_for(sign, *, until=True):
    while (EFFECTS / sign).exists() != until:
        time.sleep(0.005)


if (EFFECTS / "broken").exists():
    message = "main.py is broken"
    raise RuntimeError(message)
if (EFFECTS / "held").exists():
    note("main", "importing")
    wait_for("held", until=False)


@mn.function(**SIZE)
def returns(label):
    note(label, "start")
    note(label, "end")
    return label


@mn.function(**SIZE)
def yields(label, count):
    note(label, "start")
    for number in range(1, count + 1):
        yield [label, number]
        if number % 4 == 0:
            time.sleep(0.05)
    note(label, "end")


@mn.function(**SIZE, max_retries=2)
def flaky(label, failures):
    """Fails in its first ``failures`` executions."""
    note(label, "start")
    if len(list(EFFECTS.glob(f"{label}.start.*"))) <= failures:
        message = f"{label} fails"
        raise ValueError(message)
    note(label, "end")
    return label


@mn.function(**SIZE)
def fails(label):
    note(label, "start")
    raise ValueError(label)


@mn.function(**SIZE)
def naps(label, seconds):
    note(label, "start")
    time.sleep(seconds)
    note(label, "end")
    return label


@mn.function(**SIZE, max_concurrency=1)
def alone(label):
    note(label, "start")
    time.sleep(0.02)
    note(label, "end")
    return label


@mn.function(**SIZE, max_concurrency=3)
def crowd(label, seconds):
    note(label, "start")
    time.sleep(seconds)
    note(label, "end")
    return label


@mn.function(cpu=1.5, memory=SIZE["memory"])
def wide(label, seconds):
    """Two of them have room, where there are four cpus."""
    note(label, "start")
    time.sleep(seconds)
    note(label, "end")
    return label


@mn.function(**SIZE, max_retries=2)
def stubborn(label, seconds):
    """Is tried again where its worker is lost."""
    note(label, "start")
    time.sleep(seconds)
    note(label, "end")
    return label


@mn.function(**SIZE)
def sleeps(label):
    """Until it is cancelled."""
    note(label, "start", str(os.getpid()))
    try:
        time.sleep(600)
    except InvocationCancelledError:
        note(label, "cancelled")
        raise


@mn.function(**SIZE, max_retries=1)
def sleeps_once(label):
    """In its first execution."""
    note(label, "start")
    if len(list(EFFECTS.glob(f"{label}.start.*"))) == 1:
        time.sleep(600)
    note(label, "end")
    return label


@mn.function(**SIZE)
def deaf(label, sign, is_to_fail):
    """Hears no interrupt; ends when the sign is there."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR2})
    note(label, "start")
    wait_for(sign)
    if is_to_fail:
        raise ValueError(label)
    note(label, "end")
    return label


@mn.function(**SIZE, timeout=timedelta(seconds=0.2))
def times_out(label, sign):
    """Cleans up until the sign is there."""
    note(label, "start")
    try:
        time.sleep(600)
    except InvocationTimedOutError:
        note(label, "timed-out")
        wait_for(sign)
        raise


@mn.function(**SIZE, max_concurrency=1, queue_timeout=timedelta(seconds=3))
def impatient(label, sign):
    note(label, "start")
    wait_for(sign)
    note(label, "end")
    return label


@mn.function(**SIZE, max_retries=1, retry_delay=timedelta(seconds=2))
def imported(label):
    """Has an attempt left where the import fails once."""
    note(label, "start")
    note(label, "end")
    return label


@mn.function(**SIZE, start_timeout=timedelta(seconds=0.5))
def hurries(label):
    note(label, "start")
    note(label, "end")
    return label


@mn.function(**SIZE, max_concurrency=1)
def leaves_processes(label):
    """Has a child in a session of its own, which has a child of its own, and sleeps."""
    code = "import subprocess, sys; subprocess.Popen(['sleep', '600']).wait()"
    process = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    note(label, "start", str(process.pid))
    time.sleep(600)


@mn.function(**SIZE, max_concurrency=1)
def counts(label, sign):
    """Yields numbers until the sign is there, then the word that it ends with."""
    note(label, "start")
    number = 0
    while not (EFFECTS / sign).exists():
        number += 1
        yield number
        if number % 20 == 0:
            note(label, f"at-{number}")
        time.sleep(0.01)
    note(label, "end")
    yield "end"
