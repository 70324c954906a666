"""The SDK's own files, as they are put into environments: which they are, and a digest of them."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List

SDK_VERSION = "2.0.0"
SDK_REQUIREMENTS = ("httpx>=0.24", "jsonpickle>=3.0")
"""The SDK's own dependencies, as in ``pyproject.toml`` (a test compares them)."""


def sdk_folder() -> Path:
    """The folder of the ``multinode`` package that runs here."""
    return Path(__file__).resolve().parent


def sdk_files() -> List[Path]:
    """Its files, sorted, without bytecode."""
    found = sdk_folder().rglob("*")
    return sorted(path for path in found if path.is_file() and "__pycache__" not in path.parts)


@lru_cache(maxsize=1)
def sdk_digest() -> str:
    """SHA-256 over its files and their names; computed once, as they do not change."""
    digest = hashlib.sha256()
    for path in sdk_files():
        digest.update(f"{path.relative_to(sdk_folder())}\0".encode())
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def install_command(extra: str) -> str:
    """How to add an extra to this installation: from where it came, since PyPI's multinode is another program."""
    import json  # all of these only for an error
    import sys
    from importlib.metadata import distribution

    try:
        origin = json.loads(distribution("multinode").read_text("direct_url.json") or "{}")
    except (ImportError, OSError, ValueError):  # an odd installation must not hide what is missing
        origin = {}
    url = str(origin.get("url", ""))
    if not url:
        return f"pip install 'PATH-OF-THE-WHEEL-OR-REPOSITORY[{extra}]'"
    place = url.removeprefix("file://")
    if origin.get("dir_info", {}).get("editable"):
        return f"{sys.executable} -m pip install -e '{place}[{extra}]'"
    return f"{sys.executable} -m pip install 'multinode[{extra}] @ {url}'"
