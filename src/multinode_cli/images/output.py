"""What is told while an image is made: steps, lines, and what is true for a moment only. Secrets stay out of it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Protocol

from multinode.credentials import redact

STEP = "== "
"""What begins a line of the build's output that says which step begins (``templates/image``)."""

_CONTROL = re.compile(r"\x1b\[[0-9;]*[A-Za-z]|[^\n]*\r(?=[^\n])|\r")
"""Colours, with which the engine marks stderr, and what a line was before it was written over."""


class Progress(Protocol):
    """Who follows."""

    def step(self, title: str) -> None:
        """A step begins, ``Installing system packages``."""

    def line(self, text: str) -> None:
        """A line of output."""

    def moment(self, text: str) -> None:
        """How far a step has come; the next one replaces it."""


class Output:
    """Passes a build's output on, and keeps it, without the ``hidden`` words."""

    def __init__(self, progress: Progress, hidden: Iterable[str]) -> None:
        self._progress = progress
        self._hidden = list(hidden)
        self._rest = ""
        self.lines: list[str] = []

    def take(self, text: str) -> None:
        """Takes a piece of output, which may end within a line."""
        *whole, self._rest = (self._rest + text).split("\n")
        for line in whole:
            self.take_line(line)

    def take_line(self, line: str) -> None:
        """Takes one line."""
        line = self.cleaned(_CONTROL.sub("", line).rstrip())
        if line.startswith(STEP):
            self._progress.step(line.removeprefix(STEP))
        elif line:
            self._progress.line(line)
        self.lines.append(line)

    def cleaned(self, text: str) -> str:
        """``text`` without what is hidden."""
        for word in self._hidden:
            text = text.replace(word, "***")
        return redact(text)
