"""A real sshd on loopback with keys of its own, and an ``ssh`` with a configuration of its own: neither this user's nor the system's."""

import getpass
import os
import shutil
import signal
import socket
import subprocess
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

SSHD = """\
Port {port}
ListenAddress 127.0.0.1
HostKey {folder}/host_key
AuthorizedKeysFile {folder}/key.pub
PidFile none
StrictModes no
UsePAM no
PasswordAuthentication no
KbdInteractiveAuthentication no
{more}
"""
CONFIG = """\
Host {alias}
  HostName 127.0.0.1
  Port {port}
  User {user}
Host *
  IdentityFile {folder}/key
  IdentitiesOnly yes
  UserKnownHostsFile {folder}/known_hosts
  GlobalKnownHostsFile none
"""
ALIAS = "Far-Engine"


class SecureShell:
    """``address`` is the server by a name of ssh's configuration, ``host`` its address and port."""

    address = f"ssh://{ALIAS}"

    def __init__(self, folder):
        self.folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.host = f"127.0.0.1:{self.port}"
        self.process = None
        for name in ("host_key", "key"):
            self.make_key(name)
        self.know("host_key")
        words = {"folder": folder, "port": self.port, "user": getpass.getuser(), "alias": ALIAS}
        (folder / "config").write_text(CONFIG.format(**words))
        commands = folder / "bin"
        commands.mkdir()
        command = commands / "ssh"
        command.write_text(f'#!/bin/sh\nexec {_found("ssh")} -F {folder}/config "$@"\n')
        command.chmod(0o755)
        self.path = f"{commands}{os.pathsep}{os.environ['PATH']}"

    def make_key(self, name):
        """A new key in place of what is there."""
        for path in (self.folder / name, self.folder / f"{name}.pub"):
            path.unlink(missing_ok=True)
        command = [_found("ssh-keygen"), "-q", "-t", "ed25519", "-N", "", "-f"]
        subprocess.run([*command, self.folder / name], check=True)

    def know(self, name):
        """From now on ssh takes this key, and no other, for the server's."""
        key = " ".join((self.folder / f"{name}.pub").read_text().split()[:2])
        (self.folder / "known_hosts").write_text(f"[127.0.0.1]:{self.port} {key}\n")

    def start(self, more=""):
        """Serves, with more lines of its configuration."""
        if os.geteuid() == 0:
            Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # as Debian's service does
        config = self.folder / "sshd_config"
        config.write_text(SSHD.format(folder=self.folder, port=self.port, more=more))
        with open(self.folder / "log", "ab") as log:
            command = [_found("sshd"), "-D", "-e", "-f", str(config)]
            self.process = subprocess.Popen(command, stdout=log, stderr=log)
        while self.process.poll() is None:
            with suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 1):
                return
        pytest.fail((self.folder / "log").read_text())

    def connections(self):
        """The processes that serve one connection each."""
        pid = self.process.pid
        return [
            int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        ]

    def cut(self):
        """Ends each connection, as a broken network does."""
        for pid in self.connections():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def stop(self):
        """Ends it with all its connections; nobody listens then."""
        if self.process is not None:
            self.cut()
            self.process.terminate()
            self.process.wait(60)
            self.process = None


@contextmanager
def secure_shell(folder, more=""):
    """A server that serves until the end of the block."""
    made = SecureShell(folder)
    made.start(more)
    try:
        yield made
    finally:
        made.stop()


def _found(name):
    command = shutil.which(name, path=f"{os.environ['PATH']}{os.pathsep}/usr/sbin")
    if command is None:
        what = f"{name} is not installed (apt-get install openssh-server)"
        pytest.fail(what) if os.environ.get("CI") else pytest.skip(what)
    return command
