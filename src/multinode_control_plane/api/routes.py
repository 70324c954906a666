"""All routes as data, and the application made from them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from functools import cache
from typing import Any
from urllib.parse import unquote

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import Receive, Scope, Send

from multinode import wire
from multinode.errors import (
    HTTP_STATUS,
    BundleNotFound,
    BundleTooLarge,
    ClaimRefused,
    Conflict,
    EncodingError,
    EngineUnavailable,
    EnvironmentBuildFailed,
    EnvironmentNotFound,
    ExecutionNotFound,
    FunctionInputSizeLimitExceeded,
    FunctionNotFound,
    IdempotencyConflict,
    ImportFailed,
    InvalidName,
    InvalidRequest,
    InvalidTasks,
    InvocationNotFound,
    KeyNotFound,
    MultinodeError,
    NotFound,
    NotReady,
    ParameterValidationError,
    ProjectBeingDeleted,
    ProjectNotFound,
    RegistryFailed,
    VersionNotFound,
)
from multinode_control_plane.api import (
    costs,
    deployments,
    installation,
    invocations,
    rotation,
    workers,
)
from multinode_control_plane.api.border import Border, KnownHosts
from multinode_control_plane.api.calls import (
    Call,
    ControlPlane,
    Endpoint,
    answer_to,
    answered,
)
from multinode_control_plane.api.field_api.endpoints import FIELD_ENDPOINTS
from multinode_control_plane.api.openapi import document
from multinode_control_plane.api.parameters import Query
from multinode_control_plane.api.proxies import TrustedProxies
from multinode_control_plane.service.costs import BY as SUMMED_BY
from multinode_control_plane.telemetry.request import Asked, current

PROJECT = "/v1/projects/{project}"
INVOCATION = "/v1/invocations/{id}"

WAIT = Query(
    "wait_s",
    "Seconds for which the request is held open until there is something to say; more than 60 are 60.",
    "number",
)
PLAIN = Query("plain", "Show results, values and inputs as plain JSON too.", "flag")
START_BYTES = 300 * 1024 * 1024
"""`MAX_START_BATCH` inputs of `MAX_CHARACTERS`, as JSON."""
REPORT_BYTES = 32 * 1024 * 1024
"""What a worker holds unsent, and a result, as JSON; characters may take several bytes."""
FUNCTIONS_BYTES = 16 * 1024 * 1024
"""What a project's functions are, however many."""
STARTING = (
    ProjectNotFound, VersionNotFound, FunctionNotFound, InvocationNotFound, ProjectBeingDeleted,
    IdempotencyConflict, FunctionInputSizeLimitExceeded,
)  # fmt: skip


async def openapi(_call: Call) -> dict[str, Any]:
    """This document."""
    return await asyncio.to_thread(_document)


@cache
def _document() -> dict[str, Any]:
    """Made once, when it is first asked for."""
    return document(ENDPOINTS)


