"""How the exit of a worker's container reads as the worker's end. Pure."""

from __future__ import annotations

import signal

from multinode_control_plane.runners import WorkerEnd

_SAID_CHARACTERS = 500


def read_exit(
    worker_id: str, exit_code: int, *, is_out_of_memory: bool, memory_mib: int, said: str
) -> WorkerEnd:
    """``said`` is what the supervisor itself said at last.

    An exit code above 128 is a signal that killed the supervisor: by itself it exits with 0 or 1. An engine says out of
    memory also where only a child was killed and the supervisor went on to report it: then its exit code is 0.
    """
    number = exit_code - 128 if exit_code > 128 else None
    was_killed_for_it = is_out_of_memory and number == signal.SIGKILL
    code = exit_code if number is None else None
    if was_killed_for_it:
        detail = f"killed: out of memory at its limit of {memory_mib} MiB"
    elif number is not None:
        detail = f"its supervisor was killed by signal {number}"
    elif code:
        detail = f"its supervisor exited with code {code}"
    else:
        detail = ""
    last = said.strip()[-_SAID_CHARACTERS:]  # one that gave up exits with 0, and says why
    return WorkerEnd(
        worker_id=worker_id,
        detail=": ".join(filter(None, (detail, last))),
        exit_code=code,
        signal=number,
        out_of_memory=was_killed_for_it,
    )
