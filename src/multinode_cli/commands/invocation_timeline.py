"""The timeline of an invocation: attempt by attempt, with the milliseconds that each step took."""

from __future__ import annotations

import json
from typing import Any

from multinode.codec import plain
from multinode.wire import (
    AttemptCost,
    ExecutionInfo,
    FunctionError,
    InvocationDetail,
    InvocationInfo,
    WorkerSize,
)
from multinode_cli.commands.shown import (
    age,
    between,
    memory,
    money,
    size_text,
    used,
    value_text,
)
from multinode_cli.console import STATUS_STYLE, Console

_LONGEST_INPUT = 200
_LONGEST_RESULT = 1_000


def input_data(detail: InvocationDetail) -> Any:
    """The input as plain data: ``[args, kwargs]``."""
    return plain(detail.input)


def show(console: Console, detail: InvocationDetail) -> None:
    """Print it."""
    invocation = detail.invocation
    status = console.styled(invocation.status, STATUS_STYLE.get(invocation.status, "bold"))
    reason = f" ({invocation.pending_reason})" if invocation.pending_reason else ""
    console.out(f"{invocation.invocation_id}  {status}{reason}")
    for name, text in _facts(detail):
        console.out(f"  {name:10}{text}")
    for execution in detail.executions:
        console.out("")
        _show_execution(console, execution)
    if invocation.error and not any(item.error for item in detail.executions):
        _show_error(console, invocation.error, "")


def _facts(detail: InvocationDetail) -> list[tuple[str, str]]:
    invocation = detail.invocation
    facts = [
        ("function", f"{invocation.project}/{invocation.function} @ {invocation.version_id}"),
        ("input", _short(json.dumps(input_data(detail), ensure_ascii=False), _LONGEST_INPUT)),
        ("created", f"{invocation.created_at} ({age(invocation.created_at)} ago)"),
    ]
    if invocation.next_try_at:
        facts.append(("next try", invocation.next_try_at))
    if invocation.parent_id:
        facts.append(("parent", invocation.parent_id))
    if invocation.started_at:
        facts.append(("waited", between(invocation.created_at, invocation.started_at)))
    if invocation.finished_at and invocation.started_at:
        facts.append(("ran", between(invocation.started_at, invocation.finished_at)))
    if invocation.num_values:
        facts.append(("values", str(invocation.num_values)))
    if invocation.result is not None:
        facts.append(("result", _short(value_text(invocation.result), _LONGEST_RESULT)))
    return facts + _troubles(invocation)


def _troubles(invocation: InvocationInfo) -> list[tuple[str, str]]:
    troubles = []
    if invocation.cancel_requested_at:
        troubles.append(("cancelled", f"asked for at {invocation.cancel_requested_at}"))
    if invocation.unreachable:
        troubles.append(("worker", "unreachable: silent for 30 s or more, but alive"))
    if invocation.finished_at and not invocation.terminated:
        troubles.append(("worker", "not gone yet"))
    return troubles


def _show_execution(console: Console, execution: ExecutionInfo) -> None:
    outcome = execution.outcome or execution.state
    ran = between(execution.started_at, execution.ended_at)
    console.out(
        console.styled(f"Attempt {execution.attempt}", "bold")
        + f"  {outcome}{f' after {ran}' if ran else ''}  {execution.execution_id} on {execution.worker_id}"
    )
    for step in execution.timeline:
        console.out(f"  {step.ms:>10,.1f} ms  {step.name}")
    if execution.peak_memory_mib is not None:
        limit = memory(execution.memory_limit_mib)
        console.out(f"  peak memory {memory(round(execution.peak_memory_mib, 1))} of {limit}")
    if execution.cost is not None:
        console.out(f"  cost {_cost(execution.cost)}")
    if execution.exit_code:
        console.out(f"  exit code {execution.exit_code}")
    if execution.signal:
        console.out(f"  signal {execution.signal}")
    if execution.error:
        _show_error(console, execution.error, "  ")


def _cost(cost: AttemptCost) -> str:
    """What it used, and what that costs."""
    seconds = (
        f"{used(cost.vcpu_s, cost.gb_s)} of {size_text(WorkerSize(cost.cpu, cost.memory_mib))}"
    )
    if not cost.tariff:
        return f"nothing: {seconds}"
    return f"{money(cost.cost, cost.currency)}: {seconds}, {cost.billed_s:g} s of {cost.tariff}"


def _show_error(console: Console, error: FunctionError, indent: str) -> None:
    console.out(indent + console.styled(error.message, "red"))
    for line in error.traceback.splitlines():
        console.out(f"{indent}{line}")


def _short(text: str, limit: int) -> str:
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
