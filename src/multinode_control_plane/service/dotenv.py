"""Secrets: the `.env` values of versions, encrypted, and the tokens of workers, derived."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import hmac
import json
import logging
from collections.abc import Iterable, Mapping, Sequence

from cryptography.fernet import Fernet, InvalidToken, MultiFernet

from multinode.errors import InternalError, MultinodeError
from multinode.worker.launch import INTERPRETER_PREFIXES
from multinode_control_plane.secret_keys import Source, key_id

log = logging.getLogger(__name__)


class Sealer:
    """Encrypts with one key of a ring, and opens with any that it has ever had.

    ``keys`` are of 32 bytes, newest first. ``mac_key`` is for `digest` and `token`, and stays when the others change: what they gave
    before a rotation is compared with what they give after it. Without it, it is made of the oldest key. ``source`` has
    the ring as it is now: where a value was encrypted with a key that is not known here, another process has changed it.
    """

    def __init__(
        self,
        keys: Sequence[bytes],
        mac_key: bytes | None = None,
        source: Source | None = None,
    ) -> None:
        self._known: dict[str, bytes] = {}
        self.source = source
        self.take(keys)
        self._mac_key = mac_key or mac_key_of(keys[-1])

    def take(self, keys: Sequence[bytes]) -> None:
        """Uses these too from now on. Those of before still open what was read while they were in the ring."""
        known = {key_id(key): key for key in keys} | self._known
        self._opener = MultiFernet([_fernet(key) for key in known.values()])
        self._known = known

    @property
    def key_ids(self) -> list[str]:
        """Of the keys that open values here; of those that were given first, the newest first."""
        return list(self._known)

    def seal(self, values: Mapping[str, str], with_key: str) -> bytes:
        """The values, encrypted with the key of this id. Raises InternalError where it is not in the ring."""
        return _fernet(self._key(with_key)).encrypt(json.dumps(dict(values)).encode())

    def reseal(self, sealed: bytes, with_key: str, sealed_with: str | None = None) -> bytes:
        """The same, encrypted with another key."""
        return _fernet(self._key(with_key)).encrypt(self._opened(sealed, sealed_with))

    def open(self, sealed: bytes, sealed_with: str | None = None) -> dict[str, str]:
        """What `seal` was given. Raises InternalError where no key of the ring opens it; ``sealed_with`` is the id to name then."""
        values: dict[str, str] = json.loads(self._opened(sealed, sealed_with))
        return values

    def has(self, wanted: str) -> bool:
        """Whether values of the key with this id can be opened; reads the ring anew before it says no. Blocks."""
        if wanted not in self._known:
            self.refresh()
        return wanted in self._known

    def _key(self, wanted: str) -> bytes:
        if not self.has(wanted):
            raise self._no_key(wanted)
        return self._known[wanted]

    def _opened(self, sealed: bytes, sealed_with: str | None) -> bytes:
        with contextlib.suppress(InvalidToken):
            return self._opener.decrypt(sealed)
        self.refresh()
        try:
            return self._opener.decrypt(sealed)
        except InvalidToken as error:
            raise self._no_key(sealed_with or "unknown") from error

    def _no_key(self, wanted: str) -> InternalError:
        return InternalError(*missing_key(self.source, wanted, self.key_ids))

    def refresh(self) -> None:
        """Reads the ring anew: others may have changed it. Blocks."""
        if self.source is None:
            return
        try:
            self.take(self.source.read())
        except MultinodeError as error:  # the caller tells that there is no key
            log.warning("the ring of keys cannot be read: %s", error)

    def interpreter_variables(
        self, sealed: bytes, names: Iterable[str], sealed_with: str | None = None
    ) -> tuple[tuple[str, str], ...]:
        """Those of the values that an interpreter reads when it starts."""
        if not any(name.startswith(INTERPRETER_PREFIXES) for name in names):
            return ()
        opened = self.open(sealed, sealed_with)
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


def mac_key_of(key: bytes) -> bytes:
    """The key of digests and tokens that goes with a ring which has had one key so far."""
    return hashlib.sha256(b"multinode mac" + key).digest()


def _fernet(key: bytes) -> Fernet:
    return Fernet(base64.urlsafe_b64encode(key))


def missing_key(source: Source | None, wanted: str, have: Sequence[str]) -> tuple[str, str]:
    """What is wrong where a ring lacks a key, and what is to be done."""
    place = "The ring of keys" if source is None else source.name
    message = (
        f"A value of .env is encrypted with the key {wanted}. {place}, which this control plane uses, "
        f"has {' and '.join(have)}."
    )
    hint = "Give all that share the database one ring: --secret-key-from (MULTINODE_SECRET_KEY_FROM). It is read anew by itself."
    return message, hint
