"""``audit``: who did what."""

from __future__ import annotations

from typing import Annotated

import typer

from multinode.client import path_of
from multinode.wire import AuditLine, AuditLog, to_plain
from multinode_cli.commands.frame import Answer, Commands, Session
from multinode_cli.commands.shown import span_s
from multinode_cli.console import Console

commands = Commands()


@commands.add("audit")
def audit(
    session: Session,
    since: Annotated[
        str | None,
        typer.Option("--since", metavar="SPAN", help="Only what is younger, e.g. 30s, 10m, 2h."),
    ] = None,
    project: Annotated[
        str | None,
        typer.Option(
            "--project",
            "--project-name",
            metavar="PROJECT",
            help="Only what was done to this project.",
        ),
    ] = None,
) -> Answer:
    """Print who deployed, invoked, cancelled, removed, and made or revoked keys, oldest first.

    Example: multinode audit --since 1d
    """
    since_s = None if since is None else span_s(since)
    lines: list[AuditLine] = []
    offset: str | None = None
    while True:
        path = path_of("audit", project=project, since_s=since_s, offset=offset)
        page = session.client.call(AuditLog, "GET", path)
        lines += page.lines
        offset = page.next_offset
        if offset is None:
            break
    lines.reverse()

    def show(console: Console) -> None:
        if not lines:
            console.note("Nothing was done.")
            return
        rows = [
            (item.at[:19], item.key_name, item.action, item.project or "", _target(item))
            for item in lines
        ]
        console.table(("TIME (UTC)", "KEY", "ACTION", "PROJECT", "WHAT"), rows)

    return Answer([to_plain(item) for item in lines], show)


def _target(item: AuditLine) -> str:
    return item.target if item.count == 1 else f"{item.target} and {item.count - 1} more"
