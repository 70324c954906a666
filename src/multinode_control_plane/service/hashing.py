"""Secrets as they are stored: hashed, and compared in constant time."""

from __future__ import annotations

import hashlib
import hmac


def hash_secret(text: str) -> str:
    """The form in which keys, tokens and claim codes are stored."""
    return hashlib.sha256(text.encode()).hexdigest()


def is_same_secret(known: str, given: str) -> bool:
    """Whether they are equal, in a time that does not tell how much of ``given`` is right."""
    return hmac.compare_digest(known.encode(), given.encode())
