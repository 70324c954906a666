"""The commands. Each returns an ``Answer``; ``frame`` makes it a Typer command and prints it.

A command's module is imported only when that command is asked for.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module

import typer

from multinode.errors import EXIT_CODE, InputError, MultinodeError
from multinode_cli.console import Console
from multinode_cli.errors import INTERRUPTED, Interrupted, exit_code
from multinode_cli.settings import read_settings

_MODULES = {
    "starting": {
        "init": "Write a new project: multinode.toml, tasks/, and an application that invokes its functions."
    },
    "releasing": {
        "check": "Say what is wrong in tasks/, without importing or sending anything.",
        "deploy": "Create the project, or add a version to it and make that the latest.",
        "upgrade": "Like deploy, but the project must exist.",
    },
    "projects": {
        "undeploy": "Cancel what is in flight, then remove the project with its versions, results and logs.",
        "list": "List the projects: newest version, functions, invocations in flight.",
        "describe": "Describe a project, a function, or an invocation attempt by attempt.",
        "rollback": "Make an earlier version the latest.",
    },
    "invoking": {
        "invoke": "Start an invocation, follow it, and print its result alone on stdout.",
        "run": "Run a function of the local tasks/ here, in this terminal, with no control plane.",
    },
    "invocations": {
        "ps": "List the invocations in flight, with why a pending one is not running.",
        "logs": "Print the output of a function, stdout and stderr in the order in which they came.",
        "result": "Print the result of an invocation, or the newest value that it has yielded so far.",
        "cancel": "Ask for cancellation of invocations, or of everything in flight of a function.",
        "retry": "Start a new invocation with the input of another one, and print its id.",
    },
    "server": {"server": "Start, stop and look at the local control plane."},
    "access": {
        "login": "Check a key and store it for the commands and the SDK.",
        "logout": "Forget a profile's key here; the key itself stays valid until it is revoked.",
        "profile": "List the profiles of `multinode login`, and choose one.",
        "key": "Make, list and revoke API keys.",
    },
    "doctor": {
        "doctor": "Check Python, uv, Docker, the control plane, credentials, clock and disk."
    },
}
"""Each module with its commands and what ``--help`` says of them, so that ``--help`` imports none of them.

A test compares this with the commands' own docstrings.
"""

_COMPLETION = "_MULTINODE_COMPLETE"
"""The variable by which a shell asks for completions."""

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
    command = typer.main.get_command(load(words, everything=_COMPLETION in os.environ))
    outcome = command.main(words, prog_name="multinode", standalone_mode=False)
    return outcome if isinstance(outcome, int) else 0


def load(words: Sequence[str], *, everything: bool = False) -> typer.Typer:
    """The application. Of the commands only those of the module that ``words`` begin with are more than a name and a
    summary, unless ``everything`` is asked for."""
    app = typer.Typer(
        name="multinode",
        help="Run Python functions somewhere else: on a laptop, a server, or in your own AWS account.",
        epilog="Start with: multinode init hello && cd hello && multinode deploy",
        rich_markup_mode=None,  # plain help: no wait for Rich's import
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
    )
    app.callback()(_global_options)
    first = words[0] if words else ""
    for module, commands in _MODULES.items():
        if everything or first in commands:
            import_module(f"multinode_cli.commands.{module}").commands.add_to(app)
            continue
        for name, summary in commands.items():
            app.command(name, help=summary, short_help=summary)(_not_loaded)
    return app


def _not_loaded() -> None:
    """Stands for a command in ``--help``, and never runs."""


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
