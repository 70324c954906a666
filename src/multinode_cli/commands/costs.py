"""``cost``: what functions have cost; and the estimate of ``invoke --estimate``."""

from __future__ import annotations

from typing import Annotated

import typer

from multinode.client import path_of
from multinode.wire import CostEstimate, CostReport, WorkerSize, to_plain
from multinode_cli.commands.frame import Answer, Commands, Session
from multinode_cli.commands.names import FunctionReference
from multinode_cli.commands.shown import counted, money, size_text, span_of, span_s, used
from multinode_cli.console import Console

commands = Commands()
_HEADS = {"function": "FUNCTION", "project": "PROJECT", "version": "VERSION", "day": "DAY (UTC)"}


@commands.add("cost")
def cost(
    session: Session,
    span: Annotated[
        str, typer.Option("--for", metavar="SPAN", help="How far back, e.g. 12h, 7d.")
    ] = "7d",
    by: Annotated[
        str,
        typer.Option(
            "--by", metavar="function|project|version|day", help="What is summed together."
        ),
    ] = "function",
    project: Annotated[
        str | None,
        typer.Option(
            "--project", "--project-name", metavar="PROJECT", help="Only functions of this project."
        ),
    ] = None,
) -> Answer:
    """Print vCPU seconds, GB seconds and price of the workers that have ended.

    Example: multinode cost --for 7d --by function
    """
    path = path_of("costs", by=by, for_s=span_s(span, "--for"), project=project)
    found = session.client.call(CostReport, "GET", path)

    def show(console: Console) -> None:
        if not found.lines:
            console.note(f"No worker has ended in the last {span}.")
            return
        rows = [
            (
                line.name,
                str(line.executions),
                span_of(line.vcpu_s),
                span_of(line.gb_s),
                money(line.cost, found.currency),
            )
            for line in [*found.lines, found.total]
        ]
        head = (_HEADS.get(found.by, "NAME"), "EXECUTIONS", "VCPU S", "GB S", "PRICE")
        console.table(head, rows)
        if found.has_more:
            console.note("… and more; --project and a shorter --for narrow it down.")
        console.note(_meaning(found))

    return Answer(to_plain(found), show)


def _meaning(found: CostReport) -> str:
    """What the prices are, in words."""
    if not found.paid_executions:
        return "Processes and containers of the control plane's own machine: nothing is paid for them by the second."
    all_paid = found.paid_executions == found.total.executions
    free = "" if all_paid else " Processes and containers of the machine's own are in it with 0."
    return (
        f"Each at the price of its time; now: {found.source}. Check them against your bill.{free}"
    )


def estimated(session: Session, reference: FunctionReference) -> Answer:
    """What an invocation may cost at most, and what those before did cost. Starts nothing."""
    path = path_of(
        "projects",
        reference.project,
        "functions",
        reference.function,
        "estimate",
        version=reference.version_id,
    )
    found = session.client.call(CostEstimate, "GET", path)
    return Answer(to_plain(found), lambda console: _show_estimate(console, found))


def _show_estimate(console: Console, found: CostEstimate) -> None:
    console.out(f"{found.project}/{found.function} @ {found.version_id}")
    size = size_text(WorkerSize(found.cpu, found.memory_mib))
    attempts = counted(found.attempts, "attempt")
    console.out(f"  size      {size}")
    most = f"{money(found.most.cost, found.currency)}, {used(found.most.vcpu_s, found.most.gb_s)}"
    console.out(f"  at most   {most}: {attempts} of {found.timeout_s:g} s")
    history = found.history
    if history is None:
        console.out("  before    no invocation has ended yet")
    else:
        mean = money(history.mean, found.currency)
        highest = money(history.highest, found.currency)
        seconds = used(history.mean_vcpu_s, history.mean_gb_s)
        console.out(
            f"  before    {mean} on average ({seconds}), {highest} at most, "
            f"of the newest {counted(history.invocations, 'invocation')}"
        )
    if found.tariff:
        console.note(f"{found.tariff}: {found.source}. Starting and cleaning up come on top.")
    else:
        console.note("A process or container of the control plane's own machine costs nothing.")
