"""The store on PostgreSQL, where it differs from SQLite: connections are lost, others write too, the schema is shared."""

from __future__ import annotations

import asyncio
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import psycopg
import pytest
import sqlalchemy as sa
from tests.control_plane.bench import Bench, make_bench
from tests.postgres import PostgresServer, Relay

from multinode import wire
from multinode.errors import IncompatibleVersion, InvalidRequest, ServerStopping, StoreUnreachable
from multinode_control_plane import databases, migrations, model, store, watchdog
from multinode_control_plane.databases import open_database
from multinode_control_plane.service import adoption, executions


@pytest.fixture
def shared_url(postgres_server):
    return postgres_server.new_database()


def on(url: str, folder: Path) -> Bench:
    return make_bench(folder, database=url)


def through(relay: Relay, url: str) -> str:
    return url.replace(f":{urlsplit(url).port}/", f":{relay.port}/")


@pytest.fixture
def relay(postgres_server):
    made = Relay(postgres_server.port)
    yield made
    made.close()


def invocations_of(bench: Bench) -> int:
    count = sa.select(sa.func.count()).select_from(model.invocations)
    return bench.look(lambda connection: connection.execute(count).scalar_one())


# --- a connection is lost ---


def test_a_commit_whose_answer_is_lost_is_answered_and_made_once(relay, shared_url, tmp_path):
    bench = on(through(relay, shared_url), tmp_path)
    try:
        bench.deploy()
        lost = threading.Event()

        def lose_one_answer(data: bytes) -> bool:
            if b"COMMIT" in data and not lost.is_set():
                lost.set()
                return False
            return True

        relay.on_client_bytes = lose_one_answer
        invocation_id = bench.start()
        assert lost.is_set()
        assert bench.status(invocation_id) == "PENDING"
        assert invocations_of(bench) == 1
        assert len(bench.launched) == 1, "its effects come about once too"
    finally:
        bench.close()


@pytest.mark.parametrize("is_read", [False, True])
def test_a_database_that_says_nothing_is_one_that_is_away(
    relay, shared_url, tmp_path, monkeypatch, is_read
):
    """It takes connections, and what comes on them: nobody's keepalives find that out."""
    monkeypatch.setattr(watchdog, "HURRIED_HANGS_S", 0.4)
    monkeypatch.setattr(store, "AWAY_PATIENCE_S", 0.1)
    bench = on(through(relay, shared_url), tmp_path)
    try:
        bench.deploy()
        invocation_id = bench.start()
        bench.status(invocation_id)
        relay.passes.clear()
        bench.store._watchdog.hurry()  # now, and not before: on a busy machine all takes long
        with pytest.raises(StoreUnreachable):
            bench.status(invocation_id) if is_read else bench.start()
        relay.passes.set()
        bench.store._watchdog._limit_s = watchdog.HANGS_S
        assert bench.status(invocation_id) == "PENDING"
        bench.start()
    finally:
        bench.close()


def test_an_end_does_not_wait_for_a_database_that_says_nothing(relay, shared_url, tmp_path):
    bench = on(through(relay, shared_url), tmp_path)
    bench.deploy()
    relay.passes.clear()
    waiting = bench.store.submit(lambda tx: tx.connection.exec_driver_sql("SELECT 1"))
    began_at = time.monotonic()
    bench.close()
    assert time.monotonic() - began_at < 8.0
    assert isinstance(waiting.exception(0), StoreUnreachable)


def test_a_commit_that_is_in_doubt_is_made_once_where_the_next_connection_is_lost_too(
    relay, shared_url, tmp_path
):
    bench = on(through(relay, shared_url), tmp_path)
    try:
        bench.deploy()
        lost: list[bytes] = []

        def lose_two(data: bytes) -> bool:
            for word in (b"COMMIT", b"SELECT number FROM commits"):
                if word in data and word not in lost:
                    lost.append(word)
                    return False
            return True

        relay.on_client_bytes = lose_two
        bench.start()
        assert len(lost) == 2
        assert invocations_of(bench) == 1
        assert len(bench.launched) == 1
    finally:
        bench.close()


