"""The store of bundles and their extracted code."""

import asyncio
import errno
import hashlib
import io
import tarfile

import pytest

from multinode.errors import BundleNotFound, BundleTooLarge, InvalidRequest, StorageFull
from multinode_control_plane.runners import bundles as bundles_module
from multinode_control_plane.runners import whole_files
from multinode_control_plane.runners.bundles import Bundles


def archive(files):
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w:gz") as tar:
        for name, content in files.items():
            item = tarfile.TarInfo(name)
            item.size = len(content)
            tar.addfile(item, io.BytesIO(content))
    return made.getvalue()


async def in_chunks(content, size=100):
    for start in range(0, len(content), size):
        yield content[start : start + size]


@pytest.fixture
def bundles(tmp_path):
    store = Bundles(tmp_path)
    store.open()
    return store


def put(bundles, content, sha256=None):
    name = sha256 or hashlib.sha256(content).hexdigest()
    asyncio.run(bundles.put(name, in_chunks(content)))
    return name


def files_below(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_what_was_put_is_there_and_can_be_put_again(bundles):
    content = archive({"main.py": b"x = 1\n"})
    name = put(bundles, content)
    put(bundles, content)
    assert bundles.path(name).read_bytes() == content


def test_content_under_a_wrong_name_is_refused_and_not_kept(bundles, tmp_path):
    with pytest.raises(InvalidRequest, match="SHA-256"):
        put(bundles, b"abc", "0" * 64)
    assert files_below(tmp_path / "bundles") == []


def test_a_full_disk_is_said_and_nothing_is_kept(bundles, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(whole_files, "keep", full)
    with pytest.raises(StorageFull, match="disk is full"):
        put(bundles, archive({"main.py": b"x = 1\n"}))
    assert files_below(tmp_path / "bundles") == []


def test_a_bundle_that_is_too_large_is_refused_and_not_kept(bundles, tmp_path, monkeypatch):
    monkeypatch.setattr(bundles_module, "MAX_BUNDLE_BYTES", 150)
    with pytest.raises(BundleTooLarge):
        put(bundles, b"x" * 151)
    assert files_below(tmp_path / "bundles") == []


def test_an_upload_that_breaks_off_leaves_nothing(bundles, tmp_path):
    async def broken():
        yield b"abc"
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        asyncio.run(bundles.put("0" * 64, broken()))
    assert files_below(tmp_path / "bundles") == []


@pytest.mark.parametrize("name", ["", "../../etc/passwd", "A" * 64, "0" * 63])
def test_a_name_that_is_no_sha256_is_refused(bundles, name):
    with pytest.raises(InvalidRequest):
        bundles.path(name)


def test_an_unknown_bundle_is_not_found(bundles):
    with pytest.raises(BundleNotFound):
        bundles.path("0" * 64)
    with pytest.raises(BundleNotFound):
        asyncio.run(bundles.code_dir("0" * 64))


def test_code_is_extracted_once_read_only_with_folders_for_bytecode(bundles):
    name = put(bundles, archive({"main.py": b"x = 1\n", "sub/a.py": b""}))

    async def main():
        first, second = await asyncio.gather(bundles.code_dir(name), bundles.code_dir(name))
        assert first == second
        return first

    code = asyncio.run(main())
    assert files_below(code) == ["main.py", "sub/a.py"]
    assert (code / "main.py").stat().st_mode & 0o222 == 0
    assert (code / "sub").stat().st_mode & 0o200


def test_an_archive_that_leads_outside_is_refused_and_leaves_nothing(bundles, tmp_path):
    name = put(bundles, archive({"../outside.py": b"x = 1\n"}))
    with pytest.raises(Exception, match=r"outside\.py"):
        asyncio.run(bundles.code_dir(name))
    assert files_below(tmp_path / "code") == [".boot"]
    assert not (tmp_path / "outside.py").exists()


def test_opening_removes_what_was_under_way(bundles, tmp_path):
    name = put(bundles, archive({"main.py": b""}))
    code = asyncio.run(bundles.code_dir(name))
    (tmp_path / "bundles" / ".writing-x").write_text("")
    (tmp_path / "code" / ".extracting-x").mkdir()
    bundles.open()
    assert files_below(tmp_path / "bundles") == [f"{name}.tar.gz"]
    assert sorted(path.name for path in (tmp_path / "code").iterdir()) == [".boot", code.name]


def test_code_of_an_earlier_boot_is_extracted_anew(bundles, tmp_path):
    name = put(bundles, archive({"main.py": b"x = 1\n"}))
    code = asyncio.run(bundles.code_dir(name))
    (code / "main.py").chmod(0o644)
    (code / "main.py").write_text("")
    (tmp_path / "code" / ".boot").write_text("another boot")
    bundles.open()
    assert (asyncio.run(bundles.code_dir(name)) / "main.py").read_text() == "x = 1\n"


def test_a_removed_bundle_is_gone_with_its_code(bundles, tmp_path):
    name = put(bundles, archive({"main.py": b""}))
    asyncio.run(bundles.code_dir(name))
    asyncio.run(bundles.remove(name))
    asyncio.run(bundles.remove(name))
    assert files_below(tmp_path) == ["code/.boot"]
