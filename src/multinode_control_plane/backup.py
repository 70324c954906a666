"""``python -m multinode_control_plane.backup``: a store and what belongs to it, as one archive, and back.

    manifest.json          format, release, schema, time; last in the archive: without it the archive is not whole
    database.sqlite        the store as it was at one moment
    secret.key, …          see `FILES`
    bundles/<sha256>.tar.gz  images/<digest>.json  logs/<exe-id>.jsonl

A backup is made while the server runs: SQLite gives a snapshot, and everything else is only ever added. What can be made
again (environments, extracted code) is left out. A restore writes into a folder that has no store, under its lock,
and the store comes last: one that was interrupted is made again from the beginning.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import secrets
import shutil
import sqlite3
import sys
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from multinode.errors import InputError, StorageFull
from multinode_control_plane import (
    __version__,
    backup_ring,
    data_folder,
    migrations,
    model,
    programs,
)
from multinode_control_plane.runners import whole_files
from multinode_control_plane.settings import Settings, parser, resolve

FORMAT = 1
DATABASE, MANIFEST = "database.sqlite", "manifest.json"
FILES = ("secret.key", "local.json", "admin.key", "installation", "network.json")
FOLDERS = {"bundles": ".tar.gz", "images": ".json", "logs": ".jsonl"}
_BLOCK_BYTES = 1024 * 1024


@dataclass(frozen=True)
class Backup:
    """What was made or restored. ``missing``: bundles that versions name and the archive does not have. ``ring``: where the keys of
    `.env` values are that it does not have, in words; empty where it has them.
    """

    file: str
    created_at: str
    version: str
    projects: int
    invocations: int
    size_bytes: int
    missing: tuple[str, ...] = ()
    ring: str = ""


def main(argv: list[str] | None = None) -> int:
    """Makes or restores one, and prints a line of JSON: ``{"result"}`` or ``{"error"}``. Returns the process's exit code."""
    made = parser()
    made.add_argument("act", choices=("make", "restore"))
    made.add_argument("file")
    options = made.parse_args(argv)
    acts: dict[str, Callable[[Settings, Path], Backup]] = {"make": make, "restore": restore}

    def act() -> dict[str, Any]:
        with _told_where_full():
            done = acts[options.act](resolve(options, os.environ), Path(options.file).absolute())
        return vars(done)

    return programs.tell(act)


# --- make -----------------------------------------------------------------------------------------------


def make(settings: Settings, target: Path) -> Backup:
    """Writes the archive (mode 0600); the server may run. A folder as ``target`` gets a file named after the time.

    Raises InputError where there is no store, where ``target`` is there already, or cannot be written.
    """
    store = _sqlite_file(settings)
    if not store.exists():
        message = f"There is no store at {store}."
        raise InputError(message, "Say where it is: MULTINODE_HOME, --data-dir or --database.")
    at = time.time()
    if target.is_dir():
        target = target / time.strftime("multinode-%Y%m%dT%H%M%SZ.tar.gz", time.gmtime(at))
    if target.exists():
        message = f"{target} exists."
        raise InputError(message, "Name another file, or a folder: it is named after the time.")
    draft = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    snapshot = draft.with_name(draft.name + ".sqlite")
    try:
        counts = _take_snapshot(store, snapshot)
        with _opened_for_writing(draft) as file:
            counts["ring"] = backup_ring.ring_elsewhere(snapshot, settings, os.environ)
            with tarfile.open(fileobj=file, mode="w:gz", compresslevel=3) as archive:
                digests = _add_all(archive, snapshot, settings.data_dir)
                manifest = _manifest(at, counts, digests)
                _add_bytes(archive, MANIFEST, json.dumps(manifest).encode())
            file.flush()
            whole_files.keep(file.fileno(), draft, target)
    finally:
        draft.unlink(missing_ok=True)
        snapshot.unlink(missing_ok=True)
    return _told(target, manifest)


@contextlib.contextmanager
def _opened_for_writing(path: Path) -> Iterator[IO[bytes]]:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:  # noqa: PTH123
        yield file


