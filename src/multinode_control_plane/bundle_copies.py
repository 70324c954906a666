"""Copies of bundles in the database that several processes share: made when a bundle comes, used where the file is missing.

The data folder is where bundles are used from; another leader may have another one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from functools import partial

from multinode.errors import BundleNotFound
from multinode_control_plane.runners.bundles import Bundles
from multinode_control_plane.service import bundles as cases
from multinode_control_plane.store import Store

log = logging.getLogger(__name__)


async def copy(store: Store, bundles: Bundles, digest: str) -> None:
    """Puts the bundle, which is in the data folder, into the database too. What is there already is left."""
    if await store.read(partial(cases.is_kept, digest=digest)):
        return
    number = 0
    with bundles.path(digest).open("rb") as file:
        while content := await asyncio.to_thread(file.read, cases.PART_BYTES):
            job = partial(cases.keep_part, digest=digest, part=number, content=content)
            await store.write(job)
            number += 1
    await store.write(partial(cases.keep, digest=digest, parts=number))


async def fetch_missing(store: Store, bundles: Bundles) -> None:
    """Brings those of versions that are not in the data folder."""
    for digest, parts in (await store.read(cases.kept_for_versions)).items():
        try:
            bundles.path(digest)
        except BundleNotFound:
            await bundles.put(digest, _content(store, digest, parts))
            log.info("the bundle %.12s was fetched from the database", digest)


async def _content(store: Store, digest: str, parts: int) -> AsyncIterator[bytes]:
    for number in range(parts):
        yield await store.read(partial(cases.part_of, digest=digest, part=number))
