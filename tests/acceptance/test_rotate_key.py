"""`multinode server rotate-key` as it is typed, on a real server; and what a wrong ring prints."""

from __future__ import annotations

import base64
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.acceptance.product import Product

from multinode_control_plane import model
from multinode_control_plane.databases import open_database
from multinode_control_plane.secret_keys import as_text

MAIN = """
import os

from multinode import Multinode

mn = Multinode()


@mn.function()
def secret():
    return os.environ["SECRET"][::-1]
"""
SECRET = "plain-value-of-env-b0f1"
RING = base64.b64encode(b"r" * 32).decode()


@pytest.fixture
def product(tmp_path):
    """A home with a project that is not deployed; whatever runs in it is stopped."""
    made = Product(tmp_path / "product")
    made.write({"tasks/main.py": MAIN, "tasks/.env": f"SECRET={SECRET}\n"})
    yield made
    made.call("server", "stop", "--now")


def sealed_values(product: Product) -> list[bytes]:
    """What the database has encrypted."""
    default = f"sqlite:///{product.folder}/home/server/multinode.sqlite"
    database = open_database(product.environ.get("MULTINODE_DATABASE", default))
    with database.engine.connect() as connection:
        found = [
            *connection.execute(sa.select(model.versions.c.dotenv)).scalars(),
            *connection.execute(sa.select(model.sealing.c.mac_key)).scalars(),
        ]
    database.engine.dispose()
    return [bytes(each) for each in found]


def dump(product: Product) -> bytes:
    """All that is in the data folder but code: the database's file, its log, what the server says."""
    data = product.folder / "home/server"
    files = [path for path in data.glob("*") if path.is_file() and path.name != "secret.key"]
    return b"\n".join(path.read_bytes() for path in files)


def refused(product: Product, *arguments: str, code: int = 2, **variables: str) -> str:
    done = product.call(*arguments, **variables)
    assert done.returncode == code, (arguments, done.stdout, done.stderr)
    return done.stderr


def test_values_are_used_before_and_after_a_rotation_and_nothing_has_the_old_key(product):
    product.run("server", "start", "--port", "0")
    product.run("deploy")
    ring = product.folder / "home/server/secret.key"
    old, before = ring.read_text(), sealed_values(product)
    assert product.json("invoke", "secret")["result"] == SECRET[::-1]

    said = product.run("server", "rotate-key")
    assert "Encrypted anew: 1 version." in said
    done = product.json("server", "rotate-key")
    assert (done["versions"], len(done["retired"]), done["left"]) == (1, 1, "")
    assert done["retired"][0] in said

    new = ring.read_text()
    assert len(new.split()) == 1
    assert old.strip() not in new
    assert not set(sealed_values(product)) & set(before)
    assert SECRET.encode() not in dump(product)
    assert product.json("invoke", "secret")["result"] == SECRET[::-1]
    product.run("server", "restart")
    assert product.json("invoke", "secret")["result"] == SECRET[::-1]
    assert not product.json("deploy")["created"], "the same values are the same version"
    assert [line["action"] for line in product.json("audit")].count("rotate key") == 2

    product.run("server", "stop", "--now")
    new_ring, damaged = ring.read_text(), as_text([b"x" * 32])
    for text in (old, damaged):
        ring.write_text(text)
        assert "are encrypted with the key " in refused(product, "server", "start", "--port", "0")
    ring.unlink()
    assert "secret.key is not there" in refused(product, "server", "start", "--port", "0")
    assert not ring.exists()
    ring.write_text(new_ring)
    ring.chmod(0o600)
    product.run("server", "start", "--port", "0")
    assert product.json("invoke", "secret")["result"] == SECRET[::-1]


def test_what_is_wrong_with_a_ring_is_said_and_nothing_is_made(product, tmp_path):
    wrong = tmp_path / "wrong"
    wrong.write_text(base64.b64encode(b"short").decode())
    wrong.chmod(0o600)
    readable = tmp_path / "readable"
    readable.write_text(RING)
    readable.chmod(0o644)
    for place, words in {
        f"file:{tmp_path}/mistpyed/ring": "its folder is not there",
        f"file:{wrong}": "holds no ring of keys",
        f"file:{readable}": f"chmod 600 {readable}",
        f"file:{tmp_path}": "Run: chmod 600"
        if tmp_path.stat().st_mode & 0o077
        else "Is a directory",
        f"file:{wrong}/ring": "cannot be used: Not a directory",
        "env:NOBODY_SETS_IT": "NOBODY_SETS_IT, which --secret-key-from names, is not set",
        RING: "names no place of keys",
    }.items():
        said = refused(product, "server", "start", "--port", "0", "--secret-key-from", place)
        assert words in said
        assert RING not in said
    assert not (tmp_path / "mistpyed").exists()
    assert not list((product.folder / "home").glob("**/secret.key"))


def test_who_may_not_rotate_is_told_and_nothing_is_rotated(product):
    product.run("server", "start", "--port", "0")
    ring = Path(product.folder / "home/server/secret.key").read_text()
    for role in ("deploy", "invoke", "read"):
        key = product.json("key", "create", role, "--role", role)["key"]
        known = {"MULTINODE_API_URL": product.server["url"], "MULTINODE_API_KEY": key}
        assert "admin" in refused(product, "server", "rotate-key", code=4, **known)
    assert (product.folder / "home/server/secret.key").read_text() == ring


def test_without_a_server_it_says_how_to_start_one(product):
    nobody = {"MULTINODE_API_URL": "http://127.0.0.1:9", "MULTINODE_API_KEY": "mnk_x"}
    said = refused(product, "server", "rotate-key", code=5, **nobody)
    assert "http://127.0.0.1:9" in said


def test_a_variable_is_rotated_in_the_steps_that_it_says(product):
    product.environ["KEYS"] = RING
    product.run("server", "start", "--port", "0", "--secret-key-from", "env:KEYS")
    product.run("deploy")
    said = refused(product, "server", "rotate-key", code=1)
    assert "The variable KEYS has one key" in said
    assert "Put a new key before the one in it" in said
    product.environ["KEYS"] = f"{base64.b64encode(b'n' * 32).decode()},{RING}"
    product.run("server", "restart")
    assert "take them out of it" in product.call("server", "rotate-key").stderr
    product.environ["KEYS"] = base64.b64encode(b"n" * 32).decode()
    product.run("server", "restart")
    assert product.json("invoke", "secret")["result"] == SECRET[::-1]
