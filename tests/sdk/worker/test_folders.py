"""A worker's file is there whole, or not at all."""

import os
import subprocess
import sys

import pytest

LITTLE_ROOM = """
import resource, sys
from multinode.worker.folders import WorkerFile
resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
try:
    WorkerFile(sys.argv[1], "wrk-1")
except OSError as error:
    print(type(error).__name__)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_file_that_has_no_room_leaves_no_part_of_it(tmp_path):
    argv = [sys.executable, "-c", LITTLE_ROOM, str(tmp_path / "wrk-1.json")]
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=True)
    assert done.stdout == "OSError\n"
    assert os.listdir(str(tmp_path)) == []
