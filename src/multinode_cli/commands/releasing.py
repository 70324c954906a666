"""``check``, ``deploy``, ``upgrade``: the stages of ``release``, told as they happen."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer

from multinode.errors import MultinodeError
from multinode.wire import to_plain
from multinode_cli import release
from multinode_cli.commands.frame import Answer, Commands, Session
from multinode_cli.commands.names import ProjectName
from multinode_cli.commands.shown import settings_text
from multinode_cli.console import ChangingLine, Console
from multinode_cli.errors import Interrupted

commands = Commands()

_Directory = Annotated[
    str | None,
    typer.Argument(
        metavar="TASKS_DIR", help="The tasks folder, or a folder above it.", show_default=False
    ),
]
_Plan = Annotated[bool, typer.Option("--plan", help="Show what would change, and change nothing.")]
_NoCache = Annotated[
    bool,
    typer.Option("--no-cache", help="Resolve the requirements anew, even where nothing differs."),
]
_StrictPython = Annotated[
    bool,
    typer.Option(
        "--strict-python", help="Refuse a newer Python where the one asked for is missing."
    ),
]


@dataclass(frozen=True)
class _Options:
    """What ``deploy`` and ``upgrade`` are told."""

    directory: str | None
    project_name: str | None
    create: bool
    plan: bool
    no_cache: bool
    strict_python: bool


def _folder(given: str | None) -> Path | None:
    return Path(given) if given else None


@commands.add("check")
def check(session: Session, tasks_dir: _Directory = None) -> Answer:
    """Say what is wrong in tasks/, without importing or sending anything.

    Example: multinode check
    """
    checked = release.check(release.read(_folder(tasks_dir)))
    notice = checked.source.project_file.environment.notice
    data = {
        "functions": checked.functions,
        "files": len(checked.source.files),
        "notice": notice or None,
    }

    def show(console: Console) -> None:
        if notice:
            console.warn(notice)
        names = ", ".join(checked.functions)
        console.out(f"Nothing wrong can be seen. Functions: {names or 'only the import can tell'}.")

    return Answer(data, show)


@commands.add("deploy")
def deploy(
    session: Session,
    tasks_dir: _Directory = None,
    project_name: ProjectName = None,
    plan: _Plan = False,
    no_cache: _NoCache = False,
    strict_python: _StrictPython = False,
) -> Answer:
    """Create the project, or add a version to it and make that the latest.

    Example: multinode deploy
    """
    return _release(session, _Options(tasks_dir, project_name, True, plan, no_cache, strict_python))


@commands.add("upgrade")
def upgrade(
    session: Session,
    tasks_dir: _Directory = None,
    project_name: ProjectName = None,
    plan: _Plan = False,
    no_cache: _NoCache = False,
    strict_python: _StrictPython = False,
) -> Answer:
    """Like deploy, but the project must exist.

    Example: multinode upgrade --project-name billing
    """
    return _release(
        session, _Options(tasks_dir, project_name, False, plan, no_cache, strict_python)
    )


def _release(session: Session, options: _Options) -> Answer:
    source = release.read(_folder(options.directory))
    name = release.project_name(source, options.project_name)
    checked = release.check(source)
    notice = source.project_file.environment.notice
    if notice:
        session.console.warn(notice)
    session.project_file = source.project_file  # its profile, not the working folder's
    with _nothing_half_done(name):
        target = release.aim(
            checked,
            session.client,
            project=name,
            create=options.create,
            environ=session.settings.environ,
        )
        if options.plan:
            plan = release.plan(
                target,
                session.client,
                no_cache=options.no_cache,
                strict_python=options.strict_python,
            )
            return _planned(plan)
        return _released(_act(session, target, options), notice)


def _act(session: Session, target: release.Target, options: _Options) -> release.Released:
    console, client = session.console, session.client
    with console.changing_line("environment") as line, _BuildOutput(console, line) as output:
        built = release.build(
            target,
            client,
            output,
            environ=session.settings.environ,
            no_cache=options.no_cache,
            strict_python=options.strict_python,
        )
        line.say("uploading the code")
        uploaded = release.upload(built, client)
        line.say("importing main.py in the environment")
        described = release.describe(uploaded, client)
        line.say("registering the version")
        return release.register(described, client, create=options.create)


class _BuildOutput:
    """Shows a build as it goes on. The changing line, where there is one, has what is newest; elsewhere every line is a line.

    The lines of an image's build are many: where there is a changing line they are kept, and shown when the build fails.
    """

    def __init__(self, console: Console, line: ChangingLine) -> None:
        self._console = console
        self._line = line
        self._is_first = True
        self._step = ""
        self._kept: list[str] = []

    def __enter__(self) -> _BuildOutput:
        return self

    def __exit__(self, cls: type[BaseException] | None, *_: object) -> None:
        if cls is not None and issubclass(cls, MultinodeError):
            for text in self._kept:
                self._console.note(f"  {text}", "dim")

    def step(self, title: str) -> None:
        """A step of an image's build begins."""
        self._begin()
        self._step = title
        self._console.note(f"  {title}")
        if self._line.is_visible:
            self._kept.append(f"{title}:")
        self._line.say(title)

    def line(self, text: str) -> None:
        """A line of output."""
        self._begin()
        if self._step and self._line.is_visible:
            self._kept.append(text)
        else:
            self._console.note(f"  {text}", "dim")
        self._line.say(f"{self._step or 'environment'}: {text}")

    def moment(self, text: str) -> None:
        """How far a step has come."""
        self._line.say(f"{self._step}: {text}")

    def _begin(self) -> None:
        if self._is_first:
            self._console.note("Making the environment (once for these requirements):")
        self._is_first = False


