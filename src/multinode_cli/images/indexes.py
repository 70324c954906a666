"""Where packages come from while an image is built, with the credentials for it kept apart.

What is secret reaches the build beside its context (see ``Secret``), so that no layer, history or line of output has it; the
rest is in the context, so that other indexes are another layer.
"""

from __future__ import annotations

import base64
import json
import netrc
import re
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

from multinode.credentials import redact
from multinode.errors import InputError
from multinode_cli.images.pip_settings import authorities

CERTIFICATES = "certificates"
_URL = re.compile(r"https?://[^\s'\"]+", re.IGNORECASE)
_CREDENTIALS = re.compile(r"(?<=://)(?P<who>[^/\s@'\"]+)@")
_VARIABLE = re.compile(r"\$\{[A-Z0-9_]+\}")
_ARGUMENTS = ("FTP_PROXY", "ftp_proxy")
"""The engine keeps these build arguments out of the image, its history and its cache, as it has to with a proxy's password:
https://docs.docker.com/build/building/variables/#pre-defined-build-arguments. ``install.py`` takes the secret from there."""
_ARGUMENT_LIMIT = 120_000
"""Linux takes no environment variable over 128 KiB. All certificates of a system, packed, are more than one and less than two."""


@dataclass(frozen=True)
class Indexes:
    """The ``variables`` that pip is run with, with their credentials, and the ``files`` of requirements, without.

    ``certificates`` are those by which pip knows the indexes; empty where it takes its own.
    """

    variables: dict[str, str] = field(repr=False)
    files: dict[str, bytes]
    certificates: str = field(default="", repr=False)

    @property
    def public(self) -> dict[str, str]:
        """The variables without credentials."""
        index = {name: value for name, value in self.variables.items() if name.startswith("PIP_")}
        return {name: redact(value) for name, value in index.items()}

    @property
    def secret(self) -> Secret | None:
        """What the build has to be told beside its context; None where that is nothing."""
        told = {
            **self.variables,
            **({CERTIFICATES: self.certificates} if self.certificates else {}),
        }
        return Secret(json.dumps(told)) if told else None


@dataclass(frozen=True)
class Secret:
    """The JSON that ``install.py`` reads while the image is built."""

    text: str = field(repr=False)

    def as_arguments(self) -> dict[str, str]:
        """Its form for the classic builder. Raises InputError where it is too long for that."""
        packed = "multinode:" + base64.b64encode(zlib.compress(self.text.encode(), 9)).decode()
        if len(packed) > _ARGUMENT_LIMIT * len(_ARGUMENTS):
            message = "The settings of pip are too long for Docker's classic builder."
            raise InputError(
                message, "Shorten pip.conf, netrc and PIP_CERT, or install docker's buildx."
            )
        return {
            name: packed[place * _ARGUMENT_LIMIT :][:_ARGUMENT_LIMIT]
            for place, name in enumerate(_ARGUMENTS)
        }


def read_indexes(
    settings: Mapping[str, str], environ: Mapping[str, str], files: Mapping[str, bytes]
) -> Indexes:
    """The settings of a spec (``index_settings``) with the logins that netrc has for them, and pip's certificates.

    ``files`` are requirements.txt and what it includes. A ``user:password@`` in one becomes a variable, which pip replaces.
    """
    logins = _Logins(environ)
    variables = {name: logins.put_into(value) for name, value in settings.items()}
    texts = {
        name: logins.put_into(_text(data)) for name, data in files.items() if not _is_wheel(name)
    }
    cleaned, credentials = _without_credentials(texts)
    return Indexes({**variables, **credentials}, {**files, **cleaned}, authorities(environ))


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
