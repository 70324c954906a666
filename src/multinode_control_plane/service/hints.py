"""What to do next, where a name is not known."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

LONGEST = 200
"""Characters of a name beyond which nobody has mistyped another one; comparing them would take long."""


def nearest_hint(name: str, names: Sequence[str], otherwise: str, *, likeness: float = 0.6) -> str:
    """ "Did you mean …?" where one of ``names`` is like ``name`` (1.0: the same), else ``otherwise``."""
    found = (
        difflib.get_close_matches(name, names, n=1, cutoff=likeness) if len(name) <= LONGEST else []
    )
    return f"Did you mean {found[0]!r}?" if found else otherwise
