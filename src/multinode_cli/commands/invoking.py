"""``invoke``, which starts an invocation and follows it, and ``run``, which needs no control plane."""

from __future__ import annotations

from typing import Annotated

import typer

from multinode.client import path_of
from multinode.codec import encode_input, plain
from multinode.limits import WAIT_S
from multinode.wire import (
    FINAL_STATUSES,
    InvocationInfo,
    StartAnswer,
    StartRequest,
    VersionInfo,
)
from multinode_cli.commands import local_run, names
from multinode_cli.commands.arguments import check_arguments, read_arguments
from multinode_cli.commands.following import follow
from multinode_cli.commands.frame import Answer, Commands, Session
from multinode_cli.commands.names import FunctionName, ProjectName, VersionId
from multinode_cli.commands.projects import find_function
from multinode_cli.commands.shown import ended_line, failure, invocation_data, value_text
from multinode_cli.console import STATUS_STYLE, Console
from multinode_cli.errors import INTERRUPTED

commands = Commands()

_Function = Annotated[
    str | None,
    typer.Argument(
        metavar="[PROJECT/]FUNCTION[@VERSION]",
        help="The function; its project is the one of multinode.toml where none is given.",
        autocompletion=names.complete_function,
        show_default=False,
    ),
]
_Words = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="ARG | NAME=VALUE",
        help="JSON where it parses as such, else text.",
        show_default=False,
    ),
]
_Input = Annotated[
    str | None,
    typer.Option(
        "--input", metavar="FILE", help="A file (- is stdin) that holds [args, kwargs] as JSON."
    ),
]


@commands.add("invoke", takes_dashes=True)
def invoke(
    session: Session,
    function: _Function = None,
    arguments: _Words = None,
    input_file: _Input = None,
    detach: Annotated[
        bool, typer.Option("--detach", "-d", help="Print the id and do not wait.")
    ] = False,
    no_logs: Annotated[
        bool, typer.Option("--no-logs", help="Do not show the function's output.")
    ] = False,
    estimate: Annotated[
        bool,
        typer.Option("--estimate", help="Say what it may cost at most, and start nothing."),
    ] = False,
    project_name: ProjectName = None,
    function_name: FunctionName = None,
    version_id: VersionId = None,
) -> Answer:
    """Start an invocation, follow it, and print its result alone on stdout.

    Ctrl-C asks the control plane to cancel it and waits; a second one leaves it to itself.

    Example: multinode invoke billing/add 1 b=2
    """
    words = list(arguments or [])
    if function_name and function is not None and "/" not in function:
        words.insert(0, function)  # all the words are arguments
        function = None
    given = read_arguments(words, input_file)
    reference = names.function_of(
        session,
        function,
        project_name=project_name,
        function_name=function_name,
        version_id=version_id,
    )
    if estimate:
        from multinode_cli.commands.costs import estimated  # lazy: start-up time

        return estimated(session, reference)
    path = path_of("projects", reference.project, "versions", reference.version_id or "latest")
    version = session.client.call(VersionInfo, "GET", path)
    check_arguments(find_function(version, reference.function), given)
    text = encode_input(tuple(given[0]), given[1])
    started = _start(session, reference, text)
    if detach:
        return Answer({"invocation_id": started}, lambda console: console.out(started))
    if session.console.as_json:
        ended = _wait(session, started)
        return Answer(invocation_data(ended), error=failure(ended))
    return _followed(session, started, has_logs=not no_logs)


def _start(session: Session, reference: names.FunctionReference, text: str) -> str:
    from uuid import uuid4  # lazy: start-up time

    path = path_of("projects", reference.project, "functions", reference.function, "invocations")
    request = StartRequest(inputs=[text], request_key=uuid4().hex, version_id=reference.version_id)
    return session.client.call(StartAnswer, "POST", path, request).invocation_ids[0]


def _wait(session: Session, name: str) -> InvocationInfo:
    path = path_of("invocations", name)
    while True:
        invocation = session.patient_client.call(InvocationInfo, "GET", path, wait_s=WAIT_S)
        if invocation.status in FINAL_STATUSES:
            return invocation
        path = path_of("invocations", name, wait_s=WAIT_S, revision=invocation.revision)


def _followed(session: Session, name: str, *, has_logs: bool) -> Answer:
    console = session.console
    console.note(f"Started {name}")
    ended, was_interrupted = follow(console, session.patient_client, name, has_logs=has_logs)
    tell_failure(console, ended)
    console.note(ended_line(ended), STATUS_STYLE.get(ended.status))
    error = failure(ended)

    def show(console: Console) -> None:
        if error is None:
            console.out(value_text(ended.result))

    return Answer(None, show, error, INTERRUPTED if was_interrupted else 0)


def tell_failure(console: Console, ended: InvocationInfo) -> None:
    """The error of an ended invocation with its traceback, on stderr."""
    if ended.error is None:
        return
    traceback = ended.error.traceback.rstrip()
    if traceback:
        console.note(traceback)
    if not traceback.endswith(ended.error.message):
        console.note(f"error: {ended.error.message}", "red")


@commands.add("run", takes_dashes=True)
def run(
    session: Session,
    function: Annotated[
        str,
        typer.Argument(
            metavar="FUNCTION", help="A function of the tasks/ here.", show_default=False
        ),
    ],
    arguments: _Words = None,
    input_file: _Input = None,
) -> Answer:
    """Run a function of the local tasks/ here, in this terminal, with no control plane.

    Example: multinode run add 1 b=2
    """
    given = read_arguments(arguments or [], input_file)
    text = local_run.run(session.project_file, function, lambda: given, session.console)
    return Answer({"result": plain(text)}, lambda console: console.out(value_text(text)))
