"""What ``doctor`` finds of the engine that builds images: whether it answers, its version, its disk, the base image. Makes nothing."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path

from multinode.errors import MultinodeError
from multinode.wire import Finding
from multinode_cli.images import buildkit
from multinode_cli.images.engine import Engine, connect
from multinode_cli.images.failures import EngineRefused, base_image_missing

MIN_FREE_BYTES = 5 * 1024**3
"""An image with a few packages takes one to two GiB while it is built."""


def check_engine(environ: Mapping[str, str], base_image: str) -> list[Finding]:
    """The findings, the engine's first."""
    try:
        engine = connect(environ)
    except MultinodeError as error:
        return [Finding("Docker", "FAIL", error.message, error.hint)]
    try:
        return [
            _version(engine, environ),
            *_disk(engine),
            _base_image(engine, base_image),
        ]
    except EngineRefused as error:
        finding = f"the engine at {engine.address} answers with an error: {error.words}"
        return [Finding("Docker", "FAIL", finding, "Look into its log, and start it again.")]
    except MultinodeError as error:
        return [Finding("Docker", "FAIL", error.message, error.hint)]
    finally:
        engine.close()


def _version(engine: Engine, environ: Mapping[str, str]) -> Finding:
    facts = engine.facts()
    told = {**environ, **engine.variables}
    builder = "BuildKit" if buildkit.find(told, engine.context) else "its classic builder"
    finding = f"{facts.version} ({facts.platform}) at {engine.address}, builds with {builder}"
    return Finding("Docker", "ok", finding)


def _disk(engine: Engine) -> list[Finding]:
    """Nothing where the engine is on another machine."""
    folder = engine.facts().root_dir
    if not engine.address.startswith("unix://") or not folder or not Path(folder).is_dir():
        return []
    free_bytes = shutil.disk_usage(folder).free
    finding = f"{free_bytes / 1024**3:.1f} GiB free for images, in {folder}"
    if free_bytes < MIN_FREE_BYTES:
        cure = "Make room: `multinode server gc`, and `docker system prune`."
        return [Finding("Docker's disk", "FAIL", finding, cure)]
    return [Finding("Docker's disk", "ok", finding)]


def _base_image(engine: Engine, name: str) -> Finding:
    if engine.image(name) is not None:
        return Finding("base image", "ok", f"{name} is in the engine")
    try:
        engine.ask_registry(name)
    except EngineRefused as error:
        told = base_image_missing(
            error.words, name, engine.platform()
        )  # as the deploy would say it
        return Finding("base image", "note", told.message, told.hint.replace("\n", " "))
    return Finding("base image", "ok", f"{name} can be pulled: its registry answers")
