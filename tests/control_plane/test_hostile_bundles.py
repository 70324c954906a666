"""Archives that mean harm, through both places that unpack: nothing is written outside, and little is read at once."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import io
import os
import tarfile
import tracemalloc
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from multinode.errors import InvalidTasks, MultinodeError
from multinode.worker import bundle
from multinode_control_plane.runners.bundles import Bundles

PARTS = st.sampled_from(["a", "b", "..", ".", "", "evil", "x" * 300, "ü", "\n", "main.py", "a\0b"])
NAMES = st.one_of(
    st.lists(PARTS, min_size=1, max_size=5).map("/".join),
    st.sampled_from(["/etc/evil", "//evil", "../outside/evil", "a/../../evil", "~/evil"]),
)
KINDS = st.sampled_from(
    [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE,
     tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.GNUTYPE_SPARSE, tarfile.CONTTYPE]
)  # fmt: skip
MEMBERS = st.lists(st.tuples(KINDS, NAMES, NAMES, st.binary(max_size=20)), max_size=8)
FORMATS = st.sampled_from([tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
QUICK = settings(
    max_examples=60, deadline=None, derandomize=True, phases=[Phase.generate],  # to make it small takes minutes
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip


def archive(members: list[Any], form: int = tarfile.PAX_FORMAT) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz", format=form) as tar:
        for kind, name, link, content in members:
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, link
            member.size = len(content) if kind in (tarfile.REGTYPE, tarfile.CONTTYPE) else 0
            member.mode = 0o7777
            tar.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def everything(folder: Path) -> list[tuple[str, str]]:
    """Each file and folder outside of ``inside``, with what it is."""
    found = []
    for at, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not (at == str(folder) and name == "inside")]
        for name in (*folders, *files):
            path = Path(at, name)
            is_file = path.is_file() and not path.is_symlink()
            found.append((str(path), path.read_text() if is_file else oct(path.lstat().st_mode)))
    return sorted(found)


def stage(folder: Path) -> list[tuple[str, str]]:
    (folder / "outside").mkdir(parents=True)
    (folder / "outside" / "evil").write_text("untouched")
    (folder / "evil").write_text("untouched")
    return everything(folder)


def unpack(folder: Path, content: bytes) -> None:
    """As a worker does, and as the control plane does; where one refuses it, so does the other."""
    refusals = []
    packed = folder / "inside" / "bundle.tar.gz"
    packed.parent.mkdir(exist_ok=True)
    packed.write_bytes(content)
    try:
        bundle.extract(packed, folder / "inside" / "code")
    except InvalidTasks as error:
        refusals.append(error.message)
    try:
        asyncio.run(in_control_plane(folder / "inside" / "data", content))
    except InvalidTasks as error:
        refusals.append(error.message)
    assert len(refusals) in (0, 2), refusals


async def in_control_plane(data_dir: Path, content: bytes) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield content

    bundles = Bundles(data_dir)
    bundles.open()
    digest = hashlib.sha256(content).hexdigest()
    await bundles.put(digest, pieces())
    try:
        await bundles.code_dir(digest)
    except MultinodeError:
        left = [path.name for path in (data_dir / "code").iterdir()]
        assert not [name for name in left if digest in name], "half unpacked"
        raise


@QUICK
@given(members=MEMBERS, form=FORMATS)
def test_nothing_is_written_outside(tmp_path_factory: Any, members: Any, form: int) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    before = stage(folder)
    try:
        content = archive(members, form)
    except (ValueError, UnicodeError):
        return  # tarfile does not write it
    unpack(folder, content)
    assert everything(folder) == before


@QUICK
@given(members=MEMBERS, at=st.integers(0, 4000), byte=st.integers(0, 255))
def test_what_is_broken_is_refused(tmp_path_factory: Any, members: Any, at: int, byte: int) -> None:
    folder = tmp_path_factory.mktemp("fuzz")
    before = stage(folder)
    plain = bytearray(gzip.decompress(archive([(tarfile.REGTYPE, "a", "", b"x"), *members])))
    plain[at % len(plain)] = byte
    unpack(folder, gzip.compress(bytes(plain)))
    unpack(folder, bytes(plain))
    assert everything(folder) == before


@pytest.mark.parametrize(
    "members",
    [
        [(tarfile.SYMTYPE, "l", "n/..", b""), (tarfile.SYMTYPE, "n", ".", b""), (tarfile.REGTYPE, "l/evil", "", b"x")],
        [(tarfile.SYMTYPE, "l", "..", b""), (tarfile.REGTYPE, "l/evil", "", b"x")],
        [(tarfile.REGTYPE, "a", "", b"x"), (tarfile.REGTYPE, "a/b", "", b"x")],
        [(tarfile.DIRTYPE, "a", "", b""), (tarfile.REGTYPE, "a", "", b"x")],
        [(tarfile.REGTYPE, "x" * 300, "", b"x")],
        [(tarfile.REGTYPE, "/".join(["d"] * 3000), "", b"x")],
        [(tarfile.SYMTYPE, "l", "l", b""), (tarfile.REGTYPE, "l/a", "", b"x")],
        [(tarfile.CHRTYPE, "null", "", b"")],
    ],
)  # fmt: skip
def test_a_refusal_is_told(tmp_path: Path, members: Any) -> None:
    before = stage(tmp_path)
    packed = tmp_path / "bundle.tar.gz"
    packed.write_bytes(archive(members))
    with pytest.raises(InvalidTasks, match=r"The bundle"):
        bundle.extract(packed, tmp_path / "inside")
    packed.unlink()
    assert everything(tmp_path) == before


def claimed(kind: bytes, size: int, name: str = "a") -> bytes:
    member = tarfile.TarInfo(name)
    member.type, member.size = kind, size
    return member.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize("kind", [tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME])
def test_a_header_that_would_take_all_memory_is_refused(tmp_path: Path, kind: bytes) -> None:
    packed = tmp_path / "bomb.tar.gz"
    with gzip.open(packed, "wb", compresslevel=1) as file:
        file.write(claimed(kind, 64 * 1024**2))
        for _ in range(64):
            file.write(bytes(1024**2))
    tracemalloc.start()
    try:
        with pytest.raises(InvalidTasks, match="a header is too long"):
            bundle.extract(packed, tmp_path / "code")
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak_bytes < 8 * 1024**2


@pytest.mark.parametrize("size", [3 * 1024**2, 2**62])
def test_a_bomb_of_bytes_is_refused(tmp_path: Path, monkeypatch: Any, size: int) -> None:
    monkeypatch.setattr(bundle, "MAX_UNPACKED_BYTES", 1024**2)
    packed = tmp_path / "bomb.tar.gz"
    with gzip.open(packed, "wb", compresslevel=1) as file:
        file.write(claimed(tarfile.REGTYPE, size))
        for _ in range(4):
            file.write(bytes(1024**2))
    with pytest.raises(InvalidTasks, match="cannot be unpacked"):
        bundle.extract(packed, tmp_path / "code")
    written = sum(each.stat().st_size for each in (tmp_path / "code").iterdir())
    assert written <= 2 * 1024**2


def test_a_bomb_of_files_is_refused(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(bundle, "MAX_BUNDLE_FILES", 10)
    packed = tmp_path / "bomb.tar.gz"
    packed.write_bytes(archive([(tarfile.REGTYPE, f"f{n}", "", b"") for n in range(20)]))
    with pytest.raises(InvalidTasks, match="over 10 files"):
        bundle.extract(packed, tmp_path / "code")
    assert len(list((tmp_path / "code").iterdir())) == 10
