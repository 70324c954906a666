"""Runs uv, and puts what it says into our words. It owns no files.

Passwords of index URLs are taken out of every line here, before anybody sees it.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from multinode.credentials import redact
from multinode.limits import shorten
from multinode.wire import ErrorBody

MAX_HINT_CHARACTERS = 2_000
_LINE_LIMIT_BYTES = 1024 * 1024

_PASSED = re.compile(
    r"PATH|HOME|LANG|LC_\w+|TMPDIR|XDG_\w+|(HTTPS?|ALL|NO)_PROXY|(https?|all|no)_proxy|SSL_CERT_\w+"
    r"|NETRC|UV_\w+|PIP_\w+"
)
_STEERING = re.compile(
    r"UV_(PYTHON|SYSTEM_PYTHON|PROJECT\w*|TARGET|PREFIX|CONSTRAINT|OVERRIDE|WORKING_DIR\w*|BREAK_SYSTEM_PACKAGES"
    r"|PYTHON_DOWNLOADS|PYTHON_PREFERENCE|MANAGED_PYTHON|NO_MANAGED_PYTHON|VENV_\w+)"
)
"""Settings that say where uv installs and for which Python: that is ours to say."""
_FROM_PIP = {
    "PIP_INDEX_URL": "UV_DEFAULT_INDEX",
    "PIP_EXTRA_INDEX_URL": "UV_INDEX",
    "PIP_FIND_LINKS": "UV_FIND_LINKS",
    "PIP_TRUSTED_HOST": "UV_INSECURE_HOST",
    "PIP_CERT": "SSL_CERT_FILE",
}
"""uv does not read pip's settings. See https://docs.astral.sh/uv/pip/compatibility/."""
_OLDER_NAMES = {"UV_DEFAULT_INDEX": "UV_INDEX_URL", "UV_INDEX": "UV_EXTRA_INDEX_URL"}

_NO_NETWORK = ("error sending request", "dns error", "tcp connect error", "network was disabled")
_DISK_FULL = ("No space left on device", "os error 28", "Disk quota exceeded")
_NOISE = re.compile(r"|\^+|hint:.*--.*")
"""Empty lines, carets that point at nothing any more, and advice on options of uv that nobody here gave."""
_PYTHON_NEEDED = re.compile(r"(\S+) depends on Python ?([<>=!~][<>=!~,.*\d]*[*\d])")
_NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?")


Say = Callable[[str], None]
"""Takes one line of output."""


class ResolverFailed(Exception):
    """uv ended with an error; ``lines`` is all that it wrote."""

    def __init__(self, lines: Sequence[str]) -> None:
        super().__init__(lines[-1] if lines else "uv failed without a word")
        self.lines = list(lines)


def variables_for_uv(server: Mapping[str, str], settings: Mapping[str, str]) -> dict[str, str]:
    """The environment variables that uv is run with: a clean set of the server's, then those of the spec.

    pip's index settings are translated where uv's own are not set.
    """
    kept = {name: value for name, value in server.items() if _PASSED.fullmatch(name)}
    merged = _with_uv_names(kept) | _with_uv_names(settings)
    chosen = {name: value for name, value in merged.items() if not _STEERING.fullmatch(name)}
    return chosen | {"NO_COLOR": "1", "UV_NO_PROGRESS": "1"}


def options_for_uv(variables: Mapping[str, str]) -> list[str]:
    """What uv reads from no variable: ``PIP_NO_INDEX``."""
    value = variables.get("PIP_NO_INDEX", "").lower()
    return [] if value in ("", "0", "false", "no", "off") else ["--no-index"]


def _with_uv_names(settings: Mapping[str, str]) -> dict[str, str]:
    translated = dict(settings)
    for pip_name, uv_name in _FROM_PIP.items():
        value = settings.get(pip_name)
        older = _OLDER_NAMES.get(uv_name, uv_name)
        if value and uv_name not in settings and older not in settings:
            translated[uv_name] = _uv_list(uv_name, value)
    return translated


