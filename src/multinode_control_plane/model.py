"""The tables, the words of the states, and which state may follow which.

Times are POSIX seconds as floats (UTC). This module says what is stored; who may change it, and when, is
`service`'s business. The expand-and-contract steps between releases are in `migrations`.
"""

from __future__ import annotations

import secrets
from datetime import datetime, timezone

import sqlalchemy as sa

from multinode.wire import (
    CANCELLED,
    CANCELLING,
    FAILED,
    FINAL_STATUSES,
    PENDING,
    RUNNING,
    SUCCEEDED,
    TIMED_OUT,
)

READY, DELAYED = "ready", "delayed"
"""What a PENDING invocation without a live execution waits for: a slot and room, or its time (`due_at`)."""

STARTING, STARTED, ENDED = "starting", "running", "ended"
"""States of an execution."""

REQUESTED, ACCEPTED, EXCHANGED, GONE = "requested", "accepted", "ready", "gone"
IDLE, LEAVING = "idle", "leaving"
"""States of a worker. The last two are of one that serves several invocations: it waits for the next, or was told that there is none."""

TRANSITIONS: dict[str, frozenset[str]] = {
    PENDING: frozenset({PENDING, RUNNING, CANCELLED, TIMED_OUT, FAILED}),
    RUNNING: frozenset({PENDING, CANCELLING, SUCCEEDED, FAILED, CANCELLED, TIMED_OUT}),
    CANCELLING: frozenset({SUCCEEDED, FAILED, CANCELLED, TIMED_OUT}),
    **{status: frozenset() for status in FINAL_STATUSES},
}
"""The statuses that may follow each; the table with its events is in `docs/architecture.md`."""

metadata = sa.MetaData()

keys = sa.Table(
    "keys",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("hash", sa.Text, nullable=False, unique=True),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("revoked_at", sa.Float),
    sa.Column("project", sa.Text),  # the only one that the key is for; NULL is all of them
)

audit = sa.Table(
    "audit",
    metadata,
    sa.Column("seq", sa.Integer().with_variant(sa.BigInteger, "postgresql"), primary_key=True),
    sa.Column("at", sa.Float, nullable=False),
    sa.Column("key_name", sa.Text, nullable=False),
    sa.Column("role", sa.Text, nullable=False),
    sa.Column("action", sa.Text, nullable=False),
    sa.Column("target", sa.Text, nullable=False),
    sa.Column("project", sa.Text),
    sa.Column("count", sa.Integer, nullable=False),
    sqlite_autoincrement=True,
)

bundle_projects = sa.Table(
    "bundle_projects",
    metadata,
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("project", sa.Text, primary_key=True),
)
"""Which bundles were sent with a key of one project: that project may use them before a version does."""

projects = sa.Table(
    "projects",
    metadata,
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("latest_version_id", sa.Text, nullable=False),
    sa.Column("deleting_at", sa.Float),
)

environments = sa.Table(
    "environments",
    metadata,
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("info", sa.JSON, nullable=False),
)