def test_what_was_committed_in_doubt_is_answered_by_one_that_leads_no_more(
    relay, shared_url, tmp_path
):
    bench = on(through(relay, shared_url), tmp_path)
    try:
        bench.deploy()
        deposed = threading.Event()

        def lose_one_answer(data: bytes) -> bool:
            if b"COMMIT" in data and not deposed.is_set():
                deposed.set()
                return False
            return True

        def fence(_connection: sa.Connection) -> None:
            if deposed.is_set():
                raise ServerStopping("another leads")

        bench.store.fence = fence
        relay.on_client_bytes = lose_one_answer
        bench.start()  # whoever was told that it was not made would make it again
        assert deposed.is_set()
        assert invocations_of(bench) == 1
        with pytest.raises(ServerStopping):
            bench.start()
    finally:
        bench.close()


def test_a_transaction_that_is_lost_before_its_commit_is_made_again(relay, shared_url, tmp_path):
    bench = on(through(relay, shared_url), tmp_path)
    try:
        bench.deploy()
        lost = threading.Event()

        def lose_one_commit(data: bytes) -> bool:
            if b"COMMIT" in data and not lost.is_set():
                lost.set()
                raise ConnectionError
            return True

        relay.on_client_bytes = lose_one_commit
        invocation_id = bench.start()
        assert lost.is_set()
        assert invocations_of(bench) == 1
        assert bench.launch_of(invocation_id) is bench.launched[-1]
    finally:
        bench.close()


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGQUIT], ids=["restart", "crash"])
def test_a_restart_of_the_server_in_the_middle_of_work_loses_nothing(own_postgres, tmp_path, how):
    bench = on(own_postgres.new_database(), tmp_path)
    try:
        bench.deploy()
        ids: list[str] = []

        def work() -> None:
            for _ in range(40):
                ids.append(bench.start())
                assert bench.status(ids[-1]) == "PENDING"

        with ThreadPoolExecutor(4) as pool:
            working = [pool.submit(work) for _ in range(4)]
            for _ in range(2):
                at = len(ids) + 20
                while len(ids) < at:
                    time.sleep(0.005)
                own_postgres.restart(how)
            for each in working:
                each.result(60)
        assert len(set(ids)) == 160
        assert invocations_of(bench) == 160
        assert {x.worker_id for x in bench.launched} == alive(bench), (
            "no launch was lost, or made twice"
        )
    finally:
        bench.close()


def alive(bench: Bench) -> set[str]:
    return {who.worker_id for who in bench.look(adoption.alive)}


def test_who_waits_too_long_is_told_and_later_it_goes_on(relay, shared_url, tmp_path, monkeypatch):
    monkeypatch.setattr(store, "AWAY_PATIENCE_S", 0.3)
    bench = on(through(relay, shared_url), tmp_path)
    try:
        bench.deploy()
        relay.cut()
        for _ in range(2):
            with pytest.raises(StoreUnreachable, match="out of reach"):
                bench.start()
            with pytest.raises(StoreUnreachable, match="out of reach"):
                bench.status("inv-x")
        relay.mend()
        bench.status(bench.start())
        assert invocations_of(bench) == 1, "what was answered that it did not happen, does not"
    finally:
        bench.close()


def test_a_store_whose_database_is_away_can_be_closed(relay, shared_url, tmp_path):
    bench = on(through(relay, shared_url), tmp_path)
    relay.cut()
    waiting = bench.store.submit(lambda tx: None)
    bench.close()
    with pytest.raises(StoreUnreachable):
        waiting.result(1)


def test_a_writer_that_hangs_loses_its_lock(shared_url, tmp_path):
    bench = on(shared_url, tmp_path)
    hanging = psycopg.connect(shared_url, autocommit=True, **databases.connect_arguments())
    try:
        hanging.execute(f"BEGIN; SELECT pg_advisory_xact_lock({databases.WRITER_LOCK})")
        begun = time.monotonic()
        bench.deploy()
        assert time.monotonic() - begun < 30
    finally:
        hanging.close()
        bench.close()


# --- others write too ---


