"""What the engine is sent to build an image from: the Dockerfile, requirements, the SDK. Never code, never ``.env``."""

from __future__ import annotations

import base64
import io
import json
import tarfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from multinode.distribution import SDK_REQUIREMENTS, SDK_VERSION, sdk_files, sdk_folder
from multinode.wire import EnvironmentSpec
from multinode_cli.images.indexes import Secret, read_indexes
from multinode_cli.template_files import templates_folder

OLDEST_PYTHON_IMAGE = "python:3.8-bullseye"
REPORT = "/opt/multinode/environment.json"
"""Where ``install.py`` notes what is in the image."""
SECRET_ID = "multinode-indexes"

_MOUNTS = (
    "--mount=type=cache,target=/var/cache/multinode-pip,sharing=locked "
    f"--mount=type=secret,id={SECRET_ID} "
)
"""What BuildKit can do beyond the classic builder: keep pip's downloads, and lend a secret."""


@dataclass(frozen=True)
class Context:
    """``files`` by their path, and the ``secret`` that goes beside them."""

    base_image: str
    files: dict[str, bytes]
    secret: Secret | None

    def archive(self, *, has_buildkit: bool) -> bytes:
        """The files as a tar in which nothing depends on when or where it was made, so that layers are reused."""
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w") as tar:
            for name, data in sorted(self.written(has_buildkit=has_buildkit).items()):
                entry = tarfile.TarInfo(name)
                entry.size, entry.mode = len(data), 0o644
                tar.addfile(entry, io.BytesIO(data))
        return buffer.getvalue()

    def written(self, *, has_buildkit: bool) -> dict[str, bytes]:
        """The files, with the Dockerfile for one of the two builders."""
        mounts = _MOUNTS if has_buildkit else ""
        dockerfile = self.files["Dockerfile"].decode().replace("{{mounts}}", mounts)
        return {**self.files, "Dockerfile": dockerfile.encode()}


def make_context(spec: EnvironmentSpec, environ: Mapping[str, str]) -> Context:
    """The context of the image that ``spec`` asks for."""
    given = {"requirements.txt": spec.requirements.encode()}
    given |= {name: base64.b64decode(data) for name, data in (spec.files or {}).items()}
    indexes = read_indexes(spec.settings or {}, environ, given)
    base_image = base_image_of(spec)
    files = {
        "Dockerfile": _dockerfile(base_image, spec.apt or []).encode(),
        "build/install.py": (templates_folder() / "image/install.py").read_bytes(),
        "build/sdk-requirements.txt": "".join(f"{line}\n" for line in SDK_REQUIREMENTS).encode(),
        "build/indexes.json": json.dumps(indexes.public, sort_keys=True).encode(),
        **{f"build/inputs/{name}": data for name, data in indexes.files.items()},
        **_sdk(),
    }
    return Context(base_image, files, indexes.secret)


def base_image_of(spec: EnvironmentSpec) -> str:
    """``base_image``, else the official image of the Python; 3.8 is on bullseye, the last release that had it."""
    if spec.base_image:
        return spec.base_image
    return OLDEST_PYTHON_IMAGE if spec.python == "3.8" else f"python:{spec.python}-bookworm"


def _dockerfile(base_image: str, apt: list[str]) -> str:
    template = (templates_folder() / "image/Dockerfile").read_text(encoding="utf-8")
    lines = [
        line.removeprefix("{{if apt}}")
        for line in template.splitlines()
        if apt or not line.startswith("{{if apt}}")
    ]
    text = "\n".join(lines) + "\n"
    return text.replace("{{base_image}}", base_image).replace("{{apt}}", " ".join(sorted(apt)))


def _sdk() -> dict[str, bytes]:
    """The SDK that runs here, with the one file by which ``importlib.metadata`` knows it."""
    found = {
        f"sdk/multinode/{Path(path).relative_to(sdk_folder()).as_posix()}": path.read_bytes()
        for path in sdk_files()
    }
    metadata = f"Metadata-Version: 2.1\nName: multinode\nVersion: {SDK_VERSION}\n"
    found[f"sdk/multinode-{SDK_VERSION}.dist-info/METADATA"] = metadata.encode()
    return found
