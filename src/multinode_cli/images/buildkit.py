"""Builds with BuildKit, through the docker command: it keeps pip's downloads, and lends secrets without an argument."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from multinode_cli.images.context import SECRET_ID, Context
from multinode_cli.images.failures import EngineRefused
from multinode_cli.images.output import Output

_LINE = re.compile(r"#\d+ (?P<time>\d+\.\d+ )?(?P<text>.*)")
"""A step's line: with a time what a command wrote, without one BuildKit's own words."""
_SUMMARY = "------"
"""What comes before the repetition of the last lines, at the end of a build that failed."""
_HAS_IT_INSIDE = re.compile(r"Docker version 20\.10\.")
"""Later ones leave it to buildx; earlier ones know cache mounts only from a syntax image that they fetch."""
ENDING_S = 15.0


@dataclass(frozen=True)
class BuildKit:
    """The docker command that builds with it: its words for that, and what its environment has to say."""

    command: tuple[str, ...]
    variables: Mapping[str, str]


def find(environ: Mapping[str, str], context: str) -> BuildKit | None:
    """How the docker command on PATH builds with BuildKit in ``context``; None where it does not, or is told not to."""
    command = shutil.which("docker", path=environ.get("PATH"))
    if command is None or environ.get("DOCKER_BUILDKIT") == "0":
        return None
    if _answer(command, "buildx", "version", environ=environ) is not None:
        # Attestations would make the image an index of two.
        variables = {"BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}
        options = ("--builder", context, "--load")
        return BuildKit((command, "buildx", "build", *options), variables)
    if _HAS_IT_INSIDE.match(_answer(command, "--version", environ=environ) or ""):
        return BuildKit((command, "build"), {"DOCKER_BUILDKIT": "1"})
    return None


def _answer(command: str, *arguments: str, environ: Mapping[str, str]) -> str | None:
    """What it prints; None where it fails."""
    try:
        asked = subprocess.run(
            [command, *arguments],
            env=dict(environ),
            capture_output=True,
            text=True,
            errors="replace",
            timeout=ENDING_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return asked.stdout if asked.returncode == 0 else None


def build_image(
    kit: BuildKit,
    context: Context,
    output: Output,
    *,
    tag: str,
    labels: Mapping[str, str],
    platform: str,
    no_cache: bool,
    environ: Mapping[str, str],
) -> None:
    """Builds, and tags the image in the engine. Raises EngineRefused. BuildKit itself ends a build that is interrupted."""
    with tempfile.TemporaryDirectory(prefix="multinode-image-") as folder:  # made with mode 0700
        files = Path(folder, "context")
        for name, data in context.written(has_buildkit=True).items():
            (files / name).parent.mkdir(parents=True, exist_ok=True)
            (files / name).write_bytes(data)
        options = ["--progress", "plain", "--tag", tag, "--platform", platform]
        options += [f"--label={name}={value}" for name, value in sorted(labels.items())]
        options += ["--no-cache"] if no_cache else []
        if context.secret:
            secret = Path(folder, "secret")
            secret.write_text(context.secret.text)
            options += ["--secret", f"id={SECRET_ID},src={secret}"]
        _run([*kit.command, *options, str(files)], output, {**environ, **kit.variables})


def _run(command: Sequence[str], output: Output, environ: Mapping[str, str]) -> None:
    process = subprocess.Popen(
        command,
        env=dict(environ),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C comes from us, once
    )
    try:
        assert process.stdout is not None
        with process.stdout:
            last = _take(process.stdout, output)
        if process.wait() != 0:
            raise EngineRefused(output.cleaned(last))
    finally:
        if process.poll() is None:
            _end(process)


def _take(lines: Iterable[str], output: Output) -> str:
    """Passes on what the build's commands write; returns the last line, which says why where it failed."""
    last, is_over = "", False
    for line in lines:
        last = line.strip() or last
        is_over = is_over or line.rstrip() == _SUMMARY
        found = _LINE.fullmatch(line.rstrip("\n"))
        is_own = found is not None and not found["time"]
        if line.strip() and not is_over and not is_own:
            output.take_line(found["text"] if found else line)
    return last


def _end(process: subprocess.Popen[str]) -> None:
    """Ends it with its buildx, which is a process of its own, and may not be told by an older docker command."""
    os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(ENDING_S)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