def test_two_stores_write_one_after_another(shared_url, tmp_path):
    benches = [on(shared_url, tmp_path / name) for name in ("a", "b")]
    try:
        benches[0].deploy()
        invocation_id = benches[0].start()

        def add_one(tx) -> None:
            select = sa.select(model.invocations.c.not_made)
            found = tx.connection.execute(select).scalar_one()
            tx.connection.execute(sa.update(model.invocations).values(not_made=found + 1))

        with ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(benches[n % 2].do, add_one) for n in range(100)]:
                done.result(30)
        row = benches[1].look(
            lambda connection: connection.execute(sa.select(model.invocations)).one()
        )
        assert (row.invocation_id, row.not_made) == (invocation_id, 100)
    finally:
        for bench in benches:
            bench.close()


# --- what it cannot store ---


def test_a_number_that_is_too_large_is_its_senders_error_alone(shared_url, tmp_path):
    bench = on(shared_url, tmp_path)
    try:
        bench.deploy()
        who = bench.claim(invocation_id := bench.start())
        begun, going = threading.Event(), threading.Event()
        bench.store.submit(lambda tx: (begun.set(), going.wait(60)))
        assert begun.wait(60)  # so that the next ones are one batch
        execution_id = bench.launch_of(invocation_id).execution_id
        end = wire.ExecutionEnd("succeeded", exit_code=2**70)
        report = wire.Report(execution_id, end=end)
        wrong = bench.store.submit(lambda tx: executions.report(tx, bench.context, who, report))
        other = bench.store.submit(lambda tx: 5)
        going.set()
        with pytest.raises(InvalidRequest, match="cannot be stored"):
            wrong.result(60)
        assert other.result(60) == 5
        bench.end(invocation_id, who, "failed", exit_code=2**40)
        assert bench.status(invocation_id) == "FAILED"
    finally:
        bench.close()


# --- the schema ---


def test_two_that_find_an_empty_database_make_its_schema_once(postgres_server: PostgresServer):
    url = postgres_server.new_database(empty=True)
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(migrations.prepare, open_database(url)) for _ in range(4)]:
            done.result(60)
    with open_database(url).engine.connect() as connection:
        assert migrations.current(connection) == migrations.HEAD


@pytest.mark.parametrize(("schema", "hint"), [("0001", "server migrate"), ("9999", "that release")])
def test_another_schema_is_refused(postgres_server: PostgresServer, schema, hint):
    url = postgres_server.new_database()
    name = urlsplit(url).path.strip("/")
    postgres_server.execute(f"UPDATE alembic_version SET version_num = '{schema}'", name)
    with pytest.raises(IncompatibleVersion) as caught:
        migrations.prepare(open_database(url))
    assert schema in caught.value.message
    assert hint in caught.value.hint


def test_readers_see_one_state_of_the_database(shared_url, tmp_path):
    bench = on(shared_url, tmp_path)
    try:
        bench.deploy()

        def look(connection) -> tuple[int, int]:
            count = sa.select(sa.func.count()).select_from(model.invocations)
            before = connection.execute(count).scalar_one()
            bench.start()
            return before, connection.execute(count).scalar_one()

        assert asyncio.run(bench.store.read(look)) == (0, 0)
    finally:
        bench.close()


def test_a_change_of_the_schema_that_a_reader_stands_in_the_way_of_is_made_again(
    postgres_server, monkeypatch
):
    url = postgres_server.new_database(empty=True)
    database = open_database(url)
    migrations.upgrade(database)
    name = urlsplit(url).path.strip("/")
    postgres_server.execute("UPDATE alembic_version SET version_num = '0001'", name)
    reader, tries = psycopg.connect(url), []
    reader.execute("SET deadlock_timeout = '60s'")  # it is the change that gives way
    threads = []

    def make(connection: sa.Connection) -> None:
        tries.append(connection)
        if len(tries) == 1:
            reader.execute("SELECT count(*) FROM invocations")
            connection.exec_driver_sql("ALTER TABLE workers ADD COLUMN more text")
            threads.append(threading.Thread(target=read_workers))
            threads[0].start()
        connection.exec_driver_sql("ALTER TABLE invocations ADD COLUMN more text")

    def read_workers() -> None:
        reader.execute("SELECT count(*) FROM workers")
        reader.close()

    monkeypatch.setattr(migrations, "make", make)
    assert migrations.upgrade(database)[1] == migrations.HEAD
    threads[0].join()
    assert len(tries) > 1
    database.engine.dispose()
