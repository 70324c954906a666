"""How soon something in a function is seen elsewhere: a yielded value, a cancellation, a printed line."""

from __future__ import annotations

import contextlib
import subprocess
import time
from pathlib import Path

from benchmarks.harness import MULTINODE, Figure, Installation, p50, p95


def figures(at: Installation, quick: bool) -> list[Figure]:
    count, cancels = (30, 5) if quick else (200, 40)
    values, lines = _value_delays(at, count), _line_delays(at, count)
    delays = [_cancel_delay(at, at.folder / f"cancelled-{n}") for n in range(cancels)]
    return [
        Figure("yielded value → second client, p50", p50(values), "ms"),
        Figure("yielded value → second client, p95", p95(values), "ms", 30),
        Figure("cancel → exception in the function, p50", p50(delays), "ms"),
        Figure("cancel → exception in the function, p95", p95(delays), "ms", 100),
        Figure("log line → logs -f, p50", p50(lines), "ms"),
        Figure("log line → logs -f, p95", p95(lines), "ms", 100),
    ]


def _value_delays(at: Installation, count: int) -> list[float]:
    """The second client is this process, the first one another: the command that started it."""
    invocation_id = at.run("invoke", "--detach", "yield_stamps", str(count)).split()[-1]
    function = at.function("yield_stamps")
    return [(time.time() - stamp) * 1000 for stamp in function.progress(invocation_id)]


def _line_delays(at: Installation, count: int) -> list[float]:
    """Lines printed while ``logs -f`` is up; those before, which are no news, are left out."""
    invocation_id = at.run("invoke", "--detach", "print_stamps", str(count + 50)).split()[-1]
    command = [MULTINODE, "logs", "--follow", "--tail", "0", invocation_id]
    delays = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as logs:
        for line in logs.stdout:
            delays.append((time.time() - float(line.rpartition(" ")[2])) * 1000)
    return delays[1:]


def _cancel_delay(at: Installation, path: Path) -> float:
    function = at.function("wait_for_cancel")
    invocation_id = function.start(str(path))
    assert next(iter(function.progress(invocation_id))) == "waiting"
    began = time.time()
    function.cancel(invocation_id)
    with contextlib.suppress(BaseException):  # it ends as cancelled
        function.await_result(invocation_id, timeout=30)
    return (float(path.read_text()) - began) * 1000
