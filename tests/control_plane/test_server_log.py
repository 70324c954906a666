"""The server's own log does not grow without end, and nothing of it goes astray."""

import subprocess
import sys

WRITER = """
import logging, os, sys
from pathlib import Path
from multinode_control_plane.server_log import ServerLog

logging.basicConfig(handlers=[ServerLog(Path(sys.argv[1]), 10_000)], level=logging.INFO)
for number in range(1000):
    logging.info("line %d %s", number, "x" * 50)
os.write(2, b"a traceback\\n")
"""


def test_the_log_begins_anew_when_it_is_large_and_stderr_follows(tmp_path):
    path = tmp_path / "server.log"
    path.write_bytes(b"of an earlier server\n" * 1000)
    with path.open("ab") as output:
        subprocess.run(
            [sys.executable, "-c", WRITER, str(path)], stdout=output, stderr=output, check=True
        )
    assert sorted(file.name for file in tmp_path.iterdir()) == ["server.log", "server.log.1"]
    assert all(file.stat().st_size < 11_000 for file in tmp_path.iterdir())
    assert path.read_text().endswith("a traceback\n")
    assert "line 999 " in path.read_text()
