"""What to do next, where a name is not known."""

from __future__ import annotations

import difflib


def nearest_hint(name: str, names: list[str], otherwise: str) -> str:
    """ "Did you mean …?" where one of ``names`` is like ``name``, else ``otherwise``."""
    found = difflib.get_close_matches(name, names, n=1)
    return f"Did you mean {found[0]!r}?" if found else otherwise
