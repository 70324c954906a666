"""``undeploy``, ``list``, ``describe``, ``rollback``."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from multinode.client import path_of
from multinode.errors import FunctionNotFound
from multinode.limits import WAIT_S
from multinode.wire import (
    DeletedProject,
    FunctionDescription,
    InvocationDetail,
    InvocationList,
    LatestRequest,
    ProjectDetail,
    ProjectInfo,
    VersionInfo,
    VersionItem,
    to_plain,
)
from multinode_cli.commands import names
from multinode_cli.commands.frame import Answer, Commands, Session
from multinode_cli.commands.names import (
    ExecutionId,
    FunctionName,
    InvocationId,
    ProjectName,
    VersionId,
)
from multinode_cli.commands.shown import (
    age,
    between,
    counted,
    invocation_data,
    settings_text,
    size_text,
)
from multinode_cli.console import Console
from multinode_cli.errors import Interrupted

commands = Commands()

_SHOWN_VERSIONS = 10
_SHOWN_INVOCATIONS = 10


@commands.add("undeploy")
def undeploy(
    session: Session,
    project: Annotated[
        str | None,
        typer.Argument(
            metavar="PROJECT",
            help="The project.",
            autocompletion=names.complete_project,
            show_default=False,
        ),
    ] = None,
    project_name: ProjectName = None,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
) -> Answer:
    """Cancel what is in flight, then remove the project with its versions, results and logs.

    Example: multinode undeploy billing -y
    """
    name = names.project_of(session, project, project_name)
    detail = session.client.call(ProjectDetail, "GET", path_of("projects", name))
    in_flight = detail.project.in_flight
    question = (
        f"Remove project {name} with {counted(len(detail.versions), 'version')}, "
        f"and cancel {counted(in_flight, 'invocation')} in flight?"
    )
    what = f"The removal of {name}"
    if not yes and not session.console.confirm(question, what=what, flag="-y"):
        return Answer(show=lambda console: console.note("Nothing was removed."), exit_code=1)
    try:
        _wait_for_removal(session, name)
    except KeyboardInterrupt as error:
        message = f"Interrupted. The removal of {name} goes on; `multinode list` shows whether it is done."
        raise Interrupted(message) from error
    data = {"project": name, "removed": True}
    return Answer(data, lambda console: console.out(f"Removed project {name}."))


def _wait_for_removal(session: Session, name: str) -> None:
    path = path_of("projects", name, wait_s=WAIT_S)
    with session.console.changing_line(f"cancelling what is in flight in {name}") as line:
        while True:
            answer = session.client.call(DeletedProject, "DELETE", path, wait_s=WAIT_S)
            if answer.removed:
                return
            line.say(f"{name}: {answer.in_flight} still to end (two minutes at most to clean up)")


@commands.add("list")
def list_projects(session: Session) -> Answer:
    """List the projects: newest version, functions, invocations in flight.

    Example: multinode list --json
    """
    projects = session.client.call(list[ProjectInfo], "GET", path_of("projects"))

    def show(console: Console) -> None:
        if not projects:
            console.note("There is no project yet. `multinode deploy` makes one.")
            return
        rows = [
            (
                item.project + (" (being removed)" if item.deleting else ""),
                item.latest_version_id,
                str(item.in_flight),
                ", ".join(item.functions),
            )
            for item in projects
        ]
        console.table(("PROJECT", "LATEST VERSION", "IN FLIGHT", "FUNCTIONS"), rows)

    return Answer([to_plain(item) for item in projects], show)


@commands.add("rollback")
def rollback(
    session: Session,
    project: Annotated[
        str | None,
        typer.Argument(
            metavar="PROJECT",
            help="The project.",
            autocompletion=names.complete_project,
            show_default=False,
        ),
    ] = None,
    version: Annotated[
        str | None,
        typer.Argument(
            metavar="VERSION",
            help="Id or number of the version; the one before the latest without it.",
            show_default=False,
        ),
    ] = None,
    project_name: ProjectName = None,
    version_id: VersionId = None,
) -> Answer:
    """Make an earlier version the latest.

    Example: multinode rollback billing 2
    """
    name = names.project_of(session, project, project_name)
    chosen = version or version_id
    if chosen and chosen.isdecimal():
        chosen = names.version_by_number(session.client, name, int(chosen))
    request = LatestRequest(chosen)
    latest = session.client.call(VersionItem, "PUT", path_of("projects", name, "latest"), request)
    data = {"project": name, **to_plain(latest)}
    text = f"The latest version of {name} is now {latest.number} ({latest.version_id})."
    return Answer(data, lambda console: console.out(text))


@commands.add("describe")
def describe(
    session: Session,
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="PROJECT[/FUNCTION][@VERSION] | INVOCATION",
            help="What to describe; the project here without it.",
            autocompletion=names.complete_function,
            show_default=False,
        ),
    ] = None,
    project_name: ProjectName = None,
    function_name: FunctionName = None,
    version_id: VersionId = None,
    invocation_id: InvocationId = None,
    execution_id: ExecutionId = None,
) -> Answer:
    """Describe a project, a function, or an invocation attempt by attempt.

    Example: multinode describe billing/add
    """
    if execution_id or invocation_id or (name and names.is_invocation(name)):
        return _describe_invocation(session, name, invocation_id, execution_id)
    subject, _, version = (name or "").partition("@")
    if "/" in subject or function_name:
        reference = names.function_of(
            session,
            name,
            project_name=project_name,
            function_name=function_name,
            version_id=version_id,
        )
        return _describe_function(session, reference)
    project = names.project_of(session, subject or None, project_name)
    return _describe_project(session, project, version or version_id)


def _describe_invocation(
    session: Session, given: str | None, flag: str | None, execution_id: str | None
) -> Answer:
    from multinode_cli.commands import invocation_timeline  # lazy: `list` does without

    if execution_id:
        detail = names.execution(session, execution_id, given, flag)
    else:
        path = path_of("invocations", names.invocation_id(given, flag), "detail")
        detail = session.client.call(InvocationDetail, "GET", path)
    data = {
        **invocation_data(detail.invocation),
        "input": invocation_timeline.input_data(detail),
        "executions": [to_plain(item) for item in detail.executions],
    }
    return Answer(data, lambda console: invocation_timeline.show(console, detail))


def _version(session: Session, project: str, version: str | None) -> VersionInfo:
    if version and version.isdecimal():
        version = names.version_by_number(session.client, project, int(version))
    path = path_of("projects", project, "versions", version or "latest")
    return session.client.call(VersionInfo, "GET", path)


def _describe_project(session: Session, project: str, version: str | None) -> Answer:
    detail = session.client.call(ProjectDetail, "GET", path_of("projects", project))
    chosen = _version(session, project, version)
    data = {
        "project": to_plain(detail.project),
        "versions": [to_plain(item) for item in detail.versions],
        "version": to_plain(chosen),
    }

    def show(console: Console) -> None:
        if detail.project.deleting:
            console.warn(f"{project} is being removed")
        console.out(f"Project {project}, {detail.project.in_flight} in flight")
        _show_version(console, chosen)
        console.out("")
        rows = [
            (
                str(item.number),
                item.version_id,
                age(item.created_at),
                "latest" if item.is_latest else "",
                ", ".join(item.functions),
            )
            for item in detail.versions[:_SHOWN_VERSIONS]
        ]
        console.table(("VERSION", "ID", "AGE", "", "FUNCTIONS"), rows)
        if len(detail.versions) > _SHOWN_VERSIONS:
            console.out(f"… and {len(detail.versions) - _SHOWN_VERSIONS} earlier ones")

    return Answer(data, show)


def _show_version(console: Console, version: VersionInfo) -> None:
    environment = version.environment
    console.out(f"Version {version.number} ({version.version_id}), {age(version.created_at)} old")
    asked = (
        ""
        if environment.python_served.startswith(environment.python)
        else f" ({environment.python} was asked for)"
    )
    packages = ", ".join(environment.packages[:8]) + (" …" if len(environment.packages) > 8 else "")
    console.out(
        f"  environment  Python {environment.python_served}{asked}{'; ' + packages if packages else ''}"
    )
    if environment.image:
        console.out(f"  image        {environment.image}, made from {environment.base_image}")
    for warning in environment.warnings:
        console.out(f"  warning      {warning}")
    if version.dotenv_names:
        console.out(f"  .env         {', '.join(version.dotenv_names)}")
    for function in version.functions:
        settings = settings_text(function.settings, (version.sizes or {}).get(function.name))
        console.out(f"  {_signature(function)}  {console.styled(settings, 'dim')}")


def _describe_function(session: Session, reference: names.FunctionReference) -> Answer:
    version = _version(session, reference.project, reference.version_id)
    function = find_function(version, reference.function)
    path = path_of("invocations", project=reference.project, function=function.name)
    recent = session.client.call(InvocationList, "GET", path).invocations
    size = (version.sizes or {}).get(function.name)
    data = {
        "project": version.project,
        "version_id": version.version_id,
        **to_plain(function),
        "size": to_plain(size) if size else None,
        "invocations": [invocation_data(item) for item in recent],
    }

    def show(console: Console) -> None:
        console.out(f"{version.project}/{_signature(function)}, {function.kind.replace('_', ' ')}")
        if function.doc:
            console.out(f"  {function.doc.strip().splitlines()[0]}")
        _show_settings(console, data["settings"])
        if size:
            console.out(f"  {'paid':27}{size_text(size)}")
        if recent:
            console.out("")
            rows = [
                (
                    item.invocation_id,
                    item.status,
                    age(item.created_at),
                    between(item.started_at, item.finished_at),
                )
                for item in recent[:_SHOWN_INVOCATIONS]
            ]
            console.table(("INVOCATION", "STATUS", "AGE", "RAN"), rows)

    return Answer(data, show)


def _show_settings(console: Console, settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        if value is None:
            continue
        unit = " s" if name.endswith("_s") else " MiB" if name.endswith("_mib") else ""
        text = ", ".join(value) if isinstance(value, list) else f"{value:g}{unit}"
        console.out(f"  {name.removesuffix('_s').removesuffix('_mib'):27}{text}")


def find_function(version: VersionInfo, name: str) -> FunctionDescription:
    """The version's function of that name. Raises FunctionNotFound with the nearest name."""
    for function in version.functions:
        if function.name == name:
            return function
    message = f"Project {version.project!r} has no function {name!r} in version {version.number}."
    raise FunctionNotFound(
        message, names.did_you_mean(name, (item.name for item in version.functions))
    )


def _signature(function: FunctionDescription) -> str:
    parts = []
    is_keyword_only = False
    for item in function.parameters:
        if item.kind == "keyword_only" and not is_keyword_only:
            parts.append("*")
        is_keyword_only = is_keyword_only or item.kind in ("keyword_only", "var_positional")
        star = {"var_positional": "*", "var_keyword": "**"}.get(item.kind, "")
        if item.kind == "var_positional" and parts and parts[-1] == "*":
            parts.pop()
        hint = f": {item.annotation}" if item.annotation else ""
        default = f"={item.default}" if item.default is not None else ""
        parts.append(f"{star}{item.name}{hint}{default}")
    return f"{function.name}({', '.join(parts)})"
