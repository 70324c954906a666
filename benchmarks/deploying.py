"""Deploys: after one changed line, of the unchanged, and with new requirements beside uv by hand."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

from benchmarks.harness import Figure, Installation, milliseconds, p50, quiet, times

UV = str(Path(sys.executable).with_name("uv"))
REQUIREMENTS = "attrs\nclick\nidna\njinja2\npyyaml\n"


def figures(at: Installation, quick: bool) -> list[Figure]:
    count = 3 if quick else 10
    unchanged = p50(times(count, lambda: at.run("deploy")))
    changed = p50(_changed(at, n) for n in range(count))
    pairs = [_with_new_requirements(at, n) for n in range(-1, 3 if quick else 7)][1:]
    ours, by_hand = (p50(each) for each in zip(*pairs, strict=True))
    return [
        Figure("deploy after one changed line", changed, "ms", 1000),
        Figure("deploy of the unchanged", unchanged, "ms", 500),
        Figure("uv venv and uv pip install by hand (floor)", by_hand, "ms"),
        Figure("deploy with new requirements", ours, "ms", 1.3 * by_hand, by_hand),
    ]


def _changed(at: Installation, number: int) -> float:
    main = at.project / "tasks/main.py"
    main.write_text(main.read_text() + f"# change {number}\n")
    return milliseconds(lambda: at.run("deploy"))


def _with_new_requirements(at: Installation, number: int) -> tuple[float, float]:
    """Each environment is a new one, its packages in uv's cache. What we add by ourselves is asked for by hand too."""
    file = at.project / "tasks/requirements.txt"
    file.write_text(f"{REQUIREMENTS}# {number}\nsix>=1.{number + 2}\n")
    return milliseconds(lambda: at.run("deploy")), milliseconds(lambda: _by_hand(at, file))


def _by_hand(at: Installation, requirements: Path) -> None:
    """As a user types it: like the control plane, without compiling bytecode."""
    folder = at.folder / "by-hand"
    shutil.rmtree(folder, ignore_errors=True)
    quiet([UV, "venv", "--python", sys.executable, folder])
    install = [UV, "pip", "install", "--python", folder / "bin/python"]
    quiet([*install, "-r", requirements, "httpx>=0.24", "jsonpickle>=3.0"])
