"""`server rotate-key` where two control planes share a database: with one ring, and with copies of it."""

from __future__ import annotations

import os
import shutil
import signal
import urllib.error
import urllib.request
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import psycopg
import pytest
from tests.faults.installation import wait_until
from tests.faults.test_rotation_kills import Sealed
from tests.faults.test_takeover import Pair

from multinode_control_plane.databases import open_database

pytestmark = pytest.mark.timeout(300)


@contextmanager
def started(folder, server, *, shares_folder):
    made = Pair(folder, server.new_database(), shares_folder=shares_folder)
    for product in made.products:
        product.write({"tasks/.env": "SECRET=deployed\n"})
    try:
        made.start()
        yield made
    finally:
        made.close()


def ring_of(product) -> Path:
    return Path(product.environ["MULTINODE_DATA_DIR"]) / "secret.key"


def sealed_with(pair) -> set[str]:
    with psycopg.connect(pair.url) as connection:
        rows = connection.execute("SELECT sealed_with FROM versions").fetchall()
    return {key for (key,) in rows}


def readiness(product) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"{product.server['url']}/readyz", timeout=60) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode()


@pytest.mark.slow
def test_with_one_ring_either_is_asked_and_both_go_on(tmp_path, postgres_server):
    with started(tmp_path, postgres_server, shares_folder=True) as pair:
        assert pair.second.json("server", "rotate-key")["versions"] == 1
        done = pair.first.json("server", "rotate-key")
        assert sealed_with(pair) == {done["key_id"]}
        for product in pair.products:
            assert readiness(product)[0] == 200
            assert product.json("invoke", "add", "1", "2")["result"] == 3
        pair.second.write({"tasks/.env": "SECRET=changed\n"})
        assert pair.second.json("deploy")["created"]
        assert sealed_with(pair) == {done["key_id"]}


@pytest.mark.slow
def test_copies_of_a_ring_are_never_left_behind(tmp_path, postgres_server):
    """Refused until the copies are alike; then nothing has the old key, and the other process opens everything when it leads."""
    with started(tmp_path, postgres_server, shares_folder=False) as pair:
        before = sealed_with(pair)
        said = pair.first.call("server", "rotate-key")
        assert said.returncode == 1
        assert f"They use: The file {ring_of(pair.second)} on " in said.stderr
        assert sealed_with(pair) == before
        assert pair.second.json("invoke", "add", "1", "2")["result"] == 3
        assert readiness(pair.second)[0] == 200

        shutil.copy(ring_of(pair.first), ring_of(pair.second))
        done = pair.first.json("server", "rotate-key")
        assert sealed_with(pair) == {done["key_id"]}
        assert {done["key_id"]}.isdisjoint(before)
        os.kill(pair.first.server["pid"], signal.SIGKILL)
        pair.wait_until_second_leads()
        pair.second.run("deploy")  # the environment is on the first one's disk
        assert pair.second.json("invoke", "add", "2", "2")["result"] == 4
        assert pair.second.json("server", "rotate-key")["retired"] == [
            done["key_id"], *sorted(before)
        ]  # fmt: skip  # the copy had the old key still


@pytest.mark.slow
def test_who_leads_next_ends_a_rotation(tmp_path, postgres_server):
    with started(tmp_path, postgres_server, shares_folder=True) as pair:
        database = open_database(pair.url)
        sealed = Sealed(ring_of(pair.first), database.engine)
        sealed.fill()
        (before,) = sealed.ids()
        with ThreadPoolExecutor(1) as pool:
            command = pool.submit(pair.first.call, "server", "rotate-key")
            wait_until(lambda: sealed.done(before), "values with the new key")
            os.kill(pair.first.server["pid"], signal.SIGKILL)
            assert command.result().returncode != 0
        assert len(sealed.ids()) == 2
        pair.wait_until_second_leads()
        sealed.check_all_open()
        done = pair.second.json("server", "rotate-key")
        assert sealed.ids() == [done["key_id"]]
        assert sealed_with(pair) == {done["key_id"]}
        assert done["retired"] == [before]
        sealed.check_all_open()
        assert pair.second.json("invoke", "add", "1", "2")["result"] == 3
        database.engine.dispose()


@pytest.mark.slow
def test_a_process_that_hangs_is_waited_for_and_named(tmp_path, postgres_server):
    with started(tmp_path, postgres_server, shares_folder=True) as pair:
        pid = pair.second.server["pid"]
        os.kill(pid, signal.SIGSTOP)
        try:
            said = pair.first.call("server", "rotate-key")
        finally:
            os.kill(pid, signal.SIGCONT)
        assert said.returncode == 1
        assert "other control planes do not have it" in said.stderr
        assert pair.first.json("server", "rotate-key")["versions"] == 1


@pytest.mark.slow
def test_a_process_whose_ring_was_changed_says_what_it_lacks(tmp_path, postgres_server):
    with started(tmp_path, postgres_server, shares_folder=False) as pair:
        with psycopg.connect(pair.url) as connection:  # as a process that was not heard does
            connection.execute("UPDATE sealing SET key_id = 'fedcba9876543210'")
        for product in pair.products:
            status, text = readiness(product)
            assert status == 503
            assert "encrypted with the key fedcba9876543210" in text
            assert "--secret-key-from" in text
