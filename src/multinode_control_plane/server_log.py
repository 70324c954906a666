"""The log of a server in the background: so large, then it begins anew, and what was before is kept once."""

from __future__ import annotations

import os
from logging.handlers import RotatingFileHandler
from pathlib import Path

LIMIT_BYTES = 10 * 1024 * 1024


class ServerLog(RotatingFileHandler):
    """Writes to ``path``; over ``limit_bytes`` that becomes ``<path>.1``. This process's own stdout and stderr, which are the same
    file, follow, so that what is written there, past the log, is not lost in the old one."""

    def __init__(self, path: Path, limit_bytes: int = LIMIT_BYTES) -> None:
        super().__init__(path, maxBytes=limit_bytes, backupCount=1, encoding="utf-8")

    def doRollover(self) -> None:
        """Begins anew."""
        super().doRollover()
        if self.stream is not None:
            os.dup2(self.stream.fileno(), 1)
            os.dup2(self.stream.fileno(), 2)
