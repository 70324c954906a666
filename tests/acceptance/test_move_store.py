"""`server move-store`: an SQLite store with all that is in it goes on in PostgreSQL, or stays where it is."""

from __future__ import annotations

import json
import shutil
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
from tests.acceptance.product import Product
from tests.postgres import Relay

from multinode import wire
from multinode.client import Client
from multinode_control_plane import data_folder, moving

MAIN = """
import os
from multinode import Multinode

mn = Multinode()

@mn.function()
def told(word):
    print("saying", word)
    return word + os.environ["SECRET"]

@mn.function()
def counted(number):
    for each in range(number):
        yield {"ö": each}

@mn.function()
def fails():
    raise ValueError("no")
"""


@pytest.fixture(scope="module")
def product(tmp_path_factory, sqlite_store):
    """Its store has something of everything; the server is stopped."""
    made = Product(tmp_path_factory.mktemp("moved"))
    made.write({"tasks/main.py": MAIN, "tasks/.env": "SECRET=-is-secret\n"})
    made.run("server", "start", "--port", "0")
    made.run("deploy")
    made.run("invoke", "told", "before")
    made.run("invoke", "counted", "3")
    assert made.call("invoke", "fails").returncode == 1
    made.new_key = made.json("key", "create", "ci", "--role", "read")["key"]
    made.before = seen(made)
    made.run("server", "stop")
    yield made
    made.run("server", "stop", "--now")


@pytest.fixture
def empty(postgres_server):
    return postgres_server.new_database(empty=True)


def seen(product: Product) -> list[object]:
    """What a user sees of all that is stored, and in which order."""
    found: list[object] = [
        product.json(*words) for words in (("ps", "--all"), ("key", "list"), ("list",))
    ]
    with closing(product.client()) as client:
        for item in product.json("ps", "--all"):
            path = f"/v1/invocations/{item['invocation_id']}"
            found.append(client.call(wire.InvocationDetail, "GET", f"{path}/detail"))
            found.append(client.call(wire.ValuesAnswer, "GET", f"{path}/values?after=0"))
            found.append(product.run("logs", item["invocation_id"]))
    return found


def tables_of(url: str) -> list[object]:
    with psycopg.connect(url) as connection:
        found = connection.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        return [name for (name,) in found]


def store_of(product: Product) -> Path:
    return product.folder / "home/server/multinode.sqlite"


@pytest.mark.parametrize("moment", [b'COPY "invocations"', b"COMMIT"], ids=["rows", "commit"])
def test_a_kill_in_the_middle_leaves_the_database_empty(product, empty, moment):
    relay = Relay(urlsplit(empty).port)
    try:
        to = urlsplit(empty)._replace(netloc=f"multinode@127.0.0.1:{relay.port}").geturl()
        reached = threading.Event()
        running: list[subprocess.Popen[bytes]] = []

        def kill_there(data: bytes) -> bool:
            if moment in data:
                running[0].kill()
                reached.set()
                raise ConnectionError
            return True

        relay.on_client_bytes = kill_there
        program = [sys.executable, "-m", "multinode_control_plane.moving", f"--database={to}"]
        running.append(subprocess.Popen(program, env=product.environ, stdin=subprocess.DEVNULL))
        assert running[0].wait(60) == -signal.SIGKILL
        assert reached.is_set()
    finally:
        relay.close()
    assert tables_of(empty) == []


def refusal_of(product: Product, capsys, *options: str) -> tuple[str, str]:
    """The code and the message of what the program says; it has to refuse."""
    assert moving.main([f"--home={product.folder / 'home'}", *options]) == 1
    error = json.loads(capsys.readouterr().out)["error"]
    return error["code"], error["message"]


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        ((), "invalid_input", "no PostgreSQL database is named"),
        (("--database=mysql://x/y",), "invalid_input", "not the URL of a database"),
        (
            ("--database=EMPTY", "--data-dir=/nowhere/at-all"),
            "invalid_input",
            "There is no store at",
        ),
        (("--database=EMPTY", "--source=/nowhere"), "invalid_input", "There is no store at"),
        (("--database=EMPTY", f"--source={__file__}"), "invalid_input", "is no store"),
        (("--database=postgresql://m:secret@127.0.0.1:9/x",), "store_unreachable", "out of reach"),
    ],
)
def test_nothing_is_copied_where_it_cannot_be(product, empty, capsys, options, code, message):
    options = [option.replace("EMPTY", empty) for option in options]
    told = refusal_of(product, capsys, *options)
    assert told[0] == code
    assert message in told[1]
    assert "secret" not in told[1]
    assert tables_of(empty) == []


def test_nothing_is_copied_into_a_database_that_is_not_empty(product, postgres_server, capsys):
    used = postgres_server.new_database()
    assert "not empty" in refusal_of(product, capsys, f"--database={used}")[1]


def test_nothing_is_copied_while_a_control_plane_runs(product, empty, capsys):
    with data_folder.locked(product.folder / "home/server"):
        code, message = refusal_of(product, capsys, f"--database={empty}")
    assert (code, "uses" in message) == ("conflict", True)
    assert tables_of(empty) == []


def test_a_row_that_postgresql_does_not_take_is_told(product, empty, tmp_path, capsys):
    copy = tmp_path / "copy.sqlite"
    shutil.copy(store_of(product), copy)
    with closing(sqlite3.connect(copy)) as store, store:
        store.execute("UPDATE executions SET attempt = 99999999999")
    _, message = refusal_of(product, capsys, f"--database={empty}", f"--source={copy}")
    assert "does not take a row of executions" in message
    assert tables_of(empty) == []


def test_a_store_goes_on_in_postgresql(product, empty):
    with closing(sqlite3.connect(store_of(product))) as store, store:
        # As if later ones had been removed: their numbers are not given again.
        store.execute("UPDATE sqlite_sequence SET seq = 1000 WHERE name = 'invocations'")
    content = store_of(product).read_bytes()
    done = product.json("server", "move-store", "--to", empty)
    assert (done["projects"], done["invocations"]) == (1, 3)
    assert store_of(product).read_bytes() == content
    product.environ["MULTINODE_DATABASE"] = empty
    product.run("server", "start", "--port", "0")
    assert product.json("server", "status")["database"] == "postgresql"
    assert seen(product) == product.before
    assert not product.json("deploy")["created"]
    assert product.json("invoke", "told", "after")["result"] == "after-is-secret"
    assert len(product.json("ps", "--all")) == 4
    with psycopg.connect(empty) as connection:
        assert connection.execute("SELECT max(seq) FROM invocations").fetchone() == (1001,)
        assert connection.execute("SELECT count(*) FROM bundles").fetchone() == (1,)
    with closing(Client(product.server["url"], product.new_key)) as client:
        assert client.call(wire.ServerInfo, "GET", "/v1/server").database == "postgresql"
