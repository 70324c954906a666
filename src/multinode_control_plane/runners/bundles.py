"""Bundles on the control plane's disk, and their code as the workers of the ``process`` runner see it.

    bundles/<sha256>.tar.gz     what a client put; whole and on disk, or not there
    code/<sha256>/              extracted, shared by all workers that run it
    code/.boot                  the boot in which it was extracted

The files of extracted code are read-only; its folders are not, so that the bytecode that the describing worker's
import writes (``__pycache__``) serves the next ones. Only what ``multinode.worker.bundle`` lets through is
extracted.
"""

from __future__ import annotations

import asyncio
import errno
import hashlib
import re
import secrets
import shutil
import tempfile
from collections import defaultdict
from collections.abc import AsyncIterable, Collection
from pathlib import Path

from multinode.errors import BundleNotFound, BundleTooLarge, InvalidRequest, StorageFull
from multinode.limits import MAX_BUNDLE_BYTES
from multinode.worker import processes
from multinode_control_plane.runners import whole_files
from multinode_control_plane.runners.storage import Stored, note_use, size_of, used_at

_WRITABLE = 0o222


class Bundles:
    """The bundles below ``data_dir``. Every name is the SHA-256 of the archive, in 64 hexadecimal digits."""

    def __init__(self, data_dir: Path) -> None:
        self._archives = data_dir / "bundles"
        self._code = data_dir / "code"
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def open(self) -> None:
        """Makes the folders, and removes what was under way when the server died. Blocks.

        Code that an earlier boot extracted goes too: it is not synced to the disk, so that a power cut may have
        left it in pieces, and it can be had again from the archive.
        """
        for folder in (self._archives, self._code):
            folder.mkdir(parents=True, exist_ok=True)
        for leftover in self._archives.glob(".writing-*"):
            leftover.unlink()
        boot = self._code / ".boot"
        is_same_boot = boot.exists() and boot.read_text() == processes.boot_id()
        for folder in self._code.glob(".extracting-*" if is_same_boot else "*"):
            shutil.rmtree(folder, ignore_errors=True)
        boot.write_text(processes.boot_id())

    def path(self, sha256: str) -> Path:
        """The archive, which is in use now. Raises BundleNotFound, and InvalidRequest for what is no name of a bundle."""
        path = self._archive(sha256)
        if not path.exists():
            message = f"The bundle {sha256} is not here."
            raise BundleNotFound(message, "Deploy again: it will be sent.")
        note_use(path)
        return path

    def stored(self, in_use: Collection[str]) -> list[Stored]:
        """The bundles that are none of ``in_use``, whose use is noted. Blocks."""
        found = []
        for path in self._archives.glob("*.tar.gz"):
            name = path.name.removesuffix(".tar.gz")
            if name in in_use:
                note_use(path)
            else:
                size_bytes = path.stat().st_size + size_of(self._code / name)
                found.append(Stored("bundle", name, size_bytes, used_at(path)))
        return found

    async def put(self, sha256: str, content: AsyncIterable[bytes], *, check: bool = False) -> None:
        """Stores an archive. Returns when it is on disk; one that is there already is left as it is.

        ``check``: also then ``content`` is read, and has to be what its name says.

        Raises BundleTooLarge past 100 MiB, and InvalidRequest where ``content`` is not what its name says; then
        nothing is kept. Raises StorageFull where there is no room.
        """
        target = self._archive(sha256)
        if target.exists():
            note_use(target)
            if not check:
                return
        try:
            await self._put(sha256, content, target)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise _no_room() from error

    async def _put(self, sha256: str, content: AsyncIterable[bytes], target: Path) -> None:
        with tempfile.NamedTemporaryFile(
            dir=self._archives, prefix=".writing-", delete=False
        ) as file:
            writing = Path(file.name)
            try:
                digest, size_bytes = hashlib.sha256(), 0
                async for chunk in content:
                    size_bytes += len(chunk)
                    if size_bytes > MAX_BUNDLE_BYTES:
                        raise _too_large()
                    digest.update(chunk)
                    await asyncio.to_thread(file.write, chunk)
                if digest.hexdigest() != sha256:
                    message = f"The bundle's SHA-256 is {digest.hexdigest()}, not {sha256} as it was named."
                    raise InvalidRequest(message, "It was changed on its way: deploy again.")
                file.flush()
                await asyncio.to_thread(whole_files.keep, file.fileno(), writing, target)
            finally:
                writing.unlink(missing_ok=True)

    async def code_dir(self, sha256: str) -> Path:
        """The folder with the bundle's files, extracted when it is first asked for.

        Raises BundleNotFound, and what ``multinode.worker.bundle.extract`` raises for an archive that it refuses.
        """
        folder = self._code / sha256
        if not folder.exists():
            async with self._locks[sha256]:
                if not folder.exists():
                    await asyncio.to_thread(self._extract, self.path(sha256), folder)
        return folder

    async def remove(self, sha256: str) -> None:
        """Removes the archive and its code; missing ones are no error. No worker of it may be left."""
        self._archive(sha256).unlink(missing_ok=True)
        await asyncio.to_thread(shutil.rmtree, self._code / sha256, ignore_errors=True)

    def _archive(self, sha256: str) -> Path:
        if not re.fullmatch("[0-9a-f]{64}", sha256):
            message = f"{sha256!r:.100} is no SHA-256 of a bundle."
            raise InvalidRequest(message)
        return self._archives / f"{sha256}.tar.gz"

    def _extract(self, archive: Path, folder: Path) -> None:
        from multinode.worker.bundle import extract  # not at the top: tarfile is slow to import

        extracting = self._code / f".extracting-{folder.name}-{secrets.token_hex(4)}"
        try:
            extracting.mkdir()
            extract(archive, extracting)
            for path in extracting.rglob("*"):
                if path.is_file() and not path.is_symlink():
                    path.chmod(path.stat().st_mode & ~_WRITABLE)
            extracting.rename(folder)
        finally:
            shutil.rmtree(extracting, ignore_errors=True)


def _too_large() -> BundleTooLarge:
    message = f"The bundle is over {MAX_BUNDLE_BYTES // 1024**2} MiB."
    return BundleTooLarge(message, "Name what functions do not need in .multinodeignore.")


def _no_room() -> StorageFull:
    message = "The control plane's disk is full: the bundle was not stored."
    return StorageFull(message, "Free some space where its data folder lies, then deploy again.")
