"""The first key: ``admin``, in a file that only this user can read, or as somebody else says, in a file or a variable."""

from __future__ import annotations

import re
from pathlib import Path

from multinode.errors import InputError
from multinode_control_plane.runners import whole_files
from multinode_control_plane.service import access
from multinode_control_plane.store import Store

FILE = "admin.key"


async def ensure(
    store: Store, data_dir: Path, named: Path | None, given: str | None = None
) -> None:
    """Sees to it that there is an admin key.

    Without ``named`` and ``given`` one is made where there has never been one, and written to ``admin.key`` in the data folder,
    before the store knows of it: a start that is killed between the two is continued by the next. The key in the file ``named``,
    or the key ``given``, replaces the one of last time. One that was revoked stays so. Raises InputError for what is no good key,
    and where both are there.
    """
    if named is not None or given is not None:
        secret = _told(named, given)
        await store.write(lambda tx: access.take_admin_key(tx, secret))
        return
    if await store.read(access.has_admin_key):
        return
    path = data_dir / FILE
    is_new = not path.exists()
    secret = access.new_secret() if is_new else read(path)
    if is_new:
        whole_files.write(path, f"{secret}\n".encode())
    is_ours = await store.write(lambda tx: access.take_admin_key(tx, secret, only_first=True))
    if is_new and not is_ours:  # another process that uses the database was first
        path.unlink(missing_ok=True)


def _told(named: Path | None, given: str | None) -> str:
    if named is not None and given is not None:
        message = "The admin key is in MULTINODE_ADMIN_KEY and in the file of --admin-key-file."
        raise InputError(message, "Leave one of them out.")
    if named is not None:
        return read(named)
    return _checked(given or "", "MULTINODE_ADMIN_KEY")


def read(path: Path) -> str:
    """The key in a file. Raises InputError where it cannot be read, others can read it too, or it is no good key."""
    try:
        mode = path.stat().st_mode
        text = path.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not ASCII"
        message = f"The admin key's file {path} cannot be read: {reason}."
        raise InputError(message, "Correct --admin-key-file (MULTINODE_ADMIN_KEY_FILE).") from error
    if mode & 0o077:
        message = f"The admin key's file {path} can be read by others (mode {mode & 0o777:04o})."
        raise InputError(message, f"Run: chmod 600 {path}")
    return _checked(text, f"The admin key's file {path}")


def _checked(text: str, place: str) -> str:
    if not re.fullmatch(r"[!-~]{32,200}", text):
        message = f"{place} holds no key."
        raise InputError(message, "Write 32 to 200 random letters and digits into it, in one line.")
    return text
