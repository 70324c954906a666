"""Unpacks a bundle: an archive of ``tasks/`` that others made, of which nothing may land outside of one folder."""

from __future__ import annotations

import os
import tarfile
from pathlib import Path

from ..errors import InvalidTasks

_PIECE_BYTES = 1024 * 1024


def extract(archive: Path, into: Path) -> None:
    """Unpacks a ``.tar.gz`` into a folder, which is made; files, folders and links within it, and nothing else.

    Raises InvalidTasks for an absolute path, a ``..``, a link that leaves the folder, a device, or what is no archive; what was
    unpacked until then stays. Owners and times are not restored.
    """
    into.mkdir(parents=True, exist_ok=True)
    root = into.resolve()
    try:
        with tarfile.open(archive, "r:gz") as members:
            for member in members:
                _extract_member(members, member, root)
    except (tarfile.TarError, EOFError) as error:
        message = f"The bundle {archive.name!r} cannot be unpacked: {error}."
        raise InvalidTasks(message, "Deploy again.") from error


def _extract_member(members: tarfile.TarFile, member: tarfile.TarInfo, root: Path) -> None:
    target = root / member.name
    if Path(member.name).is_absolute() or ".." in Path(member.name).parts:
        raise _refusal(member, "lies outside of the bundle")
    if target == root and member.isdir():  # the `.` of `tar -C tasks .`
        return
    if not _is_within(target.parent, root):
        raise _refusal(member, "is reached through a link that leaves the bundle")
    if member.isdir():
        target.mkdir(parents=True, exist_ok=True)
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink() or target.is_file():
        target.unlink()
    if member.issym():
        _link(member, target, root)
    elif member.isreg():
        _write(members, member, target)
    else:  # also hard links, which our own bundles never hold
        raise _refusal(member, "is neither a file nor a folder nor a symbolic link")


def _write(members: tarfile.TarFile, member: tarfile.TarInfo, target: Path) -> None:
    source = members.extractfile(member)
    assert source is not None, "a regular file has content"
    with target.open("wb") as file:
        while True:
            piece = source.read(_PIECE_BYTES)
            if not piece:
                break
            file.write(piece)
    target.chmod(0o755 if member.mode & 0o100 else 0o644)


def _link(member: tarfile.TarInfo, target: Path, root: Path) -> None:
    if Path(member.linkname).is_absolute() or not _is_within(target.parent / member.linkname, root):
        raise _refusal(member, f"is a link to {member.linkname!r}, which is outside of the bundle")
    target.symlink_to(member.linkname)


def _is_within(path: Path, root: Path) -> bool:
    """Whether a path, with every link on its way followed, is ``root`` or below it."""
    real = os.path.realpath(path)
    return real == str(root) or real.startswith(str(root) + os.sep)


def _refusal(member: tarfile.TarInfo, what: str) -> InvalidTasks:
    message = f"The bundle's {member.name!r} {what}."
    return InvalidTasks(message, "Take it out of tasks/, or name it in .multinodeignore.")
