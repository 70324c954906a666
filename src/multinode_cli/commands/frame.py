"""What every command has around it: the global options, a session, and the printing of its answer."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multinode.errors import MultinodeError
from multinode.settings import Connection, retry_s
from multinode_cli.commands.plain_values import PlainCommand, PlainGroup
from multinode_cli.console import Console
from multinode_cli.errors import Interrupted, exit_code
from multinode_cli.settings import COMMAND_RETRY_S, Settings, read_settings
from multinode_cli.tasks_folder import ProjectFile, read_project_file

if TYPE_CHECKING:
    from multinode.client import Client


class Session:
    """One command's settings, console, project file and client, each made when it is asked for."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.console = Console(settings)

    @cached_property
    def project_file(self) -> ProjectFile:
        """What ``multinode.toml`` says around the working folder."""
        return read_project_file()

    @cached_property
    def connection(self) -> Connection:
        """The control plane; starts the local one where nobody has logged in and none runs."""
        profile = self.project_file.profile
        if profile is None and self.settings.is_logged_out():
            from multinode_cli.commands import local_server  # lazy: start-up time

            server = local_server.ensure(self.settings, self.console)
            return Connection(server.url, server.key, COMMAND_RETRY_S, "the local control plane")
        return self.settings.connection(profile)

    @cached_property
    def client(self) -> Client:
        """The client of the control plane; gives up soon when that is away."""
        from multinode.client import Client  # lazy: `--help` and `init` need none

        return Client(self.connection.url, self.connection.key, retry_s=self.connection.retry_s)

    @cached_property
    def patient_client(self) -> Client:
        """A client that waits for a control plane that is away as long as the SDK does."""
        from multinode.client import Client  # lazy, as above

        patience_s = retry_s(self.settings.environ)
        return Client(self.connection.url, self.connection.key, retry_s=patience_s)


@dataclass(frozen=True)
class Answer:
    """What a command hands back: ``data`` for ``--json``, ``show`` for people.

    With ``error`` the function that was invoked has failed, not the command; ``data`` is printed all the same.
    """

    data: Any = None
    show: Callable[[Console], None] | None = None
    error: MultinodeError | None = None
    exit_code: int = 0


Command = Callable[..., Answer]

_PROFILE = Annotated[
    str | None,
    typer.Option("--profile", metavar="NAME", help="Profile of `multinode login` to use."),
]
_JSON = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
_DEBUG = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


class Commands:
    """The commands of one module, or of one group such as ``multinode key``."""

    def __init__(self, group: str = "", help: str = "") -> None:
        self._group = group
        self._help = help
        self._commands: list[tuple[str, Command, bool, bool]] = []
        self._groups: list[Commands] = []

    def group(self, name: str, help: str) -> Commands:
        """A group of commands below this one."""
        made = Commands(name, help)
        self._groups.append(made)
        return made

    def include(self, others: Commands) -> None:
        """Has the commands of another module too."""
        self._commands.extend(others._commands)

    def add(
        self, name: str, *, has_json: bool = True, takes_dashes: bool = False
    ) -> Callable[[Command], Command]:
        """Decorator: the function is the command ``name``. It takes a Session and its own options.

        With ``takes_dashes`` an argument may begin with a dash, as negative numbers do.
        """

        def note(function: Command) -> Command:
            self._commands.append((name, function, has_json, takes_dashes))
            return function

        return note

    def add_to(self, app: typer.Typer) -> None:
        """Make Typer commands of them."""
        for name, function, has_json, takes_dashes in self._commands:
            # \b keeps the lines of the example as they are
            text = (inspect.getdoc(function) or "").replace("Example:", "\b\nExample:")
            context = {"ignore_unknown_options": takes_dashes}
            summary = text.partition("\n")[0]
            command = app.command(
                name, cls=PlainCommand, help=text, short_help=summary, context_settings=context
            )
            command(_framed(function, has_json=has_json))
        for group in self._groups:
            below = typer.Typer(
                name=group._group,
                cls=PlainGroup,
                help=group._help,
                no_args_is_help=True,
                rich_markup_mode=None,
            )
            group.add_to(below)
            app.add_typer(below)


def _framed(function: Command, *, has_json: bool) -> Callable[..., int]:
    """``function`` with the global options, and without its session, as Typer reads signatures."""

    def framed(profile: str | None, debug: bool, as_json: bool = False, **options: Any) -> int:
        session = Session(read_settings(profile=profile, as_json=as_json, debug=debug))
        try:
            return _print(session.console, function(session, **options))
        except KeyboardInterrupt as error:  # before Typer takes it, and ends without a word
            raise Interrupted from error

    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    kind = inspect.Parameter.KEYWORD_ONLY
    added = [
        *(
            [inspect.Parameter("as_json", kind, default=False, annotation=_JSON)]
            if has_json
            else []
        ),
        inspect.Parameter("profile", kind, default=None, annotation=_PROFILE),
        inspect.Parameter("debug", kind, default=False, annotation=_DEBUG),
    ]
    parameters = [item.replace(kind=kind) for item in own] + added
    framed.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    framed.__annotations__ = {item.name: item.annotation for item in parameters}
    return framed


def _print(console: Console, answer: Answer) -> int:
    if console.as_json and (answer.data is not None or answer.error is not None):
        console.data(answer.data, answer.error)
    elif not console.as_json and answer.show is not None:
        answer.show(console)
    if answer.error is not None and not answer.exit_code:
        return exit_code(answer.error)
    return answer.exit_code
