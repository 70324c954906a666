"""Whose a bundle is: of the projects that have a version with it, and of those with whose key it was sent."""

from __future__ import annotations

import sqlalchemy as sa

from multinode.errors import BundleNotFound
from multinode_control_plane.model import bundle_projects, versions
from multinode_control_plane.store import Transaction


def sent(tx: Transaction, digest: str, project: str) -> None:
    """Notes that somebody who may use ``project`` alone has sent the bundle, and so knows what is in it."""
    own = (bundle_projects.c.digest == digest, bundle_projects.c.project == project)
    if tx.connection.execute(sa.select(bundle_projects).where(*own)).first() is None:
        tx.connection.execute(sa.insert(bundle_projects).values(digest=digest, project=project))


def check_own(connection: sa.Connection, digest: str, project: str) -> None:
    """Raises BundleNotFound for one that is not the project's, as for one that there is not."""
    for table in (versions.c.bundle_digest, bundle_projects.c.digest):
        own = (table == digest, table.table.c.project == project)
        if connection.execute(sa.select(table).where(*own).limit(1)).first() is not None:
            return
    message = f"The bundle {digest:.100} is not here."
    raise BundleNotFound(message, "Deploy again: it will be sent.")


def forget(tx: Transaction, digests: set[str]) -> None:
    """Forgets who has sent bundles that are removed."""
    known = set(tx.connection.execute(sa.select(bundle_projects.c.digest)).scalars())
    gone = sorted(known & digests)
    tx.connection.execute(sa.delete(bundle_projects).where(bundle_projects.c.digest.in_(gone)))
