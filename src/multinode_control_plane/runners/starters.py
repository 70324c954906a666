"""Starters: the fork servers of the ``process`` runner, one for each environment that is in use.

A starter has imported the worker's own modules and forks a supervisor for each start that it is sent, so that no
worker pays for an interpreter's start. It adopts what a killed supervisor leaves, and kills it. It runs in a session of its
own; when the connection closes, it stays until its last supervisor has gone.

JSON lines on a socket pair. To the starter: ``{"start": {Launch}, "fresh": bool, "env": {…}}``. From it: ``{"started":
worker id, "pid": pid}``, ``{"failed": worker id, "message": …}``, and ``{"gone": worker id, "status": wait status}`` when
nothing of the worker is left.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import socket
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from multinode.worker import processes
from multinode.worker.launch import Launch
from multinode_control_plane.runners import WorkerNotMadeError
from multinode_control_plane.runners.virtualenv import lease, venv_of
from multinode_control_plane.runners.worker_processes import WatchedProcess

START_TIMEOUT_S = 60.0
"""How long a starter may take to answer; the first time it starts an interpreter, on a machine that may be busy."""
EXIT_TIMEOUT_S = 5.0

_PASSED = re.compile(
    r"PATH|HOME|USER|LOGNAME|SHELL|LANG|LC_\w+|TZ|TMPDIR|(HTTPS?|ALL|NO)_PROXY|(https?|all|no)_proxy"
    r"|SSL_CERT_\w+|REQUESTS_CA_BUNDLE|CURL_CA_BUNDLE"
)
"""What functions see of the server's environment: nothing that holds a key of the server."""


class StarterEvents(Protocol):
    """Whom a starter tells what happens; called on the loop, in the order in which it happened."""

    def started(self, starter: Starter, worker_id: str, pid: int) -> None:
        """The worker exists."""

    def gone(self, worker_id: str, status: int) -> None:
        """Nothing of the worker is left; ``status`` is its supervisor's raw wait status."""

    def lost(self, starter: Starter) -> None:
        """The starter has ended without being asked to; its workers may live."""


