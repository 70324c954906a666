import os

import pytest

from multinode_control_plane.runners import whole_files


def test_a_file_is_replaced_and_only_this_user_can_read_it(tmp_path):
    path = tmp_path / "new" / "a.json"
    for content in (b"one", b"another"):
        whole_files.write(path, content)
        assert path.read_bytes() == content
    assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == [path]


def test_a_disk_without_room_leaves_the_file_that_is_there(tmp_path, monkeypatch):
    path = tmp_path / "a.json"
    whole_files.write(path, b"one")

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        whole_files.write(path, b"another")
    assert path.read_bytes() == b"one"
    assert list(tmp_path.iterdir()) == [path]
