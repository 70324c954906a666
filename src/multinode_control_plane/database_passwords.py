"""The database's password where AWS Secrets Manager has it, which may change it at any time: RDS does so every week."""

from __future__ import annotations

import json
import logging
import threading

import sqlalchemy as sa

from multinode.errors import AwsFailed, InputError
from multinode_control_plane.aws import Service

log = logging.getLogger("multinode")

PARAMETER = "password_from"
"""Of the database's URL: ``postgresql://user@host/name?password_from=aws:SECRET_ID``."""


class AwsPassword:
    """Read anew for each connection, from any thread. Where AWS does not answer, the one of last time may still be right."""

    def __init__(self, secret_id: str) -> None:
        self._secret_id = secret_id
        self._service = Service("secretsmanager")
        self._lock = threading.Lock()
        self._last: str | None = None

    def read(self) -> str:
        """Raises AwsFailed where it has never been read."""
        what = f"The database's password cannot be read from the secret {self._secret_id}"
        with self._lock:
            try:
                answer = self._service.call("get_secret_value", what, SecretId=self._secret_id)
            except AwsFailed as error:
                if self._last is None:
                    raise
                log.warning("%s; the one of last time is tried", error.message)
                return self._last
            self._last = password_in(answer.get("SecretString", ""))
            return self._last


def password_in(text: str) -> str:
    """RDS keeps JSON with a ``password``; other text is the password itself. Pure."""
    try:
        found = json.loads(text)
    except ValueError:
        return text
    password = found.get("password") if isinstance(found, dict) else None
    return password if isinstance(password, str) else text


def taken_out(url: sa.URL) -> tuple[sa.URL, AwsPassword | None]:
    """The URL as the driver takes it, and where its password is. Raises InputError for another place than AWS."""
    place = url.query.get(PARAMETER)
    if place is None:
        return url, None
    kind, _, secret_id = str(place).partition(":")
    if kind != "aws" or not secret_id or url.password:
        message = f"{PARAMETER} in --database names no secret of AWS, or there is a password too."
        raise InputError(message, f"Write it like ?{PARAMETER}=aws:SECRET_ID, without a password.")
    return url.difference_update_query([PARAMETER]), AwsPassword(secret_id)
