"""The bundle: the files of ``tasks/`` as one archive whose bytes depend on nothing but their content.

Sorted names, no times, no owners, two modes: the same files give the same SHA-256 on every machine.
"""

from __future__ import annotations

import io
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from multinode.errors import BundleTooLarge, InvalidTasks
from multinode.limits import MAX_BUNDLE_BYTES
from multinode_cli.tasks_folder.project_file import ProjectFile, unreadable

if TYPE_CHECKING:
    from tarfile import TarFile

IGNORE_FILES = (".multinodeignore", ".dockerignore")
_NEVER = frozenset((".git", "__pycache__", ".venv", "node_modules", ".env"))
_NEEDED = ("main.py", "requirements.txt")
_COMPRESSION = 6


@dataclass(frozen=True)
class Bundle:
    """The archive (tar.gz) and its SHA-256 in hexadecimal."""

    archive: bytes
    digest: str


def list_files(project: ProjectFile) -> tuple[list[str], list[str]]:
    """The paths below ``tasks/`` that belong to the bundle, sorted, and what is wrong with some of them (``path: …``).

    Folders end in ``/``. Links are listed as such and not followed.
    """
    found: list[str] = []
    problems: list[str] = []
    is_ignored = _ignored_by(project)
    for path, relative in _walk(project, problems, is_ignored):
        problem = _problem(project.tasks, path)
        if problem:
            problems.append(f"{project.shown(path)}: {problem}")
        found.append(relative)
    return sorted(found), problems


def pack(project: ProjectFile, files: list[str]) -> Bundle:
    """The archive of ``files``. Raises BundleTooLarge where they are over 100 MiB."""
    import gzip  # lazy: start-up time
    import tarfile

    _refuse_too_large(project, files)
    buffer = io.BytesIO()
    with (
        gzip.GzipFile("", "wb", _COMPRESSION, buffer, mtime=0) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for relative in files:
            _add(tar, project.tasks / relative, relative)
    archive = buffer.getvalue()
    import hashlib  # lazy: loads OpenSSL, which only a deploy needs

    return Bundle(archive, hashlib.sha256(archive).hexdigest())


def _add(tar: TarFile, path: Path, relative: str) -> None:
    import tarfile

    entry = tarfile.TarInfo(relative.rstrip("/"))
    if path.is_symlink():
        entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, str(path.readlink()), 0o777
        tar.addfile(entry)
    elif path.is_dir():
        entry.type, entry.mode = tarfile.DIRTYPE, 0o755
        tar.addfile(entry)
    else:
        content = path.read_bytes()
        entry.size = len(content)
        entry.mode = 0o755 if path.stat().st_mode & 0o111 else 0o644
        tar.addfile(entry, io.BytesIO(content))


def _walk(
    project: ProjectFile, problems: list[str], is_ignored: Callable[[Path, bool], bool]
) -> Iterator[tuple[Path, str]]:
    def failed(error: OSError) -> None:
        problems.append(f"{project.shown(Path(error.filename))}: {unreadable(error)}")

    for folder, folders, names in os.walk(project.tasks, onerror=failed):
        here = Path(folder)
        kept = []
        for name in sorted(folders):
            path = here / name
            if name in _NEVER or is_ignored(path, True):
                continue
            if path.is_symlink():
                yield path, path.relative_to(project.tasks).as_posix()
                continue
            kept.append(name)
            yield path, path.relative_to(project.tasks).as_posix() + "/"
        folders[:] = kept
        for name in names:
            path = here / name
            if name in _NEVER or name.endswith(".pyc") or is_ignored(path, False):
                continue
            yield path, path.relative_to(project.tasks).as_posix()


def _problem(tasks: Path, path: Path) -> str:
    """What keeps ``path`` out of a bundle, empty where nothing does."""
    if path.is_symlink():
        target = path.readlink()
        if target.is_absolute():
            return f"is a link to {str(target)!r}; make it relative, or put a copy here"
        if not path.resolve().is_relative_to(tasks.resolve()):
            return f"is a link to {str(target)!r}, outside tasks/; put a copy here, or name it in .multinodeignore"
        return ""
    try:
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            return ""
        if not stat.S_ISREG(mode):
            return "is no regular file; remove it, or name it in .multinodeignore"
        with path.open("rb"):
            return ""
    except OSError as error:
        is_needed = path.parent == tasks and path.name in _NEEDED
        return unreadable(error) + ("" if is_needed else ", or name it in .multinodeignore")


def _ignored_by(project: ProjectFile) -> Callable[[Path, bool], bool]:
    """Whether a path is named by the ignore file, which lies in ``tasks/`` or beside ``multinode.toml``."""
    places = [(folder, name) for name in IGNORE_FILES for folder in (project.tasks, project.root)]
    found = next((item for item in places if (item[0] / item[1]).is_file()), None)
    if found is None:
        return lambda path, is_folder: False
    from pathspec import GitIgnoreSpec  # lazy: start-up time

    folder, name = found
    try:
        lines = (folder / name).read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        message = f"{project.shown(folder / name)}: {unreadable(error)}."
        raise InvalidTasks(message) from error
    spec = GitIgnoreSpec.from_lines(lines)

    def is_ignored(path: Path, is_folder: bool) -> bool:
        relative = path.relative_to(folder).as_posix()
        return spec.match_file(relative + "/" if is_folder else relative)

    return is_ignored


def _refuse_too_large(project: ProjectFile, files: list[str]) -> None:
    sizes = [
        (os.lstat(project.tasks / name).st_size, name) for name in files if not name.endswith("/")
    ]
    total = sum(size for size, _ in sizes)
    if total <= MAX_BUNDLE_BYTES:
        return
    largest = "\n".join(
        f"  {size / 1024**2:8.1f} MiB  {project.shown(project.tasks / name)}"
        for size, name in sorted(sizes, reverse=True)[:10]
    )
    limit_mib = MAX_BUNDLE_BYTES // 1024**2
    message = f"The files of tasks/ are {total / 1024**2:.1f} MiB, {limit_mib} are allowed. The largest:\n{largest}"
    hint = (
        "Name what the functions do not need in .multinodeignore, and keep large data in storage."
    )
    raise BundleTooLarge(message, hint)
