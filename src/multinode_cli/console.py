"""The terminal: the only module that prints, asks or colours, and the only one that knows Rich.

stdout is data, stderr is talk. Rich draws the one line that changes, on terminals; everything else is plain
text, so that a command that prints a table does not wait for Rich's import.
"""

from __future__ import annotations

import json
import sys
import traceback
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal, TextIO

from multinode.errors import InputError, MultinodeError
from multinode_cli.errors import envelope, needs_flag
from multinode_cli.settings import Settings

if TYPE_CHECKING:
    from rich.status import Status as RichStatus

Style = Literal["bold", "dim", "red", "green", "yellow", "cyan"]
_ANSI: dict[Style, str] = {
    "bold": "1",
    "dim": "2",
    "red": "31",
    "green": "32",
    "yellow": "33",
    "cyan": "36",
}
_GAP = "  "
_LEAST_LAST_COLUMN = 20
"""With less room than that for the last column, a table's columns stand below each other."""
STATUS_STYLE: dict[str, Style] = {
    "SUCCEEDED": "green",
    "FAILED": "red",
    "TIMED_OUT": "red",
    "CANCELLED": "yellow",
    "CANCELLING": "yellow",
}


class Console:
    """Prints for one command. With ``as_json`` stdout holds one object and nothing else."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._line: RichStatus | None = None

    @property
    def as_json(self) -> bool:
        """Whether ``--json`` was given."""
        return self._settings.as_json

    # --- stdout ---

    def out(self, text: str) -> None:
        """One piece of data, as a line."""
        _write(sys.stdout, text + "\n")

    def raw(self, text: str) -> None:
        """Output of a function, as it is: it ends lines itself."""
        _write(sys.stdout, text)

    def json_line(self, data: Any) -> None:
        """``data`` as one line of JSON, for what follows or streams."""
        _write(sys.stdout, json.dumps(data) + "\n")

    def data(self, data: Any, error: MultinodeError | None = None) -> None:
        """The envelope of ``--json``; ``error`` where the function, not the command, has failed."""
        if error is None:
            self.json_line({"ok": True, "data": data})
        else:
            self.json_line({"ok": False, "error": envelope(error), "data": data})

    def table(self, headers: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
        """Columns under their headers, or on a narrow terminal below each other; a status has its colour."""
        head, *bodies = _table(headers, rows, self._settings.columns)
        if head:
            self.out(self.styled(head, "bold"))
        for row, line in zip(rows, bodies, strict=True):
            for cell in row:
                if cell in STATUS_STYLE:
                    line = line.replace(cell, self.styled(cell, STATUS_STYLE[cell]), 1)
            self.out(line)

    def styled(self, text: str, style: Style) -> str:
        """``text`` in a style where stdout has colour."""
        return _ansi(text, style) if self._settings.has_colour else text

    # --- stderr ---

    def note(self, text: str, style: Style | None = None) -> None:
        """A line about what happens, above the changing line if there is one."""
        if self._line is not None:
            from rich.text import Text  # lazy: start-up time

            self._line.console.print(Text(text, style=style or ""), soft_wrap=True, highlight=False)
            return
        if style is not None and self._settings.has_motion:
            text = _ansi(text, style)
        _write(sys.stderr, text + "\n")

    def warn(self, text: str) -> None:
        """Something that went otherwise than asked for, but well."""
        self.note(f"warning: {text}", "yellow")

    def error(self, error: MultinodeError) -> None:
        """What happened, and what to do; with ``--json`` on stdout as the envelope."""
        if self.as_json:
            self.json_line({"ok": False, "error": envelope(error)})
        else:
            self.note(f"error: {error.message}", "red")
            if error.hint:
                self.note(error.hint)
        if self._settings.debug:
            _write(sys.stderr, "".join(traceback.format_exception(error)))

    @contextmanager
    def changing_line(self, text: str) -> Iterator[ChangingLine]:
        """One line at the foot of a terminal that says what is going on; nothing where there is no terminal."""
        if not self._settings.has_motion or self._line is not None:
            yield ChangingLine(None)
            return
        from rich.console import Console as RichConsole  # lazy: start-up time

        with RichConsole(stderr=True, highlight=False).status(text) as line:
            self._line = line
            try:
                yield ChangingLine(line)
            finally:
                self._line = None

    # --- questions ---

    def confirm(self, question: str, *, what: str, flag: str) -> bool:
        """The answer at a terminal; without one, an error that ``what`` needs the ``flag``."""
        if not self._settings.can_ask:
            raise needs_flag(what, flag)
        return _answer(f"{question} [y/N] ").lower() in ("y", "yes")

    def ask(self, question: str, *, flag: str) -> str:
        """A line from the terminal; without one, an error that names what to pass."""
        if not self._settings.can_ask:
            message = f"{question} is missing, and there is no terminal to ask at."
            raise InputError(message, f"Pass {flag}.")
        return _answer(f"{question}: ")

    def ask_secret(self, question: str) -> str:
        """A line that is not shown; from stdin where that is no terminal."""
        if not self._settings.can_ask:
            return self.read_secret()
        from getpass import getpass  # lazy: start-up time

        return getpass(f"{question}: ", stream=sys.stderr).strip()

    def read_secret(self) -> str:
        """A line of stdin, asked for by nobody."""
        return sys.stdin.readline().strip()


_SPINNER_WIDTH = 2


class ChangingLine:
    """The handle of ``Console.changing_line``."""

    def __init__(self, line: RichStatus | None) -> None:
        self._line = line

    @property
    def is_visible(self) -> bool:
        """Whether somebody sees it."""
        return self._line is not None

    def say(self, text: str) -> None:
        """Replace the line's text; what the terminal has no room for in one line is left out."""
        if self._line is not None:
            from rich.cells import set_cell_size  # lazy: start-up time
            from rich.markup import escape

            room = self._line.console.width - _SPINNER_WIDTH
            is_whole = _width(text) <= room
            self._line.update(escape(text if is_whole else set_cell_size(text, room - 1) + "…"))


