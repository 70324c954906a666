"""``python -m multinode.worker``: one worker, whose launch comes through a pipe, a file or the environment.

--launch-fd N        a descriptor to read it from
--launch-file PATH   a file, which is removed once it is read
MULTINODE_LAUNCH     the environment
"""

from __future__ import annotations

import os
import sys

from .. import errors
from . import life, prepared, processes, reports
from .launch import ARGUMENTS, INTERPRETER_PREFIXES, Launch, from_json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Dict, List, NoReturn, Tuple


def main(arguments: List[str]) -> NoReturn:
    """Reads the launch and lives the worker's life."""
    signals = prepared.Signals()
    launch = _read_launch(arguments)
    if launch.asks_for_env:
        _begin_anew(*_ask_for_env(launch))
    if launch.interpreter_env:
        _begin_anew(launch, launch.interpreter_env)
    processes.adopt_orphans()
    life.live(launch, prepared.Prepared(signals, launch.cgroups))


def _read_launch(arguments: List[str]) -> Launch:
    source, _, value = " ".join(arguments).partition(" ")
    try:
        if source == "--launch-fd":
            with os.fdopen(int(value)) as pipe:
                return from_json(pipe.read())
        if source == "--launch-file":
            with open(value, encoding="ascii") as file:  # noqa: PTH123 - pathlib is not imported here
                text = file.read()
            os.unlink(value)  # noqa: PTH108 - the claim code in it is used up soon, and nobody else's business
            return from_json(text)
        if not source and "MULTINODE_LAUNCH" in os.environ:
            return from_json(os.environ.pop("MULTINODE_LAUNCH"))
    except (OSError, ValueError) as error:
        sys.exit(f"multinode worker: no launch could be read: {error}")
    sys.exit("multinode worker: give --launch-fd N or --launch-file PATH, or set MULTINODE_LAUNCH")


def _ask_for_env(launch: Launch) -> Tuple[Launch, Dict[str, str]]:
    """The variables of the `.env` that an interpreter reads when it starts, and the launch for the one that has them."""
    launch = launch.replace(asks_for_env=None, nonce=os.urandom(16).hex())
    try:
        dotenv = reports.exchange(launch).dotenv
    except errors.MultinodeError as error:
        sys.exit(f"multinode worker {launch.worker_id}: {error}")
    return launch, {n: dotenv[n] for n in dotenv if n.startswith(INTERPRETER_PREFIXES)}


def _begin_anew(launch: Launch, env: Dict[str, str]) -> NoReturn:
    """Replaces this interpreter by one that starts with ``env``; it gets the launch through a pipe."""
    reading, writing = os.pipe()
    os.set_inheritable(reading, True)
    os.write(writing, launch.replace(interpreter_env=None).to_json().encode())  # a pipe holds it
    os.close(writing)
    arguments = [sys.executable, *ARGUMENTS, "--launch-fd", str(reading)]
    os.execve(sys.executable, arguments, {**os.environ, **env})


if __name__ == "__main__":
    main(sys.argv[1:])
