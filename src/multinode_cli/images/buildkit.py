"""Builds with BuildKit, through the docker command: it keeps pip's downloads, and lends secrets without an argument."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from multinode_cli.images.context import SECRET_ID, Context
from multinode_cli.images.engine import Engine
from multinode_cli.images.failures import EngineRefused
from multinode_cli.images.output import Output

_LINE = re.compile(r"#\d+ (?:\d+\.\d+ )?(.*)")
_OWN_WORDS = re.compile(
    r"\[|DONE|CACHED|sha256:|transferring|resolve|exporting|writing|naming|unpacking|extracting|$"
)
ENDING_S = 15.0


def is_there(environ: Mapping[str, str]) -> bool:
    """Whether the docker command has its part ``buildx``."""
    command = shutil.which("docker", path=environ.get("PATH"))
    if command is None:
        return False
    try:
        asked = subprocess.run(
            [command, "buildx", "version"],
            env=dict(environ),
            capture_output=True,
            timeout=ENDING_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return asked.returncode == 0


def build_image(
    engine: Engine,
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
        options = [
            "--builder",
            engine.context,
            "--progress",
            "plain",
            "--load",
            "--tag",
            tag,
            "--platform",
            platform,
        ]
        options += [f"--label={name}={value}" for name, value in sorted(labels.items())]
        options += ["--no-cache"] if no_cache else []
        if context.secret:
            secret = Path(folder, "secret")
            secret.write_text(context.secret.text)
            options += ["--secret", f"id={SECRET_ID},src={secret}"]
        _run(
            ["docker", "buildx", "build", *options, str(files)],
            output,
            {**environ, **engine.variables},
        )


def _run(command: list[str], output: Output, environ: Mapping[str, str]) -> None:
    attested = {"BUILDX_NO_DEFAULT_ATTESTATIONS": "1"}  # they would make the image an index of two
    process = subprocess.Popen(
        command,
        env={**environ, **attested},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,  # Ctrl-C comes from us, once
    )
    last = ""
    try:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                last = line.strip() or last
                told = _told(line.rstrip())
                if told:
                    output.take_line(told)
        if process.wait() != 0:
            raise EngineRefused(output.cleaned(last))
    finally:
        if process.poll() is None:
            _end(process)


def _told(line: str) -> str:
    """What a command in the build wrote; empty for BuildKit's own words about its steps."""
    found = _LINE.fullmatch(line)
    if found is None:
        return line
    return "" if _OWN_WORDS.match(found[1]) else found[1]


def _end(process: subprocess.Popen[str]) -> None:
    process.terminate()
    try:
        process.wait(ENDING_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