def _answer(question: str) -> str:
    _write(sys.stderr, question)
    try:
        return sys.stdin.readline().strip()
    except KeyboardInterrupt:
        _write(sys.stderr, "\n")  # or what is said next stands behind the question
        raise


def _write(stream: TextIO, text: str) -> None:
    try:
        stream.write(text)
    except UnicodeEncodeError:
        encoding = stream.encoding or "ascii"
        stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
    stream.flush()


def _ansi(text: str, style: Style) -> str:
    return f"\x1b[{_ANSI[style]}m{text}\x1b[0m"


def _width(text: str) -> int:
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def _table(headers: Sequence[str], rows: Sequence[Sequence[str]], columns: int | None) -> list[str]:
    """The header and each row as texts, nothing cut off. ``columns``: the terminal's, None where there is none."""
    lines = [headers, *rows]
    if columns is not None and _widths(lines)[1] > columns:
        filled = [i for i in range(len(headers)) if not rows or any(row[i] for row in rows)]
        lines = [[line[i] for i in filled] for line in lines]
    widths, total = _widths(lines)
    if columns is None or total <= columns:
        return [_row(line, widths) for line in lines]
    room = columns - (total - widths[-1])
    if room >= _LEAST_LAST_COLUMN:
        return [_wrapped(line, widths, room) for line in lines]
    return ["", *(_block(lines[0], line) for line in lines[1:])]


def _widths(lines: Sequence[Sequence[str]]) -> tuple[list[int], int]:
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    return widths, sum(widths) + len(_GAP) * (len(widths) - 1)


def _row(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (
        cell + " " * (width - _width(cell)) for cell, width in zip(cells, widths, strict=True)
    )
    return _GAP.join(padded).rstrip()


def _wrapped(cells: Sequence[str], widths: Sequence[int], room: int) -> str:
    """The row with its last cell on several lines."""
    from textwrap import wrap  # lazy: for narrow terminals only

    first, *others = wrap(cells[-1], room, break_long_words=False, break_on_hyphens=False) or [""]
    indent = " " * (sum(widths[:-1]) + len(_GAP) * (len(widths) - 1))
    return "\n".join([_row([*cells[:-1], first], widths), *(indent + other for other in others)])


def _block(headers: Sequence[str], cells: Sequence[str]) -> str:
    """The row as lines below its first cell."""
    width = max(map(_width, headers[1:]), default=0)
    named = zip(headers[1:], cells[1:], strict=True)
    return "\n".join(
        [cells[0], *(f"  {_row([name, cell], [width, 0])}" for name, cell in named if cell)]
    )
