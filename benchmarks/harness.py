"""What every benchmark needs: figures, a control plane of its own, timing."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from multinode import get_deployed_function
from multinode.function import Function

MULTINODE = str(Path(sys.executable).parent / "multinode")
PROJECT = Path(__file__).parent / "project"
UNUSUAL = ("PYTHONDONTWRITEBYTECODE", "PYTHONUNBUFFERED", "MULTINODE_API_URL", "MULTINODE_API_KEY")
"""Set on some machines, but not on a user's: without bytecode every import is ten times as slow."""
CAPACITY = "cpu=64,memory=20GiB"


@dataclass(frozen=True)
class Figure:
    """One line of the table. ``target`` is a limit from above where ``is_rate`` is False; None: a floor or a peer."""

    name: str
    value: float
    unit: str
    target: float | None = None
    floor: float | None = None
    is_rate: bool = False
    note: str = ""

    @property
    def is_met(self) -> bool | None:
        if self.target is None:
            return None
        return self.value >= self.target if self.is_rate else self.value <= self.target

    @property
    def ratio(self) -> float | None:
        return None if self.floor is None else self.value / self.floor


@dataclass(frozen=True)
class Installation:
    """A control plane of the benchmarks' own, in a temporary folder, with the functions of ``project/``."""

    folder: Path
    pid: int
    database: str = ""
    """Its URL, where it is not the SQLite file in the data folder."""

    @property
    def home(self) -> Path:
        return self.folder / "home"

    @property
    def project(self) -> Path:
        return self.folder / "project"

    @property
    def data(self) -> Path:
        return self.home / "server"

    def run(self, *arguments: str) -> str:
        return multinode(*arguments, cwd=self.project)

    def function(self, name: str) -> Function:
        return get_deployed_function("bench", name)


@contextmanager
def installation(
    folder: Path, *, runner: str = "process", database: str = ""
) -> Iterator[Installation]:
    """Starts it, deploys, and stops it whatever happens."""
    for name in UNUSUAL:
        os.environ.pop(name, None)
    os.environ["MULTINODE_HOME"] = str(folder / "home")
    shutil.copytree(PROJECT, folder / "project", ignore=shutil.ignore_patterns("__pycache__"))
    _use_python(folder / "project/multinode.toml", runner)
    try:
        options = [f"--runner={runner}", f"--capacity={CAPACITY}", "--port=0"]
        options += [f"--database={database}"] if database else []
        multinode("server", "start", *options, cwd=folder)
        yield Installation(folder, _deployed(folder), database)
    finally:
        command = [MULTINODE, "server", "stop", "--now"]
        subprocess.run(command, cwd=folder, capture_output=True, timeout=60)


def _use_python(file: Path, runner: str) -> None:
    """The floors run on this interpreter, so the functions do; in containers both run on the image's."""
    version = "3.12" if runner != "process" else "{}.{}".format(*sys.version_info[:2])
    file.write_text(file.read_text() + f'\n[environment]\npython = "{version}"\n')


def _deployed(folder: Path) -> int:
    multinode("deploy", cwd=folder / "project")
    server = (folder / "home" / "server.json").read_text()
    return int(json.loads(server)["pid"])


def multinode(*arguments: str, cwd: Path | None = None) -> str:
    return quiet([MULTINODE, *arguments], cwd=cwd)


def quiet(command: Sequence[str], **options) -> str:
    """Its standard output; what it said on stderr is raised where it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, **options)
    if done.returncode:
        message = f"{' '.join(command)}: {done.stderr[-2000:]}"
        raise RuntimeError(message)
    return done.stdout


def times(count: int, action: Callable[[], object], *, warm: int = 1) -> list[float]:
    """Milliseconds of each of ``count`` calls, after ``warm`` that do not count."""
    for _ in range(warm):
        action()
    return [milliseconds(action) for _ in range(count)]


def map_rate(add: Function, count: int) -> float:
    """How many calls of a function that adds two numbers come back in a second."""
    began = time.perf_counter()
    results = list(add.starmap((i, i) for i in range(count)))
    rate = count / (time.perf_counter() - began)
    assert results == [2 * i for i in range(count)]
    return rate


def milliseconds(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1000


def alternating(count: int, actions: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median milliseconds of each, run by turns, so that the machine's moods fall on all alike."""
    found: dict[str, list[float]] = {name: [] for name in actions}
    for turn in range(count + 1):
        for name, action in actions.items():
            spent = milliseconds(action)
            if turn:
                found[name].append(spent)
    return {name: statistics.median(spent) for name, spent in found.items()}


def p50(values: Iterable[float]) -> float:
    return statistics.median(values)


def p95(values: Iterable[float]) -> float:
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, round(0.95 * len(ordered)))]


def circumstances() -> str:
    names = ("multinode", "starlette", "uvicorn", "sqlalchemy", "typer", "uv")
    versions = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in names)
    load = " ".join(f"{value:.2f}" for value in os.getloadavg())
    return (
        f"{time.strftime('%Y-%m-%d %H:%M')}, Python {platform.python_version()}, {os.cpu_count()} cores, "
        f"Linux {platform.release()}, load {load}\n{versions}"
    )
