"""Parameters of a request's query as data: what an endpoint declares, checks, documents, and reads."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from multinode.errors import InvalidRequest

TRUE, FALSE = ("1", "true"), ("0", "false")
MAX_WHOLE = 2**53 - 1
"""What every JSON reader keeps exactly."""
MAX_NUMBER = 1e15


@dataclass(frozen=True)
class Query:
    """One parameter. ``flag`` is ``1`` or ``true``, ``0`` or ``false``; numbers are 0 or more. An empty one is a missing one."""

    name: str
    about: str
    kind: Literal["text", "number", "whole", "flag"] = "text"
    one_of: tuple[str, ...] = ()

    def read(self, text: str) -> str | float | bool:
        """What a request says. Raises InvalidRequest where that is not of its kind."""
        if self.kind == "flag" and text in TRUE + FALSE:
            return text in TRUE
        if self.kind == "whole" and text.isascii() and text.isdecimal() and len(text) <= 16:
            number = int(text)
            if number <= MAX_WHOLE:
                return number
        if self.kind == "number" and (value := _float(text)) is not None:
            return value
        if self.kind == "text" and "\0" not in text and (not self.one_of or text in self.one_of):
            return text
        message = f"{self.name}={text!r:.50} is not {self._wanted()}."
        raise InvalidRequest(message)

    def _wanted(self) -> str:
        if self.one_of:
            return f"one of {', '.join(self.one_of)}"
        words = {
            "flag": "1 or 0",
            "whole": "a whole number of 0 or more",
            "number": "a number of 0 or more",
            "text": "text without NUL characters",
        }
        return words[self.kind]


def _float(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 <= value < MAX_NUMBER else None


def read_all(
    declared: Iterable[Query], given: Mapping[str, str]
) -> dict[str, str | float | bool | None]:
    """Each declared parameter, None where it is missing or empty; what else is given is ignored. Raises InvalidRequest."""
    return {q.name: q.read(given[q.name]) if given.get(q.name) else None for q in declared}
