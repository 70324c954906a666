"""``multinode.toml``: finds it, reads it, and says where ``tasks/`` is. The file and all its keys are optional."""

from __future__ import annotations

import re
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

from multinode.errors import InvalidName, InvalidTasks
from multinode.limits import MAX_PROJECT_NAME
from multinode_cli.errors import nearest

FILE_NAME = "multinode.toml"
DEFAULT_PYTHON = "3.8"
OLDEST_PYTHON = (3, 8)
_TOP_LEVEL = ("project", "tasks", "profile", "environment")
_ENVIRONMENT = ("python", "base_image", "apt")
_PROJECT_NAME = re.compile(r"[a-z0-9_-]+")
_APT_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]+(:[a-z0-9]+)?(=[A-Za-z0-9.+:~-]+)?")
_IMAGE = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/:@-]*")
_PYTHON = re.compile(r"3\.(\d{1,2})")


@dataclass(frozen=True)
class Environment:
    """``[environment]``. ``python`` is None where the file does not choose one (then it is 3.8)."""

    python: str | None = None
    base_image: str | None = None
    apt: tuple[str, ...] = ()

    @property
    def python_version(self) -> tuple[int, int]:
        """The Python of the environment as numbers."""
        major, minor = (self.python or DEFAULT_PYTHON).split(".")
        return int(major), int(minor)

    @property
    def notice(self) -> str:
        """What to say about a Python that nobody chose; empty where somebody did."""
        if self.python or self.base_image:
            return ""
        return (
            "python:3.8-bullseye gets no more security fixes; to choose another Python, write "
            f'`[environment]` and `python = "3.12"` into {FILE_NAME}.'
        )


@dataclass(frozen=True)
class ProjectFile:
    """What ``multinode.toml`` says, with the defaults filled in. ``path`` is None where there is no such file."""

    path: Path | None
    root: Path
    """The folder of ``multinode.toml``, or the parent of ``tasks/``."""
    tasks: Path
    project: str | None = None
    profile: str | None = None
    environment: Environment = Environment()

    def shown(self, path: Path) -> str:
        """``path`` as messages name it: below the root, like ``tasks/main.py``."""
        return (
            path.relative_to(self.root).as_posix() if path.is_relative_to(self.root) else str(path)
        )


def read_project_file(given: Path | None = None) -> ProjectFile:
    """The project that ``given``, or else the working folder, lies in: the ``tasks/`` folder, its parent, or below either.

    A folder with functions of its own below another project's ``multinode.toml`` is a project without such a file. Raises InvalidTasks where the file is no TOML, has an unknown key or a value of a wrong type.
    """
    start = given or Path.cwd()
    if not start.is_dir():
        message = f"There is no folder {str(start)!r}."
        raise InvalidTasks(message, "Give the path of the tasks folder, or of the folder above it.")
    start = start.resolve()
    path = next(
        (at / FILE_NAME for at in (start, *start.parents) if (at / FILE_NAME).is_file()), None
    )
    if path is None:
        return _without_file(start)
    found = _from_table(path, _load(path))
    is_elsewhere = start != found.root and not start.is_relative_to(found.tasks)
    # The folder in which somebody stands may have a main.py that is an application's.
    names = ("tasks/main.py", "main.py") if given else ("tasks/main.py",)
    if is_elsewhere and any((start / name).is_file() for name in names):
        return _without_file(start)
    return found


def check_project_name(name: str) -> str:
    """``name``, if a project may be called so; raises InvalidName otherwise."""
    if not name:
        problem = "is empty"
    elif len(name) > MAX_PROJECT_NAME:
        problem = f"has {len(name)} characters, {MAX_PROJECT_NAME} are allowed"
    elif not _PROJECT_NAME.fullmatch(name):
        problem = "may hold only a-z, 0-9, - and _"
    else:
        return name
    message = f"The project name {name!r} {problem}."
    raise InvalidName(message, "Choose another name.")


def _without_file(start: Path) -> ProjectFile:
    if (start / "tasks").is_dir() or not (start / "main.py").is_file():
        return ProjectFile(None, root=start, tasks=start / "tasks")
    return ProjectFile(None, root=start.parent, tasks=start)


