"""Images for another kind of processor than the engine's. Base images are made by hand: no registry can be reached here."""

from __future__ import annotations

import io
import json
import struct
import tarfile
import time

import pytest
from tests.images.bench import with_buildx

from multinode.errors import EnvironmentBuildFailed
from multinode.wire import EnvironmentSpec

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ARM = "linux/arm64"
ELF_OF_ARM = struct.pack("<4sBBBBB7sHHI", b"\x7fELF", 2, 1, 1, 0, 0, b"", 2, 183, 1) + bytes(64)
"""Enough of a program of ARM64 for the kernel to refuse it."""


@pytest.fixture(params=["classic", "buildx"])
def builder(request, tmp_path):
    """The variables with which an image is built in this way."""
    return {} if request.param == "classic" else with_buildx(tmp_path / "docker")


@pytest.fixture
def arm_base(shared_bench, tmp_path):
    """Makes an image that says of itself that it is for ARM64 from one in the engine, which carries the label of the bench."""
    api, made = shared_bench.api, []

    def make(image):
        name = f"multinode-test-arm:{time.time_ns()}"
        made.append(name)
        path = tmp_path / "arm.tar"
        with path.open("wb") as file:
            rewrite(api.get_image(image), file, name)
        with path.open("rb") as file:
            api.load_image(file)
        path.unlink()
        return name

    yield make
    for name in made:
        api.remove_image(name, force=True)


def rewrite(blocks, file, name):
    """The archive of an image, with another architecture and name."""
    source = io.BufferedReader(Blocks(iter(blocks)))
    with tarfile.open(fileobj=source, mode="r|") as old, tarfile.open(fileobj=file, mode="w") as new:  # fmt: skip
        for entry in old:
            data = old.extractfile(entry) if entry.isreg() else None
            if data and entry.name == "manifest.json":
                (listed,) = json.load(data)
                data = changed(entry, [{**listed, "RepoTags": [name]}])
            elif data and entry.name.endswith(".json") and "/" not in entry.name:
                data = changed(entry, {**json.load(data), "architecture": "arm64"})
            if entry.name != "repositories":
                new.addfile(entry, data)


def changed(entry, content):
    data = json.dumps(content).encode()
    entry.size = len(data)
    return io.BytesIO(data)


class Blocks(io.RawIOBase):
    """A file that is read from blocks as they come."""

    def __init__(self, blocks):
        self.blocks, self.rest = blocks, b""

    def readable(self):
        return True

    def readinto(self, buffer):
        self.rest = self.rest or next(self.blocks, b"")
        taken, self.rest = self.rest[: len(buffer)], self.rest[len(buffer) :]
        buffer[: len(taken)] = taken
        return len(taken)


@pytest.fixture
def only_arm(shared_bench):
    """An image whose every program is one of ARM64."""
    content = {"bin/sh": ELF_OF_ARM, "etc/passwd": b"root:x:0:0::/:/bin/sh\n"}
    files = io.BytesIO()
    with tarfile.open(fileobj=files, mode="w") as tar:
        for path, data in {**content, "etc/group": b"root:x:0:\n"}.items():
            entry = tarfile.TarInfo(path)
            entry.size, entry.mode = len(data), 0o755
            tar.addfile(entry, io.BytesIO(data))
    name = f"multinode-test-programs:{time.time_ns()}"
    api = shared_bench.api
    (label,) = (f"LABEL {key}={value}" for key, value in shared_bench.labels.items())
    repository, tag = name.split(":")
    api.import_image_from_data(files.getvalue(), repository, tag, changes=[label])
    yield name
    api.remove_image(name, force=True)


def test_what_the_engine_cannot_run_is_told_with_what_to_do(
    shared_bench, arm_base, only_arm, builder
):
    """As where nothing emulates such a machine."""
    base = arm_base(only_arm)
    with pytest.raises(EnvironmentBuildFailed, match=f"The image is for {ARM}, and") as caught:
        shared_bench.make(EnvironmentSpec(base_image=base), platform=ARM, **builder)
    assert "--install arm64" in caught.value.hint


def test_an_image_is_built_for_the_platform_of_the_order(shared_bench, arm_base, builder):
    """The base's programs are really this machine's, so that they run as emulated ones would."""
    bench = shared_bench
    base = arm_base(bench.base_image)
    spec = EnvironmentSpec(base_image=base)
    report = bench.make(spec, platform=ARM, digest="a" * 64, **builder)
    found = bench.api.inspect_image(report.image)
    assert (found["Os"], found["Architecture"]) == ("linux", "arm64")
    assert report.python_served.startswith("3.8.")
