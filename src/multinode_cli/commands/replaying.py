"""``replay``: an invocation's stored input, run here on the local code."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer

from multinode.client import path_of
from multinode.codec import decode, plain
from multinode.errors import InputError
from multinode.wire import InvocationDetail
from multinode_cli.commands import local_run, names
from multinode_cli.commands.arguments import Given
from multinode_cli.commands.frame import Answer, Commands, Session
from multinode_cli.commands.names import InvocationId
from multinode_cli.commands.shown import value_text

commands = Commands()


@commands.add("replay")
def replay(
    session: Session,
    invocation: Annotated[
        str | None,
        typer.Argument(metavar="inv-…", help="The invocation.", show_default=False),
    ] = None,
    invocation_id: InvocationId = None,
    pdb: Annotated[
        bool,
        typer.Option(
            "--pdb",
            help="Under the debugger: stops at the function's first line, and where it raises.",
        ),
    ] = False,
) -> Answer:
    """Run an invocation's stored input here, on the local code of tasks/.

    Example: multinode replay inv-… --pdb
    """
    name = names.invocation_id(invocation, invocation_id)
    if pdb:
        _check_terminal(session)
    project = session.project_file
    detail = session.client.call(InvocationDetail, "GET", path_of("invocations", name, "detail"))
    info = detail.invocation
    if project.project not in (None, info.project):
        session.console.warn(f"{name} is of project {info.project}; this is {project.project}.")
    was = f" ({info.status}: {info.error.message})" if info.error else f" ({info.status})"
    session.console.note(f"Replaying {info.project}/{info.function} of {name}{was} here")

    def given() -> Given:
        # Decoding runs code: of the classes that main.py, imported by now, has brought along.
        return _given(decode(detail.input))

    text = local_run.run(project, info.function, given, session.console, debugged=pdb)
    return Answer({"result": plain(text)}, lambda console: console.out(value_text(text)))


def _given(decoded: Any) -> Given:
    positional, named = decoded
    return list(positional), dict(named)


def _check_terminal(session: Session) -> None:
    if session.console.as_json or not sys.stdin.isatty():
        message = "--pdb needs a terminal, and no --json."
        raise InputError(message, "Leave out --pdb, or run this in a terminal.")
