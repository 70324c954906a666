"""Our state in the objects of 2023, pure.

Their client computes the status, first rule that holds: any execution succeeded; any aborted with its signal after the deadline (timed
out); any aborted (cancelled); failed executions are ``max_retries + 1`` (failed); terminated, last updated after the deadline (timed out);
terminated (cancelled); cancellation requested; running; pending. The deadline is the creation plus ``timeout_seconds``. Our timeout
runs from the start of the code, not every failure is retried, and a worker that could not be made is no attempt: so the limits
that an invocation shows are its own, not its function's, and they and its times are such that our status comes out.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from multinode import wire
from multinode.limits import shorten
from multinode_control_plane import model
from multinode_control_plane.service.catalog import Version
from multinode_control_plane.service.snapshots import Attempt, Snapshot
from multinode_control_plane.service.statements import Row

Plain = dict[str, Any]

SUCCEEDED, FAILED, ABORTED = "SUCCEEDED", "FAILED", "ABORTED"
WORKER_TYPE = "TEST"
"""The only one of theirs that is not AWS; their client refuses others."""
READY: Plain = {"function_status": "READY", "prepared_function_details": None}


@dataclass(frozen=True)
class Shown:
    """An attempt as it is shown: its ``outcome`` in their words, and when it was changed last (whole seconds)."""

    attempt: Attempt
    outcome: str | None
    updated: int


@dataclass(frozen=True)
class View:
    """What an invocation shows: its own limits and times, in whole seconds, and its attempts."""

    whole: Snapshot
    attempts: tuple[Shown, ...]
    max_retries: int
    timeout_s: int
    updated: int

    @property
    def deadline(self) -> int:
        """When it would be over, by their reckoning."""
        return _whole(self.whole.created_at) + self.timeout_s


def _whole(seconds: float) -> int:
    return math.floor(seconds)


def _whole_or_none(seconds: float | None) -> int | None:
    return None if seconds is None else _whole(seconds)


# --- what is shown of an invocation ---------------------------------------------------------------------


def view(whole: Snapshot) -> View:
    """The invocation with values from which its status comes out."""
    attempts = _shown(whole)
    num_failed = sum(item.outcome == FAILED for item in attempts)
    is_failed = whole.status == wire.FAILED
    return View(
        whole=whole,
        attempts=attempts,
        max_retries=max(num_failed - 1, 0)
        if is_failed
        else max(whole.settings.max_retries, num_failed),
        timeout_s=(timeout_s := _timeout_s(whole)),
        updated=_updated(whole, attempts, _whole(whole.created_at) + timeout_s),
    )


def _shown(whole: Snapshot) -> tuple[Shown, ...]:
    """The attempts that count. Each is updated after the one before: the last one's output and error are what they show."""
    by_number = {item.attempt: item for item in whole.attempts}
    found: list[Shown] = []
    for item in by_number.values():
        if _was_not_made(whole, item):
            continue
        known = (item.created_at, item.started_at, item.ended_at)
        updated = _whole(max(at for at in known if at is not None))
        if found:
            updated = max(updated, found[-1].updated + 1)
        found.append(Shown(item, _outcome(whole, item), updated))
    return tuple(found)


def _was_not_made(whole: Snapshot, item: Attempt) -> bool:
    """Whether its worker was lost before it began, which costs no retry."""
    began = item.started_at is not None or item.attempt <= whole.num_failed_attempts
    return item.state == model.ENDED and item.outcome == "lost" and not began


def _outcome(whole: Snapshot, item: Attempt) -> str | None:
    if item.state != model.ENDED:
        return None
    if item.outcome == "succeeded":
        return SUCCEEDED
    # Killed after the grace: its end is the invocation's.
    was_cancelled = whole.status == wire.CANCELLED and item.ended_at == whole.finished_at
    return ABORTED if item.outcome in ("cancelled", "timed_out") or was_cancelled else FAILED


def _timeout_s(whole: Snapshot) -> int:
    """The timeout from creation on: with the time that it waited, and over if, and only if, it timed out."""
    created = _whole(whole.created_at)
    starts = [item.started_at for item in whole.attempts if item.started_at is not None]
    waited_s = math.ceil(max(starts)) - created if starts else 0
    timeout_s = waited_s + math.ceil(whole.settings.timeout_s)
    finished_s = 0 if whole.finished_at is None else _whole(whole.finished_at) - created
    if whole.status == wire.TIMED_OUT:
        return max(0, min(timeout_s, finished_s - 1))
    return max(timeout_s, finished_s)


def _updated(whole: Snapshot, attempts: tuple[Shown, ...], deadline: int) -> int:
    """The last update. After the end it does not move: that the worker is gone is none."""
    if whole.finished_at is not None:
        finished = _whole(whole.finished_at)
        return (
            max(finished, deadline + 1)
            if whole.status == wire.TIMED_OUT
            else min(finished, deadline)
        )
    known = [_whole(whole.created_at), *(item.updated for item in attempts)]
    if whole.cancel_requested_at is not None:
        known.append(_whole(whole.cancel_requested_at))
    return max(known)


def _signalled(shown: View, item: Shown) -> int | None:
    """When it was told to end."""
    whole = shown.whole
    if item.outcome == ABORTED:
        ended = _whole(item.attempt.ended_at or whole.created_at)
        if whole.status == wire.TIMED_OUT:
            return max(ended, shown.deadline + 1)
        asked = whole.cancel_requested_at
        return min(ended if asked is None else _whole(asked), shown.deadline)
    if item.outcome is None and item.attempt.state == model.STARTED:
        return _whole_or_none(whole.cancel_requested_at)
    return None


def _invocation_status(whole: Snapshot) -> str:
    return "TERMINATED" if whole.terminated else "RUNNING"


