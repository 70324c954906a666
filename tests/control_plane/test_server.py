"""The server's process, as far as it says why it does not come up."""

from __future__ import annotations

import errno

import pytest

from multinode_control_plane import server


def test_a_full_disk_is_said_at_start(tmp_path, monkeypatch, capsys):
    def full(_settings):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(server, "locked", full)
    assert server.main([f"--home={tmp_path}"]) == 1
    said = capsys.readouterr().err
    assert "The control plane's disk is full: it cannot start." in said
    assert "Free some space" in said


def test_other_faults_are_not_hidden(tmp_path, monkeypatch):
    def broken(_settings):
        raise OSError(errno.EIO, "I/O error")

    monkeypatch.setattr(server, "locked", broken)
    with pytest.raises(OSError, match="I/O error"):
        server.main([f"--home={tmp_path}"])
