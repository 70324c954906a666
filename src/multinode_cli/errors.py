"""How errors look from the command line: what is wrong in several places at once, near names, exit codes.

The errors themselves are those of ``multinode.errors``.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any

from multinode.errors import EXIT_CODE, InputError, InvalidTasks, MultinodeError

INTERRUPTED = 130
"""The exit code after Ctrl-C, as shells have it."""


class Interrupted(Exception):
    """Ctrl-C, with what is still going on elsewhere, for the last line on stderr."""


def exit_code(error: MultinodeError) -> int:
    """The code that the process ends with for ``error``."""
    return EXIT_CODE.get(error.code, 1)


def envelope(error: MultinodeError) -> dict[str, Any]:
    """``error`` as the ``error`` of the JSON that ``--json`` prints."""
    return {"code": error.code, "message": error.message, "hint": error.hint}


def nearest(name: str, names: Iterable[str]) -> str:
    """``Did you mean 'x'?``, or an empty string where nothing is near."""
    found = difflib.get_close_matches(name, list(names), n=1, cutoff=0.6)
    return f"Did you mean {found[0]!r}?" if found else ""


def raise_for_problems(problems: list[str], hint: str) -> None:
    """Raise one InvalidTasks that tells all ``problems`` (``path:line: what is wrong``), if there are any."""
    if problems:
        raise InvalidTasks("\n".join(dict.fromkeys(problems)), hint)


def needs_flag(what: str, flag: str) -> InputError:
    """The error for a question that cannot be asked, because there is no terminal."""
    return InputError(f"{what} has to be confirmed, and this is no terminal.", f"Pass {flag}.")
