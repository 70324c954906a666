"""What a process that begins to lead has to know of the workers that there are, to take them over."""

from __future__ import annotations

import sqlalchemy as sa

from multinode_control_plane import model
from multinode_control_plane.model import executions, workers
from multinode_control_plane.service.executions import WorkerIdentity, identity_of


def alive(connection: sa.Connection) -> list[WorkerIdentity]:
    """All workers that are not gone, as the store knows them."""
    found = connection.execute(sa.select(workers).where(workers.c.gone_at.is_(None)))
    return [identity_of(row) for row in found]


_OWN = executions.alias()
_RUNS = sa.exists().where(_OWN.c.worker_id == workers.c.worker_id, _OWN.c.state == model.STARTED)


def handed(connection: sa.Connection) -> list[tuple[str, str]]:
    """Workers that live, and executions in them for which they were not made."""
    query = (
        sa.select(workers.c.worker_id, executions.c.execution_id)
        .join(executions, executions.c.worker_id == workers.c.worker_id)
        .where(
            workers.c.gone_at.is_(None),
            executions.c.left_at.is_(None),
            executions.c.execution_id != workers.c.execution_id,
        )
        .order_by(executions.c.number)
    )
    return [(row.worker_id, row.execution_id) for row in connection.execute(query)]


def at_work(connection: sa.Connection) -> set[str]:
    """Workers that run something, or wait for more: those that are to be heard. The deadlines of the others are stored."""
    query = sa.select(workers.c.worker_id).where(
        workers.c.gone_at.is_(None), sa.or_(_RUNS, workers.c.idle_at.is_not(None))
    )
    return set(connection.execute(query).scalars())


def to_be_stopped(connection: sa.Connection) -> set[str]:
    """Workers that are not gone although they were to be stopped: a crash may have come between the commit and the act.

    Their invocation ended while they were on their way, or their deadline was over: it is taken away where that is noticed.
    """
    were_overdue = workers.c.deadline_at.is_(None)
    are_not_needed = sa.and_(executions.c.state == model.ENDED, executions.c.started_at.is_(None))
    made_for = executions.c.execution_id == workers.c.execution_id
    found = connection.execute(
        sa.select(workers.c.worker_id)
        .outerjoin(executions, made_for)
        .where(
            workers.c.gone_at.is_(None),
            workers.c.idle_at.is_(None),
            sa.not_(_RUNS),
            sa.or_(were_overdue, are_not_needed),
        )
    )
    return set(found.scalars())
