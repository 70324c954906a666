"""Unpacks a bundle: an archive of ``tasks/`` that others made, of which nothing may land outside of one folder."""

from __future__ import annotations

import errno
import gzip
import os
import tarfile
import zlib
from pathlib import Path

from ..errors import InvalidTasks
from ..limits import MAX_BUNDLE_FILES, MAX_UNPACKED_BYTES

_PIECE_BYTES = 1024 * 1024
_BAD_NAMES = (
    errno.ENAMETOOLONG, errno.ENOTDIR, errno.EISDIR, errno.ELOOP, errno.EEXIST, errno.EILSEQ, errno.EINVAL,
)  # fmt: skip
"""What the file system says to names that no file can have, and to files that are folders too."""


class _Unpacked:
    """The archive's unpacked bytes, as ``tarfile`` reads them: never many at once, nor all in all.

    A header may claim any size, and tarfile would read it whole: a few KB of archive would take all memory.
    """

    def __init__(self, source: gzip.GzipFile) -> None:
        self._source = source

    def read(self, size: int = -1) -> bytes:
        """At most 1 MiB. Raises tarfile.ReadError for more."""
        if not 0 <= size <= _PIECE_BYTES:
            message = "a header is too long"
            raise tarfile.ReadError(message)
        self._check(self._source.tell() + size)
        return self._source.read(size)

    def seek(self, position: int) -> int:
        """Goes on at ``position``."""
        self._check(position)
        if (
            position < self._source.tell() - tarfile.BLOCKSIZE
        ):  # a negative size: it would go round for ever
            message = "a header leads back"
            raise tarfile.ReadError(message)
        return self._source.seek(position)

    def tell(self) -> int:
        """The position."""
        return self._source.tell()

    @staticmethod
    def _check(position: int) -> None:
        if position > MAX_UNPACKED_BYTES + _PIECE_BYTES:
            message = f"it is over {MAX_UNPACKED_BYTES // 1024**2} MiB when it is unpacked"
            raise tarfile.ReadError(message)


def extract(archive: Path, into: Path) -> None:
    """Unpacks a ``.tar.gz`` into a folder, which is made; files, folders and links within it, and nothing else.

    Raises InvalidTasks for an absolute path, a ``..``, a link that leaves the folder, a device, over 100,000 files or 1 GiB, or
    what is no archive; what was unpacked until then stays. Owners and times are not restored.
    """
    into.mkdir(parents=True, exist_ok=True)
    root = into.resolve()
    try:
        with gzip.open(archive, "rb") as source:
            _extract_all(_Unpacked(source), root)
    except (tarfile.TarError, EOFError, ValueError, OverflowError, zlib.error) as error:
        raise _no_archive(archive, error) from error
    except OSError as error:
        if error.errno is not None and error.errno not in _BAD_NAMES:
            raise
        raise _no_archive(archive, error) from error


def _extract_all(unpacked: _Unpacked, root: Path) -> None:
    with tarfile.open(fileobj=unpacked, mode="r:") as members:  # type: ignore[call-overload]
        for number, member in enumerate(members):
            if number >= MAX_BUNDLE_FILES:
                message = f"it has over {MAX_BUNDLE_FILES} files"
                raise tarfile.ReadError(message)
            _extract_member(members, member, root)
            members.members = []  # else it keeps them all


def _no_archive(archive: Path, error: Exception) -> InvalidTasks:
    message = f"The bundle {archive.name!r} cannot be unpacked: {error}."
    return InvalidTasks(
        message, "Deploy again, and name what functions do not need in .multinodeignore."
    )


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
    elif member.isreg() and not member.issparse():  # a sparse file can be of any size
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
