"""An engine behind ssh: a real sshd on loopback, before the real engine."""

import os
import shutil
import socket
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import pytest
from tests.hand_made_image import needs_engine
from tests.images.bench import engine_socket, missing
from tests.secure_shell import ALIAS, SecureShell, secure_shell

from multinode.errors import EngineUnavailable
from multinode_control_plane.runners.docker_engine import Engine, EngineAway
from multinode_engine import ssh
from multinode_engine.connection import connect

FOLLOWERS = 50


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    needs_engine()
    with secure_shell(tmp_path_factory.mktemp("ssh")) as made:
        yield made


def environ(shell, address=None):
    address = address or f"{shell.address}{engine_socket()}"
    return {**os.environ, "DOCKER_HOST": address, "PATH": shell.path}


def wait_for(fact, timeout_s=30):
    deadline = time.monotonic() + timeout_s
    while not (found := fact()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return found


def refused(shell, address=None, **more):
    with pytest.raises(EngineUnavailable) as caught:
        connect({**environ(shell, address), **more}, timeout_s=20)
    return caught.value


def test_the_names_of_the_users_configuration_count_and_no_password_is_asked():
    address = "ssh://Ada@Far-Engine:2200/run/user/7/docker.sock"
    assert ssh.destination_of(address) == ["-l", "Ada", "-p", "2200", "--", "Far-Engine"]
    assert ssh.destination_of("ssh://far") == ["--", "far"]
    arguments = ssh.make_arguments(address, "/tmp/x", 10)
    assert arguments[-1] == "/tmp/x:/run/user/7/docker.sock"
    assert "BatchMode=yes" in arguments
    arguments = ssh.make_arguments("ssh://far", "/tmp/x", 0.5)
    assert arguments[-1] == "/tmp/x:/var/run/docker.sock"
    assert "ConnectTimeout=1" in arguments


@pytest.mark.parametrize("address", ["ssh://", "ssh://far:x", "ssh://me:secret@far"])
def test_an_address_that_names_no_host_is_told_without_its_password(address):
    with pytest.raises(EngineUnavailable, match="cannot be read") as caught:
        ssh.destination_of(address)
    assert "ssh://user@host" in caught.value.hint
    assert "secret" not in str(caught.value)


def test_one_login_carries_as_many_streams_as_there_are_workers(shell):
    """sshd allows ten sessions a connection, and ten logins at a time: neither is what this needs."""
    engine = Engine.connect(environ(shell))
    assert engine.facts.url.startswith(shell.address)
    assert engine.facts.is_remote
    streams = [engine.events([], ["die"]) for _ in range(FOLLOWERS)]
    threads = [threading.Thread(target=list, args=(stream,)) for stream in streams]
    for thread in threads:
        thread.start()
    assert len(shell.connections()) == 1
    assert engine.facts_of() == engine.facts
    for stream in streams[: FOLLOWERS // 2]:
        stream.close()
    for thread in threads[: FOLLOWERS // 2]:
        thread.join(60)
        assert not thread.is_alive()
    ending = [threading.Thread(target=stream.close) for stream in streams[FOLLOWERS // 2 :]]
    for thread in ending:
        thread.start()
    engine.close()
    for thread in [*ending, *threads]:
        thread.join(60)
        assert not thread.is_alive()
    wait_for(lambda: not shell.connections())


def test_a_connection_that_breaks_is_made_anew(shell, caplog):
    engine = Engine.connect(environ(shell))
    stream = engine.events([], ["die"])
    shell.cut()
    with suppress(EngineAway):  # or it just ends
        list(stream)
    wait_for(lambda: "made anew: Connection to 127.0.0.1 closed" in caplog.text)
    path = engine._connection.tunnel.base_url.removeprefix("unix://")
    wait_for(lambda: listens(path))
    assert engine.facts_of() == engine.facts
    engine.close()


def listens(path):
    """Asked like this: docker-py leaves a socket open that it could not connect."""
    with socket.socket(socket.AF_UNIX) as found:
        return found.connect_ex(path) == 0


def test_the_docker_command_is_sent_the_same_way(shell):
    """BuildKit builds through it: without a login of its own, and without a docker command over there."""
    if shutil.which("docker") is None:
        missing("the docker command is not here")
    found = connect(environ(shell), timeout_s=20)
    done = subprocess.run(
        ["docker", "version", "--format", "{{.Server.Version}}"],
        env={**environ(shell), **found.variables},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == found.api.version()["Version"], done.stderr
    assert len(shell.connections()) == 1
    found.close()


def test_nothing_runs_on_when_a_process_is_killed(shell, tmp_path):
    code = "import os, time; from multinode_engine.connection import connect; connect(os.environ, timeout_s=20); print('up', flush=True); time.sleep(60)"
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env={**environ(shell), "TMPDIR": str(tmp_path)},  # where its socket stays
        stdout=subprocess.PIPE,
    ) as process:
        assert process.stdout.readline() == b"up\n"
        assert shell.connections()
        process.kill()
    wait_for(lambda: not shell.connections())


def test_ctrl_c_leaves_the_engine_to_who_cleans_up(shell):
    """A terminal sends it to the whole group of processes."""
    code = (
        "import os, signal; from multinode_engine.connection import connect\n"
        "found = connect(os.environ, timeout_s=20)\n"
        "try: os.killpg(0, signal.SIGINT); signal.pause()\n"
        "except KeyboardInterrupt: print(found.api.version()['Os']); found.close()"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=environ(shell),
        capture_output=True,
        start_new_session=True,
    )
    assert done.stdout == b"linux\n", done.stderr
    wait_for(lambda: not shell.connections())


def test_a_folder_of_the_socket_is_of_this_user_alone_and_is_removed(shell):
    found = connect(environ(shell), timeout_s=20)
    folder = Path(found.tunnel.base_url.removeprefix("unix://")).parent
    assert folder.stat().st_mode & 0o777 == 0o700
    found.close()
    assert not folder.exists()


# --- what may go wrong ---


@pytest.fixture
def another(shell, tmp_path):
    """A client with other keys."""
    made = SecureShell(tmp_path)
    made.port = shell.port
    return made


def test_an_unknown_host_key_is_told(shell, another):
    error = refused(another, f"ssh://{shell.host}")
    assert error.message.startswith("ssh does not know the host key")
    assert f"`ssh -p {shell.port} 127.0.0.1 docker version`" in error.hint


def test_a_host_key_that_changed_is_told_with_how_to_remove_the_old_one(shell, another):
    another.know("key")
    error = refused(another, f"ssh://{shell.host}")
    assert "has another host key than ssh knows" in error.message
    assert "`ssh-keygen -f" in error.hint


def test_a_key_that_is_not_let_in_is_told(shell, another):
    (another.folder / "host_key.pub").write_text((shell.folder / "host_key.pub").read_text())
    another.know("host_key")
    error = refused(another, f"ssh://{shell.host}")
    assert "does not let this user in" in error.message
    assert "Permission denied (publickey)" in error.message
    assert "ssh-add" in error.hint


def test_nobody_at_the_port_is_told(shell):
    error = refused(shell, "ssh://127.0.0.1:1")
    assert "cannot be reached by ssh" in error.message
    assert "Connection refused" in error.message


def test_an_engine_that_is_not_there_on_its_machine_is_told(shell):
    error = refused(shell, f"{shell.address}/nowhere/docker.sock")
    assert "cannot be reached on its machine" in error.message
    assert f"`ssh {ALIAS} docker version`" in error.hint
    assert "group docker" in error.hint


def test_an_sshd_that_forwards_nothing_is_told(tmp_path):
    with secure_shell(tmp_path, "AllowStreamLocalForwarding no") as shell:
        error = refused(shell)
    assert "open failed" in error.message
    assert "AllowStreamLocalForwarding" in error.hint


def test_a_machine_without_ssh_is_told(shell):
    error = refused(shell, PATH="")
    assert "needs the command ssh" in error.message
    assert "openssh-client" in error.hint
