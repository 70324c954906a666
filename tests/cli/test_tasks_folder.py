"""multinode_cli.tasks_folder: what lies on disk, and the archive that is made of it."""

import base64
import gzip
import io
import os
import tarfile

import pytest

from multinode.errors import BundleTooLarge, InvalidName, InvalidTasks
from multinode_cli.tasks_folder import (
    bundle,
    check_project_name,
    list_files,
    pack,
    read_dotenv,
    read_project_file,
    read_requirements,
)


def test_project_file_is_found_from_below(project, tmp_path):
    project()
    below = tmp_path / "tasks" / "deep"
    below.mkdir()
    found = read_project_file(below)
    assert (found.project, found.tasks) == ("billing", tmp_path / "tasks")
    assert found.environment.python_version == (3, 11)


@pytest.mark.parametrize("start", ["", "tasks"])
def test_without_a_file_the_folder_or_its_parent_will_do(project, tmp_path, start):
    project({"multinode.toml": None})
    found = read_project_file(tmp_path / start)
    assert (found.path, found.root, found.tasks) == (None, tmp_path, tmp_path / "tasks")


@pytest.mark.parametrize(
    ("folder", "given", "tasks"),
    [
        ("examples/other", True, "examples/other/tasks"),
        ("examples/other", False, "examples/other/tasks"),
        ("examples/other/tasks", True, "examples/other/tasks"),
        ("application", False, "tasks"),
        ("tasks/submodule", True, "tasks"),
        ("examples", True, "tasks"),
    ],
)
def test_functions_below_another_project_are_a_project_of_their_own(
    project, monkeypatch, folder, given, tasks
):
    """Standing in a folder with a ``main.py`` is not choosing it: it may be an application."""
    files = ("examples/other/tasks/main.py", "application/main.py", "tasks/submodule/a.py")
    root = project(dict.fromkeys(files, "x = 1\n"), toml='project = "billing"\n')
    monkeypatch.chdir(root / folder)
    found = read_project_file(root / folder if given else None)
    assert found.tasks == root / tasks
    assert found.project == ("billing" if tasks == "tasks" else None)


def test_python_is_3_8_with_a_notice_where_nobody_chose(project):
    found = read_project_file(project(toml='project = "billing"\n'))
    assert found.environment.python_version == (3, 8)
    assert "no more security fixes" in found.environment.notice


@pytest.mark.parametrize("name", ["a", "a-b_c", "0", "x" * 63])
def test_project_names_that_are_allowed(name):
    assert check_project_name(name) == name


@pytest.mark.parametrize("name", ["", "x" * 64, "Billing", "a b", "ä"])
def test_project_names_that_are_not(name):
    with pytest.raises(InvalidName):
        check_project_name(name)


def test_dotenv_is_read_as_python_dotenv_does(project):
    text = "A=1\nexport B='two words'\nC=\"line 1\nline 2\"\nD=${A}${B}\n# comment\n\nE=\n"
    values, problems = read_dotenv(read_project_file(project({"tasks/.env": text})))
    assert problems == []
    assert values == {"A": "1", "B": "two words", "C": "line 1\nline 2", "D": "1two words", "E": ""}


def test_a_malformed_dotenv_line_is_told_with_its_number(project):
    text = "A=1\n\n# comment\nwhat is this\nB='open\n"
    values, problems = read_dotenv(read_project_file(project({"tasks/.env": text})))
    assert values == {}
    assert [problem.split(": ")[0] for problem in problems] == ["tasks/.env:4", "tasks/.env:5"]


def test_requirements_come_with_what_they_include(project):
    root = project(
        {
            "tasks/requirements.txt": "-r more/base.txt  # shared\n-c pins.txt\n./wheels/x-1-py3-none-any.whl\nnumpy==1.26.1\n",
            "tasks/more/base.txt": "-r ../requirements.txt\nboto3\n",
            "tasks/pins.txt": "boto3==1\n",
            "tasks/wheels/x-1-py3-none-any.whl": "wheel",
        }
    )
    found, problems = read_requirements(read_project_file(root))
    assert problems == []
    assert {name: base64.b64decode(text).decode() for name, text in found.files.items()} == {
        "more/base.txt": "-r ../requirements.txt\nboto3\n",
        "pins.txt": "boto3==1\n",
        "wheels/x-1-py3-none-any.whl": "wheel",
    }


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("-r missing.txt", "'missing.txt' does not exist"),
        ("--requirement=missing.txt", "'missing.txt' does not exist"),
        ("-r ../outside.txt", "outside tasks/"),
        ("./missing.whl", "does not exist"),
        ("pkg @ ./missing.whl", "does not exist"),
        ("./folder", "does not exist"),
        ("-e .", "-e is not possible"),
        ("multinode", "multinode comes by itself"),
        ("Multinode[server] >= 1", "multinode comes by itself"),
    ],
)
def test_requirements_that_cannot_be_are_told_with_their_line(project, line, said):
    root = project({"tasks/requirements.txt": f"numpy\n\n{line}\n", "outside.txt": ""})
    _, problems = read_requirements(read_project_file(root))
    assert len(problems) == 1
    assert problems[0].startswith("tasks/requirements.txt:3: ")
    assert said in problems[0]