def _uv_list(uv_name: str, value: str) -> str:
    # pip separates by white space; uv does too, but for its find-links.
    return ",".join(value.split()) if uv_name == "UV_FIND_LINKS" else value


async def run_uv(
    command: Sequence[str | Path], *, folder: Path, variables: Mapping[str, str], say: Say
) -> None:
    """Runs uv in ``folder`` and says its output line by line as it comes.

    Raises ResolverFailed when it ends with an error. When this is cancelled, uv is killed with what it started (builds of
    source distributions), and gone when this returns.
    """
    process = await asyncio.create_subprocess_exec(
        *command,
        cwd=folder,
        env=dict(variables),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        limit=_LINE_LIMIT_BYTES,
        start_new_session=True,
    )
    assert process.stdout is not None
    lines: list[str] = []
    try:
        async for raw in process.stdout:
            line = redact(raw.decode(errors="replace").rstrip())
            lines.append(line)
            say(line)
        if await process.wait() != 0:
            raise ResolverFailed(lines)
    finally:
        if process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()


def error_of(lines: Sequence[str], *, requirements: str, python: str) -> ErrorBody:
    """What a build that failed is told as: the lines of requirements.txt that uv names, what to do, and uv's reason."""
    text = "\n".join(lines)
    if any(sign in text for sign in _DISK_FULL):
        return disk_full()
    reason = shorten(_reason(lines), MAX_HINT_CHARACTERS)
    if any(sign in text for sign in _NO_NETWORK):
        message = "The package index cannot be reached from the control plane."
        cure = "Look at its network, and at the index that is set for it (UV_DEFAULT_INDEX), and deploy again."
        return ErrorBody("environment_build_failed", message, f"{cure} uv says:\n{reason}")
    cure = "Correct requirements.txt, or set another `python` in multinode.toml. uv says:"
    hint = "\n".join([*_places(reason, requirements), cure, reason])
    return ErrorBody("environment_build_failed", _refusal(reason, python), hint)


def disk_full() -> ErrorBody:
    """The error of a build that found no room."""
    return ErrorBody(
        "storage_full",
        "The control plane's disk is full: the environment cannot be made.",
        "Make room on it (`uv cache prune` is one way), then deploy again.",
    )


def _reason(lines: Sequence[str]) -> str:
    """From the first error on, without uv's frame (``×`` and ``╰─▶`` before 0.9, ``error:`` and ``cause:`` since)."""
    starts = [number for number, line in enumerate(lines) if re.match(r"\s*(×|error:)", line)]
    told = lines[starts[0] :] if starts else lines[-20:]
    stripped = (re.sub(r"^\s*(×|╰─▶|├─▶|│|error:|cause:)?\s*", "", line) for line in told)
    return "\n".join(line for line in stripped if not _NOISE.fullmatch(line))


def _refusal(reason: str, python: str) -> str:
    """The sentence on why not: the packages that need another Python, where that is it."""
    needs = dict.fromkeys(
        f"{what} needs Python {which}" for what, which in _PYTHON_NEEDED.findall(reason)
    )
    if needs:
        return f"{', '.join([*needs][:3])}; the environment has {python}."
    return f"The requirements cannot be installed on Python {python}."


def _places(reason: str, requirements: str) -> list[str]:
    """``requirements.txt:2: numpy==1.26.1`` for each line whose package the reason says is required."""
    named = {name.rstrip(".").lower() for name in _NAME.findall(reason)}
    stated = {normalized(name) for name in named}
    return [
        f"requirements.txt:{number}: {redact(line.strip())}"
        for number, line in enumerate(requirements.splitlines(), 1)
        if required_name(line) in stated
    ]


def required_name(line: str) -> str:
    """The normalised name of the package that a line of requirements.txt asks for; empty where it is none."""
    found = re.match(rf"\s*({_NAME.pattern})\s*(?:$|[\[=<>!~;@#(\s])", line)
    return normalized(found[1]) if found else ""


def normalized(name: str) -> str:
    """The name of a package as indexes spell it: https://packaging.python.org/en/latest/specifications/name-normalization/."""
    return re.sub(r"[-_.]+", "-", name).lower()
