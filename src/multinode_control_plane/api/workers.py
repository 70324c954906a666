"""Routes of workers: exchange, claim, report, watch, described. Each word of a worker renews its lease."""

from __future__ import annotations

from multinode import wire
from multinode_control_plane.api.calls import MAX_WAIT_S, Call, until
from multinode_control_plane.service import executions as cases
from multinode_control_plane.service import pools
from multinode_control_plane.service.executions import WorkerIdentity
from multinode_control_plane.service.hashing import hash_secret


async def exchange(call: Call) -> wire.Assignment:
    """A worker's token and assignment, for its single-use claim code."""
    plane, request = call.plane, call.body
    describing = plane.scheduler.exchange_describe(request)
    if describing is not None:
        assignment = describing
        who = WorkerIdentity(request.worker_id, assignment.project, "", "")
    else:
        assignment, who = await plane.store.write(
            lambda tx: cases.exchange(tx, plane.context, request),
            durable=False,  # after a power cut the worker is gone, or exchanges again
        )
        plane.scheduler.claimed(request.worker_id)
    plane.scheduler.remember(hash_secret(assignment.token), who)
    return assignment


async def claim(call: Call) -> wire.Order:
    """Starts the execution: `main.py` is imported."""
    who, request = _heard(call), call.body
    return await call.plane.store.write(lambda tx: cases.claim(tx, who, request))


async def report(call: Call) -> wire.Order:
    """Takes yielded values, and how the execution ended."""
    who, request, plane = _heard(call), call.body, call.plane
    answer = await plane.store.write(lambda tx: cases.report(tx, plane.context, who, request))
    if request.end is not None:
        plane.scheduler.ended(who.worker_id)
    return answer


async def watch(call: Call) -> wire.Order:
    """Waits for an order."""
    who, request, plane = _heard(call), call.body, call.plane

    async def look() -> tuple[bool, wire.Order]:
        found = await plane.store.read(lambda connection: cases.watch(connection, who, request))
        return found.order is not None or not plane.leads, found

    plane.scheduler.opened(who.worker_id)
    try:
        wait_s = min(request.wait_s, MAX_WAIT_S)
        return await until(plane, [f"worker:{who.worker_id}"], wait_s, look)
    finally:
        plane.scheduler.closed(who.worker_id)


async def ask_next(call: Call) -> wire.Next:
    """Ends what the worker has done, and waits for what it is to do next."""
    who, request, plane = _heard(call), call.body, call.plane
    scheduler = plane.scheduler
    scheduler.opened(who.worker_id)
    try:
        found: wire.Next = await plane.store.write(
            lambda tx: pools.ask(tx, plane.context, who, request, draining=scheduler.draining)
        )
        tasks = scheduler.take(who.worker_id, request.number)
        if found.leave or found.tasks or tasks or request.wait_s <= 0:
            return wire.Next(tasks) if tasks else found

        async def look() -> tuple[bool, wire.Next]:
            if told := scheduler.take(who.worker_id, request.number):
                return True, wire.Next(told)
            found = await plane.store.read(
                lambda connection: pools.look(connection, plane.context, who, request.number)
            )
            scheduler.take(who.worker_id, request.number)  # it is told of it as well
            return bool(found.tasks or found.leave) or not plane.leads, found

        wait_s = min(request.wait_s, MAX_WAIT_S)
        return await until(plane, [f"worker:{who.worker_id}"], wait_s, look)
    finally:
        scheduler.closed(who.worker_id)


async def described(call: Call) -> wire.Empty:
    """Takes the functions that `main.py` defines, or why it could not be imported."""
    who = call.caller.worker
    assert who is not None
    call.plane.scheduler.described(who.worker_id, call.body)
    return wire.Empty()


def _heard(call: Call) -> WorkerIdentity:
    who = call.caller.worker
    assert who is not None
    call.plane.scheduler.heard(who.worker_id)
    return who