def unreadable(error: OSError | UnicodeDecodeError) -> str:
    """Why a file cannot be read as text, and the cure, as the end of a problem."""
    if isinstance(error, UnicodeDecodeError):
        return f"is no UTF-8 text, from byte {error.start} on; save it as UTF-8"
    return f"cannot be read: {error.strerror}; change its mode"


def _load(path: Path) -> dict[str, Any]:
    toml = import_module("tomllib" if sys.version_info >= (3, 11) else "tomli")
    try:
        table: dict[str, Any] = toml.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        message = f"{path}: {unreadable(error)}."
        raise InvalidTasks(message) from error
    except ValueError as error:
        message = f"{path}: is no valid TOML: {error}."
        hint = "Correct that line; docs/reference/files.md shows the file."
        raise InvalidTasks(message, hint) from error
    return table


def _from_table(path: Path, table: dict[str, Any]) -> ProjectFile:
    _refuse_unknown(path, "", table, _TOP_LEVEL)
    environment = table.get("environment", {})
    if not isinstance(environment, dict):
        message = f"{path}: environment is a table."
        raise InvalidTasks(message, "Write [environment] on a line of its own.")
    _refuse_unknown(path, "environment.", environment, _ENVIRONMENT)
    project = _text(path, "project", table)
    return ProjectFile(
        path=path,
        root=path.parent,
        tasks=_tasks(path, _text(path, "tasks", table) or "tasks"),
        project=None if project is None else check_project_name(project),
        profile=_text(path, "profile", table),
        environment=Environment(
            python=_python(path, environment),
            base_image=_base_image(path, environment),
            apt=_apt(path, environment),
        ),
    )


def _refuse_unknown(path: Path, prefix: str, table: dict[str, Any], known: tuple[str, ...]) -> None:
    for key in table:
        if key not in known:
            message = f"{path}: {prefix + key!r} is unknown."
            hint = nearest(key, known) or f"Known are: {', '.join(known)}."
            raise InvalidTasks(message, hint)


def _text(path: Path, key: str, table: dict[str, Any]) -> str | None:
    value = table.get(key)
    if value is None or (isinstance(value, str) and (value or key == "project")):
        return value
    message = f"{path}: {key} = {value!r} is no text."
    raise InvalidTasks(message, f'Write {key} = "…", or leave the line out.')


def _tasks(path: Path, value: str) -> Path:
    tasks = path.parent / value
    if not tasks.resolve().is_relative_to(path.parent):
        message = f"{path}: tasks = {value!r} lies outside the folder of {FILE_NAME}."
        raise InvalidTasks(message, f"Move {FILE_NAME} above it.")
    return tasks


def _python(path: Path, table: dict[str, Any]) -> str | None:
    value = table.get("python")
    if value is None:
        return None
    matched = _PYTHON.fullmatch(value) if isinstance(value, str) else None
    if matched is None:
        message = f"{path}: python = {value!r} is no Python version."
        raise InvalidTasks(message, 'Write it as text, with two numbers: python = "3.12".')
    if (3, int(matched[1])) < OLDEST_PYTHON:
        message = f"{path}: python = {value!r} is too old."
        raise InvalidTasks(message, 'Choose "3.8" or later.')
    return str(value)


def _base_image(path: Path, table: dict[str, Any]) -> str | None:
    value = _text(path, "base_image", table)
    if value is None or _IMAGE.fullmatch(value):
        return value
    message = f"{path}: base_image = {value!r} is no name of an image."
    raise InvalidTasks(message, 'Write it so: base_image = "python:3.12-slim".')


def _apt(path: Path, table: dict[str, Any]) -> tuple[str, ...]:
    value = table.get("apt", [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        message = f"{path}: apt = {value!r} is no list of package names."
        raise InvalidTasks(message, 'Write it so: apt = ["libgl1"].')
    for item in value:
        if not _APT_PACKAGE.fullmatch(item):
            message = f"{path}: apt: {item!r} is no name of a Debian package."
            raise InvalidTasks(message, 'Write it so: apt = ["libgl1"].')
    return tuple(value)
