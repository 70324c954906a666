"""``.env`` and ``requirements.txt``: their values, and what is wrong with their lines."""

from __future__ import annotations

import base64
import re
from dataclasses import dataclass, field
from pathlib import Path

from multinode_cli.tasks_folder.project_file import ProjectFile, unreadable

_INCLUDE = re.compile(r"(?:-r|-c|--requirement|--constraint)(?:\s*=\s*|\s*)(?P<path>\S.*)")
_EDITABLE = re.compile(r"(?:-e|--editable)\b")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
_COMMENT = re.compile(r"(?:^|\s)#.*$")
_REMOTE = re.compile(r"[a-z][a-z0-9+.-]*://", re.IGNORECASE)
_INSTALLED_BY_US = "multinode"


@dataclass(frozen=True)
class Requirements:
    """``text`` of ``requirements.txt`` (empty where there is none) and the ``files`` that it includes: path
    below ``tasks/`` to base64 content."""

    text: str = ""
    files: dict[str, str] = field(default_factory=dict)


def read_dotenv(project: ProjectFile) -> tuple[dict[str, str], list[str]]:
    """The values of ``tasks/.env`` as python-dotenv reads them, and what is wrong with it (``path:line: …``)."""
    path = project.tasks / ".env"
    shown = project.shown(path)
    if not path.is_file():
        return {}, []
    from dotenv import dotenv_values  # lazy: start-up time
    from dotenv.parser import parse_stream

    try:
        with path.open(encoding="utf-8") as stream:
            bindings = list(parse_stream(stream))
    except (OSError, UnicodeDecodeError) as error:
        return {}, [f"{shown}: {unreadable(error)}"]
    problems = []
    for binding in bindings:
        line = binding.original.line + _blank_lines(binding.original.string)
        if binding.error:
            problems.append(
                f"{shown}:{line}: is no NAME=value; quote a value of several lines, start comments with #"
            )
        elif binding.key is not None and binding.value is None:
            problems.append(
                f"{shown}:{line}: {binding.key!r} has no value; write {binding.key}= for an empty one"
            )
        elif binding.key is not None and "\0" in f"{binding.key}{binding.value}":
            problems.append(
                f"{shown}:{line}: {binding.key!r} holds a NUL character, which no variable can"
            )
    if problems:
        return {}, problems
    values = dotenv_values(path, encoding="utf-8")
    return {name: value for name, value in values.items() if value is not None}, []


def _blank_lines(text: str) -> int:
    """How many lines precede the first one that says something: a binding includes the blank lines before it."""
    return text[: len(text) - len(text.lstrip())].count("\n")


def read_requirements(project: ProjectFile) -> tuple[Requirements, list[str]]:
    """``tasks/requirements.txt`` with what it includes, and what is wrong with it (``path:line: …``)."""
    path = project.tasks / "requirements.txt"
    if not path.is_file():
        return Requirements(), []
    reader = _Reader(project)
    text = reader.read(path)
    return Requirements(text, reader.files), reader.problems


class _Reader:
    """Follows ``-r``, ``-c`` and local wheels; each file once, so that a cycle ends."""

    def __init__(self, project: ProjectFile) -> None:
        self.project = project
        self.files: dict[str, str] = {}
        self.problems: list[str] = []

    def read(self, path: Path) -> str:
        shown = self.project.shown(path)
        try:
            text = path.read_text(encoding="utf-8-sig")
        except (OSError, UnicodeDecodeError) as error:
            self.problems.append(f"{shown}: {unreadable(error)}")
            return ""
        for number, line in _logical_lines(text):
            self._take(path, f"{shown}:{number}", line)
        return text

    def _take(self, path: Path, place: str, line: str) -> None:
        included = _INCLUDE.fullmatch(line)
        if included:
            self._include(path.parent, place, included["path"].strip("\"'"))
        elif _EDITABLE.match(line):
            self.problems.append(
                f"{place}: -e is not possible here; put the code into tasks/, or include a wheel"
            )
        elif line.startswith("-"):
            return
        elif _is_local(line):
            self._wheel(path.parent, place, line)
        else:
            name = _NAME.match(line)
            if name and re.sub(r"[-_.]+", "-", name[0]).lower() == _INSTALLED_BY_US:
                self.problems.append(
                    f"{place}: multinode comes by itself; delete the line (the package of that name on PyPI is another program)"
                )

    def _include(self, folder: Path, place: str, name: str) -> None:
        if _REMOTE.match(name):
            return
        found = self._find(folder, place, name)
        key = self._key(found) if found else ""
        if found is None or key in self.files or key == "requirements.txt":
            return
        self.files[key] = ""  # before it is read, so that a cycle ends
        text = self.read(found)
        self.files[key] = base64.b64encode(text.encode()).decode()

    def _wheel(self, folder: Path, place: str, line: str) -> None:
        name = re.split(r"\s+(?:;|--)", _local_path(line))[0].strip()
        found = self._find(folder, place, name)
        if not found:
            return
        if found.suffix != ".whl":
            self.problems.append(f"{place}: {name!r} is no wheel; build one and put it into tasks/")
            return
        try:
            self.files[self._key(found)] = base64.b64encode(found.read_bytes()).decode()
        except OSError as error:
            self.problems.append(f"{place}: {name!r} {unreadable(error)}")

    def _find(self, folder: Path, place: str, name: str) -> Path | None:
        tasks = self.project.tasks
        found = next((path for path in (folder / name, tasks / name) if path.exists()), None)
        if found is None:
            self.problems.append(
                f"{place}: {name!r} does not exist in {self.project.shown(folder)}/"
            )
            return None
        if not found.resolve().is_relative_to(tasks.resolve()):
            self.problems.append(f"{place}: {name!r} lies outside tasks/; copy it into it")
            return None
        return found

    def _key(self, path: Path) -> str:
        return path.resolve().relative_to(self.project.tasks.resolve()).as_posix()


def _logical_lines(text: str) -> list[tuple[int, str]]:
    """The lines that say something, with their number; a backslash at the end joins the next one."""
    lines: list[tuple[int, str]] = []
    started, joined = 0, ""
    for number, raw in enumerate(text.splitlines(), 1):
        started = started or number
        if raw.endswith("\\"):
            joined += raw[:-1]
            continue
        line = _COMMENT.sub("", joined + raw).strip()
        if line:
            lines.append((started, line))
        started, joined = 0, ""
    if joined.strip():
        lines.append((started, joined.strip()))
    return lines


def _is_local(line: str) -> bool:
    path = _local_path(line)
    return bool(path) and (
        path.startswith((".", "/", "~")) or re.split(r"[\s;]", path)[0].endswith(".whl")
    )


def _local_path(line: str) -> str:
    """The path of ``./x.whl``, ``x.whl`` or ``name @ ./x.whl``; empty for what comes from an index or a URL."""
    path = line.partition(" @ ")[2].strip() if " @ " in line else line
    return "" if _REMOTE.match(path) else path
