"""Runs the benchmarks: ``make bench``, or ``python benchmarks/run.py [--quick] [--only NAME] [--json FILE]``."""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
import traceback
from dataclasses import asdict
from importlib import import_module
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks.harness import Figure, circumstances, installation

NAMES = (
    "control_plane",
    "startup",
    "watching",
    "new_workers",
    "warm",
    "deploying",
    "containers",
    "tasks",
    "hosted",
    "scale",
)
"""In this order: the control plane's memory is read before others have used it."""


def main() -> int:
    """1 where a target was missed or a benchmark failed, else 0."""
    options = _options()
    signal.signal(
        signal.SIGTERM, lambda *_: sys.exit(143)
    )  # the control plane is stopped on the way
    found: dict[str, list[Figure]] = {}
    print(circumstances())
    with tempfile.TemporaryDirectory(prefix="multinode-bench-") as folder:
        for name in options.only or NAMES:
            found[name] = _run(name, Path(folder) / name, options.quick)
            print(f"\n{name}\n" + "\n".join(table(found[name])), flush=True)
    print(f"\nat the end: {circumstances().splitlines()[0]}")
    if options.json:
        plain = {name: [asdict(figure) for figure in each] for name, each in found.items()}
        Path(options.json).write_text(json.dumps(plain, indent=1))
    figures = [figure for each in found.values() for figure in each]
    return int(not all(found.values()) or any(figure.is_met is False for figure in figures))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer rounds, for a first look")
    parser.add_argument("--only", action="append", choices=NAMES, help="this one alone")
    parser.add_argument("--json", metavar="FILE", help="write the figures there too")
    return parser.parse_args()


def _run(name: str, folder: Path, quick: bool) -> list[Figure]:
    """A control plane of its own for each, so that none sees what another has left."""
    folder.mkdir()
    try:
        theme = import_module(f"benchmarks.{name}")
        own = getattr(theme, "opened", None)
        runner = getattr(theme, "RUNNER", "process")
        with own(folder) if own else installation(folder, runner=runner) as at:
            return theme.figures(at, quick)
    except Exception:  # the others are to run all the same
        traceback.print_exc()
        return []


def table(figures: list[Figure]) -> list[str]:
    """As Markdown."""
    head = [
        "| figure | measured | ratio to the floor | target | met |",
        "| --- | --- | --- | --- | --- |",
    ]
    return head + [_row(figure) for figure in figures]


def _row(figure: Figure) -> str:
    ratio = "" if figure.ratio is None else f"{figure.ratio:.2f}"
    sign = "≥" if figure.is_rate else "≤"
    target = "" if figure.target is None else f"{sign} {figure.target:.4g} {figure.unit}"
    met = {None: "", True: "yes", False: "**no**"}[figure.is_met]
    return f"| {figure.name} | {_number(figure.value)} {figure.unit} | {ratio} | {target} | {met} |"


def _number(value: float) -> str:
    return (
        f"{value:.3f}"
        if abs(value) < 1
        else f"{value:,.1f}"
        if abs(value) < 100
        else f"{value:,.0f}"
    )


if __name__ == "__main__":
    sys.exit(main())
