"""Deploying, as stages that each take the previous one's result and return a new one:

    read → check → aim → build → upload → describe → register

``read`` and ``check`` look at this machine only. ``aim`` is the first word with the control plane and changes nothing.
``build`` lets the control plane make a virtual environment, or makes the image that it orders. ``build`` and ``upload`` store what is named by its content, so that breaking off leaves nothing half done. ``register`` is one
request and one transaction: the project changes there or not at all. ``plan`` ends after ``aim``.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from multinode.client import Client, path_of
from multinode.credentials import redact
from multinode.distribution import sdk_digest
from multinode.errors import (
    BundleNotFound,
    InputError,
    ProjectNotFound,
    UnexpectedAnswer,
)
from multinode.wire import (
    BuildRequest,
    DescribeAnswer,
    DescribeRequest,
    Empty,
    EnvironmentInfo,
    EnvironmentSpec,
    FunctionDescription,
    ImageOrder,
    RegisterAnswer,
    RegisterRequest,
    Registry,
    ServerInfo,
    VersionInfo,
)
from multinode_cli.checks import check_code
from multinode_cli.environments import INDEX_SETTINGS, Missing, environment_spec, follow_build
from multinode_cli.errors import raise_for_problems
from multinode_cli.tasks_folder import (
    Bundle,
    ProjectFile,
    Requirements,
    check_project_name,
    list_files,
    pack,
    read_dotenv,
    read_project_file,
    read_requirements,
)

if TYPE_CHECKING:
    from multinode_cli.images.output import Progress

BUILD_ANSWER_S = 600.0
"""How long the import of ``main.py`` may hold its request open."""


@dataclass(frozen=True)
class Source:
    """What lies in ``tasks/``, and all that is wrong with it so far."""

    project_file: ProjectFile
    files: list[str]
    dotenv: dict[str, str]
    requirements: Requirements
    problems: list[str]


@dataclass(frozen=True)
class Checked:
    """A source with nothing wrong that can be seen without importing it."""

    source: Source
    functions: list[str]


@dataclass(frozen=True)
class Target:
    """What would be deployed where. ``latest`` is the project's latest version, None where there is no project."""

    checked: Checked
    project: str
    server: ServerInfo
    latest: VersionInfo | None
    spec: EnvironmentSpec
    bundle: Bundle


@dataclass(frozen=True)
class Built:
    """A target whose environment is there."""

    target: Target
    environment: EnvironmentInfo


@dataclass(frozen=True)
class Described:
    """A target whose ``main.py`` was imported in its environment."""

    built: Built
    functions: list[FunctionDescription]


@dataclass(frozen=True)
class Released:
    """A version that is registered and is the latest."""

    described: Described
    answer: RegisterAnswer
    version: VersionInfo
    warnings: list[str]


@dataclass(frozen=True)
class Plan:
    """What ``deploy`` would do; every line of ``changes`` is one thing that differs from the latest version.

    ``environment`` is ``kept`` from the latest version, another one that is ``found``, or has to be ``made``. ``version`` is ``new``,
    an ``existing`` one that becomes the latest again, or the ``latest`` itself.
    """

    project: str
    creates_project: bool
    builds_environment: bool
    environment: str
    version: str
    functions: list[str]
    changes: list[str]


# --- stages ---------------------------------------------------------------------------------------------


def read(directory: Path | None) -> Source:
    """Read ``tasks/`` and ``multinode.toml`` around ``directory``, or around the working folder."""
    project_file = read_project_file(directory)
    if not project_file.tasks.is_dir():
        shown = project_file.shown(project_file.tasks)
        missing = [
            f"{shown}/main.py: is missing; it holds the functions, `multinode init` writes an example"
        ]
        return Source(project_file, [], {}, Requirements(), missing)
    files, file_problems = list_files(project_file)
    dotenv, dotenv_problems = read_dotenv(project_file)
    requirements, requirement_problems = read_requirements(project_file)
    problems = file_problems + dotenv_problems + requirement_problems
    return Source(project_file, files, dotenv, requirements, problems)


def check(source: Source) -> Checked:
    """Raise one InvalidTasks that tells everything that is wrong; the source with its functions otherwise."""
    _check_folder(source)
    findings = check_code(source.project_file, source.files)
    raise_for_problems(findings.problems + source.problems, "Correct this; nothing was changed.")
    return Checked(source, findings.functions)


def _check_folder(source: Source) -> None:
    """Raises InvalidTasks where there is no folder tasks/: nothing else can be right then."""
    if not source.project_file.tasks.is_dir():
        raise_for_problems(
            source.problems, "Run this in a project's folder, or give the path of tasks/."
        )