# --- objects --------------------------------------------------------------------------------------------


def project_info(row: Row, deleted_at: float | None) -> Plain:
    """ProjectInfo"""
    return {
        "project_name": row.name,
        "deletion_request_time": _whole_or_none(deleted_at),
        "creation_time": _whole(row.created_at),
    }


def versions_list(project: str, found: list[Row]) -> Plain:
    """VersionsList"""
    items = [
        {"version_id": row.version_id, "creation_time": _whole(row.created_at)} for row in found
    ]
    return {"project_name": project, "versions": items}


def version_info(version: Version) -> Plain:
    """VersionInfo"""
    functions = [
        {
            "function_name": item.name,
            "docker_image": f"multinode:{version.row.environment_digest}",
            "resource_spec": _resources(item.settings),
            "execution_spec": {
                "max_retries": item.settings.max_retries,
                "timeout_seconds": math.ceil(item.settings.timeout_s),
            },
            **READY,
        }
        for item in version.functions.values()
    ]
    return {
        "project_name": version.row.project,
        "version_id": version.row.version_id,
        "creation_time": _whole(version.row.created_at),
        "functions": functions,
    }


def invocation_info(whole: Snapshot) -> Plain:
    """InvocationInfo"""
    shown = view(whole)
    return {
        **_names(whole),
        **_limits(shown),
        **READY,
        "parent_invocation": _parent_info(whole.parent),
        "input": whole.input,
        "cancellation_request_time": _whole_or_none(whole.cancel_requested_at),
        "invocation_status": _invocation_status(whole),
        "creation_time": _whole(whole.created_at),
        "last_update_time": shown.updated,
        "executions": [_execution(shown, item) for item in shown.attempts],
    }


def invocations_list(
    version: Version, function: str, found: list[Snapshot], next_offset: int | None
) -> Plain:
    """InvocationsList"""
    return {
        "project_name": version.row.project,
        "version_id": version.row.version_id,
        "function_name": function,
        "invocations": [_item(whole) for whole in found],
        "next_offset": None if next_offset is None else str(next_offset),
    }


def execution_info(whole: Snapshot, attempt: Attempt) -> Plain:
    """ExecutionInfo"""
    shown = view(whole)
    known = [item for item in shown.attempts if item.attempt is attempt]
    item = known[0] if known else Shown(attempt, FAILED, _whole(attempt.created_at))
    return {
        **_names(whole),
        **_limits(shown),
        **READY,
        **_execution(shown, item),
        "input": whole.input,
        "cancellation_request_time": _whole_or_none(whole.cancel_requested_at),
        "invocation_creation_time": _whole(whole.created_at),
    }


def execution_logs(
    whole: Snapshot, execution_id: str, lines: list[str], next_offset: int | None
) -> Plain:
    """ExecutionLogs"""
    return {
        **_names(whole),
        "execution_id": execution_id,
        "log_lines": lines,
        "next_offset": None if next_offset is None else str(next_offset),
    }


def _names(whole: Snapshot) -> Plain:
    return {
        "project_name": whole.project,
        "version_id": whole.version_id,
        "function_name": whole.function,
        "invocation_id": whole.invocation_id,
    }


def _resources(settings: wire.FunctionSettings) -> Plain:
    return {
        "virtual_cpus": settings.cpu,
        "memory_gbs": settings.memory_mib / 1024,
        "max_concurrency": settings.max_concurrency,
    }


def _limits(shown: View) -> Plain:
    return {
        "resource_spec": _resources(shown.whole.settings),
        "execution_spec": {"max_retries": shown.max_retries, "timeout_seconds": shown.timeout_s},
    }


def _item(whole: Snapshot) -> Plain:
    parent = whole.parent
    reference = parent and {
        "function_name": parent.function,
        "invocation_id": parent.invocation_id,
    }
    return {
        "invocation_id": whole.invocation_id,
        "parent_invocation": reference,
        "cancellation_request_time": _whole_or_none(whole.cancel_requested_at),
        "invocation_status": _invocation_status(whole),
        "creation_time": _whole(whole.created_at),
        "last_update_time": view(whole).updated,
    }


def _parent_info(parent: Snapshot | None) -> Plain | None:
    if parent is None:
        return None
    shown = _item(parent)
    del shown["parent_invocation"]
    return {**shown, "function_name": parent.function}


def _execution(shown: View, item: Shown) -> Plain:
    attempt, is_last = item.attempt, item is shown.attempts[-1] if shown.attempts else False
    status = _worker_status(attempt)
    details = {
        "type": WORKER_TYPE,
        "identifier": attempt.worker_id,
        "logs_identifier": attempt.execution_id,
    }
    return {
        "execution_id": attempt.execution_id,
        "worker_status": status,
        "worker_details": details if status in ("RUNNING", "TERMINATED") else None,
        "termination_signal_time": _signalled(shown, item),
        "outcome": item.outcome,
        "output": shown.whole.result if is_last else None,
        "error_message": _error_message(attempt.error) if item.outcome == FAILED else None,
        "creation_time": _whole(attempt.created_at),
        "last_update_time": item.updated,
        "execution_start_time": _whole_or_none(attempt.started_at),
        "execution_finish_time": _whole_or_none(attempt.ended_at),
    }


def _worker_status(attempt: Attempt) -> str:
    if attempt.gone_at is not None:
        return "TERMINATED"
    if attempt.state != model.STARTING:
        return "RUNNING"
    return "PENDING" if attempt.worker_state == model.REQUESTED else "PROVISIONING"


def _error_message(error: wire.FunctionError | None) -> str:
    if error is None:
        return "The execution failed"
    return shorten(error.message)  # it begins with the class already
