"""The server's own log: a line for each record, for people or for a collector of logs, with the ids of what it is about.

The output of functions is not in it. Nor are keys, tokens and claim codes: nothing logs them, and what looks like one is taken out of
what others' messages and tracebacks bring along.
"""

from __future__ import annotations

import json
import logging
import re
import time

from multinode_control_plane.telemetry.request import IDS, current

_PLAIN = "%(asctime)s %(levelname)s %(name)s: %(message)s"
_SECRETS = re.compile(r"(mn[kw]_)[\w-]{4,}|(?i:(bearer\s+))[\w.~+/=-]{4,}")


def without_secrets(text: str) -> str:
    """``text`` without what looks like a key or a token."""
    return _SECRETS.sub(lambda found: f"{found[1] or found[2]}…", text)


def ids_of(record: logging.LogRecord) -> dict[str, str]:
    """What the record is about: what its ``extra`` says, then the request that is being answered."""
    asked = current.get()
    known = {} if asked is None else asked.ids()
    given = {name: getattr(record, name) for name in IDS if getattr(record, name, None)}
    return {name: value for name in IDS if (value := given.get(name) or known.get(name))}


class TextLines(logging.Formatter):
    """For people: ids at the end of the first line."""

    def __init__(self) -> None:
        super().__init__(_PLAIN)

    def formatMessage(self, record: logging.LogRecord) -> str:
        """The line, before a traceback."""
        ids = " ".join(f"{name}={value}" for name, value in ids_of(record).items())
        return super().formatMessage(record) + (f" [{ids}]" if ids else "")

    def format(self, record: logging.LogRecord) -> str:
        """The record."""
        return without_secrets(super().format(record))


class JsonLines(logging.Formatter):
    """An object a line: ``time`` (RFC 3339, UTC), ``level``, ``logger``, ``message``, ids, and ``traceback``."""

    def format(self, record: logging.LogRecord) -> str:
        """The record."""
        at = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {
            "time": f"{at}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **ids_of(record),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return without_secrets(json.dumps(line, ensure_ascii=False))


def formatter(log_format: str) -> logging.Formatter:
    """That of one of ``settings.LOG_FORMATS``."""
    return JsonLines() if log_format == "json" else TextLines()
