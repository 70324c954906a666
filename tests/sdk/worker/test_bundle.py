"""Nothing of a bundle lands outside of its folder."""

import io
import tarfile

import pytest

from multinode.errors import InvalidTasks
from multinode.worker.bundle import extract


def archive_of(tmp_path, *members):
    path = tmp_path / "bundle.tar.gz"
    with tarfile.open(path, "w:gz") as archive:
        for name, kind, target in members:
            member = tarfile.TarInfo(name)
            member.type = kind
            content = target.encode() if kind == tarfile.REGTYPE else b""
            member.size = len(content)
            member.linkname = "" if kind == tarfile.REGTYPE else target
            member.mode = 0o4755
            archive.addfile(member, io.BytesIO(content))
    return path


def test_files_folders_and_links_within(tmp_path):
    path = archive_of(
        tmp_path,
        ("./", tarfile.DIRTYPE, ""),
        ("./main.py", tarfile.REGTYPE, "x = 1"),
        ("sub", tarfile.DIRTYPE, ""),
        ("sub/a.py", tarfile.REGTYPE, "y = 2"),
        ("link.py", tarfile.SYMTYPE, "sub/a.py"),
        ("sub/up.py", tarfile.SYMTYPE, "../main.py"),
    )
    extract(path, tmp_path / "code")
    assert (tmp_path / "code/link.py").read_text() == "y = 2"
    assert (tmp_path / "code/sub/up.py").read_text() == "x = 1"
    assert (tmp_path / "code/main.py").stat().st_mode & 0o7777 == 0o755


@pytest.mark.parametrize(
    "members",
    [
        [("/abs.py", tarfile.REGTYPE, "")],
        [("../up.py", tarfile.REGTYPE, "")],
        [("sub/../../up.py", tarfile.REGTYPE, "")],
        [("link", tarfile.SYMTYPE, "/etc/passwd")],
        [("link", tarfile.SYMTYPE, "../outside")],
        [("sub/link", tarfile.SYMTYPE, "../../outside")],
        [("a", tarfile.SYMTYPE, "."), ("a/b", tarfile.SYMTYPE, ".."), ("b/x", tarfile.REGTYPE, "")],
        [("hard", tarfile.LNKTYPE, "/etc/passwd")],
        [("fifo", tarfile.FIFOTYPE, "")],
        [("device", tarfile.CHRTYPE, "")],
    ],
)
def test_what_leaves_the_folder_is_refused(tmp_path, members):
    before = set(tmp_path.iterdir())
    path = archive_of(tmp_path, *members)
    with pytest.raises(InvalidTasks, match=r"The bundle's '.*' "):
        extract(path, tmp_path / "code")
    assert set(tmp_path.iterdir()) - before <= {path, tmp_path / "code"}


def test_file_that_replaces_a_link_does_not_write_through_it(tmp_path):
    path = archive_of(
        tmp_path,
        ("main.py", tarfile.REGTYPE, "old"),
        ("link", tarfile.SYMTYPE, "main.py"),
        ("link", tarfile.REGTYPE, "new"),
    )
    extract(path, tmp_path / "code")
    assert (tmp_path / "code/main.py").read_text() == "old"


def test_what_is_no_archive_is_refused(tmp_path):
    path = tmp_path / "bundle.tar.gz"
    path.write_bytes(b"no archive")
    with pytest.raises(InvalidTasks, match="cannot be unpacked"):
        extract(path, tmp_path / "code")
