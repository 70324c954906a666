"""What programs of the control plane's own (backup, migrations, moving) say to the command that started them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

from multinode.errors import MultinodeError


def tell(act: Callable[[], Mapping[str, Any]]) -> int:
    """Prints a line of JSON: ``{"result": …}`` with what ``act`` returns, or ``{"error": …}``. Returns the process's exit code."""
    try:
        said: dict[str, Any] = {"result": dict(act())}
    except MultinodeError as error:
        told = {"code": error.code, "message": error.message, "hint": error.hint}
        said = {"error": told}
    print(json.dumps(said))  # noqa: T201 - for the command that started this
    return int("error" in said)
