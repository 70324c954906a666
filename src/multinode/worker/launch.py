"""What a runner tells a new worker: all that it needs to reach the control plane, and where its files lie."""

from __future__ import annotations

import json

from ..records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, Optional, Tuple


ARGUMENTS = ("-c", "import sys; from multinode.worker.__main__ import main; main(sys.argv[1:])")
"""What runners give to an interpreter, before ``--launch-fd`` or ``--launch-file``: ``-m multinode.worker``, less the 3 ms of CPU
that ``-m`` costs."""


INTERPRETER_PREFIXES = ("PYTHON", "LD_", "DYLD_", "MALLOC_")
"""Variables that an interpreter or the loader reads when it starts; later is too late."""


class Launch(Record):
    """The launch of one worker, as one JSON object through a pipe, a file or the environment.

    Paths are absolute. What is None the worker makes itself in a temporary folder (``code_dir``, ``work_dir``), does without
    (``worker_file``) or writes to its own stdout (``log_file``).
    """

    worker_id: str
    claim_code: str
    api_url: str
    code_dir: Optional[str] = None
    """The extracted bundle, shared and not to be written to; None: fetch it from the control plane."""
    work_dir: Optional[str] = None
    """The worker's own working folder (made by it, removed by it); links to what is in ``code_dir`` lie in it."""
    worker_file: Optional[str] = None
    """Written before the first request and locked (flock) while the supervisor lives."""
    log_file: Optional[str] = None
    """Records of the child's output are appended here, one JSON object a line: ``{"at", "stream", "text"}``."""
    cgroups: Optional[Tuple[str, ...]] = None
    """Folders below which the worker makes its cgroup; None: nothing is limited, or the container is."""
    cpu: Optional[float] = None
    memory_mib: Optional[int] = None
    interpreter_env: Optional[Dict[str, str]] = None
    """Variables that an interpreter reads when it starts: the worker begins anew with them in its environment."""
    asks_for_env: Optional[bool] = None
    """Whether it fetches these variables from the control plane, since no secret may be where this launch is seen."""
    nonce: Optional[str] = None
    """Of an exchange that it has made, to make the same again."""

    def to_json(self) -> str:
        """The launch as one line of JSON."""
        return json.dumps(vars(self))


def from_json(text: str) -> Launch:
    """The launch that a runner wrote. Raises ValueError where it is none."""
    try:
        return known_part(json.loads(text))
    except (TypeError, AttributeError) as error:
        message = f"not a launch: {error}"
        raise ValueError(message) from error


def known_part(told: Dict[str, Any]) -> Launch:
    """The launch, less what a control plane of a later release also tells: it makes workers of this one too. Raises TypeError."""
    return Launch(**{name: value for name, value in told.items() if name in Launch.fields})
