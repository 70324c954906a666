"""A new container for each no-op, beside ``docker run`` of the same image with the same limits; needs an engine."""

from __future__ import annotations

import subprocess
import time
from concurrent.futures import ThreadPoolExecutor

from benchmarks.harness import Figure, Installation, milliseconds, p50, p95, times

RUNNER = "docker"
AT_ONCE = 20
LIMITS = (
    "--memory=256m", "--memory-swap=256m", "--pids-limit=512", "--cap-drop=ALL",
    "--security-opt=no-new-privileges", "--read-only", "--user=1000:1000", "--init", "-v", "/work", "-v", "/tmp",
)  # fmt: skip
"""What the runner gives to a container, cpu apart, as the docker command is told it."""
STARTING_CPU, FUNCTION_CPU = 1.0, 0.1
"""The runner's container starts with the one, and is limited to the other when its function is handed to it."""


def figures(at: Installation, quick: bool) -> list[Figure]:
    count = 5 if quick else 20
    add = at.function("add")
    images = _images()
    changed = p50(_changed(at, turn) for turn in range(2 if quick else 5))
    assert _images() == images, "a change of the code alone touched the engine's images"
    image = _image_of_the_project()
    floor: list[float] = []
    slow: list[float] = []
    ours: list[float] = []
    for _ in range(count):  # by turns
        floor += times(1, lambda: _docker_run(image), warm=0)
        slow += times(1, lambda: _docker_run(image, FUNCTION_CPU), warm=0)
        ours += times(1, lambda: add.call_remote(1, 2), warm=0)
    many_floor = _at_once(lambda: _docker_run(image))
    many_ours = milliseconds(lambda: list(add.starmap((i, i) for i in range(AT_ONCE))))
    one = 1.25 * p50(floor) + 50
    return [
        Figure("docker run python -c pass (floor), p50", p50(floor), "ms"),
        Figure(f"the same with --cpus={FUNCTION_CPU}, p50", p50(slow), "ms"),
        Figure("new container, p50", p50(ours), "ms", one, p50(floor)),
        Figure("new container, p95", p95(ours), "ms", None, p95(floor)),
        Figure(f"{AT_ONCE} docker run at once (floor)", many_floor, "ms"),
        Figure(f"{AT_ONCE} new containers at once", many_ours, "ms", 1.5 * many_floor, many_floor),
        Figure("deploy after one changed line", changed, "ms", 1000),
    ]


def _docker(*arguments: str) -> str:
    done = subprocess.run(["docker", *arguments], capture_output=True, text=True, check=True)
    return done.stdout


def _docker_run(image: str, cpu: float = STARTING_CPU) -> None:
    _docker("run", "--rm", f"--cpus={cpu}", *LIMITS, image, "python", "-c", "pass")


def _images() -> set[str]:
    return set(_docker("images", "--all", "--quiet", "--no-trunc").split())


def _image_of_the_project() -> str:
    """The newest image that a control plane ordered."""
    return _docker("images", "--quiet", "--filter", "label=multinode.environment").split()[0]


def _at_once(action) -> float:
    began = time.perf_counter()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        list(pool.map(lambda _: action(), range(AT_ONCE)))
    return (time.perf_counter() - began) * 1000


def _changed(at: Installation, number: int) -> float:
    main = at.project / "tasks/main.py"
    main.write_text(main.read_text() + f"# change {number}\n")
    return milliseconds(lambda: at.run("deploy"))