versions = sa.Table(
    "versions",
    metadata,
    sa.Column("version_id", sa.Text, primary_key=True),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("number", sa.Integer, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("environment_digest", sa.Text, nullable=False),
    sa.Column("bundle_digest", sa.Text, nullable=False),
    sa.Column("dotenv", sa.LargeBinary, nullable=False),
    sa.Column("dotenv_names", sa.JSON, nullable=False),
    sa.Column(
        "sealed_with", sa.Text
    ),  # id of the key; NULL where an older release has written the row
    sa.Column("content_key", sa.Text, nullable=False),
    sa.Column("describe_key", sa.Text, nullable=False, index=True),
    sa.UniqueConstraint("project", "content_key"),
    sa.UniqueConstraint("project", "number"),
)

sealing = sa.Table(
    "sealing",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("key_id", sa.Text, nullable=False),
    sa.Column("mac_key", sa.LargeBinary, nullable=False),
    sa.Column("request_key", sa.Text),
    sa.Column("retiring", sa.JSON),
    sa.Column("resealed", sa.Integer),
)
"""One row: the id of the key that encrypts `.env` values now, and, encrypted with it, the key of digests and tokens. The other
columns are of the last rotation to that key: what asked for it, the ids of the keys before, and how many versions it has
encrypted; NULL before there was one."""

rings = sa.Table(
    "rings",
    metadata,
    sa.Column("process", sa.Text, primary_key=True),
    sa.Column("place", sa.Text, nullable=False),
    sa.Column("key_ids", sa.JSON, nullable=False),
)
"""Which keys each of the processes has that share the database, and where its ring is."""

functions = sa.Table(
    "functions",
    metadata,
    sa.Column("version_id", sa.Text, primary_key=True),
    sa.Column("name", sa.Text, primary_key=True),
    sa.Column("position", sa.Integer, nullable=False),
    sa.Column("description", sa.JSON, nullable=False),
)

queues = sa.Table(
    "queues",
    metadata,
    sa.Column("project", sa.Text, primary_key=True),
    sa.Column("function", sa.Text, primary_key=True),
    sa.Column("max_concurrency", sa.Integer, nullable=False),
    sa.Column("ready", sa.Integer, nullable=False, default=0),
    sa.Column("workers", sa.Integer, nullable=False, default=0),
    sa.Column("idle", sa.Integer, nullable=False, default=0, server_default="0"),
    sa.Column("min_workers", sa.Integer, nullable=False, default=0, server_default="0"),
    sa.Index(
        "queues_ready",
        "ready",
        sqlite_where=sa.text("ready > 0"),
        postgresql_where=sa.text("ready > 0"),
    ),
)
"""One row for each function over all its versions: how many invocations are ready, how many workers hold a slot, and how many of
these are idle. ``min_workers`` is the latest version's; 0 where that does not have the function."""

invocations = sa.Table(
    "invocations",
    metadata,
    sa.Column("seq", sa.Integer().with_variant(sa.BigInteger, "postgresql"), primary_key=True),
    sa.Column("invocation_id", sa.Text, nullable=False, unique=True),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("function", sa.Text, nullable=False),
    sa.Column("version_id", sa.Text, nullable=False),
    sa.Column("status", sa.Text, nullable=False),
    sa.Column("waiting", sa.Text),
    sa.Column("due_at", sa.Float),
    sa.Column("queued_at", sa.Float),
    sa.Column("queue_deadline_at", sa.Float),
    sa.Column("pending_note", sa.Text),
    sa.Column("not_made", sa.BigInteger, nullable=False, default=0),
    sa.Column("num_failed_attempts", sa.BigInteger, nullable=False, default=0),
    sa.Column("input", sa.Text, nullable=False),
    sa.Column("result", sa.Text),
    sa.Column("error", sa.JSON),
    sa.Column("num_values", sa.BigInteger, nullable=False, default=0),
    sa.Column("values_kept", sa.BigInteger, nullable=False, default=0),
    sa.Column("values_bytes", sa.BigInteger, nullable=False, default=0),
    sa.Column("parent_id", sa.Text),
    sa.Column("traceparent", sa.Text),
    sa.Column("request_key", sa.Text),
    sa.Column("idempotency_key", sa.Text),
    sa.Column("cancel_requested_at", sa.Float),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("started_at", sa.Float),
    sa.Column("finished_at", sa.Float),
    sa.Column("terminated", sa.Boolean, nullable=False, default=False),
    sa.Column("revision", sa.BigInteger, nullable=False, default=1),
    sa.Index("invocations_status", "project", "status", "seq"),
    sa.Index("invocations_function_status", "project", "function", "status", "seq"),
    sa.Index("invocations_version_status", "version_id", "function", "status", "seq"),
    sa.Index(
        "invocations_children",
        "parent_id",
        "seq",
        sqlite_where=sa.text("parent_id IS NOT NULL AND finished_at IS NULL"),
        postgresql_where=sa.text("parent_id IS NOT NULL AND finished_at IS NULL"),
    ),
    sa.Index(
        "invocations_parent",
        "parent_id",
        sqlite_where=sa.text("parent_id IS NOT NULL"),
        postgresql_where=sa.text("parent_id IS NOT NULL"),
    ),
    sa.Index(
        "invocations_request",
        "request_key",
        sqlite_where=sa.text("request_key IS NOT NULL"),
        postgresql_where=sa.text("request_key IS NOT NULL"),
    ),
    sa.Index(
        "invocations_idempotency",
        "project",
        "function",
        "idempotency_key",
        sqlite_where=sa.text("idempotency_key IS NOT NULL"),
        postgresql_where=sa.text("idempotency_key IS NOT NULL"),
    ),
    sa.Index(
        "invocations_ready",
        "project",
        "function",
        "seq",
        sqlite_where=sa.text("waiting = 'ready'"),
        postgresql_where=sa.text("waiting = 'ready'"),
    ),
    sa.Index(
        "invocations_ready_children",
        "project",
        "function",
        "seq",
        sqlite_where=sa.text("waiting = 'ready' AND parent_id IS NOT NULL"),
        postgresql_where=sa.text("waiting = 'ready' AND parent_id IS NOT NULL"),
    ),
    sa.Index(
        "invocations_due",
        "due_at",
        sqlite_where=sa.text("waiting = 'delayed'"),
        postgresql_where=sa.text("waiting = 'delayed'"),
    ),
    sa.Index(
        "invocations_deadline",
        "queue_deadline_at",
        sqlite_where=sa.text("queue_deadline_at IS NOT NULL"),
        postgresql_where=sa.text("queue_deadline_at IS NOT NULL"),
    ),
    sa.Index(
        "invocations_not_terminated",
        "project",
        sqlite_where=sa.text("NOT terminated"),
        postgresql_where=sa.text("NOT terminated"),
    ),
    sqlite_autoincrement=True,
)

executions = sa.Table(
    "executions",
    metadata,
    sa.Column("execution_id", sa.Text, primary_key=True),
    sa.Column("invocation_id", sa.Text, nullable=False, index=True),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("worker_id", sa.Text, nullable=False),
    sa.Column("number", sa.Integer, nullable=False, default=1, server_default="1"),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("outcome", sa.Text),
    sa.Column("error", sa.JSON),
    sa.Column("exit_code", sa.BigInteger),
    sa.Column("signal", sa.BigInteger),
    sa.Column("peak_memory_bytes", sa.BigInteger),
    sa.Column("run_ms", sa.Float),
    sa.Column("import_ms", sa.Float),
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("started_at", sa.Float),
    sa.Column("ended_at", sa.Float),
    sa.Column("left_at", sa.Float),
    sa.Index("executions_of_worker", "worker_id", "number"),
)
"""``number``: it is the so-manyth of its worker. ``left_at``: since when nothing of it is left there: its worker is ready for the next, or
gone. (NULL also where releases before 2.1 have written the row, and the worker is gone.)"""

costs = sa.Table(
    "costs",
    metadata,
    sa.Column("execution_id", sa.Text, primary_key=True),
    sa.Column("invocation_id", sa.Text, nullable=False, index=True),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("function", sa.Text, nullable=False),
    sa.Column("version_id", sa.Text, nullable=False),
    sa.Column("ended_at", sa.Float, nullable=False, index=True),
    sa.Column("day", sa.Integer, nullable=False),
    sa.Column("tariff", sa.Text, nullable=False),
    sa.Column("currency", sa.Text, nullable=False),
    sa.Column("cpu", sa.Float, nullable=False),
    sa.Column("memory_mib", sa.BigInteger, nullable=False),
    sa.Column("billed_s", sa.Float, nullable=False),
    sa.Column("vcpu_s", sa.Float, nullable=False),
    sa.Column("gb_s", sa.Float, nullable=False),
    sa.Column("cost", sa.Float, nullable=False),
    sa.Index("costs_function", "project", "function", "ended_at"),
)
"""A row for each worker that was made and is gone: the size that was paid, and what it cost by the prices of then. ``day``
counts from 1970-01-01 (UTC). It stays where its project is removed. A worker that served several invocations has a row for each, and
one under its own id, without an invocation, for the time between."""

workers = sa.Table(
    "workers",
    metadata,
    sa.Column("worker_id", sa.Text, primary_key=True),
    sa.Column("execution_id", sa.Text, nullable=False),
    sa.Column("invocation_id", sa.Text, nullable=False, index=True),
    sa.Column("project", sa.Text, nullable=False),
    sa.Column("function", sa.Text, nullable=False),
    sa.Column("version_id", sa.Text, nullable=False),
    sa.Column("state", sa.Text, nullable=False),
    sa.Column("cpu", sa.Float, nullable=False),
    sa.Column("memory_mib", sa.BigInteger, nullable=False),
    sa.Column("served", sa.Integer, nullable=False, default=1, server_default="1"),
    sa.Column("wanted", sa.Integer, nullable=False, default=1, server_default="1"),
    sa.Column("billed_s", sa.Float, nullable=False, default=0.0, server_default="0"),
    sa.Column("claim_code_hash", sa.Text, nullable=False),
    sa.Column("nonce", sa.Text),
    sa.Column("token_hash", sa.Text),
    sa.Column("unreachable", sa.Boolean, nullable=False, default=False),
    sa.Column("deadline_at", sa.Float),
    sa.Column("note", sa.Text),  # what its making waits for, in words
    sa.Column("created_at", sa.Float, nullable=False),
    sa.Column("accepted_at", sa.Float),
    sa.Column("ready_at", sa.Float),
    sa.Column("idle_at", sa.Float),
    sa.Column("gone_at", sa.Float),
    sa.Index(
        "workers_idle",
        "project",
        "function",
        sqlite_where=sa.text("idle_at IS NOT NULL"),
        postgresql_where=sa.text("idle_at IS NOT NULL"),
    ),
    sa.Index(
        "workers_alive",
        "worker_id",
        sqlite_where=sa.text("gone_at IS NULL"),
        postgresql_where=sa.text("gone_at IS NULL"),
    ),
    sa.Index(
        "workers_deadline",
        "deadline_at",
        sqlite_where=sa.text("deadline_at IS NOT NULL"),
        postgresql_where=sa.text("deadline_at IS NOT NULL"),
    ),
    sa.Index(
        "workers_token",
        "token_hash",
        sqlite_where=sa.text("token_hash IS NOT NULL"),
        postgresql_where=sa.text("token_hash IS NOT NULL"),
    ),
)
"""``execution_id`` and ``invocation_id`` are what it was made for; empty for one that was started ahead. ``served``: how many executions it was
given; ``wanted``: how many it takes at once, so that the last so many may not have ended; ``idle_at``: since when it waits for the next; ``billed_s``: how much of its time is in
the costs of executions already."""

values = sa.Table(
    "yielded_values",
    metadata,
    sa.Column("invocation_id", sa.Text, primary_key=True),
    sa.Column("number", sa.BigInteger, primary_key=True, autoincrement=False),
    sa.Column("attempt", sa.Integer, nullable=False),
    sa.Column("value", sa.Text, nullable=False),
    sqlite_with_rowid=False,
)

leader = sa.Table(
    "leader",
    metadata,
    sa.Column("id", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("holder", sa.Text),
    sa.Column("epoch", sa.BigInteger, nullable=False),
    sa.Column("beat", sa.BigInteger, nullable=False),
    sa.Column("url", sa.Text),
)
"""One row: which of the processes that share the database makes workers. ``beat`` grows while it lives."""

commits = sa.Table(
    "commits",
    metadata,
    sa.Column("writer", sa.Text, primary_key=True),
    sa.Column("number", sa.BigInteger, nullable=False),
    sa.Column("at", sa.Float, nullable=False),
)
"""The last transaction that each process committed, for one whose answer was lost."""

bundles = sa.Table(
    "bundles",
    metadata,
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("parts", sa.Integer, nullable=False),
    sa.Column("created_at", sa.Float, nullable=False),
)
"""Bundles whose parts are all there, where several processes share the database."""

bundle_parts = sa.Table(
    "bundle_parts",
    metadata,
    sa.Column("digest", sa.Text, primary_key=True),
    sa.Column("part", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("content", sa.LargeBinary, nullable=False),
)


def new_id(prefix: str) -> str:
    """A new id: ``inv``, ``exe``, ``wrk`` or ``ver``, then 32 random hexadecimal digits."""
    return f"{prefix}-{secrets.token_hex(16)}"


def to_time(seconds: float) -> str:
    """POSIX seconds as the wire's time."""
    return datetime.fromtimestamp(seconds, timezone.utc).isoformat(timespec="milliseconds")


def to_time_or_none(seconds: float | None) -> str | None:
    """`to_time`, with None for None."""
    return None if seconds is None else to_time(seconds)
