"""An engine behind ssh: one ``ssh`` of the user's, which lends its socket as a socket of this machine.

Not docker-py's own two ways. With paramiko each stream is a session, of which sshd allows ten (MaxSessions), and nothing can end
one; with the command each request is a login. A forwarded connection is neither, and the user's configuration, agent and jump
hosts count. https://github.com/docker/docker-py/issues/2966, https://github.com/docker/compose/issues/6463
"""

from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import tempfile
import threading
from collections import deque
from collections.abc import Mapping
from urllib.parse import urlsplit

from multinode.errors import EngineUnavailable

log = logging.getLogger(__name__)
log.addHandler(logging.NullHandler())  # else a command would print what only a server's log is for

REMOTE_SOCKET = "/var/run/docker.sock"
_READY = "multinode-engine-ready"
# The forwarding is there before this runs. Its input ends with this process, however that ends, and with it all of ssh.
_COMMAND = f"echo {_READY}; exec cat"
_OPTIONS = {
    "BatchMode": "yes",  # nobody is asked anything
    "LogLevel": "INFO",
    "RemoteCommand": "none",
    "ControlMaster": "no",
    "ControlPath": "none",  # a shared connection would end when its owner does
    "StreamLocalBindUnlink": "yes",
    "ServerAliveInterval": "10",
    "ServerAliveCountMax": "3",
}
_KEPT_LINES = 30
_ENDING_S = 10.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.2, 10.0


class Tunnel:
    """A way to the engine of ``ssh://[user@]host[:port][/path/of/its/socket]``, made anew whenever it breaks, until `close`."""

    def __init__(self, address: str, environ: Mapping[str, str], timeout_s: float) -> None:
        """Logs in. Raises EngineUnavailable with ssh's words, and what to do."""
        ssh = shutil.which("ssh", path=environ.get("PATH"))
        if ssh is None:
            message = (
                f"The Docker engine at {address} needs the command ssh, which is not on the PATH."
            )
            raise EngineUnavailable(message, "Install OpenSSH's client (openssh-client).")
        destination = destination_of(address)
        self._folder = tempfile.TemporaryDirectory(prefix="multinode-ssh-")  # made with mode 0700
        socket = f"{self._folder.name}/docker.sock"
        self.base_url = f"unix://{socket}"
        """Where the engine is while this is open."""
        self._address = address
        self._environ = dict(environ)
        self._command = [ssh, *make_arguments(address, socket, timeout_s), *destination, _COMMAND]
        self._said: deque[str] = deque(maxlen=_KEPT_LINES)
        self._closing = threading.Event()
        self._settled = threading.Event()
        self._is_up = False
        self._process: subprocess.Popen[str] | None = None
        self._starting = threading.Lock()
        self._thread = threading.Thread(target=self._live, name=f"ssh {address}", daemon=True)
        self._thread.start()
        self._settled.wait(timeout_s)
        if not self._is_up:
            self.close()
            raise not_let_in(address, list(self._said))

    def complaint(self) -> str:
        """Why ssh could not reach the engine's socket over there; empty where it said nothing of that."""
        return next((line for line in reversed(list(self._said)) if "open failed" in line), "")

    def close(self) -> None:
        """Ends ssh, and with it each connection through it."""
        with self._starting:
            self._closing.set()
            if self._process is not None and self._process.poll() is None:
                # Its group: what a ProxyCommand has started too.
                os.killpg(self._process.pid, signal.SIGTERM)
        self._thread.join(_ENDING_S)
        self._folder.cleanup()

    def _live(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while not self._closing.is_set():
            self._is_up = False
            self._run()
            if not self._settled.is_set():  # the first one, for which somebody waits
                self._settled.set()
                return
            if self._is_up:
                pause_s = _FIRST_PAUSE_S
            if not self._closing.wait(pause_s):
                last = self._said[-1] if self._said else "it ended"
                log.warning("ssh to the engine at %s is made anew: %s", self._address, last)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)

    def _run(self) -> None:
        """One ssh, until it ends."""
        with self._starting:
            if self._closing.is_set():
                return
            self._process = subprocess.Popen(
                self._command,
                env=self._environ,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,  # Ctrl-C is for us, who may need the engine to clean up
            )
        with self._process as process:
            assert process.stdout is not None
            for line in map(str.strip, process.stdout):
                if line == _READY:
                    self._is_up = True
                    self._settled.set()
                elif line:
                    self._said.append(line)


def make_arguments(address: str, socket: str, timeout_s: float) -> list[str]:
    """What ssh is called with, before the destination: it lends the engine's socket as ``socket``."""
    options = {**_OPTIONS, "ConnectTimeout": str(max(1, int(timeout_s)))}
    arguments = ["-T", "-a", "-x"]
    for name, value in options.items():
        arguments += ["-o", f"{name}={value}"]
    path = urlsplit(address).path
    return [*arguments, "-L", f"{socket}:{path if path.strip('/') else REMOTE_SOCKET}"]


def destination_of(address: str) -> list[str]:
    """The host, port and user for ssh. Raises EngineUnavailable where there is no host."""
    parts = urlsplit(address)
    try:
        host, port = parts.hostname, parts.port
    except ValueError:
        host = port = None
    if not host or parts.password:
        shown = address.replace(f":{parts.password}@", ":…@")
        message = f"DOCKER_HOST={shown} cannot be read."
        raise EngineUnavailable(message, "Write it like ssh://user@host or ssh://user@host:22.")
    # Not `hostname` itself, which is in lower case: a name in ssh's configuration need not be.
    named = parts.netloc.rpartition("@")[2].removesuffix(f":{port}").strip("[]")
    user = ["-l", parts.username] if parts.username else []
    return [*user, *(["-p", str(port)] if port else []), "--", named]


def by_hand(address: str) -> str:
    """The command by which somebody tries it."""
    parts = urlsplit(address)
    port = f"-p {parts.port} " if parts.port else ""
    return f"`ssh {port}{parts.netloc.removesuffix(f':{parts.port}')} docker version`"


def not_let_in(address: str, said: list[str]) -> EngineUnavailable:
    """The error for a login that failed: what ssh said, and what to do about it. Pure."""
    text = "\n".join(said)
    if "HOST IDENTIFICATION HAS CHANGED" in text:
        return EngineUnavailable(
            f"The machine of the Docker engine at {address} has another host key than ssh knows.",
            f"If that is right (it was set up anew), remove the old key: {_remedy(said)}; then try {by_hand(address)}.",
        )
    if "Host key verification failed" in text:
        return EngineUnavailable(
            f"ssh does not know the host key of the machine of the Docker engine at {address}.",
            f"Log in once by hand, and compare the fingerprint that it shows: {by_hand(address)}.",
        )
    if "Permission denied" in text:
        return EngineUnavailable(
            f"The machine of the Docker engine at {address} does not let this user in ({said[-1]}).",
            f"Nothing is asked here, so the key has to be one without a passphrase, or in an agent (`ssh-add`). Try {by_hand(address)}.",
        )
    reason = f" ({said[-1]})" if said else " in time"
    message = f"The machine of the Docker engine at {address} cannot be reached by ssh{reason}."
    return EngineUnavailable(message, f"Try {by_hand(address)}.")


def _remedy(said: list[str]) -> str:
    return next((f"`{line}`" for line in said if line.startswith("ssh-keygen")), "`ssh-keygen -R`")
