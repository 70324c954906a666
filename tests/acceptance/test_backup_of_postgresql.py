"""A dump of the database and the keys of `.env` values are all that another machine needs."""

import os
import shutil
import subprocess

import pytest
from tests.acceptance.product import Product
from tests.postgres import programs

MAIN = """
import os

from multinode import Multinode

mn = Multinode()


@mn.function()
def told(word):
    return word + os.environ["SECRET"]
"""


@pytest.fixture
def products(tmp_path, postgres_server):
    """Two machines, as far as that goes: homes, data folders and databases of their own."""
    made = []
    for name in ("one", "other"):
        product = Product(tmp_path / name)
        product.environ["MULTINODE_DATABASE"] = postgres_server.new_database(empty=True)
        product.write({"tasks/main.py": MAIN, "tasks/.env": "SECRET=-is-secret\n"})
        made.append(product)
    yield made
    for product in made:
        product.run("server", "stop", "--now")


def run(program, *arguments):
    found = shutil.which(program) or programs() / program
    done = subprocess.run([found, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.slow
def test_a_server_goes_on_from_a_dump_and_the_keys(products, tmp_path):
    one, other = products
    one.run("server", "start", "--port", "0")
    one.run("deploy")
    ended = one.json("invoke", "told", "before")["invocation_id"]
    dump = str(tmp_path / "dump")
    run("pg_dump", "--format=custom", f"--file={dump}", one.environ["MULTINODE_DATABASE"])
    run("pg_restore", "--no-owner", f"--dbname={other.environ['MULTINODE_DATABASE']}", dump)
    folder = other.folder / "home/server"
    os.makedirs(folder)
    shutil.copy(one.folder / "home/server/secret.key", folder)
    other.run("server", "start", "--port", "0")
    assert other.json("result", ended)["result"] == "before-is-secret"
    assert not other.json("deploy")["created"]
    assert other.json("invoke", "told", "after")["result"] == "after-is-secret"
