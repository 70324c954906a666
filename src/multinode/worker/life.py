"""The life of one worker: its files are made, its supervisor runs, and nothing is left of it."""

from __future__ import annotations

import os

from . import processes
from .folders import Folders, WorkerFile
from .supervisor import Supervisor, say

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn, Optional

    from .launch import Launch
    from .prepared import Prepared


def live(launch: Launch, prepared: Prepared) -> NoReturn:
    """Lives one worker's life and exits: 0 after every end, 1 where it could not begin, or ``main.py`` could not be imported for it."""
    child, cgroup = prepared.child, prepared.cgroup
    worker_file: Optional[WorkerFile] = None
    folders: Optional[Folders] = None
    supervisor: Optional[Supervisor] = None
    status = 1
    try:
        if launch.worker_file is not None:
            cgroups = cgroup.folders if cgroup is not None else ()
            worker_file = WorkerFile(launch.worker_file, launch.worker_id, cgroups)
        folders = Folders(launch)
        supervisor = Supervisor(launch, prepared, folders)
        status = supervisor.run()
    except Exception as error:  # the outermost edge
        say(launch, f"{type(error).__name__}: {error}")
    finally:
        # Of a child that was reaped, the pid may be another's by now.
        if supervisor is None or not supervisor.is_childless:
            processes.kill_group(child.pid)
        if cgroup is not None:
            cgroup.kill()
        processes.kill_remaining_children()
        # Where it could not begin, its file stays for its starter to say so in it.
        for kept in (cgroup, folders, worker_file if status == 0 else None):
            if kept is not None:
                kept.remove()
        os._exit(status)
