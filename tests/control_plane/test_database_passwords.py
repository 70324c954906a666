"""A password that AWS has, and changes while the control plane runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import sqlalchemy as sa
from tests.control_plane import scripted_aws
from tests.control_plane.bench import make_bench
from tests.control_plane.scripted_aws import ScriptedAws, refusal
from tests.postgres import PostgresServer

from multinode.errors import AwsFailed, InputError
from multinode_control_plane import migrations
from multinode_control_plane.database_passwords import AwsPassword, password_in
from multinode_control_plane.databases import open_database
from multinode_control_plane.settings import parser, resolve, without_password

SECRET = "arn:aws:secretsmanager:eu-west-2:123456789012:secret:rds!db-1"


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[ScriptedAws]:
    with scripted_aws.running() as made:
        scripted_aws.log_in(monkeypatch, made.url)
        yield made


def secret(password: str) -> dict[str, str]:
    return {"SecretString": json.dumps({"username": "app", "password": password})}


@pytest.fixture
def guarded(own_postgres: PostgresServer) -> PostgresServer:
    """Its user ``app`` needs a password, which is ``first``."""
    own_postgres.execute("CREATE ROLE app LOGIN SUPERUSER PASSWORD 'first'")
    rules = "host all app 127.0.0.1/32 scram-sha-256\nhost all all 127.0.0.1/32 trust\n"
    (own_postgres.folder / "data" / "pg_hba.conf").write_text(rules)
    own_postgres.execute("SELECT pg_reload_conf()")
    return own_postgres


def url_of(server: PostgresServer, name: str) -> str:
    return server.url(name).replace("multinode@", "app@") + f"?password_from=aws:{SECRET}"


def test_a_password_that_changes_is_taken_with_the_next_connection(
    guarded: PostgresServer, aws: ScriptedAws, tmp_path: Path
) -> None:
    aws.on("GetSecretValue", secret("first"))
    guarded.execute("CREATE DATABASE kept")
    database = open_database(url_of(guarded, "kept"))
    migrations.prepare(database)
    database.engine.dispose()
    bench = make_bench(tmp_path, database=url_of(guarded, "kept"))
    try:
        bench.deploy()
        guarded.execute("ALTER ROLE app PASSWORD 'second'")
        aws.on("GetSecretValue", secret("second"))
        guarded.restart()  # every connection is lost
        bench.deploy()
        assert aws.asked[-1] == ("GetSecretValue", {"SecretId": SECRET})
    finally:
        bench.close()


def test_between_the_two_changes_it_is_tried_again(
    guarded: PostgresServer, aws: ScriptedAws
) -> None:
    aws.on("GetSecretValue", secret("not yet"), secret("first"))
    database = open_database(url_of(guarded, "postgres"))
    with pytest.raises(sa.exc.OperationalError) as caught:
        database.engine.connect()
    assert database.is_away(caught.value)
    database.engine.connect().close()
    database.engine.dispose()


def test_while_aws_is_away_the_last_one_serves(aws: ScriptedAws) -> None:
    aws.on("GetSecretValue", secret("first"), refusal("AccessDeniedException"))
    password = AwsPassword(SECRET)
    assert [password.read(), password.read()] == ["first", "first"]


def test_what_cannot_be_read_at_first_is_told(aws: ScriptedAws) -> None:
    aws.on("GetSecretValue", refusal("ResourceNotFoundException", "no such secret"))
    with pytest.raises(AwsFailed, match="The database's password cannot be read from the secret"):
        open_database(f"postgresql://app@127.0.0.1/x?password_from=aws:{SECRET}").engine.connect()


@pytest.mark.parametrize(
    ("text", "password"),
    [
        ('{"password": "a:b/c"}', "a:b/c"),
        ("plain", "plain"),
        ("12345", "12345"),
        ('{"other": 1}', '{"other": 1}'),
    ],
)
def test_rds_writes_json_and_people_text(text: str, password: str) -> None:
    assert password_in(text) == password


@pytest.mark.parametrize("rest", ["file:/x", "aws:", "aws:a&sslmode=require"])
def test_another_place_or_a_second_password_is_refused(rest: str) -> None:
    user = "app:also" if "sslmode" in rest else "app"
    with pytest.raises(InputError, match="password_from in --database"):
        open_database(f"postgresql://{user}@127.0.0.1/x?password_from={rest}")


def test_where_it_is_may_be_shown() -> None:
    url = f"postgresql://app@127.0.0.1/x?password_from=aws:{SECRET}"
    assert without_password(url) == url
    assert resolve(parser().parse_args(["--database", url]), {}).database == url
