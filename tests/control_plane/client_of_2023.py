"""What programs of 2023 compute from an answer: section 7 of the contract, written from it and from nothing of ours."""

from __future__ import annotations

from typing import Any


def is_successful(execution: Any) -> bool:
    return execution["outcome"] == "SUCCEEDED"


def is_gone_without_outcome(execution: Any) -> bool:
    return execution["worker_status"] == "TERMINATED" and execution["outcome"] is None


def is_aborted(execution: Any) -> bool:
    was_told_before_it_began = (
        execution["termination_signal_time"] is not None
        and execution["execution_start_time"] is None
    )
    return execution["outcome"] == "ABORTED" or (
        is_gone_without_outcome(execution) and was_told_before_it_began
    )


def is_failed(execution: Any) -> bool:
    gone = is_gone_without_outcome(execution) and not is_aborted(execution)
    return execution["outcome"] == "FAILED" or gone


def status(inv: Any) -> str:
    """The invocation's status, first rule that holds."""
    spec, executions = inv["execution_spec"], inv["executions"]
    deadline = inv["creation_time"] + spec["timeout_seconds"]
    aborted = [execution for execution in executions if is_aborted(execution)]
    if any(map(is_successful, executions)):
        return "SUCCEEDED"
    if any((execution["termination_signal_time"] or 0) > deadline for execution in aborted):
        return "TIMED OUT"
    if aborted:
        return "CANCELLED"
    if num_failed(inv) == spec["max_retries"] + 1:
        return "FAILED"
    if inv["invocation_status"] == "TERMINATED":
        return "TIMED OUT" if inv["last_update_time"] > deadline else "CANCELLED"
    if inv["cancellation_request_time"] is not None:
        return "CANCELLING"
    return "RUNNING" if any(map(is_running, executions)) else "PENDING"


def is_running(execution: Any) -> bool:
    return (
        execution["worker_status"] == "RUNNING"
        and execution["execution_start_time"] is not None
        and execution["outcome"] is None
    )


def num_failed(inv: Any) -> int:
    return sum(map(is_failed, inv["executions"]))


def newest(inv: Any) -> Any:
    """The execution whose output and error count; None without one."""
    return max(inv["executions"], key=lambda one: one["last_update_time"], default=None)
