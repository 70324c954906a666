"""What a command is told by its global options, the environment and the terminal, read once; and the profiles
that ``multinode login`` keeps in ``credentials.json`` (0600, replaced as a whole, never written in place)."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from multinode.errors import NotLoggedIn
from multinode.settings import (
    Connection,
    Credentials,
    Profile,
    home,
    read_credentials,
    resolve,
)

COMMAND_RETRY_S = 5.0
"""How long a command asks a control plane that does not answer, unless MULTINODE_RETRY_SECONDS says otherwise."""


@dataclass(frozen=True)
class Settings:
    """The global options, and what the streams are."""

    home: Path
    environ: Mapping[str, str] = field(repr=False)
    profile: str | None = None
    """``--profile``."""
    as_json: bool = False
    debug: bool = False
    can_ask: bool = False
    """Whether there is a terminal to ask at."""
    has_motion: bool = False
    """Whether stderr is a terminal on which a line may change."""
    has_colour: bool = False
    columns: int | None = None
    """How wide the terminal is that stdout is, None where it is none."""

    def connection(self, project_profile: str | None) -> Connection:
        """Where the control plane is: ``--profile``, the environment, ``profile`` of multinode.toml, then as the SDK.

        Raises NotLoggedIn where there is none.
        """
        chosen = self.profile
        if chosen is None and not self.environ.get("MULTINODE_API_URL"):
            chosen = project_profile
        found = resolve(chosen, environ=self.environ)
        if "MULTINODE_RETRY_SECONDS" in self.environ:
            return found
        return found.replace(retry_s=COMMAND_RETRY_S)

    def is_logged_out(self) -> bool:
        """Whether neither a profile nor the environment names a control plane."""
        has_url = self.environ.get("MULTINODE_API_URL") or self.environ.get("MULTINODE_API_KEY")
        return self.profile is None and not has_url and read_credentials(self.home).current is None


def read_settings(*, profile: str | None, as_json: bool, debug: bool) -> Settings:
    """The settings of this process."""
    environ = os.environ
    is_dumb = environ.get("TERM") == "dumb"
    is_plain = bool(environ.get("NO_COLOR")) or is_dumb
    return Settings(
        home=home(environ),
        environ=environ,
        profile=profile,
        as_json=as_json,
        debug=debug,
        can_ask=sys.stdin.isatty() and sys.stderr.isatty() and not as_json,
        has_motion=sys.stderr.isatty() and not is_plain,
        has_colour=sys.stdout.isatty() and not is_plain,
        columns=shutil.get_terminal_size().columns if sys.stdout.isatty() else None,
    )


def save_profile(folder: Path, profile: Profile) -> None:
    """Store ``profile`` under its name, replacing one of that name, and make it the current one."""
    kept = read_credentials(folder)
    _write(folder, Credentials(profile.name, {**kept.profiles, profile.name: profile}))


def remove_profile(folder: Path, name: str | None) -> str:
    """Forget the profile (None: the current one); returns its name. Raises NotLoggedIn where it is not there."""
    kept = read_credentials(folder)
    name = name or kept.current
    if name is None or name not in kept.profiles:
        message = (
            f"There is no profile {name!r} to log out from." if name else "Nobody is logged in."
        )
        raise NotLoggedIn(message, "`multinode profile list` shows the profiles.")
    others = {other: profile for other, profile in kept.profiles.items() if other != name}
    _write(folder, Credentials(None if kept.current == name else kept.current, others))
    return name


def use_profile(folder: Path, name: str) -> Profile:
    """Make the profile the current one. Raises ProfileNotFound."""
    resolve(name, environ={"MULTINODE_HOME": str(folder)})
    kept = read_credentials(folder)
    _write(folder, Credentials(name, kept.profiles))
    return kept.profiles[name]


def _write(folder: Path, credentials: Credentials) -> None:
    data = {
        "current": credentials.current,
        "profiles": {
            name: {"url": profile.url, "key": profile.key}
            for name, profile in sorted(credentials.profiles.items())
        },
    }
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=folder, prefix=".credentials-")  # made with mode 0600
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(data, file, indent=2)
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(folder / "credentials.json")
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
