"""The starter: an environment's fork server. ``python -m multinode.worker.starter --socket-fd N [--cgroup FOLDER …]``.

It has imported what supervisors and children need, never the user's code, and forks a supervisor for each start, so that no
worker pays for an interpreter's start. One supervisor, with its child, is forked ahead and waits for its launch. The first
worker, for which it was started, is forked before all that is imported: it imports what it needs itself.

JSON lines on the socket. Received: ``{"start": {Launch}, "fresh": bool, "env": {…}}``. Sent: ``{"started": worker id, "pid": pid}``,
``{"failed": worker id, "message": …}``, and ``{"gone": worker id, "status": wait status}`` when nothing of the worker is left.

It is the guardian of its workers: a subreaper, whose children are supervisors, or else orphans of a supervisor that was killed,
and these it kills. When the socket closes it stays until its last supervisor has gone. It has one thread.
"""

from __future__ import annotations

import gc
import json
import os
import selectors
import signal
import socket
import sys
from contextlib import suppress

from .. import wire
from ..records import Record
from . import life, prepared, processes
from .folders import note_end
from .launch import ARGUMENTS, Launch, from_json, known_part

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, NoReturn, Optional, Sequence, Set

RECEIVE_BYTES = 65536


class Spare(Record):
    """A supervisor that was forked ahead, and the pipe through which it gets its launch."""

    pid: int
    pipe: int


