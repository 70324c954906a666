"""Virtual environments of the ``process`` runner, made with uv, each once.

    environments/<digest>/current -> <generation>
    environments/<digest>/<generation>/environment.json     the EnvironmentInfo that deploy was answered
    environments/<digest>/<generation>/venv/                with the requirements, and our own SDK
    environments/.making-<digest>-<random>/                 under way; removed when it fails, or at the next open
    sdk/<digest>/<python>/                                  our SDK, compiled: what environments of one Python share by hard links

An environment is made beside its place and renamed into it, so whatever is there is whole. Building anew
(``no_cache``) makes another generation and swings ``current`` to it in one step: workers that run keep theirs,
which goes when nobody uses it any more (a user holds a shared lock on the generation's folder, see ``lease``).

The data folder belongs to one server at a time (it holds a lock on it), so one lock a digest in memory is enough.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import hashlib
import importlib.util
import json
import os
import platform
import re
import secrets
import shutil
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timezone
from importlib.metadata import distributions
from pathlib import Path
from typing import ParamSpec, TypeVar

from multinode.distribution import (
    SDK_REQUIREMENTS,
    SDK_VERSION,
    sdk_digest,
    sdk_files,
    sdk_folder,
)
from multinode.errors import (
    EnvironmentNotFound,
    MissingExtra,
    MultinodeError,
)
from multinode.wire import (
    BuildEvent,
    BuildRequest,
    EnvironmentInfo,
    EnvironmentSpec,
    ErrorBody,
    dumps,
    loads,
)
from multinode_control_plane.runners import resolver, specs
from multinode_control_plane.runners.pythons import Python, Pythons
from multinode_control_plane.runners.resolver import ResolverFailed, Say, run_uv
from multinode_control_plane.runners.storage import Stored, note_use, size_of, used_at

FORMAT = "1"
"""Part of every digest: change it when environments are made in another way."""

_NOISE = re.compile("Using Python |.*does not contain any dependencies")
_METADATA = f"Metadata-Version: 2.1\nName: multinode\nVersion: {SDK_VERSION}\n"


_Arguments = ParamSpec("_Arguments")
_Made = TypeVar("_Made")


@dataclass(frozen=True)
class _Plan:
    """A build that has been decided on: what, with which Python, under which digest."""

    spec: EnvironmentSpec
    python: Python
    digest: str
    no_cache: bool

    @property
    def is_exact(self) -> bool:
        """Whether the Python that was asked for serves."""
        return self.python.version.startswith(f"{self.spec.python}.")

    @property
    def warnings(self) -> list[str]:
        """What its user has to know."""
        found = []
        asked, served = self.spec.python, self.python.version
        if not self.is_exact:
            found.append(
                f"Python {asked} is not here: {served} serves; requirements are resolved for {asked}."
            )
        if self.spec.apt:
            packages = ", ".join(self.spec.apt)
            found.append(f"System packages are not installed by the process runner: {packages}.")
        return found


@dataclass(frozen=True)
class _Workshop:
    """The folder in which one environment is made."""

    folder: Path

    @property
    def venv(self) -> Path:
        return self.folder / "venv"

    @property
    def python(self) -> Path:
        return self.venv / "bin" / "python"

    @property
    def inputs(self) -> Path:
        """Where requirements.txt and what it includes lie while uv runs."""
        return self.folder / "inputs"

    @property
    def sdk_requirements(self) -> Path:
        return self.folder / "sdk-requirements.txt"

    @property
    def resolved(self) -> Path:
        """The versions for the Python asked for, where another one serves."""
        return self.folder / "resolved.txt"

    @property
    def sdk(self) -> Path:
        """Where the SDK is copied and compiled while uv is at work on the rest."""
        return self.folder / "sdk"


class _Build:
    """The runs of uv that one environment takes; ``say`` takes the lines that it writes."""

    def __init__(
        self, plan: _Plan, workshop: _Workshop, *, uv: Path, variables: Mapping[str, str], say: Say
    ) -> None:
        self._plan = plan
        self._workshop = workshop
        self._uv = uv
        self._variables = resolver.variables_for_uv(variables, plan.spec.settings or {})
        self._say = say

    async def make_venv(self) -> None:
        """Writes what uv reads, and makes the empty environment."""
        _write_inputs(self._plan.spec, self._workshop.inputs)
        self._workshop.sdk_requirements.write_text("\n".join(SDK_REQUIREMENTS))
        options = ["--quiet", "--no-project", "--relocatable", "--python"]
        await self._run("venv", *options, self._plan.python.path, self._workshop.venv)

    async def install(self) -> None:
        """Installs the requirements and the SDK's own in one resolution."""
        asked: list[str | Path] = ["-r", "requirements.txt", "-r", self._workshop.sdk_requirements]
        if not self._plan.is_exact:
            await self._resolve_for_asked(asked)
            asked += ["--constraints", self._workshop.resolved]
        await self._pip("install", *asked)

    async def _resolve_for_asked(self, asked: list[str | Path]) -> None:
        """Resolves for the Python asked for, into ``resolved``; emptied where the one that serves cannot have that.

        So what cannot be on the Python asked for fails here, in its terms, and what can be is the same on the one that
        serves, as far as its wheels exist there.
        """
        python, resolved = self._plan.spec.python, self._workshop.resolved
        options = ["--quiet", "--no-header", "--no-annotate", "--python-version", python, "-o"]
        sources = ("requirements.txt", self._workshop.sdk_requirements)
        await self._pip("compile", *options, resolved, *sources)
        try:
            await self._pip("install", "--quiet", "--dry-run", *asked, "--constraints", resolved)
        except ResolverFailed:
            resolved.write_text("")
            self._say(f"warning: not all of what Python {python} would get exists for this one")

    async def _pip(self, verb: str, *arguments: str | Path) -> None:
        options = resolver.options_for_uv(self._variables)
        if self._plan.no_cache:
            options.append("--refresh")
        await self._run("pip", verb, *options, "--python", self._workshop.python, *arguments)

    async def _run(self, *arguments: str | Path) -> None:
        command = [self._uv, *arguments]
        inputs = self._workshop.inputs
        await run_uv(command, folder=inputs, variables=self._variables, say=self._say_unless_noise)

    def _say_unless_noise(self, line: str) -> None:
        if not _NOISE.match(line):
            self._say(line)


