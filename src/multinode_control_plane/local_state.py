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
        self.local_port: int | None = known.get("local_port")
        self.runner: str = known.get("runner", "")

    def remember(
        self, port: int, worker_port: int | None, runner: str, *, local_port: int | None = None
    ) -> None:
        """Writes all of it (0600); the ports of doors are kept where there is none this time."""
        self.port, self.worker_port, self.runner = port, worker_port or self.worker_port, runner
        self.local_port = local_port or self.local_port
        known = {
            "key": self.key,
            "port": port,
            "worker_port": self.worker_port,
            "local_port": self.local_port,
            "runner": runner,
        }
        whole_files.write(self._path, json.dumps(known, indent=1).encode())
