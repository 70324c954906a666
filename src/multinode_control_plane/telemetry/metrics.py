"""Counts and durations of this process, as Prometheus' client library keeps them; their names are in docs/reference/metrics.md.

Told from the event loop and from the store's writer thread. To tell one costs a few microseconds, no lock that is held for long and no
memory that grows: label values are few, and projects beyond the first `MAX_PROJECTS` count as one.
"""

from __future__ import annotations

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
)

from multinode_control_plane.service.facts import (
    AttemptClaimed,
    AttemptEnded,
    Fact,
    InvocationEnded,
    InvocationsStarted,
    WorkerNotMade,
)

MAX_PROJECTS = 100
OTHERS = "(others)"
"""In place of the names of further projects; no project has this name."""

REFUSALS = (
    "not_logged_in", "too_many_wrong_keys", "not_allowed", "too_many_requests",
    "request_too_large", "bundle_too_large",
)  # fmt: skip
"""Codes of errors that say: not with this key, or not so much."""
STORE_ERRORS = ("storage_full", "store_unreachable", "internal_error")
QUICK_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
SLOW_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 15, 60, 300, 900, 3600)
LONG_S = (0.01, 0.1, 1, 10, 60, 300, 900, 3600, 4 * 3600, 12 * 3600, 24 * 3600)
JOBS = (1, 2, 4, 8, 16, 32, 64, 128, 256)


class Names:
    """The first so many names that are asked for, as they are; those that come later are `OTHERS`."""

    def __init__(self, limit: int = MAX_PROJECTS) -> None:
        self._limit = limit
        self._known: set[str] = set()

    def __call__(self, name: str) -> str:
        """The label for a name."""
        if name not in self._known:
            if len(self._known) >= self._limit:
                return OTHERS
            self._known.add(name)
        return name


PARTS = ("head", "body")
"""Of a request, which may come too slowly."""


class Metrics:
    """All that this process counts, in a registry of its own."""

    def __init__(self) -> None:
        # For all of the process: a second series beside each would say nothing.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = CollectorRegistry()
        self.projects = Names()
        ProcessCollector(registry=self.registry)
        PlatformCollector(registry=self.registry)
        self._of_invocations()
        self._of_requests()
        self._of_the_store()
        self.leader = self._gauge("leader", "1 where this process schedules and makes workers.")
        self.runner_errors = self._counter(
            "runner_errors", "Acts of the runner that failed.", "operation"
        )
        # From 0 on: what begins with its first failure has not grown by it, and nobody is alerted.
        for counter, labels in (
            (self.refused, REFUSALS),
            (self.late, PARTS),
            (self.store_errors, STORE_ERRORS),
            (self.runner_errors, ("start", "other")),
        ):
            for label in labels:
                counter.labels(label)

    def _of_invocations(self) -> None:
        self.started = self._counter("invocations_started", "New invocations.", "project")
        self.ended = self._counter(
            "invocations_ended", "Invocations that ended.", "project", "status"
        )
        self.attempts = self._counter(
            "attempts_ended", "Attempts that ended.", "project", "outcome"
        )
        self.not_made = self._counter(
            "workers_not_made", "Workers that were not made or lost before their claim.", "project"
        )
        self.queue_wait = self._histogram(
            "queue_wait", "From when an attempt may run until a worker is made for it.", SLOW_S
        )
        self.worker_start = self._histogram(
            "worker_start", "From when a worker is made until the function's code starts.", SLOW_S
        )
        self.attempt_duration = self._histogram(
            "attempt_duration", "From when the function's code starts until it ends.", LONG_S
        )

    def _of_requests(self) -> None:
        self.requests = self._histogram(
            "http_request_duration",
            "Until the answer, without the time for which the client asked to wait.",
            QUICK_S,
            "method",
            "route",
            "status",
        )
        self.refused = self._counter(
            "http_requests_refused", "Requests that were refused for their key or a limit.", "error"
        )
        self.late = self._counter(
            "http_connections_too_slow",
            "Connections that were closed: what they had to send did not come in time.",
            "part",
        )
        self.open_requests = self._gauge(
            "http_open_requests", "Requests that are being answered, or wait for a change."
        )

    def _of_the_store(self) -> None:
        self.commits = self._histogram(
            "store_commit_duration", "A transaction of the writer, from its begin.", QUICK_S
        )
        self.commit_jobs = Histogram(
            "multinode_store_commit_jobs",
            "Changes in one transaction of the writer.",
            buckets=JOBS,
            registry=self.registry,
        )
        self.store_errors = self._counter(
            "store_errors", "Transactions that the database refused.", "error"
        )

    def _counter(self, name: str, about: str, *labels: str) -> Counter:
        return Counter(f"multinode_{name}", about, labels, registry=self.registry)

    def _gauge(self, name: str, about: str) -> Gauge:
        return Gauge(f"multinode_{name}", about, registry=self.registry)

    def _histogram(
        self, name: str, about: str, buckets: tuple[float, ...], *labels: str
    ) -> Histogram:
        return Histogram(
            f"multinode_{name}_seconds", about, labels, buckets=buckets, registry=self.registry
        )

    # --- what is told -------------------------------------------------------------------------------

    def note(self, fact: Fact) -> None:
        """Counts what was committed."""
        project = self.projects(fact.project)
        match fact:
            case InvocationsStarted(count=count):
                self.started.labels(project).inc(count)
            case InvocationEnded(status=status):
                self.ended.labels(project, status).inc()
            case AttemptClaimed(queued_s=queued_s, starting_s=starting_s):
                self.queue_wait.observe(queued_s)
                self.worker_start.observe(starting_s)
            case AttemptEnded(outcome=outcome, lasted_s=lasted_s):
                self.attempts.labels(project, outcome).inc()
                if lasted_s is not None:
                    self.attempt_duration.observe(lasted_s)
            case WorkerNotMade():
                self.not_made.labels(project).inc()

    def answered(self, method: str, route: str, status: int, lasted_s: float) -> None:
        """A request of a known route, or ``none``, was answered."""
        self.requests.labels(method, route, f"{status // 100}xx").observe(lasted_s)

    def refused_with(self, code: str) -> None:
        """A request was refused with an error of this code."""
        if code in REFUSALS:
            self.refused.labels(code).inc()

    def was_late(self, part: str) -> None:
        """A connection was closed for what did not come: a request's ``head``, or ``body``."""
        self.late.labels(part).inc()

    def committed(self, jobs: int, lasted_s: float) -> None:
        """The writer has committed a transaction of so many jobs."""
        self.commits.observe(lasted_s)
        self.commit_jobs.observe(jobs)

    def commit_failed(self, error: Exception) -> None:
        """The writer's transaction was rolled back."""
        self.store_errors.labels(getattr(error, "code", "internal_error")).inc()

    def runner_failed(self, operation: str) -> None:
        """The runner could not do what it was told."""
        self.runner_errors.labels(operation).inc()
