"""The first admin key: made once, or taken from a file that others cannot read."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from tests.control_plane.told_plane import Plane, on_plane

from multinode import wire
from multinode.errors import Conflict, InputError
from multinode_control_plane import admin_key
from multinode_control_plane.service import access
from multinode_control_plane.settings import parser, resolve

FIRST, SECOND = "a" * 32, "b" * 40


async def role_of(plane: Plane, secret: str) -> str | None:
    ring = await plane.store.read(access.key_ring)
    found = ring.find(secret)
    return found and found.role


def key_file(folder: Path, content: str, mode: int = 0o600) -> Path:
    path = folder / "given.key"
    path.write_text(content)
    path.chmod(mode)
    return path


def test_one_is_made_at_the_first_start_and_left_alone_later(tmp_path: Path) -> None:
    made = tmp_path / "admin.key"

    async def test(plane: Plane) -> None:
        await admin_key.ensure(plane.store, tmp_path, None)
        assert stat.S_IMODE(made.stat().st_mode) == 0o600
        secret = made.read_text().strip()
        assert await role_of(plane, secret) == "admin"
        await plane.store.write(lambda tx: access.revoke_key(tx, "admin"))
        made.unlink()
        await admin_key.ensure(plane.store, tmp_path, None)
        assert not made.exists()
        assert await role_of(plane, secret) is None

    on_plane(tmp_path, test)


def test_a_start_that_was_killed_after_it_wrote_the_file_is_continued(tmp_path: Path) -> None:
    async def test(plane: Plane) -> None:
        key_file(tmp_path, FIRST).rename(tmp_path / "admin.key")
        await admin_key.ensure(plane.store, tmp_path, None)
        assert await role_of(plane, FIRST) == "admin"

    on_plane(tmp_path, test)


class BothLookedFirst:
    """A store in which no key was found when it was looked at."""

    def __init__(self, plane: Plane) -> None:
        self.write = plane.store.write

    async def read(self, _: object) -> bool:
        return False


def test_of_two_first_starts_one_makes_it(tmp_path: Path) -> None:
    folders = tmp_path / "one", tmp_path / "two"

    async def test(plane: Plane) -> None:
        for folder in folders:
            folder.mkdir()
        for folder in folders:
            await admin_key.ensure(BothLookedFirst(plane), folder, None)  # type: ignore[arg-type]
        assert [(folder / "admin.key").exists() for folder in folders] == [True, False]

    on_plane(tmp_path, test)


def test_a_file_that_is_named_says_the_key_and_changes_it(tmp_path: Path) -> None:
    async def test(plane: Plane) -> None:
        for secret in (FIRST, SECOND):
            await admin_key.ensure(plane.store, tmp_path, key_file(tmp_path, f"{secret}\n"))
        assert [await role_of(plane, each) for each in (FIRST, SECOND)] == [None, "admin"]
        await plane.store.write(lambda tx: access.revoke_key(tx, "admin"))
        await admin_key.ensure(plane.store, tmp_path, tmp_path / "given.key")
        assert await role_of(plane, SECOND) is None
        assert not (tmp_path / "admin.key").exists()

    on_plane(tmp_path, test)


def test_a_variable_says_the_key_and_changes_it(tmp_path: Path) -> None:
    async def test(plane: Plane) -> None:
        for secret in (FIRST, SECOND):
            await admin_key.ensure(plane.store, tmp_path, None, secret)
        assert [await role_of(plane, each) for each in (FIRST, SECOND)] == [None, "admin"]
        assert not (tmp_path / "admin.key").exists()
        with pytest.raises(InputError, match="MULTINODE_ADMIN_KEY holds no key") as caught:
            await admin_key.ensure(plane.store, tmp_path, None, "short, and secret")
        assert "secret" not in str(caught.value)
        with pytest.raises(InputError, match="Leave one of them out"):
            await admin_key.ensure(plane.store, tmp_path, key_file(tmp_path, FIRST), SECOND)
        assert await role_of(plane, SECOND) == "admin"

    on_plane(tmp_path, test)


def test_the_variable_is_neither_shown_nor_handed_on() -> None:
    settings = resolve(parser().parse_args([]), {"MULTINODE_ADMIN_KEY": FIRST})
    assert settings.admin_key == FIRST
    assert FIRST not in f"{settings} {settings.options()}"


def test_the_key_of_another_name_is_not_taken(tmp_path: Path) -> None:
    async def test(plane: Plane) -> None:
        ada = wire.KeyRequest("ada", "read")
        await plane.store.write(lambda tx: access.create_key(tx, ada, key=FIRST))
        with pytest.raises(Conflict, match="'ada' has the key"):
            await admin_key.ensure(plane.store, tmp_path, key_file(tmp_path, FIRST))
        assert await role_of(plane, FIRST) == "read"

    on_plane(tmp_path, test)


@pytest.mark.parametrize(
    ("content", "mode", "message"),
    [
        (FIRST, 0o640, r"can be read by others \(mode 0640\)"),
        (FIRST, 0o604, r"can be read by others \(mode 0604\)"),
        ("short", 0o600, "holds no key"),
        (f"{FIRST}\n{SECOND}", 0o600, "holds no key"),
        ("", 0o600, "holds no key"),
        ("ä" * 40, 0o600, "it is not ASCII"),
    ],
)
def test_a_file_that_is_no_good_is_refused(
    tmp_path: Path, content: str, mode: int, message: str
) -> None:
    with pytest.raises(InputError, match=message) as caught:
        admin_key.read(key_file(tmp_path, content, mode))
    assert FIRST not in str(caught.value)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="No such file"):
        admin_key.read(tmp_path / "none")
