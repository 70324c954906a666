"""What is in use and has to stay: environments and bundles of versions, output of executions that are under way."""

from __future__ import annotations

import sqlalchemy as sa

from multinode_control_plane.model import environments, executions, versions, workers
from multinode_control_plane.service import bundles
from multinode_control_plane.store import Transaction


def in_use(connection: sa.Connection) -> set[str]:
    """Digests of all environments and bundles that a version has, ids of workers that live, and of executions that have one."""
    found = connection.execute(
        sa.select(versions.c.environment_digest, versions.c.bundle_digest).distinct()
    ).all()
    with_worker = (
        sa.select(workers.c.worker_id, workers.c.execution_id, executions.c.execution_id)
        .outerjoin(
            executions,
            sa.and_(executions.c.worker_id == workers.c.worker_id, executions.c.left_at.is_(None)),
        )
        .where(workers.c.gone_at.is_(None))
    )
    living = connection.execute(with_worker).all()
    return {name for row in (*found, *living) for name in row if name}


def forget(tx: Transaction, names: set[str]) -> set[str]:
    """Forgets environments and who sent bundles, before they are removed; those of ``names`` that nothing uses by now."""
    unused = names - in_use(tx.connection)
    known = tx.connection.execute(sa.select(environments.c.digest)).scalars()
    # Not by all names: those of outputs may be more than a statement can have.
    gone = unused.intersection(known)
    tx.connection.execute(sa.delete(environments).where(environments.c.digest.in_(gone)))
    bundles.forget(tx, unused)
    return unused