class Starter(asyncio.Protocol):
    """A running starter and the connection to it."""

    def __init__(
        self, generation: Path, process: subprocess.Popen[bytes], *, log_file: Path
    ) -> None:
        self.generation = generation
        self.pid = process.pid
        self.workers: set[str] = set()
        """Workers that it has started and that are not gone."""
        self.is_usable = True
        self._process = process
        self._log_file = log_file
        self._events: StarterEvents | None = None
        self._transport: asyncio.WriteTransport | None = None
        self._unread = b""
        self._pending: dict[str, asyncio.Future[None]] = {}
        self._watched: WatchedProcess | None = None
        self._closed = asyncio.Event()
        self._reaping: asyncio.Future[None] | None = None

    @classmethod
    async def launch(
        cls,
        generation: Path,
        *,
        variables: Mapping[str, str],
        cgroups: Sequence[str],
        log_file: Path,
        events: StarterEvents,
    ) -> Starter:
        """Starts a starter of the environment. Raises WorkerNotMadeError where its Python cannot be run."""
        ours, theirs = socket.socketpair()
        try:
            held = lease(generation)
            try:
                command = ["--socket-fd", str(theirs.fileno())]
                command += [word for folder in cgroups for word in ("--cgroup", folder)]
                fds = (theirs.fileno(), held)
                process = _spawn(generation, command, fds, variables, log_file)
            finally:
                os.close(held)
        except OSError as error:
            ours.close()
            message = f"The environment's Python cannot be started: {error}"
            raise WorkerNotMadeError(message) from error
        finally:
            theirs.close()
        starter = cls(generation, process, log_file=log_file)
        starter._events = events
        await asyncio.get_running_loop().create_unix_connection(lambda: starter, sock=ours)
        return starter

    @property
    def is_idle(self) -> bool:
        """Whether it has no worker and none to start."""
        return not self.workers and not self._pending

    async def start(
        self, launch: Launch, *, fresh: bool, interpreter_env: Mapping[str, str]
    ) -> None:
        """Starts a worker; ``started`` was told when this returns. Raises WorkerNotMadeError where it is not made.

        A starter that does not answer is killed. Whether it had made the worker is then for the caller to find out.
        """
        assert self._transport is not None
        loop = asyncio.get_running_loop()
        made: asyncio.Future[None] = loop.create_future()
        self._pending[launch.worker_id] = made
        order = {"start": vars(launch), "fresh": fresh, "env": dict(interpreter_env)}
        self._transport.write(json.dumps(order).encode() + b"\n")
        # No wait_for: it would return a round of the loop later than the future, when the end may have been told.
        patience = loop.call_later(START_TIMEOUT_S, self._give_up, launch.worker_id)
        try:
            await made
        finally:
            patience.cancel()
            del self._pending[launch.worker_id]

    def close(self) -> None:
        """Lets it end: at once where it has no worker, else when its last one is gone."""
        self.is_usable = False
        self._events = None
        if self._transport is not None:
            self._transport.close()

    async def wait_closed(self) -> None:
        """Waits for a starter without workers to end. One that still has some is left alone."""
        if self.workers:
            # Its end is nobody's business here any more: without this, Popen would warn that it still runs.
            self._process.returncode = 0
            return
        await self._closed.wait()
        if self._reaping is not None:
            await self._reaping

    # --- asyncio.Protocol ------------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """The connection is there."""
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport
        self._watched = WatchedProcess.open(self.pid)
        if self._watched is not None:
            # A descriptor that leaked into a fork would keep the connection open after the starter's death. Shut
            # down for reading, it still gives what was sent before, and then its end.
            channel = transport.get_extra_info("socket")
            self._watched.on_exit(lambda: channel.shutdown(socket.SHUT_RD))

    def data_received(self, data: bytes) -> None:
        """Messages, in pieces of any size."""
        *lines, self._unread = (self._unread + data).split(b"\n")
        for line in lines:
            self._receive(json.loads(line))

    def connection_lost(self, exc: Exception | None) -> None:
        """It has ended, or we have closed the connection."""
        was_lost, self.is_usable = self._events is not None, False
        self._closed.set()
        if self._watched is not None:
            self._watched.close()
        for worker_id, made in self._pending.items():
            if not made.done():
                made.set_exception(WorkerNotMadeError(self._last_words(worker_id)))
        if was_lost and self._events is not None:
            self._events.lost(self)
        if was_lost or not self.workers:
            self._reaping = asyncio.get_running_loop().run_in_executor(None, self._reap)

    def _receive(self, message: dict[str, object]) -> None:
        if "started" in message:
            worker_id = str(message["started"])
            self.workers.add(worker_id)
            if self._events is not None:
                self._events.started(self, worker_id, int(str(message["pid"])))
            self._settle(worker_id, None)
        elif "failed" in message:
            self._settle(str(message["failed"]), WorkerNotMadeError(str(message.get("message"))))
        elif "gone" in message:
            worker_id = str(message["gone"])
            self.workers.discard(worker_id)
            if self._events is not None:
                self._events.gone(worker_id, int(str(message["status"])))

    def _give_up(self, worker_id: str) -> None:
        self.is_usable = False
        self._process.kill()
        message = f"The environment's starter did not answer within {START_TIMEOUT_S:g} s."
        self._settle(worker_id, WorkerNotMadeError(message))

    def _settle(self, worker_id: str, error: WorkerNotMadeError | None) -> None:
        made = self._pending.get(worker_id)
        if made is None or made.done():
            return
        if error is None:
            made.set_result(None)
        else:
            made.set_exception(error)

    def _reap(self) -> None:
        try:
            self._process.wait(EXIT_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.returncode = 0  # it goes on without us, and guards its workers

    def _last_words(self, worker_id: str) -> str:
        with suppress(OSError):
            lines = self._log_file.read_text(errors="replace").strip().splitlines()
            if lines:
                return f"The environment's starter ended: {lines[-1]:.500}"
        return f"The environment's starter ended before it had started {worker_id}."


def _spawn(
    generation: Path,
    options: list[str],
    fds: tuple[int, int],
    variables: Mapping[str, str],
    log_file: Path,
) -> subprocess.Popen[bytes]:
    """Starts the process. ``fds`` are its channel, and what keeps its generation from being removed."""
    venv = venv_of(generation)
    passed = {name: value for name, value in variables.items() if _PASSED.fullmatch(name)}
    passed[processes.STARTER_MARK] = secrets.token_hex(8)
    path = f"{venv / 'bin'}:{passed.get('PATH', os.defpath)}"
    log_file.parent.mkdir(parents=True, exist_ok=True)
    with log_file.open("wb") as log:
        return subprocess.Popen(
            [venv / "bin" / "python", "-m", "multinode.worker.starter", *options],
            cwd="/",  # the first entry of its sys.path: not where the server happens to stand
            env=passed | {"PATH": path, "VIRTUAL_ENV": str(venv)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            pass_fds=fds,
            start_new_session=True,
        )
