"""``ps``, ``logs``, ``result``, ``cancel``, ``retry``."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import typer

from multinode.client import path_of
from multinode.errors import InputError, InvocationNotFound, NotEnded
from multinode.wire import (
    CancelAnswer,
    CancelRequest,
    InvocationDetail,
    InvocationInfo,
    InvocationItem,
    InvocationList,
    LogRecord,
    StartAnswer,
    loads,
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
from multinode_cli.commands.plain_values import whole_number
from multinode_cli.commands.shown import (
    age,
    between,
    counted,
    failure,
    invocation_data,
    span_s,
    value_text,
)
from multinode_cli.console import Console, Style

commands = Commands()

_MAX_PAGES = 20
_NONE_IN_FLIGHT = "Nothing is in flight; `multinode ps -a` lists what has ended."
_Invocation = Annotated[
    str | None, typer.Argument(metavar="INVOCATION", help="The id, inv-….", show_default=False)
]


@commands.add("ps")
def ps(
    session: Session,
    everything: Annotated[
        bool, typer.Option("--all", "-a", help="The recent ones that have ended, too.")
    ] = False,
    project_name: ProjectName = None,
    function_name: FunctionName = None,
    version_id: VersionId = None,
    status: Annotated[
        str | None, typer.Option("--status", metavar="STATUS", help="Only those in this status.")
    ] = None,
) -> Answer:
    """List the invocations in flight, with why a pending one is not running.

    Example: multinode ps -a
    """
    found, has_more = _list(
        session,
        project=project_name,
        function=function_name,
        version_id=version_id,
        status=status.upper() if status else None,
        in_flight=None if everything or status else True,
    )

    def show(console: Console) -> None:
        if not found:
            is_told_of_all = everything or status is not None
            console.note("There is none." if is_told_of_all else _NONE_IN_FLIGHT)
            return
        rows = [
            (
                item.invocation_id,
                f"{item.project}/{item.function}",
                item.status,
                age(item.created_at),
                between(item.started_at, item.finished_at),
                _reason(item),
            )
            for item in found
        ]
        console.table(("INVOCATION", "FUNCTION", "STATUS", "AGE", "RAN", "REASON"), rows)
        if has_more:
            console.note(
                "… and earlier ones; --project-name, --function-name and --status narrow it down."
            )

    return Answer([invocation_data(item) for item in found], show)


def _list(
    session: Session, *, in_flight: bool | None, **wanted: str | None
) -> tuple[list[InvocationItem], bool]:
    """One page of all, or every page of those in flight; and whether there are more."""
    found: list[InvocationItem] = []
    offset: str | None = None
    for _ in range(_MAX_PAGES if in_flight else 1):
        path = path_of("invocations", in_flight=in_flight, offset=offset, **wanted)
        page = session.client.call(InvocationList, "GET", path)
        found += page.invocations
        offset = page.next_offset
        if offset is None:
            break
    return found, offset is not None


def _reason(item: InvocationItem) -> str:
    if item.unreachable:
        return "unreachable"
    if item.pending_reason:
        return item.pending_reason
    failed = item.num_failed_attempts
    return counted(failed, "failed attempt") if failed else ""


@commands.add("logs")
def logs(
    session: Session,
    invocation: _Invocation = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it ends.")] = False,
    tail: Annotated[
        str, typer.Option("--tail", "-n", metavar="NUMBER", help="Lines to begin with.")
    ] = "100",
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="SPAN", help="Only what is younger, e.g. 30s, 10m, 2h."),
    ] = None,
    attempt: Annotated[
        str | None, typer.Option("--attempt", metavar="NUMBER", help="Only this attempt.")
    ] = None,
    timestamps: Annotated[
        bool, typer.Option("--timestamps", "-t", help="Put the time before each line.")
    ] = False,
    invocation_id: InvocationId = None,
    execution_id: ExecutionId = None,
) -> Answer:
    """Print the output of a function, stdout and stderr in the order in which they came.

    Example: multinode logs inv-… -f
    """
    number = None if attempt is None else whole_number(attempt, "--attempt", least=1)
    lines = whole_number(tail, "--tail", least=0)
    since_s = None if since is None else span_s(since)
    if execution_id:
        detail = names.execution(session, execution_id, invocation, invocation_id)
        name, number = detail.invocation.invocation_id, _attempt(detail, number)
    else:
        name = names.invocation_id(invocation, invocation_id)
    path = path_of(
        "invocations",
        name,
        "logs",
        tail=lines,
        since_s=since_s,
        attempt=number,
        follow=follow or None,
    )
    client = session.patient_client if follow else session.client
    records = (loads(LogRecord, line) for line in client.stream("GET", path))
    if not session.console.as_json:
        _print_records(session.console, records, has_times=timestamps)
        return Answer()
    if follow:
        for record in records:
            session.console.json_line(to_plain(record))
        return Answer()
    return Answer([to_plain(record) for record in records])


def _attempt(detail: InvocationDetail, given: int | None) -> int:
    """The number of the one attempt in ``detail``. Raises InputError where another was given as well."""
    (execution,) = detail.executions
    if given not in (None, execution.attempt):
        message = f"{execution.execution_id} is attempt {execution.attempt}, and --attempt {given} was given too."
        raise InputError(message, "Give one of the two.")
    return execution.attempt


def _print_records(console: Console, records: Iterator[LogRecord], *, has_times: bool) -> None:
    if not has_times:
        for record in records:
            console.raw(_coloured(console, record.stream, record.text))
            if record.stream == "system" and not record.text.endswith("\n"):
                console.raw("\n")
        return
    from multinode_cli.commands.following import LineJoiner  # lazy: start-up time

    joiner = LineJoiner()
    for record in records:
        for line in joiner.take(record):
            console.out(f"{record.at}  {_coloured(console, record.stream, line)}")
    for line in joiner.flush():
        console.out(f"{'':32}  {line}")


def _coloured(console: Console, stream: str, text: str) -> str:
    if stream == "stdout":
        return text
    style: Style = "dim" if stream == "system" else "yellow"
    return "\n".join(console.styled(line, style) if line else "" for line in text.split("\n"))


@commands.add("result")
def result(
    session: Session, invocation: _Invocation = None, invocation_id: InvocationId = None
) -> Answer:
    """Print the result of an invocation, or the newest value that it has yielded so far.

    Example: multinode result inv-…
    """
    name = names.invocation_id(invocation, invocation_id)
    found = session.client.call(InvocationInfo, "GET", path_of("invocations", name))
    failed = failure(found)
    data = invocation_data(found)
    if failed is not None:
        if not session.console.as_json:
            raise failed
        return Answer(data, error=failed)
    if found.finished_at is None and found.result is None:
        message = f"{name} is {found.status} and has no result yet."
        raise NotEnded(message, f"`multinode logs {name} -f` follows it.")

    def show(console: Console) -> None:
        if found.finished_at is None:
            console.note(f"{name} is {found.status}; this is the newest value that it has yielded.")
        console.out(value_text(found.result))

    return Answer(data, show)


@commands.add("cancel")
def cancel(
    session: Session,
    what: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="INVOCATION | FUNCTION --all", help="What to cancel.", show_default=False
        ),
    ] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="All invocations in flight of the function or project.")
    ] = False,
    project_name: ProjectName = None,
    function_name: FunctionName = None,
    invocation_id: InvocationId = None,
) -> Answer:
    """Ask for cancellation of invocations, or of everything in flight of a function. Asks; does not wait.

    Example: multinode cancel billing/add --all
    """
    words = [*(what or []), *([invocation_id] if invocation_id else [])]
    if everything:
        request = _cancel_all(session, words, project_name, function_name)
    elif words:
        request = CancelRequest(invocation_ids=[names.invocation_id(word, None) for word in words])
    else:
        message = "Nothing was named to cancel."
        raise InputError(message, "Give ids of invocations, or a function and --all.")
    answer = session.client.call(CancelAnswer, "POST", path_of("cancel"), request)

    def show(console: Console) -> None:
        for name in answer.requested:
            console.out(f"{name}  cancellation was asked for")
        for name in answer.ended:
            console.out(f"{name}  had ended already, and is left as it is")
        if not answer.requested and not answer.ended:
            console.note("Nothing was in flight.")

    return Answer(to_plain(answer), show)


def _cancel_all(
    session: Session, words: list[str], project_name: str | None, function_name: str | None
) -> CancelRequest:
    if len(words) > 1:
        message = f"--all goes with one function, not with {len(words)}."
        raise InputError(message, "Give one at a time.")
    if words and names.is_invocation(words[0]):
        message = f"--all goes with a function, and {words[0]!r} is an invocation."
        raise InputError(message, "Leave out --all.")
    if not words and not function_name:
        return CancelRequest(project=names.project_of(session, None, project_name))
    reference = names.function_of(
        session, words[0] if words else None, project_name=project_name, function_name=function_name
    )
    return CancelRequest(project=reference.project, function=reference.function)


@commands.add("retry")
def retry(
    session: Session, invocation: _Invocation = None, invocation_id: InvocationId = None
) -> Answer:
    """Start a new invocation with the input of another one, and print its id.

    Example: multinode retry inv-…
    """
    from uuid import uuid4  # lazy: start-up time

    name = names.invocation_id(invocation, invocation_id)
    answer = session.client.call(
        StartAnswer, "POST", path_of("invocations", name, "retry", request_key=uuid4().hex)
    )
    if not answer.invocation_ids:
        message = f"The control plane started nothing for {name}."
        raise InvocationNotFound(message, "`multinode ps -a` lists the recent ones.")
    started = answer.invocation_ids[0]
    return Answer({"invocation_id": started}, lambda console: console.out(started))