@pytest.mark.parametrize(
    "line",
    [
        "multinode-extras",
        "multinode_x==1",
        "https://x.test/a.whl",
        "--pre",
        "a ; python_version > '3'",
    ],
)
def test_other_requirements_are_left_to_the_resolver(project, line):
    _, problems = read_requirements(read_project_file(project({"tasks/requirements.txt": line})))
    assert problems == []


# --- bundle ---


def contents(archive):
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        return {entry.name: entry for entry in tar}


def packed(root):
    found = read_project_file(root)
    files, problems = list_files(found)
    assert problems == []
    return pack(found, files)


def test_the_same_files_give_the_same_bytes(project, tmp_path):
    root = project({"tasks/b/x.py": "1", "tasks/a.py": "2"})
    first = packed(root)
    (root / "tasks/a.py").unlink()
    (root / "tasks/a.py").write_text("2")
    os.utime(root / "tasks/main.py", (1, 1))
    os.chmod(root / "tasks/main.py", 0o600)
    assert packed(root) == first
    assert gzip.decompress(first.archive)
    entries = contents(first.archive)
    assert list(entries) == ["a.py", "b", "b/x.py", "main.py"]
    assert {(entry.mtime, entry.uid, entry.gid, entry.uname) for entry in entries.values()} == {
        (0, 0, 0, "")
    }
    assert entries["main.py"].mode == 0o644


def test_the_executable_bit_and_links_inside_are_kept(project):
    root = project({"tasks/run.sh": "#!/bin/sh\n", "tasks/data/x": "1"})
    os.chmod(root / "tasks/run.sh", 0o700)
    (root / "tasks/link").symlink_to("data")
    entries = contents(packed(root).archive)
    assert entries["run.sh"].mode == 0o755
    assert (entries["link"].type, entries["link"].linkname) == (tarfile.SYMTYPE, "data")
    assert "link/x" not in entries


def test_what_never_belongs_to_it_stays_out(project):
    root = project(
        {f"tasks/{name}/x": "1" for name in (".git", "__pycache__", ".venv", "node_modules")}
        | {"tasks/.env": "A=1", "tasks/x.pyc": "1"}
    )
    assert list(contents(packed(root).archive)) == ["main.py"]


@pytest.mark.parametrize("place", ["", "tasks/"])
@pytest.mark.parametrize("name", [".multinodeignore", ".dockerignore"])
def test_ignored_files_stay_out(project, name, place):
    root = project(
        {
            f"{place}{name}": "*.log\n!keep.log\ndata/\n",
            "tasks/a.log": "",
            "tasks/keep.log": "",
            "tasks/data/x": "",
        }
    )
    names = [item for item in contents(packed(root).archive) if item != name]
    assert names == ["keep.log", "main.py"]


def test_dockerignore_counts_only_without_our_own(project):
    root = project({".dockerignore": "main.py", ".multinodeignore": "", "tasks/a": ""})
    assert "main.py" in contents(packed(root).archive)


@pytest.mark.parametrize("target", ["../outside", "/etc/hostname"])
def test_a_link_out_of_tasks_is_refused(project, target):
    root = project({"outside": ""})
    (root / "tasks/link").symlink_to(target)
    _, problems = list_files(read_project_file(root))
    assert len(problems) == 1
    assert problems[0].startswith(f"tasks/link: is a link to {target!r}")


def test_a_fifo_is_refused(project):
    root = project()
    os.mkfifo(root / "tasks/pipe")
    _, problems = list_files(read_project_file(root))
    assert problems == ["tasks/pipe: is no regular file; remove it, or name it in .multinodeignore"]


def test_too_large_a_bundle_names_its_largest_files(project, monkeypatch):
    monkeypatch.setattr(bundle, "MAX_BUNDLE_BYTES", 1024)
    root = project({f"tasks/{i:02}": "x" * (100 + i) for i in range(12)})
    with pytest.raises(BundleTooLarge) as caught:
        packed(root)
    named = [line.split()[-1] for line in caught.value.message.splitlines()[1:]]
    assert named == [f"tasks/{i:02}" for i in range(11, 1, -1)]


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InvalidTasks):
        read_project_file(tmp_path / "missing")
