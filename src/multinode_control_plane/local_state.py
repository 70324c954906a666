"""What a control plane keeps in its data folder over restarts, beside the store."""

from __future__ import annotations

import json
from pathlib import Path

from multinode_control_plane.runners import whole_files

FILE = "local.json"


class Local:
    """This user's key and the port of last time, kept over restarts: who knows them stays connected. And its runner."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            known = json.loads(path.read_text())
        except (OSError, ValueError):
            known = {}
        self.key: str | None = known.get("key")
        self.port: int | None = known.get("port")
        self.worker_port: int | None = known.get("worker_port")
        self.runner: str = known.get("runner", "")

    def remember(self, port: int, worker_port: int | None, runner: str) -> None:
        """Writes all of it (0600); the port for workers is kept where there is none this time."""
        self.port, self.worker_port, self.runner = port, worker_port or self.worker_port, runner
        known = {
            "key": self.key,
            "port": port,
            "worker_port": self.worker_port,
            "runner": runner,
        }
        whole_files.write(self._path, json.dumps(known, indent=1).encode())
