"""What an environment is to be made from: whether it makes sense, and what of it tells one environment from another."""

from __future__ import annotations

import base64
import re
from pathlib import PurePosixPath

from multinode.credentials import redact
from multinode.errors import InputError, InvalidRequest
from multinode.wire import EnvironmentSpec
from multinode_control_plane.runners import resolver


def check(spec: EnvironmentSpec) -> None:
    """Raises InputError for what no environment can be made from."""
    texts = {"requirements.txt": spec.requirements}
    for name, content in (spec.files or {}).items():
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts or not path.parts:
            message = f"{name!r} is no path below tasks/."
            raise InvalidRequest(message)
        if path.suffix != ".whl":
            texts[name] = decoded(name, content).decode(errors="replace")
    for name, text in texts.items():
        for number, line in enumerate(text.splitlines(), 1):
            if resolver.required_name(line) == "multinode":
                message = f"{name}:{number}: `multinode` must not be among the requirements."
                hint = "Remove the line: the SDK comes by itself. (On PyPI that name is another program.)"
                raise InputError(message, hint)
    for name in spec.settings or {}:
        if not re.fullmatch(r"(UV|PIP)_\w+", name):
            message = f"{name!r} is no index setting: their names begin with UV_ or PIP_."
            raise InvalidRequest(message)


def counted(spec: EnvironmentSpec) -> dict[str, object]:
    """What is in the digest of every kind of environment.

    Credentials in index settings do not count: tokens that expire would make a new environment each time.
    """
    settings = {
        name: redact(value)
        for name, value in (spec.settings or {}).items()
        if not name.endswith(("_PASSWORD", "_USERNAME"))
    }
    return {
        "python": spec.python,
        "requirements": spec.requirements,
        "files": spec.files or {},
        "settings": settings,
    }


def decoded(name: str, content: str) -> bytes:
    """A file's content from base64. Raises InvalidRequest."""
    try:
        return base64.b64decode(content, validate=True)
    except ValueError as error:
        message = f"The content of {name!r} is not in base64."
        raise InvalidRequest(message) from error