def _take_snapshot(store: Path, snapshot: Path) -> dict[str, Any]:
    """Copies the store as it is at one moment, and counts what is in it."""
    try:
        os.close(os.open(snapshot, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise
        message = f"{snapshot.parent} cannot be written to: {error.strerror}."
        raise InputError(message, "Name a file in a folder that you may write to.") from error
    with (
        contextlib.closing(sqlite3.connect(f"file:{store}?mode=ro", uri=True)) as source,
        contextlib.closing(sqlite3.connect(snapshot)) as copy,
    ):
        source.backup(copy)
        return _counted(copy)


def _counted(database: sqlite3.Connection) -> dict[str, Any]:
    def number(query: str) -> Any:
        return database.execute(query).fetchone()[0]

    bundles = database.execute("SELECT DISTINCT bundle_digest FROM versions").fetchall()
    return {
        "schema": number("SELECT version_num FROM alembic_version"),
        "projects": number("SELECT count(*) FROM projects"),
        "invocations": number("SELECT count(*) FROM invocations"),
        "bundles": sorted(name for (name,) in bundles),
    }


def _add_all(archive: tarfile.TarFile, snapshot: Path, data_dir: Path) -> dict[str, str]:
    """Adds every file; the SHA-256 of each. What was removed meanwhile is passed over."""
    found = {DATABASE: snapshot}
    found |= {name: data_dir / name for name in FILES}
    for folder, ending in FOLDERS.items():
        paths = sorted((data_dir / folder).glob(f"*{ending}"))
        found |= {f"{folder}/{path.name}": path for path in paths}
    digests = {}
    for name, path in found.items():
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            digests[name] = _add_file(archive, name, file)
    return digests


def _add_file(archive: tarfile.TarFile, name: str, file: IO[bytes]) -> str:
    """Adds as much as there is now: output of a running function grows."""
    item = tarfile.TarInfo(name)
    status = os.fstat(file.fileno())
    item.size, item.mtime, item.mode = status.st_size, int(status.st_mtime), 0o600
    reader = _Digesting(file)
    archive.addfile(item, reader)  # type: ignore[arg-type]  # it only calls read
    return reader.digest.hexdigest()


class _Digesting:
    """A file that is read once, with the SHA-256 of what was read."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.digest.update(data)
        return data


def _add_bytes(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    item = tarfile.TarInfo(name)
    item.size, item.mode = len(content), 0o600
    archive.addfile(item, io.BytesIO(content))


def _manifest(at: float, counts: dict[str, Any], digests: dict[str, str]) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "version": __version__,
        "created_at": model.to_time(at),
        **counts,
        "files": digests,
    }


# --- restore --------------------------------------------------------------------------------------------


def restore(settings: Settings, source: Path) -> Backup:
    """Puts the archive's files into the data folder, which must have no store. Raises InputError where it has one, and for what
    is no whole backup, of a later release, or encrypted with keys that are not in the ring at hand; Conflict where a control plane uses the folder. Then nothing has changed.
    """
    store = _sqlite_file(settings)
    data_folder.prepare(settings.data_dir)
    with data_folder.locked(settings.data_dir):
        if store.exists():
            message = f"There is a store at {store} already."
            raise InputError(
                message,
                "Move it away first, or restore into another folder: --data-dir, MULTINODE_HOME.",
            )
        unpacked = settings.data_dir / f".restoring-{secrets.token_hex(4)}"
        unpacked.mkdir(mode=0o700)
        try:
            manifest = _unpack(source, unpacked)
            _check_database(unpacked / DATABASE, source)
            _check_ring(unpacked, settings, manifest)
            _put(unpacked, settings.data_dir, store)
        finally:
            shutil.rmtree(unpacked, ignore_errors=True)
    return _told(source, manifest)


def _unpack(source: Path, folder: Path) -> dict[str, Any]:
    """Extracts known files alone, and compares each with the manifest, which this returns."""
    digests: dict[str, str] = {}
    manifest: dict[str, Any] = {}
    try:
        with tarfile.open(source, "r:gz") as archive:
            for item in archive:
                content = archive.extractfile(item) if item.isreg() else None
                if content is None:
                    raise _no_backup(source)
                if item.name == MANIFEST:
                    manifest = json.load(content)
                elif _is_known(item.name):
                    digests[item.name] = _write(content, folder / item.name)
                else:
                    raise _no_backup(source)
    except FileNotFoundError as error:
        message = f"There is no file {source}."
        raise InputError(message, "Name a file that `multinode server backup` has made.") from error
    except (tarfile.TarError, EOFError, zlib.error, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise _no_backup(source) from error
    _check_manifest(manifest, digests, source)
    return manifest


def _is_known(name: str) -> bool:
    folder, _, file = name.rpartition("/")
    if not folder:
        return name in (DATABASE, *FILES)
    ending = FOLDERS.get(folder)
    return ending is not None and file.endswith(ending) and not file.startswith(".")


def _write(content: IO[bytes], path: Path) -> str:
    path.parent.mkdir(exist_ok=True, mode=0o700)
    digest = hashlib.sha256()
    with _opened_for_writing(path) as file:
        while block := content.read(_BLOCK_BYTES):
            digest.update(block)
            file.write(block)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _check_manifest(manifest: dict[str, Any], digests: dict[str, str], source: Path) -> None:
    if not manifest or DATABASE not in digests or manifest.get("files") != digests:
        raise _no_backup(source)
    if manifest.get("format") != FORMAT or str(manifest.get("schema")) > migrations.HEAD:
        message = f"{source} was made by a later release ({manifest.get('version')!s:.50})."
        raise InputError(message, "Restore it with that release.")


def _check_database(path: Path, source: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as database:
        try:
            (found,) = database.execute("PRAGMA integrity_check").fetchone()
        except sqlite3.DatabaseError as error:
            raise _no_backup(source) from error
    if found != "ok":
        raise _no_backup(source)


def _check_ring(unpacked: Path, settings: Settings, manifest: dict[str, Any]) -> None:
    ring = backup_ring.ring_at_hand(unpacked, settings, os.environ)
    try:
        backup_ring.check_opens(unpacked / DATABASE, ring)
    except InputError as error:
        was = manifest.get("ring")
        hint = f"{error.hint} When the backup was made, they were in: {was}." if was else error.hint
        message = f"Nothing was restored. {error.message}"
        raise InputError(message, hint) from error


def _put(unpacked: Path, data_dir: Path, store: Path) -> None:
    """Moves everything to its place, the store last."""
    for path in sorted(unpacked.rglob("*")):
        if path.is_file() and path.name != DATABASE:
            target = data_dir / path.relative_to(unpacked)
            target.parent.mkdir(exist_ok=True, mode=0o700)
            path.replace(target)
    store.parent.mkdir(parents=True, exist_ok=True)
    with (unpacked / DATABASE).open("rb") as file:
        if store.parent.stat().st_dev == unpacked.stat().st_dev:
            whole_files.keep(file.fileno(), unpacked / DATABASE, store)
        else:
            _write(file, store)


def _no_backup(source: Path) -> InputError:
    message = f"{source} is no whole backup: it was cut off, changed, or made by something else."
    return InputError(message, "Name a file that `multinode server backup` has made.")


# --- both -----------------------------------------------------------------------------------------------


def _sqlite_file(settings: Settings) -> Path:
    """The store's file. Raises InputError where it is none."""
    if not settings.database.startswith("sqlite:///"):
        message = "The store is in PostgreSQL, which has its own backups."
        raise InputError(message, "Use `pg_dump` and `pg_restore`, and keep a copy of secret.key.")
    return Path(settings.database.removeprefix("sqlite:///"))


def _told(file: Path, manifest: dict[str, Any]) -> Backup:
    have = manifest["files"]
    return Backup(
        file=str(file),
        created_at=manifest["created_at"],
        version=manifest["version"],
        projects=manifest["projects"],
        invocations=manifest["invocations"],
        size_bytes=file.stat().st_size,
        ring=manifest.get("ring", ""),
        missing=tuple(n for n in manifest["bundles"] if f"bundles/{n}.tar.gz" not in have),
    )


@contextlib.contextmanager
def _told_where_full() -> Iterator[None]:
    """Raises StorageFull in place of a full disk's own errors."""
    try:
        yield
    except (OSError, sqlite3.OperationalError) as error:
        is_full = getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
        if not is_full and "full" not in str(error):
            raise
        message = "There is no room on the disk; nothing was changed."
        raise StorageFull(message, "Free some, or name a file on another disk.") from error


if __name__ == "__main__":
    sys.exit(main())