class Virtualenvs:
    """The environments below ``folder``. ``variables`` are the server's environment variables, for uv."""

    def __init__(self, folder: Path, variables: Mapping[str, str]) -> None:
        self._folder = folder
        self._sdks = folder.with_name("sdk")
        self._variables = dict(variables)
        self._uv = find_uv()
        clean = resolver.variables_for_uv(variables, {})
        pyenv = {"PYENV_ROOT": variables["PYENV_ROOT"]} if variables.get("PYENV_ROOT") else {}
        self._pythons = Pythons(self._uv, clean | pyenv)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def open(self) -> None:
        """Makes the folder, and removes what builds that died and old generations have left. Blocks."""
        self._folder.mkdir(parents=True, exist_ok=True)
        for making in self._folder.glob(".making-*"):
            shutil.rmtree(making, ignore_errors=True)
        for digest in self._folder.iterdir():
            _remove_unused_generations(digest)
        for sdk in self._sdks.glob("*"):
            if sdk.name != sdk_digest():
                shutil.rmtree(sdk, ignore_errors=True)

    def generation(self, digest: str) -> Path:
        """The folder of the environment's current generation, free of links. Raises EnvironmentNotFound."""
        try:
            return (self._folder / digest / "current").resolve(strict=True)
        except OSError as error:
            message = f"The environment {digest!r} is not here."
            raise EnvironmentNotFound(message, "Deploy again: it will be made.") from error

    def info(self, digest: str) -> EnvironmentInfo:
        """The environment of this digest. Raises EnvironmentNotFound."""
        text = (self.generation(digest) / "environment.json").read_bytes()
        return loads(EnvironmentInfo, text)

    def stored(self, in_use: Collection[str]) -> list[Stored]:
        """The environments that are none of ``in_use``, whose use is noted. Blocks."""
        found = []
        for folder in self._folder.glob("[0-9a-f]*"):
            mark = folder / "current" / "environment.json"
            if folder.name in in_use:
                note_use(mark)
            else:
                found.append(Stored("environment", folder.name, size_of(folder), used_at(mark)))
        return found

    async def discard(self, digest: str) -> bool:
        """Removes an environment with all its generations; False where a starter or worker of one is left."""
        folder = self._folder / digest
        async with self._locks[digest]:
            generations = [path for path in folder.iterdir() if not path.is_symlink()]
            if any(_is_leased(path) for path in generations):
                return False
            away = self._folder / f".making-{digest}-gone-{secrets.token_hex(4)}"
            folder.rename(away)
        await asyncio.to_thread(shutil.rmtree, away, ignore_errors=True)
        return True

    async def build(self, request: BuildRequest) -> AsyncIterator[BuildEvent]:
        """Yields the build's output line by line, and at last one event with ``environment`` or ``error``.

        Whoever else asks for the same environment meanwhile waits, and is then given the one that was made. A build
        that fails, or whose iteration is given up, leaves nothing.
        """
        events: asyncio.Queue[BuildEvent | None] = asyncio.Queue()
        outcome = asyncio.create_task(
            self._outcome(request, lambda line: events.put_nowait(BuildEvent(line=line)))
        )
        outcome.add_done_callback(lambda _: events.put_nowait(None))
        try:
            while (event := await events.get()) is not None:
                yield event
            yield outcome.result()
        finally:
            outcome.cancel()
            await asyncio.wait([outcome])

    async def _outcome(self, request: BuildRequest, say: Say) -> BuildEvent:
        try:
            plan = await self._plan(request)
            if request.plan and not self._is_there(plan):
                return BuildEvent(missing=plan.digest)
            return BuildEvent(environment=await self._made(plan, say))
        except ResolverFailed as error:
            requirements, python = request.spec.requirements, request.spec.python
            body = resolver.error_of(error.lines, requirements=requirements, python=python)
            return BuildEvent(error=body)
        except MultinodeError as error:
            return BuildEvent(error=ErrorBody(error.code, error.message, error.hint))
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            return BuildEvent(error=resolver.disk_full())

    async def _plan(self, request: BuildRequest) -> _Plan:
        specs.check(request.spec)
        asked = request.spec.python
        python = await self._pythons.serving(asked, strict=request.strict_python)
        digest = await asyncio.to_thread(digest_of, request.spec, python.version)
        return _Plan(request.spec, python, digest, no_cache=request.no_cache)

    def _is_there(self, plan: _Plan) -> bool:
        """Whether one that was made before serves."""
        return not plan.no_cache and (self._folder / plan.digest / "current").exists()

    async def _made(self, plan: _Plan, say: Say) -> EnvironmentInfo:
        async with self._locks[plan.digest]:
            if self._is_there(plan):
                note_use(self._folder / plan.digest / "current" / "environment.json")
                return self.info(plan.digest)
            with self._workshop(plan.digest) as workshop:
                await self._make(plan, workshop, say)
                made = await _undisturbed(self._finish, plan, workshop)
        return made.replace(created=True)

    async def _make(self, plan: _Plan, workshop: _Workshop, say: Say) -> None:
        """Fills the workshop's virtual environment with all but the SDK; the SDK lies ready beside it."""
        for warning in plan.warnings:
            say(f"warning: {warning}")
        build = _Build(plan, workshop, uv=self._uv, variables=self._variables, say=say)
        await build.make_venv()
        sdk = asyncio.create_task(self._prepare_sdk(plan.python, workshop))
        try:
            await build.install()
            await sdk
        finally:
            sdk.cancel()
            await asyncio.wait([sdk])

    async def _prepare_sdk(self, python: Python, workshop: _Workshop) -> None:
        """Puts the compiled SDK beside the environment; compiles it where it is the first one of this Python."""
        kept = self._sdks / sdk_digest() / python.version
        async with self._locks[str(kept)]:
            if not kept.exists():
                await _undisturbed(_copy_sdk, workshop.sdk)
                await _compile(workshop.python, workshop.sdk / "multinode")
                kept.parent.mkdir(parents=True, exist_ok=True)
                await _undisturbed(os.sync)  # once a Python: it is taken for whole from now on
                workshop.sdk.rename(kept)
        await _undisturbed(_copy_linked, kept, workshop.sdk)

    @contextmanager
    def _workshop(self, digest: str) -> Iterator[_Workshop]:
        folder = self._folder / f".making-{digest}-{secrets.token_hex(4)}"
        try:
            folder.mkdir(parents=True)
            yield _Workshop(folder)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def _finish(self, plan: _Plan, workshop: _Workshop) -> EnvironmentInfo:
        """Puts in the SDK, last, writes environment.json and renames it all into place. Blocks."""
        site = _site_packages(workshop.venv)
        shutil.rmtree(site / "multinode", ignore_errors=True)
        for item in workshop.sdk.iterdir():
            item.rename(site / item.name)
        shutil.rmtree(workshop.inputs)
        workshop.sdk.rmdir()
        workshop.sdk_requirements.unlink()
        workshop.resolved.unlink(missing_ok=True)
        info = EnvironmentInfo(
            digest=plan.digest,
            python=plan.spec.python,
            python_served=plan.python.version,
            packages=_packages(site),
            warnings=plan.warnings,
            created_at=datetime.now(timezone.utc).isoformat(),
        )
        (workshop.folder / "environment.json").write_bytes(dumps(info))
        # Thousands of files: one sync, in place of an fsync each, makes a power cut after the rename harmless.
        os.sync()
        _place(workshop.folder, self._folder / plan.digest)
        return info


