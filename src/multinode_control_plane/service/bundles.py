"""Whose a bundle is: of the projects that have a version with it, and of those with whose key it was sent. And its content, where
several processes share the database: whoever leads next may be on another machine."""

from __future__ import annotations

import sqlalchemy as sa

from multinode.errors import BundleNotFound
from multinode_control_plane.model import bundle_parts, bundle_projects, versions
from multinode_control_plane.model import bundles as whole
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
    known |= set(tx.connection.execute(sa.select(whole.c.digest)).scalars())
    gone = sorted(known & digests)
    for table in (bundle_projects, whole, bundle_parts):
        tx.connection.execute(sa.delete(table).where(table.c.digest.in_(gone)))


# --- content --------------------------------------------------------------------------------------------

PART_BYTES = 4 * 1024 * 1024


def is_kept(connection: sa.Connection, digest: str) -> bool:
    """Whether all of its content is in the database."""
    return connection.execute(sa.select(whole).where(whole.c.digest == digest)).first() is not None


def keep_part(tx: Transaction, digest: str, part: int, content: bytes) -> None:
    """Stores a part of its content, counted from 0, in place of what an attempt before has left."""
    own = (bundle_parts.c.digest == digest, bundle_parts.c.part == part)
    tx.connection.execute(sa.delete(bundle_parts).where(*own))
    tx.connection.execute(sa.insert(bundle_parts).values(digest=digest, part=part, content=content))


def keep(tx: Transaction, digest: str, parts: int) -> None:
    """All parts are there. Twice changes nothing."""
    if not is_kept(tx.connection, digest):
        row = {"digest": digest, "parts": parts, "created_at": tx.now}
        tx.connection.execute(sa.insert(whole).values(row))


def kept_for_versions(connection: sa.Connection) -> dict[str, int]:
    """The number of parts of each bundle that a version has and whose content is here."""
    used = sa.select(versions.c.bundle_digest)
    found = connection.execute(
        sa.select(whole.c.digest, whole.c.parts).where(whole.c.digest.in_(used))
    )
    return {row.digest: row.parts for row in found}


def part_of(connection: sa.Connection, digest: str, part: int) -> bytes:
    """What `keep_part` was given. Raises NoResultFound where it was removed meanwhile."""
    own = (bundle_parts.c.digest == digest, bundle_parts.c.part == part)
    content: bytes = connection.execute(sa.select(bundle_parts.c.content).where(*own)).scalar_one()
    return content
