"""A backup of a server that runs, and a server that goes on from it somewhere else."""

from __future__ import annotations

import concurrent.futures
import stat
import subprocess
from pathlib import Path

import pytest
from tests.acceptance.product import Product

from multinode import wire

MAIN = """
import os
import time
from pathlib import Path

from multinode import Multinode

mn = Multinode()


@mn.function(max_concurrency=2)
def told(word):
    print("saying", word)
    return word + os.environ["SECRET"]


@mn.function(max_retries=1)
def wait_for(path):
    yield "waiting"
    while not Path(path).exists():
        time.sleep(0.02)
    yield "seen"
"""
DOTENV = "SECRET=-is-secret\n"


@pytest.fixture
def products(tmp_path, sqlite_store):
    """Two homes; whatever runs in them is stopped."""
    made = Product(tmp_path / "one"), Product(tmp_path / "other")
    for product in made:
        product.write({"tasks/main.py": MAIN, "tasks/.env": DOTENV})
    yield made
    for product in made:
        product.run("server", "stop", "--now")


def test_a_server_goes_on_from_a_backup_that_was_made_under_load(products, tmp_path):
    one, other = products
    one.run("server", "start", "--port", "0")
    one.run("deploy")
    ended = one.json("invoke", "told", "before")["invocation_id"]
    running = one.run("invoke", "wait_for", str(tmp_path / "go"), "--detach").strip()
    _until_value(one, running)
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        load = [threads.submit(one.json, "invoke", "told", f"load-{i}") for i in range(8)]
        made = one.json("server", "backup", str(tmp_path))
        assert all(done.result()["status"] == "SUCCEEDED" for done in load)
    archive = Path(made["file"])
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    assert made["missing"] == []
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [archive.name]

    restored = other.json("server", "restore", str(archive))
    assert restored == {**made, "file": str(archive)}
    other.run("server", "start", "--port", "0")
    assert other.json("result", ended)["result"] == "before-is-secret"
    assert "saying before" in other.run("logs", ended)
    # It was running in the backup, and no worker of it is here: lost, which max_retries=1 makes good.
    assert not other.json("deploy")["created"]  # and makes the environment again
    (tmp_path / "go").touch()
    assert _ended(one, running).num_failed_attempts == 0
    there = _ended(other, running)
    assert (there.status, there.num_failed_attempts) == ("SUCCEEDED", 1)
    assert other.json("invoke", "told", "after")["result"] == "after-is-secret"


def _until_value(product, invocation_id):
    path = f"/v1/invocations/{invocation_id}/values?after=0&wait_s=25"
    assert product.client().call(wire.ValuesAnswer, "GET", path, wait_s=25).values


def _ended(product, invocation_id):
    client, revision = product.client(), 0
    while True:
        path = f"/v1/invocations/{invocation_id}?revision={revision}&wait_s=25"
        found = client.call(wire.InvocationInfo, "GET", path, wait_s=25)
        if found.terminated:
            return found
        revision = found.revision


def test_what_is_no_whole_backup_changes_nothing(products, tmp_path):
    one, other = products
    one.run("server", "start", "--port", "0")
    one.run("deploy")
    whole = Path(one.json("server", "backup", str(tmp_path / "whole"))["file"]).read_bytes()
    middle = len(whole) // 2
    broken = {
        "empty": b"",
        "cut": whole[:middle],
        "short": whole[:-200],
        # Eight bytes: a single bit may be one that gzip's format passes over.
        "changed": whole[:middle]
        + bytes(b ^ 255 for b in whole[middle:][:8])
        + whole[middle + 8 :],
        "foreign": subprocess.run(
            ["tar", "cz", "-C", "/etc", "hostname"], capture_output=True
        ).stdout,
    }
    for name, content in broken.items():
        path = tmp_path / name
        path.write_bytes(content)
        said = other.call("server", "restore", str(path))
        assert said.returncode == 2, name
        assert f"{path} is no whole backup" in said.stderr
        assert [item.name for item in (other.folder / "home/server").iterdir()] == ["lock"], name
    other.run("server", "restore", str(tmp_path / "whole"))
    again = other.call("server", "restore", str(tmp_path / "whole"))
    assert (again.returncode, "already" in again.stderr) == (2, True)


def test_keys_that_lie_elsewhere_are_told_of_and_tried_before_a_restore(products, tmp_path):
    one, other = products
    ring = tmp_path / "ring"
    one.run("server", "start", "--port", "0", "--secret-key-from", f"file:{ring}")
    one.run("deploy")
    # What a store that was moved has left beside the place that is named now.
    stale = one.folder / "home/server/secret.key"
    stale.write_bytes(b"x" * 32)
    stale.chmod(0o600)
    archive = tmp_path / "archive"
    said = one.call("server", "backup", str(archive))
    assert "The keys of .env values are not in it." in said.stderr
    assert f"The file {ring} has them" in said.stderr

    wrong = tmp_path / "wrong"
    wrong.write_bytes(b"w" * 32)
    wrong.chmod(0o600)
    for place, words in {
        None: "The backup's secret.key",
        f"file:{tmp_path}/nobody": f"The file {tmp_path}/nobody is not there",
        f"file:{wrong}": f"The file {wrong}",
        "env:NOBODY_SETS_IT": "NOBODY_SETS_IT",
    }.items():
        options = [] if place is None else ["--secret-key-from", place]
        said = other.call("server", "restore", str(archive), *options)
        assert said.returncode == 2, said
        assert words in said.stderr
        assert f"When the backup was made, they were in: The file {ring}" in said.stderr
        assert [item.name for item in (other.folder / "home/server").iterdir()] == ["lock"]
    place = ["--secret-key-from", f"file:{ring}"]
    assert other.json("server", "restore", str(archive), *place)["ring"] == f"The file {ring}"
    other.run("server", "start", "--port", "0", *place)
    other.run("deploy")
    assert other.json("invoke", "told", "restored")["result"] == "restored-is-secret"
