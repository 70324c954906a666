"""What versions use: the environments and bundles that have to stay."""

from __future__ import annotations

import sqlalchemy as sa

from multinode_control_plane.model import environments, versions
from multinode_control_plane.store import Transaction


def in_use(connection: sa.Connection) -> set[str]:
    """Digests of all environments and bundles that a version has."""
    found = connection.execute(
        sa.select(versions.c.environment_digest, versions.c.bundle_digest).distinct()
    ).all()
    return {digest for row in found for digest in row}


def forget(tx: Transaction, digests: set[str]) -> set[str]:
    """Forgets environments, before they are removed; those of ``digests`` (and bundles) that no version has by now."""
    unused = digests - in_use(tx.connection)
    tx.connection.execute(sa.delete(environments).where(environments.c.digest.in_(unused)))
    return unused
