"""How commands name things: ``PROJECT/FUNCTION@VERSION``, ``FUNCTION`` alone, ``inv-…``, and the long flags."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from typing import Annotated

import typer

from multinode.client import Client, path_of
from multinode.errors import InputError, InvalidName, MultinodeError, VersionNotFound
from multinode.wire import InvocationDetail, ProjectDetail, ProjectInfo, VersionInfo
from multinode_cli.commands.frame import Session
from multinode_cli.errors import nearest
from multinode_cli.tasks_folder import check_project_name

ProjectName = Annotated[
    str | None, typer.Option("--project-name", metavar="NAME", help="The project.")
]
FunctionName = Annotated[
    str | None, typer.Option("--function-name", metavar="NAME", help="The function.")
]
VersionId = Annotated[
    str | None,
    typer.Option("--version-id", metavar="ID", help="The version; the latest without it."),
]
InvocationId = Annotated[
    str | None, typer.Option("--invocation-id", metavar="ID", help="The invocation.")
]

ExecutionId = Annotated[
    str | None, typer.Option("--execution-id", metavar="ID", help="One attempt, exe-….")
]


@dataclass(frozen=True)
class FunctionReference:
    """A function; ``version_id`` is None for the latest version's."""

    project: str
    function: str
    version_id: str | None = None


def is_invocation(text: str) -> bool:
    """Whether ``text`` is the id of an invocation."""
    return text.startswith("inv-")


def invocation_id(given: str | None, flag: str | None) -> str:
    """The one that was given as argument or by ``--invocation-id``. Raises InputError and InvalidName."""
    text = one_of(given, flag, what="invocation", flag_name="--invocation-id")
    if not is_invocation(text):
        message = f"{text!r} is no invocation's id."
        raise InvalidName(message, "It begins with inv-; `multinode ps -a` lists the recent ones.")
    return text


def execution(
    session: Session, execution_id: str, given: str | None, flag: str | None
) -> InvocationDetail:
    """The attempt, as the only one of its invocation. Raises InputError where another invocation was named too."""
    within = invocation_id(given, flag) if given or flag else None
    detail = session.client.call(InvocationDetail, "GET", path_of("executions", execution_id))
    if within not in (None, detail.invocation.invocation_id):
        message = f"{execution_id} is no attempt of {within}."
        hint = (
            f"It is one of {detail.invocation.invocation_id}. The execution's id alone is enough."
        )
        raise InputError(message, hint)
    return detail


def project_of(session: Session, given: str | None, flag: str | None) -> str:
    """The project that was named, else the one of multinode.toml. Raises InputError where there is neither."""
    if given is not None or flag is not None:
        return check_project_name(one_of(given, flag, what="project", flag_name="--project-name"))
    if session.project_file.project is None:
        message = "No project was named."
        raise InputError(message, "Give its name; multinode.toml names none here.")
    return session.project_file.project


def function_of(
    session: Session,
    text: str | None,
    *,
    project_name: str | None = None,
    function_name: str | None = None,
    version_id: str | None = None,
) -> FunctionReference:
    """The function that ``PROJECT/FUNCTION@VERSION`` and the long flags name together."""
    name, _, version = (text or "").partition("@")
    project, slash, function = name.rpartition("/")
    function = one_of(function or None, function_name, what="function", flag_name="--function-name")
    project = project_of(session, project if slash else None, project_name)
    if version and version_id and version != version_id:
        message = f"Two versions were given, {version!r} and {version_id!r}."
        raise InputError(message, "Give one.")
    chosen = version or version_id
    if chosen and chosen.isdecimal():
        chosen = version_by_number(session.client, project, int(chosen))
    return FunctionReference(project, function, chosen or None)


def version_by_number(client: Client, project: str, number: int) -> str:
    """The id of a project's version ``number``. Raises VersionNotFound."""
    versions = client.call(ProjectDetail, "GET", path_of("projects", project)).versions
    for version in versions:
        if version.number == number:
            return version.version_id
    message = f"The project {project!r} has no version {number}."
    numbers = ", ".join(str(version.number) for version in versions[:10])
    raise VersionNotFound(message, f"It has: {numbers}.")


def one_of(given: str | None, flag: str | None, *, what: str, flag_name: str) -> str:
    """The one that was given of an argument and its long flag. Raises InputError for none, or two that differ."""
    if given and flag and given != flag:
        message = f"Two values were given for the {what}, {given!r} and {flag_name} {flag!r}."
        raise InputError(message, "Give one.")
    found = given or flag
    if not found:
        message = f"No {what} was named."
        raise InputError(message, f"Give it as an argument, or with {flag_name}.")
    return found


def known_function(version: VersionInfo, name: str) -> bool:
    """Whether the version has a function of that name."""
    return any(function.name == name for function in version.functions)


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """The nearest of ``names``, else all of them, as a hint."""
    listed = list(names)
    return nearest(name, listed) or (f"There are: {', '.join(listed)}." if listed else "")


# --- shell completion -----------------------------------------------------------------------------------

_COMPLETION_PATIENCE_S = 1.0
"""How long a press of Tab waits for the control plane."""


def complete_project(incomplete: str) -> list[str]:
    """Names of projects that begin so; none where no control plane is at hand. Never starts one, never fails."""
    return [item.project for item in _deployed()[1] if item.project.startswith(incomplete)]


def complete_function(incomplete: str) -> list[str]:
    """``FUNCTION`` of the project here and ``PROJECT/FUNCTION`` of all, that begin so."""
    here, projects = _deployed()
    names = [f"{item.project}/{name}" for item in projects for name in item.functions]
    names += [name for item in projects if item.project == here for name in item.functions]
    return sorted(name for name in names if name.startswith(incomplete))


def _deployed() -> tuple[str | None, list[ProjectInfo]]:
    """The project here, and all that the control plane has; nothing where that takes long."""
    import threading  # lazy: for completion only

    found: list[tuple[str | None, list[ProjectInfo]]] = []

    def ask() -> None:
        with suppress(MultinodeError):
            found.append(_ask())

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(_COMPLETION_PATIENCE_S)
    return found[0] if found else (None, [])


def _ask() -> tuple[str | None, list[ProjectInfo]]:
    from multinode_cli.settings import read_settings

    session = Session(read_settings(profile=None, as_json=False, debug=False))
    at = session.settings.connection(session.project_file.profile)
    client = Client(at.url, at.key, retry_s=0)
    return session.project_file.project, client.call(list[ProjectInfo], "GET", path_of("projects"))
