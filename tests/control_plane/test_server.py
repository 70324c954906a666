"""The server's process, as far as it says why it does not come up."""

from __future__ import annotations

import asyncio
import errno
import socket

import pytest
from tests.control_plane.bench import make_settings
from tests.control_plane.told_plane import ToldRunner

from multinode_control_plane import listening, server


def test_a_full_disk_is_said_at_start(tmp_path, monkeypatch, capsys):
    def full(_settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(server.data_folder, "locked", full)
    assert server.main([f"--home={tmp_path}"]) == 1
    said = capsys.readouterr().err
    assert "The control plane's disk is full: it cannot start." in said
    assert "Free some space" in said


def test_other_faults_are_not_hidden(tmp_path, monkeypatch):
    def broken(_settings):
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(server.data_folder, "locked", broken)
    with pytest.raises(OSError, match="I/O error"):
        server.main([f"--home={tmp_path}"])


# --- where workers reach it ---


@pytest.fixture
def own_address():
    """An address of this machine that others could reach; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine has no address apart from loopback")
        return probe.getsockname()[0]


def free_port(address):
    with socket.socket() as free:
        free.bind((address, 0))
        return free.getsockname()[1]


def test_it_listens_where_the_worker_url_points_to_if_that_is_here(own_address):
    url = f"http://{own_address}:{free_port(own_address)}"
    door = listening.door_at(url)
    assert door.url == url
    assert f"{own_address}:1" in door.hosts
    assert listening.door_at(url) is None, "somebody listens there by now"
    door.listener.close()


@pytest.mark.parametrize("name", ["192.0.2.77", "nowhere.invalid", "localhost"])
def test_it_listens_nowhere_else_for_a_worker_url_of_others(name):
    assert listening.door_at(f"http://{name}:{free_port('127.0.0.1')}") is None


class InContainers(ToldRunner):
    name = "docker"


def door_of(tmp_path, **settings):
    made = make_settings(tmp_path, **settings)
    return asyncio.run(listening.worker_door(made, InContainers(), None, is_shared=False))


def test_a_proxy_and_a_server_beyond_loopback_need_no_second_listener(own_address, tmp_path):
    port = free_port(own_address)
    assert door_of(tmp_path, worker_url=f"https://{own_address}:{port}") is None
    assert door_of(tmp_path, worker_url=f"http://{own_address}:{port}", host="0.0.0.0") is None


def test_a_server_that_speaks_tls_has_one_in_plain_http_for_workers(own_address, tmp_path):
    url, pem = f"http://{own_address}:{free_port(own_address)}", tmp_path / "server.pem"
    door = door_of(tmp_path, worker_url=url, host="0.0.0.0", tls_cert=pem, tls_key=pem)
    assert door.url == url
    door.listener.close()


@pytest.mark.parametrize("url", ["10.0.0.5:9470", "ftp://x", "http://", "http://x:99999"])
def test_a_worker_url_that_nobody_could_call_is_refused(url, tmp_path, capsys):
    assert server.main([f"--home={tmp_path}", f"--worker-url={url}", "--only-check"]) == 2
    said = capsys.readouterr().err
    assert f"--worker-url {url!r} is not the URL of a server." in said
    assert "http://10.0.0.5:9470" in said
