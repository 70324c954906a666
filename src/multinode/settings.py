"""Where the control plane is and with which key, read once from environment and files into frozen dataclasses.

The order: inside a worker, the worker's own token (unless the functions' own environment names another control plane);
``MULTINODE_API_URL`` and ``MULTINODE_API_KEY``; the current profile of ``multinode login``; the local control plane of
this machine, if it runs. This module talks to nobody.
"""

from __future__ import annotations

import json
import math
import os

from . import errors
from .records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path
    from typing import Any, ClassVar, Dict, Optional

DEFAULT_RETRY_S = 300.0
LOGIN_HINT = (
    "Run `multinode login URL`, or set MULTINODE_API_URL and MULTINODE_API_KEY, "
    "or start a local control plane with `multinode server start`."
)


class Connection(Record):
    """A control plane and the key for it. ``source`` says where both were found, for messages."""

    url: str
    key: str
    retry_s: float = DEFAULT_RETRY_S
    source: str = ""


class Profile(Record):
    """One profile of ``multinode login``."""

    name: str
    url: str
    key: str


class Credentials(Record):
    """What ``credentials.json`` holds; ``current`` is None where no profile is chosen."""

    current: Optional[str]
    profiles: Mapping[str, Profile]


class LocalServer(Record):
    """What ``server.json`` says of the local control plane."""

    url: str
    key: str
    pid: int


class WorkerContext(Record):
    """The invocation that this process runs, and the token that it may use."""

    api_url: str
    token: str
    project: str
    version_id: str
    invocation_id: str


class _ThisProcess:
    """What is known of this process; a class so that no ``global`` is needed."""

    worker: Optional[WorkerContext] = None
    """What a worker's child tells the SDK."""
    local_servers: ClassVar[Dict[str, LocalServer]] = {}
    """The local control planes that were found, by their home."""


def set_worker_context(context: Optional[WorkerContext]) -> None:
    """Says which invocation this process runs from now on; None outside of one. For the worker's child only."""
    _ThisProcess.worker = context


def worker_context() -> Optional[WorkerContext]:
    """The invocation that this process runs; None outside of a worker."""
    return _ThisProcess.worker


def uses_worker_token(environ: Optional[Mapping[str, str]] = None) -> bool:
    """Whether SDK calls act for the running invocation: in a worker whose ``.env`` names no control plane."""
    environ = os.environ if environ is None else environ
    return worker_context() is not None and not environ.get("MULTINODE_API_URL")


def home(environ: Optional[Mapping[str, str]] = None) -> Path:
    """The folder of configuration and local server: ``MULTINODE_HOME``, else ``~/.multinode``."""
    from pathlib import Path  # costs 5 ms, which workers, who read no files, need not pay

    environ = os.environ if environ is None else environ
    chosen = environ.get("MULTINODE_HOME")
    return Path(chosen).expanduser() if chosen else Path.home() / ".multinode"


def retry_s(environ: Optional[Mapping[str, str]] = None) -> float:
    """For how long a lost control plane is asked again, in seconds; raises InputError for a bad value."""
    environ = os.environ if environ is None else environ
    text = environ.get("MULTINODE_RETRY_SECONDS") or str(DEFAULT_RETRY_S)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        message = f"MULTINODE_RETRY_SECONDS is {text!r}."
        hint = "Set it to a number of seconds, 0 or more, or unset it (then it is 300)."
        raise errors.InputError(message, hint)
    return seconds


def resolve(
    profile: Optional[str] = None,
    *,
    environ: Optional[Mapping[str, str]] = None,
    waits_for_local: bool = False,
) -> Connection:
    """The control plane to talk to; ``profile`` names one of ``multinode login`` and goes before everything else.

    ``waits_for_local``: a local one that this process has used before is still the one where it does not run now, since it
    restarts with the same port and key. Raises NotLoggedIn where there is none, ProfileNotFound, and InputError for a file or value that is malformed.
    """
    environ = os.environ if environ is None else environ
    patience = retry_s(environ)
    if profile is not None:
        return _from_profile(_named_profile(home(environ), profile), patience)
    worker = worker_context()
    if worker is not None and uses_worker_token(environ):
        return Connection(worker.api_url, worker.token, patience, "the worker's token")
    return (
        _from_environment(environ, patience)
        or _from_current_profile(home(environ), patience)
        or _from_local_server(home(environ), patience, is_kept=waits_for_local)
        or _nowhere()
    )


