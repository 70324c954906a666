"""Finds the Pythons of this machine for the environments of the ``process`` runner.

It runs each candidate once before it believes it: a pyenv shim or a broken link is no Python. It looks in pyenv's
own folders and never at its shims, over which ``uv python find`` stumbles (a shim of a version that is not
selected exits with 127), and at last asks uv for one that it manages or can download.
"""

from __future__ import annotations

import asyncio
import re
import shutil
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from multinode.errors import InvalidRequest, PythonMissing

OLDEST_MINOR = 8
"""The SDK runs on Python 3.8 and later."""
NEWEST_MINOR = 15
PROBE_TIMEOUT_S = 3.0
FETCH_TIMEOUT_S = 15.0
FETCH_AGAIN_AFTER_S = 600.0
"""After a download that failed, how long it is not tried again: every deploy would wait for it."""

_PROBE = "import sys; print(sys.implementation.name, *sys.version_info[:3])"
_PLACES = ("/usr/local/bin", "/usr/bin", "/opt/homebrew/bin")


@dataclass(frozen=True)
class Python:
    """An interpreter that ran when it was asked for its version, e.g. ``3.11.7``."""

    path: Path
    version: str

    @property
    def minor(self) -> int:
        """The second number of its version."""
        return int(self.version.split(".")[1])


def minor_of(asked: str) -> int:
    """The minor version of ``asked`` (``3.8`` -> 8). Raises InvalidRequest for what is no version, or too old."""
    found = re.fullmatch(r"3\.(\d{1,2})", asked)
    if found is None:
        message, hint = f"{asked!r} is no Python version.", "Write it as major.minor, e.g. 3.12."
        raise InvalidRequest(message, hint)
    minor = int(found[1])
    if minor < OLDEST_MINOR:
        message = f"Python {asked} is too old: Multinode runs on Python 3.{OLDEST_MINOR} and later."
        raise InvalidRequest(message, "Set `python` in multinode.toml.")
    return minor


class Pythons:
    """The interpreters that environments can be made from; what was found is remembered.

    ``variables`` are the server's environment variables (PATH, HOME and PYENV_ROOT are read, all go to uv).
    """

    def __init__(self, uv: Path, variables: Mapping[str, str]) -> None:
        self._uv = uv
        self._variables = dict(variables)
        self._found: dict[int, Python] = {}
        self._fetch_failed_at: dict[int, float] = {}

    async def serving(self, asked: str, *, strict: bool) -> Python:
        """The Python that serves where ``asked`` (``3.8``) is wanted: that one, fetched if need be, else the
        nearest newer one.

        Raises PythonMissing where there is none, or with ``strict`` none but another.
        """
        minor = minor_of(asked)
        exact = await self.find(minor) or await self._fetch(minor)
        if exact is not None:
            return exact
        newer = None if strict else await self._nearest_newer(minor)
        if newer is None:
            raise await self._missing(asked)
        return newer

    async def find(self, minor: int) -> Python | None:
        """Python 3.``minor`` of this machine, or None."""
        known = self._found.get(minor)
        if known is not None and known.path.exists():
            return known
        for path in self._candidates(minor):
            python = await self._probe(path)
            if python is not None and python.minor == minor:
                self._found[minor] = python
                return python
        return await self._managed_by_uv(minor)

    def _candidates(self, minor: int) -> Iterator[Path]:
        if sys.version_info[1] == minor and sys.implementation.name == "cpython":
            yield Path(getattr(sys, "_base_executable", sys.executable))
        pyenv = Path(self._variables.get("PYENV_ROOT") or Path(self._home, ".pyenv"))
        yield from _pyenv_versions(pyenv, minor)
        for place in [*self._variables.get("PATH", "").split(":"), *_PLACES]:
            path = Path(place, f"python3.{minor}")
            if place and pyenv / "shims" not in path.parents and shutil.which(path):
                yield path

    @property
    def _home(self) -> str:
        return self._variables.get("HOME", "/")

    async def _probe(self, path: Path) -> Python | None:
        output = await self._output(path, "-I", "-S", "-c", _PROBE, timeout_s=PROBE_TIMEOUT_S)
        words = output.split()
        if len(words) != 4 or words[0] != "cpython":
            return None
        return Python(path, ".".join(words[1:]))

    async def _managed_by_uv(self, minor: int) -> Python | None:
        command = ("python", "find", "--managed-python", "--no-python-downloads", f"3.{minor}")
        output = await self._output(self._uv, *command, timeout_s=PROBE_TIMEOUT_S)
        python = await self._probe(Path(output.strip())) if output.strip() else None
        if python is None or python.minor != minor:
            return None
        self._found[minor] = python
        return python

    async def _fetch(self, minor: int) -> Python | None:
        now = time.monotonic()
        if now - self._fetch_failed_at.get(minor, -FETCH_AGAIN_AFTER_S) < FETCH_AGAIN_AFTER_S:
            return None
        command = ("python", "install", "--no-bin", f"3.{minor}")
        await self._output(self._uv, *command, timeout_s=FETCH_TIMEOUT_S)
        python = await self._managed_by_uv(minor)
        if python is None:
            self._fetch_failed_at[minor] = now
        return python

    async def _nearest_newer(self, minor: int) -> Python | None:
        for newer in range(minor + 1, NEWEST_MINOR + 1):
            python = await self.find(newer)
            if python is not None:
                return python
        return None

    async def _missing(self, asked: str) -> PythonMissing:
        found = [await self.find(minor) for minor in range(OLDEST_MINOR, NEWEST_MINOR + 1)]
        here = ", ".join(python.version for python in found if python is not None)
        return PythonMissing(
            f"Python {asked} is not on the control plane's machine and could not be fetched.",
            f"Here are: {here or 'none'}. Install Python {asked} (`uv python install {asked}`, "
            "pyenv, or the system's packages), or set `python` in multinode.toml.",
        )

    async def _output(self, *command: str | Path, timeout_s: float) -> str:
        """What ``command`` wrote to stdout; empty where it failed, cannot be run or took too long."""
        try:
            process = await asyncio.create_subprocess_exec(
                *command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
                env=self._variables,
            )
        except OSError:
            return ""
        try:
            output, _ = await asyncio.wait_for(process.communicate(), timeout_s)
        except asyncio.TimeoutError:
            return ""
        finally:
            if process.returncode is None:
                with suppress(ProcessLookupError):
                    process.kill()
                await process.wait()
        return output.decode(errors="replace") if process.returncode == 0 else ""


def _pyenv_versions(pyenv: Path, minor: int) -> list[Path]:
    """The interpreters of pyenv's ``versions/3.<minor>.*``, newest patch first."""
    named = re.compile(rf"3\.{minor}\.(\d+)")
    with suppress(OSError):
        matches = [named.fullmatch(folder.name) for folder in (pyenv / "versions").iterdir()]
        found = sorted((match for match in matches if match), key=lambda match: -int(match[1]))
        return [pyenv / "versions" / match[0] / "bin" / "python" for match in found]
    return []
