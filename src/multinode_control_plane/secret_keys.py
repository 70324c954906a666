"""Where the keys that encrypt `.env` values are kept: a ring of several, newest first, in a file, a variable or AWS.

As text it is one key a line (or between commas), base64 of 32 bytes. A file of 32 raw bytes is a ring of one.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
import re
import secrets
import uuid
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from multinode.errors import AwsFailed, InputError
from multinode_control_plane.aws import Service
from multinode_control_plane.runners import whole_files
from multinode_control_plane.settings import Settings

KEY_BYTES = 32
NEW_KEY = "openssl rand -base64 32"
"""Makes one."""


class Source(Protocol):
    """A place that has a ring. All raise InputError where the place cannot be used, or holds what is no ring."""

    name: str
    """As people call it."""
    is_writable: bool
    """Whether `write` can change it."""

    def read(self) -> tuple[bytes, ...]:
        """The keys, newest first; none where there is no ring yet, which `make` can change."""

    def make(self) -> tuple[bytes, ...]:
        """A first ring; or the one that another process has made meanwhile."""

    def write(self, keys: Sequence[bytes]) -> None:
        """Puts these in place of the ring that is there, whole or not at all."""


def source_of(settings: Settings, environ: Mapping[str, str]) -> Source:
    """The place that ``--secret-key-from`` names."""
    text = settings.secret_key_from or f"file:{settings.data_dir / 'secret.key'}"
    kind, _, place = text.partition(":")
    if kind == "env":
        return EnvironmentSource(place, environ)
    return AwsSource(place) if kind == "aws" else FileSource(Path(place))


def key_id(key: bytes) -> str:
    """Names a key, and tells nothing of it."""
    return hashlib.sha256(b"multinode key id" + key).hexdigest()[:16]


def new_key() -> bytes:
    """A key that nobody has."""
    return secrets.token_bytes(KEY_BYTES)


def as_text(keys: Sequence[bytes]) -> str:
    """The ring, one key a line."""
    return "".join(f"{base64.b64encode(key).decode()}\n" for key in keys)


def parsed(content: bytes, place: str) -> tuple[bytes, ...]:
    """The keys of a ring. Raises InputError for what is none, without repeating any of it."""
    if len(content) == KEY_BYTES:
        return (content,)
    try:
        words = re.split(r"[\s,]+", content.decode("ascii").strip())
        keys = [base64.b64decode(word.translate(_URL_SAFE), validate=True) for word in words]
    except (UnicodeDecodeError, binascii.Error):
        keys = []
    if not keys or any(len(key) != KEY_BYTES for key in keys):
        message = f"{place} holds no ring of keys."
        hint = f"It needs base64 of {KEY_BYTES} bytes a line, newest key first. One is made by: {NEW_KEY}"
        raise InputError(message, hint)
    return tuple(dict.fromkeys(keys))


_URL_SAFE = str.maketrans("-_", "+/")


class FileSource:
    """A file that only this user can read. Several processes may share it."""

    is_writable = True

    def __init__(self, path: Path, name: str = "") -> None:
        self._path = path
        self.name = name or f"The file {path}"

    def read(self) -> tuple[bytes, ...]:
        """See `Source`."""
        try:
            mode = self._path.stat().st_mode
            content = self._path.read_bytes()
        except FileNotFoundError:
            return ()
        except OSError as error:
            raise self._failed(error) from error
        if mode & 0o077:
            message = f"{self.name} with the keys of .env values can be used by others (mode {mode & 0o777:04o})."
            raise InputError(message, f"Run: chmod 600 {self._path}")
        return parsed(content, self.name)

    def make(self) -> tuple[bytes, ...]:
        """See `Source`. The file appears with all that is in it, and never in place of another's.

        Its folder has to be there: one that is not is a path that was mistyped, more likely than a place for keys.
        """
        if not self._path.parent.is_dir():
            message = (
                f"{self.name} with the keys of .env values cannot be made: its folder is not there."
            )
            hint = f"Correct --secret-key-from (MULTINODE_SECRET_KEY_FROM), or run: mkdir -p -m 700 {self._path.parent}"
            raise InputError(message, hint)
        draft = self._path.with_name(f".{self._path.name}.{secrets.token_hex(4)}")
        try:
            whole_files.write(draft, as_text([new_key()]).encode())
            try:
                os.link(draft, self._path)
            except FileExistsError:
                pass
            finally:
                draft.unlink()
        except OSError as error:
            raise self._failed(error) from error
        return self.read()

    def write(self, keys: Sequence[bytes]) -> None:
        """See `Source`."""
        try:
            whole_files.write(self._path, as_text(keys).encode())
        except OSError as error:
            raise self._failed(error) from error

    def _failed(self, error: OSError) -> InputError:
        message = f"{self.name} with the keys of .env values cannot be used: {error.strerror}."
        return InputError(message, "Correct --secret-key-from (MULTINODE_SECRET_KEY_FROM).")


class EnvironmentSource:
    """A variable of this process: whoever starts it changes the ring."""

    is_writable = False

    def __init__(self, variable: str, environ: Mapping[str, str]) -> None:
        self._variable, self._environ = variable, environ
        self.name = f"The variable {variable}"

    def read(self) -> tuple[bytes, ...]:
        """See `Source`."""
        text = self._environ.get(self._variable, "")
        if not text:
            message = f"{self.name}, which --secret-key-from names, is not set."
            raise InputError(message, f"Put a key into it. One is made by: {NEW_KEY}")
        return parsed(text.encode(), self.name)

    def make(self) -> tuple[bytes, ...]:
        """Never needed: `read` says what is to be done."""
        return self.read()

    def write(self, keys: Sequence[bytes]) -> None:
        """Not possible."""
        message = f"{self.name} can be changed only by whoever starts the server."
        raise InputError(message)


class AwsSource:
    """A secret of AWS Secrets Manager, which has to be there, with a ring or empty. Region and login come from AWS's usual places."""

    is_writable = True

    def __init__(self, secret_id: str) -> None:
        self._secret_id = secret_id
        self._service = Service("secretsmanager", attempts=2)
        self.name = f"The AWS secret {secret_id}"

    def read(self) -> tuple[bytes, ...]:
        """See `Source`."""
        try:
            found = self._call("get_secret_value")
        except AwsFailed as error:
            if _EMPTY in error.message:
                return ()
            raise self._told(error) from error
        binary = found.get("SecretBinary")
        content = found["SecretString"].encode() if binary is None else binary
        return parsed(content, self.name)

    def make(self) -> tuple[bytes, ...]:
        """See `Source`. Of several who fill the empty secret one does, since a token names one value alone."""
        token = str(uuid.uuid5(uuid.NAMESPACE_URL, f"multinode first ring {self._secret_id}"))
        ring = as_text([new_key()])
        try:
            self._call("put_secret_value", SecretString=ring, ClientRequestToken=token)
        except AwsFailed as error:
            if error.reason != "ResourceExistsException":
                raise self._told(error) from error
        return self.read()

    def write(self, keys: Sequence[bytes]) -> None:
        """See `Source`."""
        try:
            self._call("put_secret_value", SecretString=as_text(keys))
        except AwsFailed as error:
            raise self._told(error) from error

    def _call(self, method: str, **arguments: Any) -> dict[str, Any]:
        what = f"{self.name} cannot be used"
        return self._service.call(method, what, SecretId=self._secret_id, **arguments)

    def _told(self, error: AwsFailed) -> InputError:
        made_by = f'aws secretsmanager create-secret --name NAME --secret-string "$({NEW_KEY})"'
        is_missing = error.reason == "ResourceNotFoundException"
        hint = f"Correct --secret-key-from, or AWS_REGION. One is made by: {made_by}"
        return InputError(error.message, hint if is_missing else error.hint)


_EMPTY = "can't find the specified secret value"
"""What AWS says of a secret without a value."""
