"""``multinode doctor``: one line a check, and for each failure its cure. Changes and starts nothing."""

from __future__ import annotations

import os
import shutil
import sys
from dataclasses import dataclass, replace
from datetime import datetime, timezone
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import quote

from multinode.client import Client
from multinode.errors import MultinodeError, NotLoggedIn
from multinode.wire import EnvironmentSpec, Finding, ServerInfo
from multinode_cli.commands import local_server
from multinode_cli.commands.frame import Answer, Commands, Session
from multinode_cli.commands.shown import moment
from multinode_cli.console import Console, Style
from multinode_cli.tasks_folder.project_file import DEFAULT_PYTHON

commands = Commands()

_MAX_CLOCK_DIFFERENCE_S = 30.0
_CHECKS_S = 60.0
"""A container is tried."""
_MIN_FREE_BYTES = 1024**3
_MARKS: dict[str, Style] = {"ok": "green", "note": "yellow", "FAIL": "red"}


@dataclass(frozen=True)
class Check:
    """One finding. ``state`` is ``ok``, ``note`` (works, but worth knowing) or ``FAIL``."""

    name: str
    state: str
    finding: str
    cure: str = ""


@commands.add("doctor")
def doctor(session: Session) -> Answer:
    """Check Python, uv, Docker, the control plane, credentials, clock and disk.

    Example: multinode doctor
    """
    control_plane, info = _control_plane(session)
    checks = [
        _python(),
        _server_extra(),
        _uv(),
        *_docker(session, info),
        *control_plane,
        _disk(session.settings.home),
    ]
    failed = any(check.state == "FAIL" for check in checks)

    def show(console: Console) -> None:
        for check in checks:
            console.out(
                f"{console.styled(f'{check.state:5}', _MARKS[check.state])} {check.name:19} {check.finding}"
            )
            if check.cure:
                console.out(f"{'':25} {check.cure}")

    data = [
        {"check": check.name, "state": check.state, "finding": check.finding, "cure": check.cure}
        for check in checks
    ]
    return Answer(data, show, exit_code=1 if failed else 0)


def _python() -> Check:
    version = ".".join(map(str, sys.version_info[:3]))
    return Check("Python", "ok", f"{version}, {sys.executable}")


def _server_extra() -> Check:
    try:
        local_server.check_installed()
    except MultinodeError as error:
        return Check(
            "server", "note", error.message, f"Only a local control plane needs it. {error.hint}"
        )
    return Check("server", "ok", "installed")


def _uv() -> Check:
    if find_spec("uv") is not None or shutil.which("uv"):
        return Check("uv", "ok", "present")
    cure = "Only a local control plane needs it, for the functions' environments: pip install uv"
    return Check("uv", "note", "not found", cure)


def _docker(session: Session, info: ServerInfo | None) -> list[Check]:
    """The engine that `deploy` builds images with. What is amiss matters only where a control plane wants images."""
    if info is not None and info.runner == "process":
        return []
    from multinode_cli.images.checks import check_engine  # lazy: imports the docker package

    found = check_engine(os.environ, _base_image(session))
    checks = [Check(item.check, item.state, item.finding, item.cure) for item in found]
    if info is not None:
        return checks
    return [replace(item, state="note") if item.state == "FAIL" else item for item in checks]


def _base_image(session: Session) -> str:
    """Of the project in this folder, or of one without a toml."""
    from multinode_cli.images.context import base_image_of  # lazy, as above

    environment = session.project_file.environment
    spec = EnvironmentSpec(
        python=environment.python or DEFAULT_PYTHON, base_image=environment.base_image
    )
    return base_image_of(spec)


def _control_plane(session: Session) -> tuple[list[Check], ServerInfo | None]:
    """What is found of it, and what it says of itself, where it does."""
    try:
        found = _find(session)
    except MultinodeError as error:
        return [Check("credentials", "FAIL", error.message, error.hint)], None
    if found is None:
        finding = "none: nobody has logged in, and no local one runs"
        cure = "A command that needs one starts it; `multinode login URL` chooses another."
        return [Check("control plane", "note", finding, cure)], None
    client, source = found
    try:
        info = client.call(ServerInfo, "GET", "/v1/server")
    except NotLoggedIn as error:
        refused = Check("credentials", "FAIL", f"{error.message} ({source})", error.hint)
        return [Check("control plane", "ok", client.url), refused], None
    except MultinodeError as error:
        return [Check("control plane", "FAIL", error.message, error.hint)], None
    return _of_server(session, client, info, source), info


def _of_server(session: Session, client: Client, info: ServerInfo, source: str) -> list[Check]:
    missing = [name for name in ("cpu", "memory") if name not in info.enforces]
    limits = f", does not enforce {' and '.join(missing)}" if missing else ""
    if missing and info.unenforced_reason:
        limits += f": {info.unenforced_reason}"
    return [
        Check("control plane", "ok", f"{client.url}, version {info.version}"),
        Check("runner", "note" if missing else "ok", f"{info.runner}{limits}"),
        Check("credentials", "ok", f"key {info.key_name!r} ({info.role}), from {source}"),
        _clock(info),
        *_of_runner(session, client, info),
    ]


def _of_runner(session: Session, client: Client, info: ServerInfo) -> list[Check]:
    """What the control plane's runner finds: its engine, and whether containers reach the control plane."""
    if info.runner == "process":
        return []
    path = f"/v1/server/checks?base_image={quote(_base_image(session))}"
    try:
        found = client.call(list[Finding], "GET", path, wait_s=_CHECKS_S)
    except MultinodeError as error:
        return [Check("runner's checks", "note", error.message, error.hint)]
    return [Check(item.check, item.state, item.finding, item.cure) for item in found]


def _find(session: Session) -> tuple[Client, str] | None:
    """As a command would choose it, but a local control plane is not started."""
    profile = session.project_file.profile
    if profile is None and session.settings.is_logged_out():
        server = local_server.find(session.settings.home)
        if server is None:
            return None
        return Client(server.url, server.key, retry_s=0), "server.json"
    found = session.settings.connection(profile)
    return Client(found.url, found.key, retry_s=0), found.source


def _clock(info: ServerInfo) -> Check:
    theirs = moment(info.clock)
    if theirs is None:
        return Check("clock", "note", "the control plane does not tell its time")
    difference_s = abs((datetime.now(timezone.utc) - theirs).total_seconds())
    finding = f"{difference_s:.1f} s from the control plane's"
    if difference_s > _MAX_CLOCK_DIFFERENCE_S:
        return Check(
            "clock", "FAIL", finding, "Set this machine's clock, or the control plane's, by NTP."
        )
    return Check("clock", "ok", finding)


def _disk(home: Path) -> Check:
    place = next(path for path in (home, *home.absolute().parents) if path.exists())
    free_bytes = shutil.disk_usage(place).free
    finding = f"{free_bytes / 1024**3:.1f} GiB free for {home}"
    if free_bytes < _MIN_FREE_BYTES:
        return Check(
            "disk", "FAIL", finding, "Make room, or set MULTINODE_HOME to a folder on another disk."
        )
    return Check("disk", "ok", finding)