def project_name(source: Source, given: str | None) -> str:
    """``--project-name``, else ``project`` of multinode.toml; raises InputError where there is neither, InvalidTasks without tasks/."""
    _check_folder(source)
    name = source.project_file.project if given is None else given
    if name is None:
        message = "The project has no name."
        raise InputError(
            message, 'Pass --project-name NAME, or write project = "NAME" into multinode.toml.'
        )
    return check_project_name(name)


def aim(
    checked: Checked, client: Client, *, project: str, create: bool, environ: Mapping[str, str]
) -> Target:
    """Pack the files, and ask the control plane what is there. Raises ProjectNotFound without ``create``."""
    source = checked.source
    bundle = pack(source.project_file, source.files)
    server = client.call(ServerInfo, "GET", "/v1/server")
    latest: VersionInfo | None = None
    try:
        latest = client.call(VersionInfo, "GET", path_of("projects", project, "versions", "latest"))
    except ProjectNotFound as error:
        if not create:
            hint = f"{error.hint} `multinode deploy` creates a project, upgrade does not.".strip()
            raise ProjectNotFound(error.message, hint) from error
    environment = source.project_file.environment
    spec = environment_spec(environment, source.requirements, _index_settings(server, environ))
    return Target(checked, project, server, latest, spec, bundle)


def _index_settings(server: ServerInfo, environ: Mapping[str, str]) -> dict[str, str]:
    """Those that go along; where environments are images, which this command builds with pip, all that pip is set to."""
    if server.runner == "process":
        return {name: environ[name] for name in INDEX_SETTINGS if environ.get(name)}
    from multinode_cli.images.pip_settings import index_settings  # lazy: start-up time

    return index_settings(environ)


def build(
    target: Target,
    client: Client,
    progress: Progress,
    *,
    environ: Mapping[str, str],
    no_cache: bool = False,
    strict_python: bool = False,
) -> Built:
    """Find the environment, or let the control plane make it, or build the image that it orders; ``progress`` is told."""
    request = BuildRequest(_told_spec(target), no_cache, strict_python, sdk_digest())
    ordering = path_of("projects", target.project, "environments")
    answer = follow_build(client.stream("POST", ordering, request), progress.line)
    if isinstance(answer, ImageOrder):
        from multinode_cli.images.making import make_image  # lazy: start-up time, it imports docker

        def another_login() -> Registry | None:
            again = request.replace(no_cache=True, login_refused=True)
            order = follow_build(client.stream("POST", ordering, again), progress.line)
            return order.registry if isinstance(order, ImageOrder) else None

        report = make_image(
            answer,
            target.spec,
            progress,
            environ=environ,
            no_cache=no_cache,
            another_login=another_login,
        )
        path = path_of("projects", target.project, "environments", answer.digest)
        answer = client.call(
            EnvironmentInfo, "PUT", path, report.replace(spec=request.spec), wait_s=BUILD_ANSWER_S
        )
    assert not isinstance(answer, Missing), "this was no plan"
    return Built(target, answer)


def _told_spec(target: Target) -> EnvironmentSpec:
    """The spec as the control plane has to know it: credentials of indexes only where it is the one that installs."""
    settings = target.spec.settings
    if target.server.runner == "process" or not settings:
        return target.spec
    return target.spec.replace(settings={name: redact(value) for name, value in settings.items()})


def upload(built: Built, client: Client) -> Built:
    """Send the bundle, unless the control plane has it."""
    path = path_of("bundles", built.target.bundle.digest)
    # An answer to HEAD has no body to tell them apart.
    with suppress(BundleNotFound, UnexpectedAnswer):
        client.call(bytes, "HEAD", path)
        return built
    client.call(Empty, "PUT", path, built.target.bundle.archive)
    return built


def describe(built: Built, client: Client) -> Described:
    """Import ``main.py`` in the environment. Raises ImportFailed with the traceback of the user's code."""
    target = built.target
    request = DescribeRequest(
        built.environment.digest, target.bundle.digest, target.checked.source.dotenv
    )
    path = path_of("projects", target.project, "describe")
    answer = client.call(DescribeAnswer, "POST", path, request, wait_s=BUILD_ANSWER_S)
    return Described(built, answer.functions)


def register(described: Described, client: Client, *, create: bool) -> Released:
    """Make it the project's latest version, in one transaction."""
    target = described.built.target
    request = RegisterRequest(
        environment_digest=described.built.environment.digest,
        bundle_digest=target.bundle.digest,
        dotenv=target.checked.source.dotenv,
        functions=described.functions,
        create=create,
    )
    answer = client.call(
        RegisterAnswer, "POST", path_of("projects", target.project, "versions"), request
    )
    version = client.call(
        VersionInfo, "GET", path_of("projects", target.project, "versions", answer.version_id)
    )
    return Released(described, answer, version, _warnings(described))


