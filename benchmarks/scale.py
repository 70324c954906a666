"""What is stored and who waits cost the others: a million ended and 100,000 pending invocations against a store with a page of each.

Two control planes run side by side, one on each store, and are asked by turns, so that the machine's moods fall on both alike.
The stores are filled by statements of the database's own, with what a start and an end would have left in each row.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from tests.postgres import running

from benchmarks.control_plane import _ask as ask
from benchmarks.control_plane import _cpu_s, _limit_files, _memory_mib, _read_all, _status
from benchmarks.harness import Figure, Installation, alternating, installation
from multinode.client import Client
from multinode.wire import InvocationInfo, InvocationList, StartAnswer, StartRequest
from multinode_control_plane import databases, model
from multinode_control_plane.service import admission
from multinode_control_plane.service.dotenv import Sealer
from multinode_control_plane.service.executions import Context
from multinode_control_plane.settings import Capacity, Settings
from multinode_control_plane.store import Transaction

SMALL = (400, 400)
"""Ended and pending, of each of two kinds: a page of each."""
FULL, QUICK = (1_000_000, 100_000), (100_000, 20_000)
CHUNK = 50_000
DEPTH = 1000
"""Pages above the deep one."""
WAITING, WAITING_IDLY = 5000, 1000


@dataclass(frozen=True)
class Pair:
    """The same project on two control planes: one whose store is small, and one that is to be filled."""

    small: Installation
    full: Installation
    postgres: tuple[Installation, Installation]


@contextmanager
def opened(folder: Path) -> Iterator[Pair]:
    """Four control planes: two on SQLite, two on a PostgreSQL that waits for the disk."""
    with (
        running(options=()) as server,
        _at(folder / "small") as small,
        _at(folder / "full") as full,
        _at(folder / "small-pg", server.new_database(empty=True)) as small_pg,
        _at(folder / "full-pg", server.new_database(empty=True)) as full_pg,
    ):
        yield Pair(small, full, (small_pg, full_pg))


@contextmanager
def _at(folder: Path, database: str = "") -> Iterator[Installation]:
    folder.mkdir()
    home = os.environ.get("MULTINODE_HOME")
    with installation(folder, database=database) as at:
        yield at
        os.environ["MULTINODE_HOME"] = str(at.home)  # its own stop asks it
    if home is not None:
        os.environ["MULTINODE_HOME"] = home


def figures(at: Pair, quick: bool) -> list[Figure]:
    size, rounds = (QUICK, 20) if quick else (FULL, 100)
    before = _memory_mib(at.full.pid)
    found = _compared("SQLite", at.small, at.full, size, rounds)
    grown = 1024 * (_memory_mib(at.full.pid) - before) / size[1]
    found += [Figure("memory more, per pending invocation", grown, "KB", 1)]
    found += _compared("PostgreSQL", *at.postgres, size, rounds)
    # On the small one, which has nothing else to do.
    threads, kilobytes, idle = _waiting(at.small, WAITING_IDLY, 5 if quick else 20)
    found += [Figure(f"CPU, {WAITING_IDLY:,} clients waiting, of a core", idle, "%", 0.5)]
    threads, kilobytes, _ = _waiting(at.small, WAITING, 0.0)
    return [
        *found,
        Figure(f"threads more, {WAITING:,} clients waiting", threads, "", 50),
        Figure(f"memory more, per client of {WAITING:,} waiting", kilobytes, "KB", 20),
    ]


# --- what is stored -------------------------------------------------------------------------------------


def _compared(
    name: str, small: Installation, full: Installation, size: tuple[int, int], rounds: int
) -> list[Figure]:
    """Each by turns on both, as the ratio of medians."""
    clients = {id(each): _client(each) for each in (small, full)}
    began = time.perf_counter()
    _fill(small, *SMALL)
    _fill(full, *size)
    figures = [Figure(f"{name}: rows stored", sum(size) / (time.perf_counter() - began), "/s")]
    actions: dict[str, Callable[[], object]] = {}
    for at, which in ((small, "small"), (full, "full")):
        actions |= {
            f"{what}|{which}": act for what, act in _actions(at, clients[id(at)], which).items()
        }
    found = alternating(rounds, actions)
    for what in [label.partition("|")[0] for label in found if label.endswith("|full")]:
        floor = found[f"{what}|small"]
        figures += [
            Figure(f"{name}: {what}, small store (floor)", floor, "ms"),
            Figure(f"{name}: {what}, full store", found[f"{what}|full"], "ms", 1.2 * floor, floor),
        ]
    return figures


def _actions(at: Installation, client: Client, which: str) -> dict[str, Callable[[], object]]:
    later = StartRequest(['[{"py/tuple":[1,2]},{}]'], delay_s=86_400.0)

    def listing(**query: str) -> Callable[[], object]:
        asked = "&".join(f"{name}={value}" for name, value in query.items())
        return lambda: _page(client, asked)

    # From there down lie pages of each kind in the small store too.
    newest = int(_page(client, "project=bench").next_offset or 0)
    deep = str(max(newest - DEPTH * 50, 300) if which == "full" else newest)
    return {
        "start": lambda: client.call(
            StartAnswer, "POST", "/v1/projects/bench/functions/add/invocations", later
        ),
        "tick": _ticker(at),
        "first page": listing(),
        "first page of a project": listing(project="bench"),
        f"page {DEPTH} of it": listing(project="bench", offset=deep),
        "in flight": listing(project="bench", in_flight="1"),
        "by status": listing(project="bench", status="FAILED"),
        "by function": listing(project="bench", function="sleep"),
        "by function and status": listing(project="bench", function="sleep", status="SUCCEEDED"),
    }


def _page(client: Client, asked: str) -> InvocationList:
    found = client.call(InvocationList, "GET", f"/v1/invocations?{asked}")
    assert len(found.invocations) == 50, f"{asked}: {len(found.invocations)} of a page of 50"
    return found


def _client(at: Installation) -> Client:
    server = json.loads((at.home / "server.json").read_text())
    return Client(server["url"], server["key"])


def _ticker(at: Installation) -> Callable[[], object]:
    """A tick with its timers in a transaction like the writer's, which is not kept."""
    database = databases.open_database(at.database or f"sqlite:///{at.data}/multinode.sqlite")
    settings = Settings(
        at.home, at.data, "process", at.database, "127.0.0.1", 0, None, Capacity(64.0, 20 * 1024)
    )
    context, connection = Context(settings, Sealer([b"k" * 32])), database.engine.connect()

    def tick() -> None:
        database.begin(connection, durable=False)
        admission.tick(Transaction(connection, time.time()), context, draining=False)
        connection.rollback()

    return tick


