"""An environment's image made by hand, for tests of what runs images: as small as one can be, and quick to make.

The product's own way is the command line's (``multinode_cli``); this stands in for it where only the runner is tested.
"""

import os
import shutil
import tempfile
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

import pytest

from multinode.distribution import sdk_digest, sdk_files, sdk_folder
from multinode.wire import EnvironmentSpec, ImageOrder, ImageReport

PYTHON = "3.8"
BASE = "python:3.8-bullseye"
DOCKERFILE = f"""
FROM {BASE}
RUN mkdir /work && chown 1000:1000 /work
COPY multinode /opt/multinode/multinode
RUN python -c "import site; open(site.getsitepackages()[0] + '/multinode.pth', 'w').write('/opt/multinode')" \
 && python -m compileall -q /opt/multinode
"""


def needs_engine():
    """Skips where no Docker engine answers; with CI=true that is a failure."""
    reason = _missing_engine()
    if reason:
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)


@lru_cache(maxsize=1)
def _missing_engine():
    from multinode_control_plane.runners.docker_engine import Engine, EngineError

    try:
        Engine.connect(os.environ, 5.0).close()
    except EngineError as error:
        return str(error)
    return ""


def build_image(
    order: ImageOrder, spec: EnvironmentSpec, environ: Mapping[str, str] = os.environ
) -> ImageReport:
    """Builds it in the engine of these variables."""
    import docker

    with tempfile.TemporaryDirectory() as folder:
        Path(folder, "Dockerfile").write_text(DOCKERFILE)
        for path in sdk_files():
            target = Path(folder, "multinode", path.relative_to(sdk_folder()))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, target)
            os.utime(target, (0, 0))
        client = docker.from_env(environment=dict(environ))
        try:
            image, _ = client.images.build(
                path=folder, tag=order.tag, labels=order.labels, rm=True, forcerm=True
            )
        finally:
            client.close()
    return ImageReport(
        spec=spec,
        sdk_digest=sdk_digest(),
        image=image.id,
        python_served=PYTHON,
        packages=[],
        base_image=BASE,
        warnings=[],
    )
