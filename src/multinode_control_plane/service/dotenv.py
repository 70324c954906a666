"""Secrets: the `.env` values of versions, encrypted, and the tokens of workers, derived."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path

from cryptography.fernet import Fernet

INTERPRETER_PREFIXES = ("PYTHON", "LD_", "DYLD_", "MALLOC_")
"""Variables that an interpreter or the loader reads when it starts; later is too late."""


class Sealer:
    """Encrypts with one key of 32 bytes, which lies in a file that only this user can read."""

    def __init__(self, key: bytes) -> None:
        self._fernet = Fernet(base64.urlsafe_b64encode(key))
        self._mac_key = hashlib.sha256(b"multinode mac" + key).digest()

    def seal(self, values: Mapping[str, str]) -> bytes:
        """The values, encrypted."""
        return self._fernet.encrypt(json.dumps(dict(values)).encode())

    def open(self, sealed: bytes) -> dict[str, str]:
        """What `seal` was given."""
        values: dict[str, str] = json.loads(self._fernet.decrypt(sealed))
        return values

    def interpreter_variables(
        self, sealed: bytes, names: Iterable[str]
    ) -> tuple[tuple[str, str], ...]:
        """Those of the values that an interpreter reads when it starts."""
        if not any(name.startswith(INTERPRETER_PREFIXES) for name in names):
            return ()
        opened = self.open(sealed)
        return tuple(
            (name, value) for name, value in opened.items() if name.startswith(INTERPRETER_PREFIXES)
        )

    def digest(self, values: Mapping[str, str]) -> str:
        """A keyed hash of the values: tells whether two are the same, and nothing to one without the key."""
        text = json.dumps(dict(sorted(values.items())))
        return hmac.new(self._mac_key, text.encode(), "sha256").hexdigest()

    def token(self, worker_id: str, nonce: str) -> str:
        """The worker's token, the same for the same nonce, so that nothing of it need be stored."""
        text = f"token {worker_id} {nonce}"
        return "mnw_" + hmac.new(self._mac_key, text.encode(), "sha256").hexdigest()


def load_sealer(path: Path) -> Sealer:
    """The sealer with the key in ``path``, which is made (mode 0600) where it is missing."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return Sealer(path.read_bytes())
    with os.fdopen(descriptor, "wb") as file:
        file.write(secrets.token_bytes(32))
        file.flush()
        os.fsync(file.fileno())
    return Sealer(path.read_bytes())