def _fill(at: Installation, ended: int, pending: int) -> None:
    """Of ``add`` and ``sleep`` in turns: ended ones, then pending ones, half of them delayed, half of them ready behind a full queue."""
    database = databases.open_database(at.database or f"sqlite:///{at.data}/multinode.sqlite")
    with database.engine.connect() as connection:
        version_id = connection.execute(sa.select(model.projects.c.latest_version_id)).scalar()
        for kind, count in (("ended", ended), ("delayed", pending // 2), ("ready", pending // 2)):
            for begin in range(0, count, CHUNK):
                values = {
                    "count": min(CHUNK, count - begin),
                    "version_id": version_id,
                    "now": time.time(),
                }
                database.begin(connection, durable=False)
                connection.execute(_statement(database.name, kind), values)
                connection.commit()
        database.begin(connection, durable=True)
        # Its slots are taken: what is ready waits, as behind invocations that run for long.
        connection.execute(
            sa.update(model.queues)
            .where(model.queues.c.function == "sleep")
            .values(ready=pending // 2, workers=model.queues.c.max_concurrency)
        )
        connection.commit()
        if database.is_shared:  # as its autovacuum would within a minute
            connection.exec_driver_sql("VACUUM ANALYZE invocations")
    database.engine.dispose()


def _statement(database: str, kind: str) -> sa.TextClause:
    is_ended = kind == "ended"
    series, text = {
        "sqlite": (
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :count) SELECT {} FROM n",
            "lower(hex(randomblob(16)))",
        ),
        "postgresql": (
            "SELECT {} FROM generate_series(1, CAST(:count AS integer)) AS n(i)",
            "md5(random()::text || i)",
        ),
    }[database]
    function = {"ended": "CASE i % 2 WHEN 0 THEN 'add' ELSE 'sleep' END"}.get(kind, "'add'")
    columns = {
        "invocation_id": f"'inv-' || {text}",
        "project": "'bench'",
        "function": "'sleep'" if kind == "ready" else function,
        "version_id": "CAST(:version_id AS text)",
        "status": "CASE WHEN i % 4 < 2 THEN 'SUCCEEDED' ELSE 'FAILED' END"
        if is_ended
        else "'PENDING'",
        "waiting": "NULL" if is_ended else f"'{kind}'",
        "due_at": ":now + 86400 + i" if kind == "delayed" else "NULL",
        "queued_at": "NULL" if kind == "delayed" else ":now",
        "input": """'[{"py/tuple":[1,2]},{}]'""",
        "result": "'3'" if is_ended else "NULL",
        "request_key": text,
        "created_at": ":now",
        "started_at": ":now" if is_ended else "NULL",
        "finished_at": ":now" if is_ended else "NULL",
        "terminated": "true" if is_ended else "false",
        **dict.fromkeys(
            ("not_made", "num_failed_attempts", "num_values", "values_kept", "values_bytes"), "0"
        ),
        "revision": "4" if is_ended else "1",
    }
    # A text would be read as having parameters where a value has a colon.
    chosen = series.format(", ".join(columns.values()).replace('":[', '"\\:['))
    return sa.text(f"INSERT INTO invocations ({', '.join(columns)}) {chosen}")


# --- who waits ------------------------------------------------------------------------------------------


def _waiting(at: Installation, count: int, idle_s: float) -> tuple[float, float, float]:
    """Threads more, KB for each, and percent of a core while they wait, of clients that wait for an invocation's end."""
    client = _client(at)
    path = "/v1/projects/bench/functions/add/invocations"
    later = StartRequest(['[{"py/tuple":[1,2]},{}]'], delay_s=86_400.0)
    (invocation_id,) = client.call(StartAnswer, "POST", path, later).invocation_ids
    _limit_files(count)
    before = _status(at.pid, "VmRSS"), _status(at.pid, "Threads")
    connections = [ask(at, invocation_id) for _ in range(count)]
    for _ in range(5):  # answered when those before have been read
        client.call(InvocationList, "GET", "/v1/invocations")
    after = _status(at.pid, "VmRSS"), _status(at.pid, "Threads")
    began, spent = time.perf_counter(), _cpu_s(at.pid)
    time.sleep(idle_s)  # nothing is waited for here: that span is what is measured
    percent = 100 * (_cpu_s(at.pid) - spent) / max(time.perf_counter() - began, 1e-9)
    client.call(InvocationInfo, "POST", f"/v1/invocations/{invocation_id}/cancel")
    _read_all(connections)
    return after[1] - before[1], (after[0] - before[0]) / count, percent