def _warnings(described: Described) -> list[str]:
    server = described.built.target.server
    warnings = list(described.built.environment.warnings)
    for function in described.functions:
        cpu = function.settings.cpu
        if cpu > server.cpu_capacity:
            warnings.append(
                f"{function.name}: cpu={cpu:g} is more than the {server.cpu_capacity:g} there are, and counts as these"
            )
    missing = [name for name in ("cpu", "memory") if name not in server.enforces]
    if missing:
        warnings.append(
            f"the {server.runner} runner does not enforce {' and '.join(missing)} on this machine"
            + (f": {server.unenforced_reason}" if server.unenforced_reason else "")
        )
    return warnings


# --- plan -----------------------------------------------------------------------------------------------


def plan(
    target: Target, client: Client, *, no_cache: bool = False, strict_python: bool = False
) -> Plan:
    """What would change, as the control plane says. Changes nothing, and imports nothing."""
    request = BuildRequest(_told_spec(target), no_cache, strict_python, sdk_digest(), plan=True)
    path = path_of("projects", target.project, "environments")
    found = follow_build(client.stream("POST", path, request), lambda line: None)
    answer = client.call(
        RegisterAnswer,
        "POST",
        path_of("projects", target.project, "versions"),
        RegisterRequest(
            found.digest, target.bundle.digest, target.checked.source.dotenv, [], plan=True
        ),
    )
    latest, is_missing = target.latest, not isinstance(found, EnvironmentInfo)
    is_kept = latest is not None and latest.environment.digest == found.digest
    return Plan(
        project=target.project,
        creates_project=latest is None,
        builds_environment=is_missing,
        environment="made" if is_missing else "kept" if is_kept else "found",
        version="new" if answer.created else "existing" if answer.made_latest else "latest",
        functions=target.checked.functions,
        changes=_planned_changes(target, answer, client, is_anew=is_kept and is_missing),
    )


def _planned_changes(
    target: Target, answer: RegisterAnswer, client: Client, *, is_anew: bool
) -> list[str]:
    functions, latest = target.checked.functions, target.latest
    if latest is None:
        return [
            f"project {target.project}: new",
            *(f"function {name}: new" for name in functions),
        ]
    files = {}
    if "code: changed" in answer.changes:
        archive = client.call(bytes, "GET", path_of("bundles", latest.bundle_digest))
        files = _changed_files(archive, target.bundle.archive)
    environment = ["environment: is made anew"] if is_anew else []
    if "environment: changed" in answer.changes:
        environment = _environment_changes(target, latest, set(files))
    return [
        *environment,
        *_function_changes(latest, functions),
        *(f"file tasks/{name}: {change}" for name, change in files.items()),
        *(change for change in answer.changes if change.startswith(".env ")),
    ]


def _environment_changes(target: Target, latest: VersionInfo, changed: set[str]) -> list[str]:
    """Why it is another one, as far as that can be seen from here."""
    changes = []
    if latest.environment.python != target.spec.python:
        changes.append(f"environment: Python {latest.environment.python} -> {target.spec.python}")
    inputs = {"requirements.txt", *target.checked.source.requirements.files}
    changes += [f"environment: tasks/{name} differs" for name in sorted(changed & inputs)]
    return changes or [
        "environment: its `apt` or `base_image`, an index setting, the Python that serves, or the release of Multinode differs"
    ]


def _function_changes(latest: VersionInfo, functions: list[str]) -> list[str]:
    before = {function.name for function in latest.functions}
    return [
        *(f"function {name}: new" for name in functions if name not in before),
        *(f"function {name}: gone" for name in sorted(before - set(functions))),
    ]


def _changed_files(before: bytes, after: bytes) -> dict[str, str]:
    """Each path that differs between two archives, and how."""
    old, new = _contents(before), _contents(after)
    names = sorted(name for name in {*old, *new} if old.get(name) != new.get(name))
    return {
        name: "new" if name not in old else "gone" if name not in new else "changed"
        for name in names
    }


def _contents(archive: bytes) -> dict[str, tuple[bytes, int, str, bytes]]:
    import tarfile  # lazy: start-up time

    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        found = {}
        for entry in tar:
            file = tar.extractfile(entry) if entry.isreg() else None
            content = file.read() if file else b""
            found[entry.name] = (entry.type, entry.mode, entry.linkname, content)
        return found
