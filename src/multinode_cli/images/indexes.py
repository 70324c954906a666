"""Where packages come from while an image is built, with the credentials for it kept apart.

What is secret reaches the build beside its context (see ``Secret``), so that no layer, history or line of output has it; the
rest is in the context, so that other indexes are another layer.
"""

from __future__ import annotations

import base64
import json
import netrc
import re
import sys
from collections.abc import Mapping
from configparser import ConfigParser
from configparser import Error as ConfigError
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from multinode.credentials import redact
from multinode.errors import InputError

_PIP_NAMES = {
    "PIP_INDEX_URL": ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"),
    "PIP_EXTRA_INDEX_URL": ("PIP_EXTRA_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL"),
}
"""pip's variables, and the settings that each is taken from, the first one that is set."""
_CONFIGURED = ("index-url", "extra-index-url", "find-links", "trusted-host")
"""What is taken from pip.conf: paths and certificates of this machine mean nothing in an image."""
_URL = re.compile(r"https?://[^\s'\"]+", re.IGNORECASE)
_CREDENTIALS = re.compile(r"(?<=://)(?P<who>[^/\s@'\"]+)@")
_VARIABLE = re.compile(r"\$\{[A-Z0-9_]+\}")
_ARGUMENT_LIMIT = 120_000
"""Linux takes no environment variable over 128 KiB."""


@dataclass(frozen=True)
class Indexes:
    """The ``variables`` that pip is run with, with their credentials, and the ``files`` of requirements, without."""

    variables: dict[str, str] = field(repr=False)
    files: dict[str, bytes]

    @property
    def public(self) -> dict[str, str]:
        """The variables without credentials."""
        index = {name: value for name, value in self.variables.items() if name.startswith("PIP_")}
        return {name: redact(value) for name, value in index.items()}

    @property
    def secret(self) -> Secret | None:
        """What the build has to be told beside its context; None where that is nothing."""
        return Secret(json.dumps(self.variables)) if self.variables else None


@dataclass(frozen=True)
class Secret:
    """The JSON that ``install.py`` reads while the image is built."""

    text: str = field(repr=False)

    def as_argument(self) -> str:
        """Its form for the classic builder. Raises InputError where it is too long for that."""
        value = "multinode:" + base64.b64encode(self.text.encode()).decode()
        if len(value) > _ARGUMENT_LIMIT:
            message = (
                "The settings of the package indexes are too long for Docker's classic builder."
            )
            raise InputError(message, "Shorten pip.conf and netrc, or install docker's buildx.")
        return value


def read_indexes(
    settings: Mapping[str, str], environ: Mapping[str, str], files: Mapping[str, bytes]
) -> Indexes:
    """The index settings of a spec, and of this user's pip.conf where the spec has none, with the logins that netrc has for them.

    ``files`` are requirements.txt and what it includes. A ``user:password@`` in one becomes a variable, which pip replaces.
    """
    logins = _Logins(environ)
    variables = {**_configured(environ), **_translated(settings)}
    variables = {name: logins.put_into(value) for name, value in variables.items()}
    texts = {
        name: logins.put_into(_text(data)) for name, data in files.items() if not _is_wheel(name)
    }
    cleaned, credentials = _without_credentials(texts)
    return Indexes({**variables, **credentials}, {**files, **cleaned})


def _translated(settings: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for pip_name, names in _PIP_NAMES.items():
        value = next((settings[name] for name in names if settings.get(name)), "")
        if value:  # uv's may be named: `internal=https://…`
            found[pip_name] = " ".join(re.sub(r"^[\w.-]+=", "", url) for url in value.split())
    return found


def _configured(environ: Mapping[str, str]) -> dict[str, str]:
    """The index settings of pip's files, as pip reads them: a later one wins."""
    found: dict[str, str] = {}
    for path in _pip_files(environ):
        parser = ConfigParser(interpolation=None)
        try:
            parser.read(path, encoding="utf-8")
        except (ConfigError, UnicodeDecodeError, OSError) as error:
            message = f"{path} cannot be read: {error}."
            raise InputError(message, "Correct it: pip reads it as well.") from error
        for section in ("global", "install"):
            for key in _CONFIGURED:
                value = parser.get(section, key, fallback="")
                kept = [word for word in value.split() if key == "trusted-host" or _URL.match(word)]
                if kept:
                    found["PIP_" + key.upper().replace("-", "_")] = " ".join(kept)
    return found


def _pip_files(environ: Mapping[str, str]) -> list[Path]:
    """https://pip.pypa.io/en/stable/topics/configuration/#location."""
    home = Path(environ.get("HOME") or Path.home())
    config = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    named = environ.get("PIP_CONFIG_FILE")
    if named == "/dev/null":
        return []
    macos = [home / "Library/Application Support/pip/pip.conf"] * (sys.platform == "darwin")
    last = [Path(named)] if named else []
    return [
        Path("/etc/pip.conf"),
        home / ".pip/pip.conf",
        *macos,
        config / "pip/pip.conf",
        *last,
    ]


class _Logins:
    """What this user's netrc knows. It goes into URLs: a netrc in the image would be read otherwise by each Python."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        home = Path(environ.get("HOME") or Path.home())
        named = environ.get("NETRC")
        places = [Path(named)] if named else [home / ".netrc", home / "_netrc"]
        path = next((place for place in places if place.is_file()), None)
        try:
            self._hosts = netrc.netrc(str(path)).hosts if path else {}
        except (netrc.NetrcParseError, OSError, UnicodeDecodeError) as error:
            message = f"{path} cannot be read: {error}."
            raise InputError(message, "Correct it, or set NETRC to another file.") from error

    def put_into(self, text: str) -> str:
        """``text`` with a login in each URL that has none, where there is one for its host."""
        return _URL.sub(lambda found: self._with_login(found[0]), text)

    def _with_login(self, url: str) -> str:
        parts = urlsplit(url)
        login = self._hosts.get(parts.hostname or "")
        if login is None or "@" in parts.netloc:
            return url
        who = f"{quote(login[0], safe='')}:{quote(login[2] or '', safe='')}"
        return url.replace("://", f"://{who}@", 1)


def _without_credentials(texts: Mapping[str, str]) -> tuple[dict[str, bytes], dict[str, str]]:
    variables: dict[str, str] = {}

    def replaced(found: re.Match[str]) -> str:
        who = found["who"]
        if _VARIABLE.sub("", who) in ("", ":", "git"):  # a variable of theirs, or the user of ssh
            return found[0]
        name = f"MULTINODE_CREDENTIALS_{len(variables) + 1}"
        variables[name] = who
        return f"${{{name}}}@"

    cleaned = {
        name: _CREDENTIALS.sub(replaced, text).encode("utf-8", "surrogateescape")
        for name, text in texts.items()
    }
    return cleaned, variables


def hidden(secret: Secret | None) -> list[str]:
    """The words of a secret that no line of output may show."""
    if secret is None:
        return []
    words = set()
    for name, value in json.loads(secret.text).items():
        found = [value] if name.startswith("MULTINODE_") else re.findall(r"://([^/\s@]+)@", value)
        for who in found:
            words |= {who, *who.split(":")}
    both = words | {unquote(word) for word in words}
    return sorted((word for word in both if len(word) > 3), key=len, reverse=True)


def _is_wheel(name: str) -> bool:
    return name.endswith(".whl")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")
