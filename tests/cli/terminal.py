"""Streams that say they are a terminal, and keep what was written."""

import io
import sys


class Terminal(io.StringIO):
    """``typed`` is what somebody types."""

    def __init__(self, typed="", *, encoding="utf-8"):
        super().__init__(typed)
        self._encoding = encoding

    @property
    def encoding(self):
        return self._encoding

    def isatty(self):
        return True

    def write(self, text):
        text.encode(self._encoding)  # as a real one would refuse it
        return super().write(text)


def at_terminal(monkeypatch):
    """stdin, stdout and stderr are terminals from now on. Not for a fixture: pytest's own streams come after it."""
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    for name in ("stdin", "stdout", "stderr"):
        monkeypatch.setattr(sys, name, Terminal())
    return sys
