"""`server migrate` on PostgreSQL while a control plane of the release before serves; and releases that meet a schema which is not theirs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import sqlalchemy as sa
from tests.acceptance.product import Product
from tests.faults.test_rolling_restart import CLIENTS, MAIN, Client

from multinode import wire
from multinode.client import path_of
from multinode_control_plane import migrations
from multinode_control_plane.databases import open_database

TOMORROW = """
import sys
from multinode_control_plane import migrations
migrations.__file__, migrations.HEAD = sys.argv[1:3]
from multinode_control_plane.migrations.__main__ import main
sys.exit(main(sys.argv[3:]))
"""
"""`server migrate` of a release that has migrations which this one does not know."""
STEP = '''"""What a later release adds."""

import sqlalchemy as sa
from alembic import op

revision = "{revision}"
down_revision = "{before}"


def upgrade() -> None:
    for table in ("yielded_values", "workers", "executions", "invocations", "projects"):
        op.add_column(table, sa.Column("new_{revision}", sa.Text(), nullable=True))
        op.execute("SELECT pg_sleep(0.1)")  # as long as the table is large
    op.add_column("invocations", sa.Column("counted_{revision}", sa.BigInteger(), server_default="0", nullable=False))
    op.create_index("of_{revision}", "invocations", ["new_{revision}"])
    op.create_table("later_{revision}", sa.Column("id", sa.BigInteger(), primary_key=True))
'''
LATER = ("9001", "9002", "9003")


@pytest.fixture
def product(tmp_path, postgres_server):
    made = Product(tmp_path)
    made.environ["MULTINODE_DATABASE"] = postgres_server.new_database()
    made.write({"tasks/main.py": MAIN})
    made.run("server", "start", "--port", "0")
    yield made
    # Processes that the schema's change has left behind cannot be started again to be asked.
    made.call("server", "stop", "--now")


@pytest.fixture
def later(tmp_path):
    """The migrations of later releases: brings a database to one of theirs."""
    folder = tmp_path / "migrations"
    shutil.copytree(Path(migrations.__file__).parent, folder)
    for before, revision in zip((migrations.HEAD, *LATER), LATER, strict=False):
        text = STEP.format(revision=revision, before=before)
        (folder / f"versions/m{revision}_later.py").write_text(text)

    def migrate(url: str, revision: str) -> dict:
        # Each release knows its own and what came before.
        for other in LATER[LATER.index(revision) + 1 :]:
            (folder / f"versions/m{other}_later.py").rename(folder / f"m{other}")
        argv = [str(folder / "__init__.py"), revision, f"--database={url}"]
        done = subprocess.run(
            [sys.executable, "-c", TOMORROW, *argv],
            capture_output=True, text=True, timeout=90, check=False,
        )  # fmt: skip
        for other in LATER[LATER.index(revision) + 1 :]:
            (folder / f"m{other}").rename(folder / f"versions/m{other}_later.py")
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)["result"]

    return migrate


@pytest.mark.slow
@pytest.mark.timeout(240)
def test_clients_see_nothing_of_migrations(product, later, record_summary):
    assert product.json("deploy")["created"]
    url, over = product.environ["MULTINODE_DATABASE"], threading.Event()
    port, key = urlsplit(product.server["url"]).port, product.server["key"]
    clients = [Client(port, key, over) for _ in range(CLIENTS)]
    for client in clients:
        client.start()
    try:
        before = migrations.HEAD
        for revision in LATER:
            time.sleep(1)
            told = later(url, revision)
            assert told == {"database": "postgresql", "before": before, "after": revision}
            before = revision
        time.sleep(1)
    finally:
        over.set()
        for client in clients:
            client.join()
    seen = sum((client.seen for client in clients), Counter())
    assert set(seen) == {"200"}, seen
    record_summary(f"{len(LATER)} migrations under load: {seen['200']} requests, no error")
    assert product.run("invoke", "add", "1", "2") == "3\n"
    with closing(product.client()) as asking:
        for invocation_id in (client.started[-1] for client in clients if client.started):
            info = asking.call(wire.InvocationInfo, "GET", path_of("invocations", invocation_id))
            assert info.status in (wire.PENDING, wire.RUNNING, wire.SUCCEEDED)


@pytest.mark.slow
def test_a_release_refuses_the_schema_of_a_later_one(product, later):
    later(product.environ["MULTINODE_DATABASE"], LATER[0])
    product.run("server", "stop", "--now")  # what serves goes on until then
    for words in (("server", "start"), ("server", "run"), ("server", "migrate")):
        refused = product.call(*words)
        assert refused.returncode != 0
        assert f"schema {LATER[0]}; this one knows {migrations.HEAD}" in refused.stderr
        assert "Install that release, or use another database." in refused.stderr


@pytest.mark.slow
def test_a_schema_of_an_earlier_release_is_refused_until_it_is_migrated(tmp_path, postgres_server):
    product = Product(tmp_path)
    product.environ["MULTINODE_DATABASE"] = url = postgres_server.new_database(empty=True)
    known = sorted(Path(migrations.__file__).parent.glob("versions/m*.py"))
    earlier = known[-2].name[1:5]
    upgrade_to(url, earlier)
    for words in (("server", "start", "--port", "0"), ("server", "run", "--port", "0")):
        refused = product.call(*words)
        assert refused.returncode != 0
        assert f"has the schema {earlier}; this release needs {migrations.HEAD}" in refused.stderr
        assert "Run `multinode server migrate` once, then start again." in refused.stderr
    assert f"the schema {migrations.HEAD} now" in product.run("server", "migrate")
    product.write({"tasks/main.py": MAIN})
    product.run("server", "start", "--port", "0")
    try:
        product.run("deploy")
        assert product.run("invoke", "add", "1", "2") == "3\n"
    finally:
        product.run("server", "stop", "--now")


def upgrade_to(url: str, revision: str) -> None:
    """Makes the schema of an earlier release."""
    from alembic import command
    from alembic.config import Config

    database = open_database(url)
    config = Config()
    config.set_main_option("script_location", str(Path(migrations.__file__).parent))
    with database.engine.connect() as connection:
        database.begin_schema_change(connection)
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        connection.commit()
    with database.engine.connect() as connection:
        found = connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one()
    assert found == revision
