"""What this user's pip is set to, as far as it means something while an image is built: indexes, and who vouches for them."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Mapping
from configparser import ConfigParser
from configparser import Error as ConfigError
from pathlib import Path

from multinode.errors import InputError

_PIP_NAMES = {
    "PIP_INDEX_URL": ("PIP_INDEX_URL", "UV_DEFAULT_INDEX", "UV_INDEX_URL"),
    "PIP_EXTRA_INDEX_URL": ("PIP_EXTRA_INDEX_URL", "UV_INDEX", "UV_EXTRA_INDEX_URL"),
    "PIP_FIND_LINKS": ("PIP_FIND_LINKS",),
    "PIP_TRUSTED_HOST": ("PIP_TRUSTED_HOST",),
}
"""pip's variables, and those that each is taken from, the first one that is set."""
SITE_WIDE = Path("/etc/pip.conf")
_CERTIFICATE = re.compile(r"-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----")


def index_settings(environ: Mapping[str, str]) -> dict[str, str]:
    """pip's variables for what ``environ`` says, of uv too, and for this user's pip.conf where that says nothing.

    Paths of this machine mean nothing in an image, and are left out.
    """
    found = {**_configured(environ), **_translated(environ)}
    kept = {name: _without_paths(name, value) for name, value in found.items()}
    return {name: value for name, value in sorted(kept.items()) if value}


def _translated(environ: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for pip_name, names in _PIP_NAMES.items():
        value = next((environ[name] for name in names if environ.get(name)), "")
        if value:  # uv's may be named: `internal=https://…`
            found[pip_name] = " ".join(re.sub(r"^[\w.-]+=", "", url) for url in value.split())
    return found


def _configured(environ: Mapping[str, str]) -> dict[str, str]:
    found = {}
    for key, value in _options(environ).items():
        name = "PIP_" + key.upper().replace("-", "_")
        if name in _PIP_NAMES:
            found[name] = " ".join(value.split())
    return found


def _without_paths(name: str, value: str) -> str:
    if name == "PIP_TRUSTED_HOST":
        return value
    return " ".join(word for word in value.split() if re.match(r"https?://", word, re.IGNORECASE))


def authorities(environ: Mapping[str, str]) -> str:
    """The certificates of ``PIP_CERT``, else of ``cert`` in pip.conf; empty where pip uses its own. Raises InputError."""
    named = environ.get("PIP_CERT") or _options(environ).get("cert", "")
    if not named:
        return ""
    path = Path(named).expanduser()
    try:
        texts = [file.read_text(errors="replace") for file in _files(path)]
    except OSError as error:
        message = f"The certificates that pip is set to use cannot be read: {error}."
        raise InputError(message, "Correct PIP_CERT, or `cert` in pip.conf.") from error
    found = dict.fromkeys(block for text in texts for block in _CERTIFICATE.findall(text))
    if not found:
        message = f"{path}, which pip is set to use, has no certificate in it."
        raise InputError(message, "Correct PIP_CERT, or `cert` in pip.conf: it is in PEM form.")
    return "".join(f"{block}\n" for block in found)  # and never a key, which may stand beside them


def _files(path: Path) -> list[Path]:
    """A bundle, or a folder of certificates."""
    return sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]


# --- pip's files ---


def _options(environ: Mapping[str, str]) -> dict[str, str]:
    """The options that ``pip install`` has from its files: a later one wins."""
    found: dict[str, str] = {}
    for path in _places(environ):
        parser = ConfigParser(interpolation=None)
        try:
            parser.read(path, encoding="utf-8")
        except (ConfigError, UnicodeDecodeError, OSError) as error:
            message = f"{path} cannot be read: {error}."
            raise InputError(message, "Correct it: pip reads it as well.") from error
        for section in ("global", "install"):
            if parser.has_section(section):
                found |= dict(_filled(parser, section))
    return found


def _filled(parser: ConfigParser, section: str) -> Iterator[tuple[str, str]]:
    for key, value in parser.items(section):
        if value:
            yield key.replace("_", "-"), value.strip()


def _places(environ: Mapping[str, str]) -> list[Path]:
    """https://pip.pypa.io/en/stable/topics/configuration/#location."""
    home = Path(environ.get("HOME") or Path.home())
    config = Path(environ.get("XDG_CONFIG_HOME") or home / ".config")
    named = environ.get("PIP_CONFIG_FILE")
    if named == "/dev/null":
        return []
    macos = [home / "Library/Application Support/pip/pip.conf"] * (sys.platform == "darwin")
    last = [Path(named)] if named else []
    return [
        SITE_WIDE,
        home / ".pip/pip.conf",
        *macos,
        config / "pip/pip.conf",
        *last,
    ]