ENDPOINTS = (
    Endpoint("GET", "/healthz", installation.health, public=True),
    Endpoint("GET", "/v1/openapi.json", openapi, public=True),
    Endpoint("GET", "/readyz", installation.ready, public=True, errors=(NotReady,)),
    Endpoint("GET", "/metrics", installation.metrics, role="read", text=True),
    Endpoint("GET", "/v1/server", installation.server, role="read", leader=True),
    Endpoint("POST", "/v1/server/stop", installation.stop, wire.StopRequest, role="admin"),
    Endpoint(
        "POST",
        "/v1/server/rotate-key",
        rotation.rotate_key,
        role="admin",
        query=(Query("request_key", "Any text: the same one rotates only once."),),
        errors=(Conflict,),
        leader=True,
    ),
    Endpoint(
        "GET",
        "/v1/server/checks",
        installation.checks,
        role="deploy",
        query=(
            Query("base_image", "An image of which it is tried whether the runner can have it."),
        ),
        leader=True,
    ),
    Endpoint(
        "POST",
        "/v1/server/gc",
        installation.gc,
        role="admin",
        query=(Query("dry_run", "Only tell what would be removed.", "flag"),),
        leader=True,
    ),
    Endpoint(
        "GET",
        "/v1/audit",
        installation.audit_log,
        role="admin",
        query=(
            Query("project", "Only what was done to this project."),
            Query("since_s", "Only what was done in the last so many seconds.", "number"),
            Query("offset", "The `next_offset` of the page before.", "whole"),
        ),
    ),
    Endpoint(
        "GET",
        "/v1/costs",
        costs.costs,
        role="read",
        query=(
            Query("by", "What is summed together; each function without it.", one_of=SUMMED_BY),
            Query("for_s", "The last so many seconds; a week without it.", "number"),
            Query("project", "Only those of this project."),
        ),
    ),
    Endpoint(
        "GET",
        PROJECT + "/functions/{function}/estimate",
        costs.estimate,
        role="read",
        query=(Query("version", "The version's id or number; the latest without it."),),
        errors=(ProjectNotFound, VersionNotFound, FunctionNotFound),
    ),
    Endpoint("GET", "/v1/keys", installation.list_keys, role="admin"),
    Endpoint(
        "POST",
        "/v1/keys",
        installation.create_key,
        wire.KeyRequest,
        role="admin",
        errors=(InvalidName, Conflict),
    ),
    Endpoint(
        "DELETE", "/v1/keys/{name}", installation.revoke_key, role="admin", errors=(KeyNotFound,)
    ),
    Endpoint("GET", "/v1/projects", deployments.list_projects, role="read"),
    Endpoint("GET", PROJECT, deployments.get_project, role="read", errors=(ProjectNotFound,)),
    Endpoint(
        "DELETE",
        PROJECT,
        deployments.delete,
        role="deploy",
        query=(WAIT,),
        errors=(ProjectNotFound,),
    ),
    Endpoint(
        "PUT",
        PROJECT + "/latest",
        deployments.make_latest,
        wire.LatestRequest,
        role="deploy",
        errors=(ProjectNotFound, VersionNotFound, ProjectBeingDeleted),
    ),
    Endpoint(
        "POST",
        PROJECT + "/environments",
        deployments.build_environment,
        wire.BuildRequest,
        role="deploy",
        lines=wire.BuildEvent,
        errors=(InvalidName,),
        leader=True,
    ),
    Endpoint(
        "PUT",
        PROJECT + "/environments/{digest}",
        deployments.report_image,
        wire.ImageReport,
        role="deploy",
        errors=(InvalidName, Conflict, EnvironmentBuildFailed, EngineUnavailable, RegistryFailed),
        leader=True,
    ),
    Endpoint(
        "POST",
        PROJECT + "/describe",
        deployments.describe,
        wire.DescribeRequest,
        role="deploy",
        errors=(
            InvalidName,
            EnvironmentNotFound,
            BundleNotFound,
            ImportFailed,
            InvalidTasks,
            ParameterValidationError,
        ),
        leader=True,
    ),
    Endpoint(
        "POST",
        PROJECT + "/versions",
        deployments.register,
        wire.RegisterRequest,
        role="deploy",
        max_body_bytes=FUNCTIONS_BYTES,
        errors=(
            InvalidName,
            EnvironmentNotFound,
            BundleNotFound,
            ProjectNotFound,
            ProjectBeingDeleted,
        ),
        leader=True,
    ),
    Endpoint(
        "GET",
        PROJECT + "/versions/{version}",
        deployments.get_version,
        role="read",
        worker=True,
        errors=(ProjectNotFound, VersionNotFound, EnvironmentNotFound),
    ),
    Endpoint(
        "GET",
        "/v1/bundles/{digest}",
        deployments.get_bundle,
        role="deploy",
        worker=True,
        archive=True,
        errors=(BundleNotFound, ProjectNotFound, VersionNotFound),
        leader=True,
    ),
    Endpoint(
        "PUT",
        "/v1/bundles/{digest}",
        deployments.put_bundle,
        role="deploy",
        archive=True,
        errors=(BundleTooLarge,),
        leader=True,
    ),
    Endpoint(
        "POST",
        PROJECT + "/functions/{function}/invocations",
        invocations.start,
        wire.StartRequest,
        role="invoke",
        worker=True,
        max_body_bytes=START_BYTES,
        errors=(*STARTING, EncodingError),
    ),
    Endpoint(
        "GET",
        "/v1/invocations",
        invocations.page,
        role="read",
        worker=True,
        query=(
            Query("project", "Only those of this project."),
            Query("function", "Only those of this function of the project."),
            Query("version_id", "Only those of this version."),
            Query("status", "Only those in this status.", one_of=wire.STATUSES),
            Query("in_flight", "Only those that have not ended.", "flag"),
            Query("offset", "The `next_offset` of the page before.", "whole"),
        ),
        errors=(ProjectNotFound, VersionNotFound, FunctionNotFound),
    ),
    Endpoint(
        "POST",
        "/v1/invocations/wait",
        invocations.wait,
        wire.WaitRequest,
        role="read",
        worker=True,
        query=(PLAIN,),
        errors=(InvocationNotFound,),
    ),
    Endpoint(
        "GET",
        INVOCATION,
        invocations.get,
        role="read",
        worker=True,
        query=(
            WAIT,
            Query("revision", "The `revision` that is known: waits while it is this one.", "whole"),
            PLAIN,
        ),
        errors=(InvocationNotFound,),
    ),
    Endpoint(
        "GET",
        INVOCATION + "/detail",
        invocations.detail,
        role="read",
        query=(PLAIN,),
        errors=(InvocationNotFound,),
    ),
    Endpoint(
        "GET",
        INVOCATION + "/values",
        invocations.values,
        role="read",
        worker=True,
        query=(WAIT, Query("after", "Number of the last value that is known.", "whole"), PLAIN),
        errors=(InvocationNotFound,),
    ),
    Endpoint(
        "GET",
        INVOCATION + "/logs",
        invocations.logs,
        role="read",
        lines=wire.LogRecord,
        query=(
            Query("tail", "Only so many of the last lines.", "whole"),
            Query("since_s", "Only what was written in the last so many seconds.", "number"),
            Query("attempt", "Only this attempt; the first is 1.", "whole"),
            Query("follow", "Go on as it is written, until the invocation is over.", "flag"),
        ),
        errors=(InvocationNotFound, ExecutionNotFound),
        leader=True,
    ),
    Endpoint(
        "POST",
        INVOCATION + "/cancel",
        invocations.cancel,
        role="invoke",
        worker=True,
        errors=(InvocationNotFound,),
    ),
    Endpoint(
        "POST",
        INVOCATION + "/retry",
        invocations.retry,
        role="invoke",
        query=(Query("request_key", "Any text: the same one starts only one invocation."),),
        errors=STARTING,
    ),
    Endpoint(
        "GET",
        "/v1/executions/{id}",
        invocations.detail_of_execution,
        role="read",
        errors=(ExecutionNotFound,),
    ),
    Endpoint(
        "POST",
        "/v1/cancel",
        invocations.cancel_many,
        wire.CancelRequest,
        role="invoke",
        errors=(InvocationNotFound, ProjectNotFound, FunctionNotFound),
    ),
    Endpoint(
        "POST",
        "/v1/worker/exchange",
        workers.exchange,
        wire.ExchangeRequest,
        public=True,
        max_body_bytes=64 * 1024,
        errors=(ClaimRefused,),
        leader=True,
    ),
    Endpoint(
        "POST",
        "/v1/worker/claim",
        workers.claim,
        wire.Claim,
        worker=True,
        errors=(ClaimRefused,),
        leader=True,
    ),
    Endpoint(
        "POST",
        "/v1/worker/report",
        workers.report,
        wire.Report,
        worker=True,
        max_body_bytes=REPORT_BYTES,
        errors=(ClaimRefused,),
        leader=True,
    ),
    Endpoint(
        "POST",
        "/v1/worker/next",
        workers.ask_next,
        wire.NextRequest,
        worker=True,
        max_body_bytes=REPORT_BYTES,
        errors=(ClaimRefused,),
        leader=True,
    ),
    Endpoint(
        "POST",
        "/v1/worker/watch",
        workers.watch,
        wire.Watch,
        worker=True,
        errors=(ClaimRefused,),
        leader=True,
    ),
    Endpoint(
        "POST",
        "/v1/worker/described",
        workers.described,
        wire.Described,
        worker=True,
        leader=True,
        max_body_bytes=FUNCTIONS_BYTES,
    ),
)


