"""Whether a ring opens a store's file, which any release may have made."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

import pytest
from tests.control_plane.bench import make_settings

from multinode.errors import InputError
from multinode_control_plane import backup_ring
from multinode_control_plane.secret_keys import FileSource, as_text, key_id
from multinode_control_plane.service.dotenv import Sealer

OLD, NEW = b"o" * 32, b"n" * 32


def store(folder: Path, *, named: bool, values: int = 1) -> Path:
    """A file with one value under each key; ``named``: as since rotation, with the ids of the keys."""
    path = folder / "store.sqlite"
    sealer = Sealer([NEW, OLD])
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute(f"CREATE TABLE versions (dotenv{', sealed_with' if named else ''})")
        for key in (NEW, OLD)[:values]:
            row = [sealer.seal({"A": "1"}, key_id(key)), key_id(key)][: 2 if named else 1]
            database.execute(f"INSERT INTO versions VALUES ({', '.join('?' * len(row))})", row)
        if named:
            database.execute("CREATE TABLE sealing (mac_key, key_id)")
        database.commit()
    return path


def ring(folder: Path, *keys: bytes) -> FileSource:
    path = folder / "ring"
    path.write_text(as_text(keys))
    path.chmod(0o600)
    return FileSource(path)


@pytest.mark.parametrize("named", [False, True])
def test_every_value_is_tried(tmp_path: Path, named: bool) -> None:
    path = store(tmp_path, named=named, values=2)
    backup_ring.check_opens(path, ring(tmp_path, NEW, OLD))
    with pytest.raises(InputError, match=f"key {key_id(OLD) if named else 'unknown'}"):
        backup_ring.check_opens(path, ring(tmp_path, NEW))


def test_a_ring_that_is_not_there_is_missed_only_where_there_are_values(tmp_path: Path) -> None:
    nobody = FileSource(tmp_path / "nobody")
    backup_ring.check_opens(store(tmp_path, named=True, values=0), nobody)
    (tmp_path / "other").mkdir()
    with pytest.raises(InputError, match="nobody is not there"):
        backup_ring.check_opens(store(tmp_path / "other", named=True), nobody)


def test_the_ring_is_the_one_that_a_server_would_use(tmp_path: Path) -> None:
    settings, unpacked = make_settings(tmp_path), tmp_path / "unpacked"
    unpacked.mkdir()
    settings.data_dir.mkdir(parents=True)
    assert backup_ring.ring_at_hand(unpacked, settings, {}).name.endswith("server/secret.key")
    (unpacked / "secret.key").write_bytes(OLD)
    assert backup_ring.ring_at_hand(unpacked, settings, {}).name == "The backup's secret.key"
    named = make_settings(tmp_path, secret_key_from="env:KEYS")
    assert backup_ring.ring_at_hand(unpacked, named, {}).name == "The variable KEYS"


def test_where_the_keys_are_is_told_by_what_opens_the_store(tmp_path: Path) -> None:
    path = store(tmp_path, named=True)
    settings = make_settings(tmp_path, secret_key_from="env:KEYS")
    settings.data_dir.mkdir(parents=True)
    in_folder = settings.data_dir / "secret.key"
    in_folder.write_bytes(OLD)
    in_folder.chmod(0o600)
    assert backup_ring.ring_elsewhere(path, settings, {}) == "The variable KEYS"
    in_folder.write_bytes(NEW)
    assert backup_ring.ring_elsewhere(path, settings, {}) == ""
    in_folder.unlink()
    unnamed = make_settings(tmp_path)
    assert "--secret-key-from" in backup_ring.ring_elsewhere(path, unnamed, {})
