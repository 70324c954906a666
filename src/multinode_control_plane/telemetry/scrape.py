"""A scrape: what stands in the store now beside what this process has counted, in the text format of Prometheus.

Its cost grows with the functions that have something waiting and with the workers that live, not with what is stored.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import sqlalchemy as sa
from prometheus_client import CollectorRegistry
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.exposition import generate_latest
from prometheus_client.registry import Collector

from multinode_control_plane import model
from multinode_control_plane.model import invocations, queues, workers
from multinode_control_plane.settings import Capacity
from multinode_control_plane.telemetry.metrics import Names

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
STATES = (model.REQUESTED, model.ACCEPTED, model.EXCHANGED)


@dataclass(frozen=True)
class Queue:
    """What waits in one project for a slot and room, and for how long the oldest has."""

    depth: int
    oldest_s: float


@dataclass(frozen=True)
class Snapshot:
    """What the store says of now."""

    queues: dict[str, Queue]
    workers: dict[str, int]
    """By state; those that are not gone."""
    unreachable: int
    reserved: Capacity
    size_bytes: int


_OLDEST_AT = (
    sa.select(sa.func.coalesce(invocations.c.queued_at, invocations.c.created_at))
    .where(
        sa.literal_column("invocations.waiting = 'ready'"),
        invocations.c.project == queues.c.project,
        invocations.c.function == queues.c.function,
    )
    .order_by(invocations.c.seq)
    .limit(1)
    .scalar_subquery()
)
"""Of the first in the line. A retry keeps its place in it, so another may have waited for longer, by the delay of a retry at most."""
_QUEUES = sa.select(queues.c.project, queues.c.ready, _OLDEST_AT.label("oldest_at")).where(
    sa.literal_column("queues.ready > 0")
)
_WORKERS = (
    sa.select(
        workers.c.state,
        sa.func.count().label("number"),
        sa.func.sum(sa.case((workers.c.unreachable, 1), else_=0)).label("unreachable"),
        sa.func.sum(workers.c.cpu).label("cpu"),
        sa.func.sum(workers.c.memory_mib).label("memory_mib"),
    )
    .where(workers.c.gone_at.is_(None))
    .group_by(workers.c.state)
)
_SIZES = {
    "sqlite": "SELECT page_count * page_size FROM pragma_page_count(), pragma_page_size()",
    "postgresql": "SELECT pg_database_size(current_database())",
}


def look(connection: sa.Connection, now: float, names: Names) -> Snapshot:
    """A snapshot, with the projects called by their labels."""
    waiting: dict[str, Queue] = {}
    for row in connection.execute(_QUEUES):
        label = names(row.project)
        known = waiting.get(label, Queue(0, 0.0))
        oldest_s = max(0.0, now - row.oldest_at) if row.oldest_at is not None else 0.0
        waiting[label] = Queue(known.depth + row.ready, max(known.oldest_s, oldest_s))
    living = connection.execute(_WORKERS).all()
    return Snapshot(
        queues=waiting,
        workers={row.state: row.number for row in living},
        unreachable=sum(row.unreachable for row in living),
        reserved=Capacity(
            cpu=float(sum(row.cpu for row in living)),
            memory_mib=int(sum(row.memory_mib for row in living)),
        ),
        size_bytes=connection.exec_driver_sql(_SIZES[connection.dialect.name]).scalar_one(),
    )


@dataclass(frozen=True)
class Plant:
    """What stays the same while a process runs."""

    version: str
    runner: str
    database: str
    capacity: Capacity
    data_dir: Path


def families(snapshot: Snapshot, plant: Plant) -> Iterator[Metric]:
    """The snapshot as metrics."""
    yield _labelled(
        "info",
        "What this process is; always 1.",
        ("version", "runner", "database"),
        {(plant.version, plant.runner, plant.database): 1},
    )
    yield _labelled(
        "queue_depth",
        "Invocations that could run, and wait for a slot or room.",
        ("project",),
        {(name,): queue.depth for name, queue in snapshot.queues.items()},
    )
    yield _labelled(
        "queue_oldest_age_seconds",
        "For how long the first of them has waited.",
        ("project",),
        {(name,): queue.oldest_s for name, queue in snapshot.queues.items()},
    )
    yield _labelled(
        "workers",
        "Workers that are not gone.",
        ("state",),
        {(state,): snapshot.workers.get(state, 0) for state in STATES},
    )
    for name, about, value in _numbers(snapshot, plant):
        yield GaugeMetricFamily(f"multinode_{name}", about, value)


def _numbers(snapshot: Snapshot, plant: Plant) -> Iterable[tuple[str, str, float]]:
    room, reserved = plant.capacity, snapshot.reserved
    return (
        ("workers_unreachable", "Workers that live and are silent.", snapshot.unreachable),
        ("capacity_cpu_cores", "Room for all workers together.", room.cpu),
        ("capacity_memory_bytes", "Room for all workers together.", room.memory_mib * 2**20),
        ("reserved_cpu_cores", "What workers have of that room.", reserved.cpu),
        ("reserved_memory_bytes", "What workers have of that room.", reserved.memory_mib * 2**20),
        ("store_size_bytes", "The database.", snapshot.size_bytes),
        ("data_free_bytes", "Free where the data folder lies.", _free_bytes(plant.data_dir)),
    )


def _free_bytes(folder: Path) -> float:
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return float("nan")


def _labelled(
    name: str, about: str, labels: tuple[str, ...], values: dict[tuple[str, ...], float]
) -> GaugeMetricFamily:
    made = GaugeMetricFamily(f"multinode_{name}", about, labels=labels)
    for key, value in values.items():
        made.add_metric(key, value)
    return made


class _Whole(Collector):
    """What was counted and what stands in the store, as the encoders ask for it."""

    def __init__(self, registry: CollectorRegistry, now: Iterable[Metric]) -> None:
        self._registry = registry
        self._now = list(now)

    def collect(self) -> Iterator[Metric]:
        yield from self._registry.collect()
        yield from self._now


def render(registry: CollectorRegistry, snapshot: Snapshot, plant: Plant) -> bytes:
    """The text. May run in any thread."""
    return generate_latest(_Whole(registry, families(snapshot, plant)))