class Starter:
    """See the module."""

    def __init__(self, connection: socket.socket, cgroups: Sequence[str] = ()) -> None:
        self._connection: Optional[socket.socket] = connection
        self._cgroups = cgroups
        """Folders below which workers make their cgroups."""
        self._inherited = _open_descriptors() - {connection.fileno()}
        """Given to this process for its life and its workers': a lock on the environment."""
        self._workers: Dict[int, Launch] = {}
        self._spare: Optional[Spare] = None
        self._wants_spare = True
        """False after one has died or could not be made, until the next start: a machine that is full is not hammered."""
        self._received = b""
        self._wake, self._bell = os.pipe()
        for fd in (self._wake, self._bell):
            os.set_blocking(fd, False)

    def run(self) -> None:
        """Serves until the socket is closed and the last supervisor has gone."""
        signal.set_wakeup_fd(self._bell, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        for ignored in (signal.SIGINT, signal.SIGHUP):
            signal.signal(ignored, signal.SIG_IGN)
        selector = selectors.DefaultSelector()
        selector.register(self._wake, selectors.EVENT_READ)
        assert self._connection is not None
        selector.register(self._connection, selectors.EVENT_READ)
        is_prepared = False
        while self._connection is not None or self._workers:
            watched = self._connection
            for key, _ in selector.select():
                if key.fd == self._wake:
                    self._reap()
                else:
                    self._receive()
            if watched is not None and self._connection is None:
                selector.unregister(watched)
                watched.close()
            if not is_prepared:  # its first worker does not wait for what later ones need
                _prepare()
                is_prepared = True
            self._refill()
        with suppress(ChildProcessError):  # the one that was forked ahead, which ends by itself
            while True:
                os.waitpid(-1, 0)

    def _refill(self) -> None:
        if self._connection is None or self._spare is not None or not self._wants_spare:
            return
        try:
            self._spare = self._fork_ahead()
        except OSError:
            self._wants_spare = False

    # --- the socket -----------------------------------------------------------------------------------

    def _receive(self) -> None:
        assert self._connection is not None
        try:
            data = self._connection.recv(RECEIVE_BYTES)
        except OSError:
            data = b""
        if not data:
            self._connection = None
            self._drop_spare()
            return
        *lines, self._received = (self._received + data).split(b"\n")
        for line in lines:
            self._start(json.loads(line))

    def _tell(self, **message: Any) -> None:
        if self._connection is None:
            return
        with suppress(OSError):  # its end is seen where it is read
            self._connection.sendall(json.dumps(message).encode() + b"\n")

    def _start(self, order: Dict[str, Any]) -> None:
        launch = known_part(order["start"])
        try:
            if order.get("fresh"):
                pid = self._exec_fresh(launch, order.get("env") or {})
            else:
                pid = self._use_spare(launch)
        except OSError as error:
            self._tell(failed=launch.worker_id, message=f"a process could not be made: {error}")
            return
        self._workers[pid] = launch
        self._wants_spare = True
        self._tell(started=launch.worker_id, pid=pid)

    # --- forks ----------------------------------------------------------------------------------------

    def _use_spare(self, launch: Launch) -> int:
        """Gives the launch to the supervisor that waits, or to a new one; its pid."""
        for _ in range(2):
            spare, self._spare = self._spare or self._fork_ahead(), None
            try:
                with os.fdopen(spare.pipe, "w") as pipe:
                    pipe.write(launch.to_json())
            except BrokenPipeError:  # somebody killed the one that waited
                continue
            return spare.pid
        message = "new processes end at once"
        raise OSError(message)

    def _fork_ahead(self) -> Spare:
        reading, writing = os.pipe()
        try:
            pid = os.fork()
            if pid == 0:
                kept = {reading, *self._inherited}
                _live(lambda: _supervise_when_told(reading, kept, self._cgroups))
        except OSError:
            os.close(writing)
            raise
        finally:
            os.close(reading)
        return Spare(pid, writing)

    def _drop_spare(self) -> None:
        if self._spare is not None:
            os.close(self._spare.pipe)  # it reads the end of the pipe, and exits
            self._spare = None

    def _exec_fresh(self, launch: Launch, variables: Dict[str, str]) -> int:
        """A supervisor in a new interpreter, with ``variables`` in its environment; its pid."""
        reading, writing = os.pipe()
        with os.fdopen(writing, "w") as pipe:
            pipe.write(launch.to_json())  # a launch fits into a pipe, whose smallest size is 4 KiB
        try:
            pid = os.fork()
            if pid == 0:
                _live(lambda: _exec(reading, {reading, *self._inherited}, variables))
        finally:
            os.close(reading)
        return pid

    # --- ends -----------------------------------------------------------------------------------------

    def _reap(self) -> None:
        with suppress(BlockingIOError):
            while len(os.read(self._wake, 4096)) == 4096:
                pass
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if self._spare is not None and pid == self._spare.pid:
                self._drop_spare()
                self._wants_spare = False
            launch = self._workers.pop(pid, None)
            if launch is not None:
                if status != 0:  # otherwise it has itself seen to it that nothing is left
                    self._kill_orphans()
                    note_end(launch.worker_file or "", status)
                self._tell(gone=launch.worker_id, status=status)

    def _kill_orphans(self) -> None:
        """Kills every child that is no supervisor, and those that become ours by that, until there are none."""
        while True:
            known: Set[int] = set(self._workers)
            if self._spare is not None:
                known.add(self._spare.pid)
            orphans = [pid for pid in processes.children() if pid not in known]
            if not orphans:
                return
            for pid in orphans:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            for pid in orphans:
                with suppress(ChildProcessError):
                    os.waitpid(pid, 0)


def _live(life: Any) -> NoReturn:
    """Runs a forked process's life; nothing of the starter's own goes on in it."""
    try:
        life()
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(1)


def _supervise_when_told(reading: int, kept: Set[int], cgroups: Sequence[str]) -> NoReturn:
    os.setsid()
    signal.set_wakeup_fd(-1)
    processes.close_all_but(kept)
    signals = prepared.Signals()
    processes.adopt_orphans()
    ready = prepared.Prepared(signals, cgroups)
    with os.fdopen(reading) as pipe:
        text = pipe.read()
    if not text:  # the starter needs it no more, or is gone
        ready.discard()
        os._exit(0)
    life.live(from_json(text), ready)


def _exec(reading: int, kept: Set[int], variables: Dict[str, str]) -> None:
    os.setsid()
    signal.set_wakeup_fd(-1)
    processes.close_all_but(kept)
    os.set_inheritable(reading, True)
    arguments = [sys.executable, *ARGUMENTS, "--launch-fd", str(reading)]
    os.execve(sys.executable, arguments, {**os.environ, **variables})


def _open_descriptors() -> Set[int]:
    folder = "/proc/self/fd" if processes.IS_LINUX else "/dev/fd"
    found = set()
    for name in os.listdir(folder):  # noqa: PTH208 - descriptors, not paths
        with suppress(OSError):
            os.fstat(int(name))  # not the one that listdir had open
            found.add(int(name))
    return {fd for fd in found if fd > 2}


def _prepare() -> None:
    """Imports, and does once, what every supervisor and child does, so that no fork has to do it."""
    import faulthandler
    import inspect
    import resource
    import traceback

    import jsonpickle

    from .. import app, client, codec, function, invocation
    from . import failures, reports, restoring

    del faulthandler, inspect, resource, traceback, jsonpickle
    del app, client, function, invocation, reports, restoring
    processes.preload()
    processes.boot_id()
    codec.decode(codec.encode_output([1]))
    failed = failures.function_error(ValueError(), "/")
    for message in (
        wire.Assignment("", "", "", "", "", {}),
        wire.Report("", [wire.Value(1, "")], wire.ExecutionEnd("", error=failed)),
        wire.ExchangeRequest("", "", ""),
        wire.Claim(""),
        wire.Watch(""),
        wire.Order(),
        wire.Next([wire.Task(1, "", "")]),
    ):  # makes their decoders
        wire.loads(type(message), wire.dumps(message))
    gc.collect()
    gc.freeze()


def main(arguments: List[str]) -> None:
    """Serves the socket whose descriptor is in ``arguments``."""
    names, values = arguments[::2], arguments[1::2]
    if names != ["--socket-fd", *["--cgroup"] * (len(values) - 1)]:
        sys.exit("multinode starter: give --socket-fd N, and --cgroup FOLDER as often as needed")
    connection = socket.socket(fileno=int(values[0]))
    connection.setblocking(True)
    processes.adopt_orphans()
    Starter(connection, values[1:]).run()


if __name__ == "__main__":
    main(sys.argv[1:])