def read_credentials(folder: Path) -> Credentials:
    """The profiles in ``folder``; none where the file is missing. Raises InputError where it is malformed."""
    path = folder / "credentials.json"
    data = _read_object(path, cure="Log in again with `multinode login URL`.")
    try:
        profiles = {
            name: Profile(name, _text(item, "url"), _text(item, "key"))
            for name, item in data.get("profiles", {}).items()
        }
        return Credentials(current=data.get("current"), profiles=profiles)
    except (AttributeError, KeyError, TypeError) as error:
        message = f"{str(path)!r} is not as `multinode login` writes it."
        hint = "Move it away and log in again with `multinode login URL`."
        raise errors.InputError(message, hint) from error


def read_local_server(folder: Path) -> Optional[LocalServer]:
    """The local control plane of ``folder``, None where none runs. Raises InputError where the file is malformed."""
    path = folder / "server.json"
    data = _read_object(path, cure="Start it again with `multinode server start`.")
    if not data:
        return None
    try:
        server = LocalServer(_text(data, "url"), _text(data, "key"), int(data["pid"]))
    except (KeyError, TypeError, ValueError) as error:
        message = f"{str(path)!r} is not as `multinode server` writes it."
        hint = "Remove it and run `multinode server start`."
        raise errors.InputError(message, hint) from error
    return server if _is_alive(server.pid) else None


def _named_profile(folder: Path, name: str) -> Profile:
    profiles = read_credentials(folder).profiles
    if name not in profiles:
        known = ", ".join(sorted(profiles)) or "none yet"
        message = f"There is no profile {name!r} (profiles: {known})."
        hint = f"Make it with `multinode login URL --profile {name}`."
        raise errors.ProfileNotFound(message, hint)
    return profiles[name]


def _from_profile(profile: Profile, patience: float) -> Connection:
    return Connection(profile.url, profile.key, patience, f"profile {profile.name!r}")


def _from_environment(environ: Mapping[str, str], patience: float) -> Optional[Connection]:
    url, key = environ.get("MULTINODE_API_URL"), environ.get("MULTINODE_API_KEY")
    if url and key:
        return Connection(url, key, patience, "MULTINODE_API_URL and MULTINODE_API_KEY")
    if url or key:
        given, missing = ("URL", "KEY") if url else ("KEY", "URL")
        message = f"MULTINODE_API_{given} is set, but MULTINODE_API_{missing} is not."
        raise errors.NotLoggedIn(message, "Set both, or neither.")
    return None


def _from_current_profile(folder: Path, patience: float) -> Optional[Connection]:
    credentials = read_credentials(folder)
    if credentials.current is None:
        return None
    return _from_profile(_named_profile(folder, credentials.current), patience)


def _from_local_server(folder: Path, patience: float, *, is_kept: bool) -> Optional[Connection]:
    server = read_local_server(folder)
    if server is None and is_kept:
        server = _ThisProcess.local_servers.get(str(folder))
    elif server is not None:
        _ThisProcess.local_servers[str(folder)] = server
    if server is None:
        return None
    return Connection(server.url, server.key, patience, "the local control plane")


def _nowhere() -> Connection:
    message = "Nobody has logged in to a control plane here, and no local one runs."
    raise errors.NotLoggedIn(message, LOGIN_HINT)


def _read_object(path: Path, *, cure: str) -> Dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        message = f"{str(path)!r} cannot be read: {error}."
        raise errors.InputError(message, cure) from error
    return data if isinstance(data, dict) else {"profiles": None}


def _text(data: Mapping[str, Any], name: str) -> str:
    value = data[name]
    if not isinstance(value, str):
        raise TypeError(name)
    return value


def _is_alive(pid: int) -> bool:
    """Whether a process of this id runs; a dead server's file must not cost five minutes of retries."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, OverflowError):
        return True
    return True