WORKER_ENDPOINTS = tuple(
    item for item in ENDPOINTS if item.worker or item.path.startswith(("/v1/worker/", "/healthz"))
)
"""What a worker may ask for: all that is answered where only workers can reach the server."""


def make_app(
    plane: ControlPlane,
    hosts: KnownHosts,
    endpoints: Iterable[Endpoint] = (*ENDPOINTS, *FIELD_ENDPOINTS),
) -> Border:
    """The ASGI application, which answers to ``hosts``."""
    proxies = TrustedProxies(plane.context.settings.trusted_proxies)
    return Border(Routing(plane, endpoints), hosts, proxies)


class Routing:
    """The ASGI application inside of the border: from path and method to an endpoint, and to its answer.

    Plain, since a request that waits keeps every frame above it: Starlette's own way from a path to a function takes seven, and 8 KB.
    """

    def __init__(self, plane: ControlPlane, endpoints: Iterable[Endpoint]) -> None:
        self._plane = plane
        by_path: dict[str, dict[str, Endpoint]] = {}
        for item in endpoints:
            by_path.setdefault(item.path, {})[item.method] = item
        self._paths = [(compile_path(path)[0], methods) for path, methods in by_path.items()]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, and its answer."""
        metrics, tracing = self._plane.metrics, self._plane.tracing
        asked = current.get() or Asked("")
        metrics.open_requests.inc()
        try:
            found = self._find(scope)
            method, route = "none", "none"
            if isinstance(found, Endpoint):
                method, route = found.method, found.path
                span = tracing.begin(asked, method, route) if tracing else None
                answer = await answer_to(self._plane, found, Request(scope, receive))
                if tracing:
                    tracing.end(span, asked, answer.status_code)
            else:
                answer = found
            if self._plane.readiness.is_draining:
                answer.headers["connection"] = "close"  # the next request may go to another process
            metrics.answered(method, route, answer.status_code, asked.worked_s())
            await answer(scope, receive, send)
        finally:
            metrics.open_requests.dec()
            answered(self._plane)

    def _find(self, scope: Scope) -> Endpoint | Response:
        """The endpoint, its path's parameters put into ``scope``, or the answer that there is none."""
        path, method = _path(scope), scope["method"]
        for pattern, methods in self._paths:
            match = pattern.match(path)
            if match is not None:
                scope["path_params"] = match.groupdict()
                found = methods.get("GET" if method == "HEAD" else method)
                return found or _no_method(scope, methods)
        return _in_both_words(NotFound(f"There is nothing at {path!r:.200}."), "Not Found")


def _path(scope: Scope) -> str:
    """The path, decoded. A base URL with a slash at its end gives two at the beginning.

    A slash within a name (``%2F``) becomes one that divides nothing: nothing has such a name, and that is what is to be said.
    """
    path, raw = str(scope["path"]), scope.get("raw_path") or b""
    if b"%2f" in raw.lower():
        parts = raw.decode("ascii").split("/")
        path = "/".join(unquote(part).replace("/", "\N{DIVISION SLASH}") for part in parts)
    return "/" + path.lstrip("/")


def _no_method(scope: Scope, methods: Iterable[str]) -> Response:
    error = InvalidRequest(f"{scope['method']} is not for {scope['path']:.200}.")
    refused = _in_both_words(error, "Method Not Allowed")
    refused.status_code = 405
    refused.headers["Allow"] = ", ".join(methods)
    return refused


def _in_both_words(error: MultinodeError, detail: str) -> Response:
    """For a path of which nobody knows to which of the two APIs it was to belong."""
    body = {"error": wire.ErrorBody(error.code, error.message, error.hint), "detail": detail}
    return Response(wire.dumps(body), HTTP_STATUS[error.code], media_type="application/json")