@contextmanager
def _nothing_half_done(project: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt as error:
        message = (
            f"Interrupted. Project {project} is as it was; `multinode describe {project}` shows it."
        )
        raise Interrupted(message) from error


_VERSIONS = {
    "new": "add a version to project {}:",
    "existing": "make an earlier version of project {} the latest again:",
    "latest": "add no version to project {}: nothing differs from the latest one.",
}
_ENVIRONMENTS = {
    "kept": "stay as it is",
    "found": "be one that is there already",
    "made": "be made",
}


def _planned(plan: release.Plan) -> Answer:
    def show(console: Console) -> None:
        does = "create project {}:" if plan.creates_project else _VERSIONS[plan.version]
        console.out(f"deploy would {does.format(plan.project)}")
        for change in plan.changes:
            console.out(f"  {change}")
        console.out(
            f"The environment would {_ENVIRONMENTS[plan.environment]}. Nothing was changed."
        )

    return Answer(asdict(plan), show)


def _released(released: release.Released, notice: str) -> Answer:
    answer, version = released.answer, released.version
    environment = released.described.built.environment
    sizes = version.sizes or {}
    data = {
        "project": answer.project,
        "version_id": answer.version_id,
        "number": version.number,
        "functions": [function.name for function in version.functions],
        "created": answer.created,
        "made_latest": answer.made_latest,
        "changes": answer.changes,
        "environment": {
            "digest": environment.digest,
            "python": environment.python_served,
            "created": environment.created,
            "image": environment.image or None,
        },
        "sizes": {name: to_plain(size) for name, size in sizes.items()} or None,
        "warnings": [notice] * bool(notice) + released.warnings,
    }

    def show(console: Console) -> None:
        for warning in released.warnings:
            console.warn(warning)
        label = f"version {version.number} ({answer.version_id})"
        if answer.created:
            console.out(f"Deployed {answer.project} {label}, Python {environment.python_served}")
        elif answer.made_latest:
            console.out(f"{answer.project} {label} exists already; it is the latest again")
        else:
            console.out(f"Unchanged: {answer.project} {label} is the latest already")
        for function in version.functions:
            settings = settings_text(function.settings, sizes.get(function.name))
            console.out(f"  {function.name}  {console.styled(settings, 'dim')}")
        if answer.created and version.number > 1:
            for change in answer.changes:
                console.out(f"  {console.styled('·', 'dim')} {change}")
        example = version.functions[0]
        given = " ".join(
            f"{item.name}=…"
            for item in example.parameters
            if item.default is None and "var" not in item.kind
        )
        console.note(f"Next: multinode invoke {answer.project}/{example.name} {given}".rstrip())

    return Answer(data, show)
