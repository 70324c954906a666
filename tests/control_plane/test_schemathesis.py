"""The OpenAPI document against a server: no 500, and every answer is one that the document has.

schemathesis makes requests that fit the document, and such as do not, the same ones in every run. In half of them what is named
is put in place of random names, so that not everything ends as not found.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from tests.control_plane.told_plane import ServedPlane, serving

from multinode import wire
from multinode_control_plane.api.openapi import document
from multinode_control_plane.api.routes import ENDPOINTS
from multinode_control_plane.runners import WorkerNotMadeError
from multinode_control_plane.service import executions
from multinode_control_plane.settings import Capacity

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis needs Python 3.11")
from schemathesis.checks import not_a_server_error  # noqa: E402
from schemathesis.generation import GenerationMode  # noqa: E402
from schemathesis.specs.openapi import checks  # noqa: E402

REQUESTS = 10
"""Of each kind, to each operation."""
BUNDLE = "b" * 64
CHECKS = [
    not_a_server_error,
    checks.status_code_conformance,
    checks.content_type_conformance,
    checks.response_headers_conformance,
    checks.response_schema_conformance,
]


class Target:
    """A served control plane with something of everything, and the names of it by parameter and field."""

    def __init__(self, served: ServedPlane) -> None:
        self.served = served
        self.schema = schemathesis.openapi.from_dict(document(ENDPOINTS))
        self.session = requests.Session()
        self.key = served.key("admin")
        served.key("read", "someone")
        archive = served.plane.context.settings.data_dir / "bundles" / f"{BUNDLE}.tar.gz"
        archive.write_bytes(b"")
        served.do(self._fill())

    async def _fill(self) -> None:
        plane = self.served.plane
        await plane.deploy(max_concurrency=100)
        await plane.deploy("doomed", code="c" * 64)
        over = await plane.claim(await plane.start())
        await plane.end(over, "succeeded")
        plane.runner.end(over[1].worker_id)
        running, who = await plane.claim(await plane.start())
        values = [wire.Value(number, str(number)) for number in (1, 2, 3)]
        report = wire.Report(running.execution_id, values=values)
        await plane.store.write(lambda tx: executions.report(tx, plane.context, who, report))
        plane.runner.start_error = WorkerNotMadeError("no more workers")
        self.token = running.token
        self.over, self.running = over[0].invocation_id, running.invocation_id
        self.execution = running.execution_id
        self.known: dict[str, list[Any]] = {
            "project": ["shop"], "function": ["f"], "version": ["latest", "1"], "name": ["someone"],
            "digest": [BUNDLE], "id": [self.over, self.running], "environment_digest": ["e" * 64],
            "bundle_digest": [BUNDLE], "execution_id": [self.execution], "parent_id": [self.running],
            "invocation_ids": [[self.over], [self.running, self.over]], "version_id": [None, "1"],
            "create": [True],
        }  # fmt: skip

    def names(self, path: str, method: str) -> dict[str, list[Any]]:
        """What may stand for the parameters of this operation."""
        if path.endswith("/logs"):  # of what goes on, following never ends
            return {**self.known, "id": [self.over]}
        if path.startswith("/v1/executions"):
            return {**self.known, "id": [self.execution]}
        return {**self.known, "project": ["doomed"]} if method == "DELETE" else self.known


@pytest.fixture(scope="module")
def target(tmp_path_factory: Any) -> Iterator[Target]:
    capacity = Capacity(cpu=100.0, memory_mib=100_000)
    with serving(tmp_path_factory.mktemp("target"), capacity=capacity) as served:
        made = Target(served)
        yield made
        made.session.close()


def put_names(case: Any, names: dict[str, list[Any]], choice: random.Random) -> None:
    """Names of what exists, in half of the places."""
    for part in (case.path_parameters, case.query, case.body):
        if isinstance(part, dict):
            for name in names.keys() & part.keys():
                if choice.random() < 0.5:
                    part[name] = choice.choice(names[name])
            if isinstance(part.get("wait_s"), (int, float)):
                part["wait_s"] = min(part["wait_s"], 0.01)
    if case.path.endswith(("/wait", "/watch")) and isinstance(case.body, dict):
        case.body.setdefault("wait_s", 0.01)  # its default is 25


@schemathesis.serializer("application/gzip")
def _send_bytes(_context: Any, value: Any) -> Any:
    return value if isinstance(value, bytes) else str(value).encode()


KINDS = [
    pytest.param(item, mode, id=f"{item.method} {item.path} {mode.value}")
    for item in ENDPOINTS
    for mode in GenerationMode
    if mode is GenerationMode.POSITIVE or item.body or item.query
]


@pytest.mark.parametrize(("endpoint", "mode"), KINDS)
def test_every_answer_is_one_of_the_document(target: Target, endpoint: Any, mode: Any) -> None:
    operation = target.schema[endpoint.path][endpoint.method]
    names = target.names(endpoint.path, endpoint.method)
    key = target.key if endpoint.role or endpoint.public else target.token
    headers = {"Authorization": f"Bearer {key}"}

    @seed(1)
    @settings(
        max_examples=REQUESTS,
        deadline=None,
        database=None,
        phases=[Phase.generate],  # to make a failure smaller would take minutes
        suppress_health_check=list(HealthCheck),
    )
    @given(
        case=operation.as_strategy(generation_mode=mode, headers=headers),
        choice=st.randoms(use_true_random=False),
    )
    def ask(case: Any, choice: random.Random) -> None:
        put_names(case, names, choice)
        answer = case.call(base_url=target.served.url, session=target.session, timeout=60)
        case.validate_response(answer, checks=CHECKS)

    ask()
