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
from collections.abc import Iterable, Mapping
from configparser import ConfigParser
from configparser import Error as ConfigError
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote, urlsplit

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
    """Pip's ``variables`` as they are, ``netrc`` for their hosts, and the ``files`` of requirements, without credentials."""

    variables: dict[str, str] = field(repr=False)
    netrc: str = field(repr=False)
    files: dict[str, bytes]

    @property
    def public(self) -> dict[str, str]:
        """The variables without credentials."""
        index = {name: value for name, value in self.variables.items() if name.startswith("PIP_")}
        return {name: redact(value) for name, value in index.items()}

    @property
    def secret(self) -> Secret | None:
        """What the build has to be told beside its context; None where that is nothing."""
        if not self.variables and not self.netrc:
            return None
        return Secret(json.dumps({"variables": self.variables, "netrc": self.netrc}))


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
    """The index settings of a spec, those of this user's pip.conf where the spec has none, and what of netrc their hosts need.

    ``files`` are requirements.txt and what it includes. A ``user:password@`` in one becomes a variable, which pip replaces.
    """
    variables = {**_configured(environ), **_translated(settings)}
    cleaned, credentials = _without_credentials(files)
    texts = [*variables.values(), *(_text(name, data) for name, data in files.items())]
    hosts = {urlsplit(url).hostname or "" for text in texts for url in _URL.findall(text)}
    return Indexes({**variables, **credentials}, _netrc_of(environ, hosts), cleaned)


def redact(text: str) -> str:
    """``text`` with ``user:password@`` taken out of every URL in it."""
    return _CREDENTIALS.sub("***@", text)


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


def _netrc_of(environ: Mapping[str, str], hosts: Iterable[str]) -> str:
    """The lines of netrc for ``hosts``, and for none other: what is built in the image could read them."""
    home = Path(environ.get("HOME") or Path.home())
    named = environ.get("NETRC")
    path = next(
        (
            at
            for at in ([Path(named)] if named else [home / ".netrc", home / "_netrc"])
            if at.is_file()
        ),
        None,
    )
    if path is None:
        return ""
    try:
        parsed = netrc.netrc(str(path))
    except (netrc.NetrcParseError, OSError, UnicodeDecodeError) as error:
        message = f"{path} cannot be read: {error}."
        raise InputError(message, "Correct it, or set NETRC to another file.") from error
    lines = []
    for host in sorted(set(hosts) & set(parsed.hosts)):
        login, _, password = parsed.hosts[host]
        lines.append(f'machine {host} login "{login}" password "{password}"\n')
    return "".join(lines)


def _without_credentials(files: Mapping[str, bytes]) -> tuple[dict[str, bytes], dict[str, str]]:
    variables: dict[str, str] = {}

    def replaced(found: re.Match[str]) -> str:
        who = found["who"]
        if _VARIABLE.sub("", who) in ("", ":", "git"):  # a variable of theirs, or the user of ssh
            return found[0]
        name = f"MULTINODE_CREDENTIALS_{len(variables) + 1}"
        variables[name] = who
        return f"${{{name}}}@"

    cleaned = {
        name: data if _is_wheel(name) else _CREDENTIALS.sub(replaced, _text(name, data)).encode()
        for name, data in files.items()
    }
    return cleaned, variables


def hidden(secret: Secret | None) -> list[str]:
    """The words of a secret that no line of output may show."""
    if secret is None:
        return []
    given = json.loads(secret.text)
    words = set()
    for value in [*given["variables"].values(), given["netrc"]]:
        for who in re.findall(r"://([^/\s@]+)@", value):
            words |= {who, *who.split(":")}
        words |= set(re.findall(r'password "(.*)"', value))
    words |= {v for k, v in given["variables"].items() if k.startswith("MULTINODE_")}
    both = words | {unquote(word) for word in words}
    return sorted((word for word in both if len(word) > 3), key=len, reverse=True)


def _is_wheel(name: str) -> bool:
    return name.endswith(".whl")


def _text(name: str, data: bytes) -> str:
    return "" if _is_wheel(name) else data.decode("utf-8", "surrogateescape")