def find_uv() -> Path:
    """The uv that is installed with the server. Raises MissingExtra."""
    if importlib.util.find_spec("uv") is None:
        message = "uv is not installed: virtual environments cannot be made."
        raise MissingExtra(message, "Install Multinode with its extra [server].")
    import uv  # not at the top: only servers have it

    return Path(uv.find_uv_bin())


def venv_of(generation: Path) -> Path:
    """The virtual environment of a generation's folder."""
    return generation / "venv"


def lease(generation: Path) -> int:
    """A descriptor that keeps the generation from being removed while it is open, here or where it is inherited."""
    descriptor = os.open(generation, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    return descriptor


def digest_of(spec: EnvironmentSpec, python_served: str) -> str:
    """The name of the environment: 64 hexadecimal digits over everything that decides what is in it."""
    counted = {
        "format": FORMAT,
        **specs.counted(spec),
        "python_served": python_served,
        "platform": [platform.system(), platform.machine(), platform.libc_ver()[0]],
        "sdk": sdk_digest(),
    }
    return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()


def _write_inputs(spec: EnvironmentSpec, folder: Path) -> None:
    folder.mkdir()
    for name, content in (spec.files or {}).items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(specs.decoded(name, content))
    (folder / "requirements.txt").write_text(spec.requirements, encoding="utf-8")


async def _compile(python: Path, package: Path) -> None:
    """By the environment's own Python: bytecode differs from version to version."""
    process = await asyncio.create_subprocess_exec(
        *(python, "-I", "-S", "-m", "compileall", "-q", package),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
        env={},
    )
    try:
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def _copy_linked(source: Path, target: Path) -> None:
    """A copy of the folder whose files are the same files, where the file system has hard links."""
    try:
        shutil.copytree(source, target, copy_function=os.link)
    except shutil.Error:  # too many links, or none at all
        shutil.rmtree(target)
        shutil.copytree(source, target)


async def _undisturbed(
    act: Callable[_Arguments, _Made], *args: _Arguments.args, **kwargs: _Arguments.kwargs
) -> _Made:
    """What ``act`` returns, run in a thread. A cancellation arrives when it is done: its folder is not removed under it."""
    acting = asyncio.ensure_future(asyncio.to_thread(act, *args, **kwargs))
    try:
        return await asyncio.shield(acting)
    finally:
        await asyncio.wait([acting])


def _copy_sdk(into: Path) -> None:
    """The SDK as it would lie in site-packages, with the few files by which ``importlib.metadata`` knows it."""
    package = into / "multinode"
    for source in sdk_files():
        target = package / source.relative_to(sdk_folder())
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(source, target)
    metadata = into / f"multinode-{SDK_VERSION}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(_METADATA)
    (metadata / "INSTALLER").write_text("multinode\n")
    names = [f"{path.relative_to(into)},," for path in sorted(into.rglob("*.*")) if path.is_file()]
    record = f"{metadata.name}/RECORD,,"
    (metadata / "RECORD").write_text("\n".join([*names, record, ""]))


def _site_packages(venv: Path) -> Path:
    return next(iter((venv / "lib").glob("python3.*"))) / "site-packages"


def _packages(site: Path) -> list[str]:
    """What is installed, as ``name==version``, sorted; our SDK left out."""
    found = {
        resolver.normalized(item.metadata["Name"]): item.version
        for item in distributions(path=[str(site)])
    }
    found.pop("multinode", None)
    return sorted(f"{name}=={version}" for name, version in found.items())


def _place(made: Path, digest_folder: Path) -> None:
    """Renames ``made`` to the newest generation of its environment, and swings ``current`` to it in one step."""
    generation = digest_folder / secrets.token_hex(6)
    digest_folder.mkdir(exist_ok=True)
    made.rename(generation)
    link = digest_folder / f".current-{generation.name}"
    link.symlink_to(generation.name)
    link.replace(digest_folder / "current")


def _remove_unused_generations(digest_folder: Path) -> None:
    if not digest_folder.is_dir():
        return
    current = os.path.realpath(digest_folder / "current")
    for item in digest_folder.iterdir():
        if item.is_symlink() and item.name != "current":
            item.unlink()
        elif item.is_dir() and str(item.resolve()) != current and not _is_leased(item):
            shutil.rmtree(item, ignore_errors=True)


def _is_leased(generation: Path) -> bool:
    descriptor = os.open(generation, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
