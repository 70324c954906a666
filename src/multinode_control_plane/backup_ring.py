"""Whether the ring at hand opens what the store of a backup has encrypted, whichever release has made it."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator, Mapping
from pathlib import Path

from multinode.errors import InputError, InternalError
from multinode_control_plane.secret_keys import FileSource, Source, source_of
from multinode_control_plane.service.dotenv import Sealer
from multinode_control_plane.settings import Settings

RING = "secret.key"
"""The ring in a data folder, and in a backup."""


def ring_elsewhere(snapshot: Path, settings: Settings, environ: Mapping[str, str]) -> str:
    """Where the keys are that this store needs and a backup with the data folder's ring lacks, in words; empty: it lacks none."""
    with contextlib.suppress(InputError):
        check_opens(snapshot, FileSource(settings.data_dir / RING))
        return ""
    if settings.secret_key_from is None:
        return "The place that --secret-key-from names"
    return source_of(settings, environ).name


def ring_at_hand(unpacked: Path, settings: Settings, environ: Mapping[str, str]) -> Source:
    """The ring with which a server of these settings would start on what was unpacked."""
    if settings.secret_key_from is not None:
        return source_of(settings, environ)
    if (unpacked / RING).exists():
        return FileSource(unpacked / RING, f"The backup's {RING}")
    return FileSource(settings.data_dir / RING)


def check_opens(store: Path, source: Source) -> None:
    """Tries each value of the store's file. Raises InputError where the ring is missing, is none, or does not open one of them."""
    with contextlib.closing(sqlite3.connect(store)) as database:
        sealed = list(_sealed(database))
    if not sealed:
        return
    keys = source.read()
    if not keys:
        message = f"The .env values are encrypted with the key {sealed[0][1]}. {source.name} is not there."
        raise InputError(message, _HINT)
    sealer = Sealer(keys, source=source)
    try:
        for value, key in sealed:
            sealer.open(value, key)
    except InternalError as error:
        raise InputError(error.message, _HINT) from error


_HINT = "Give it the ring that encrypted them: --secret-key-from (MULTINODE_SECRET_KEY_FROM)."


def _sealed(database: sqlite3.Connection) -> Iterator[tuple[bytes, str]]:
    """Each encrypted value with the id of its key. Releases before rotation had neither ids nor the table."""
    columns = {name for _, name, *_ in database.execute("PRAGMA table_info(versions)")}
    is_named = "sealed_with" in columns
    if is_named:
        yield from database.execute("SELECT mac_key, key_id FROM sealing")
    key = "coalesce(sealed_with, 'unknown')" if is_named else "'unknown'"
    yield from database.execute(f"SELECT dotenv, {key} FROM versions")
