"""Credentials in URLs. One rule for both sides: settings of package indexes are part of an environment's digest without them."""

from __future__ import annotations

import re

_CREDENTIALS = re.compile(r"(?<=://)[^/\s@]+@")


def redact(text: str) -> str:
    """``text`` with ``user:password@`` taken out of every URL in it."""
    return _CREDENTIALS.sub("***@", text)
