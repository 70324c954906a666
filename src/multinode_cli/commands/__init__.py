"""The commands. Each returns an ``Answer``; ``frame`` makes it a Typer command and prints it.

A command's module is imported only when that command is used: ``all_commands`` knows the names.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import typer

from multinode.errors import EXIT_CODE, InputError, MultinodeError
from multinode_cli.commands.all_commands import AllCommands
from multinode_cli.console import Console
from multinode_cli.errors import INTERRUPTED, Interrupted, exit_code
from multinode_cli.settings import read_settings

_USAGE_ERROR: type[Exception] = typer.BadParameter.__mro__[1]
"""Typer's UsageError, which some releases take from click and others bring along."""


def run(arguments: Sequence[str]) -> int:
    """Run one command line; returns the exit code."""
    words = list(arguments) or ["--help"]
    options = words[: words.index("--")] if "--" in words else words
    console = Console(
        read_settings(profile=None, as_json="--json" in options, debug="--debug" in options)
    )
    try:
        return _run(words)
    except _USAGE_ERROR as error:
        if "--json" not in options and type(error).__name__ == "NoArgsIsHelpError":
            console.note(str(error.args[0]))
            return EXIT_CODE[InputError.code]
        failure = _from_usage_error(error)
        console.error(failure)
        return exit_code(failure)
    except MultinodeError as error:
        console.error(error)
        return exit_code(error)
    except (KeyboardInterrupt, Interrupted, typer.Abort) as error:
        console.note(str(error) or "Interrupted.")
        return INTERRUPTED
    except BrokenPipeError:
        sys.stdout = None  # or the interpreter flushes it at its end and complains
        return 1


def _run(words: list[str]) -> int:
    outcome = root().main(words, prog_name="multinode", standalone_mode=False)
    return outcome if isinstance(outcome, int) else 0


def root() -> AllCommands:
    """The ``multinode`` command."""
    app = typer.Typer(
        name="multinode",
        cls=AllCommands,
        help="Run Python functions somewhere else: on a laptop, a server, or in your own AWS account.",
        epilog="Start with: multinode init hello && cd hello && multinode deploy",
        rich_markup_mode=None,  # plain help: no wait for Rich's import
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
    )
    app.callback()(_global_options)
    made = typer.main.get_command(app)
    assert isinstance(made, AllCommands)
    return made


def _global_options(
    version: bool = typer.Option(False, "--version", help="Print the version and exit."),
) -> None:
    if version:
        from importlib.metadata import version as version_of  # lazy: start-up time

        typer.echo(f"multinode {version_of('multinode')}")
        raise typer.Exit


def _from_usage_error(error: Exception) -> InputError:
    message = str(getattr(error, "format_message", error.__str__)()).strip().replace("\n", " ")
    context = getattr(error, "ctx", None)
    path = getattr(context, "command_path", None) or "multinode"
    return InputError(message, f"`{path} --help` shows how it is used.")
