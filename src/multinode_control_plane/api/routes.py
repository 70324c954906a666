"""All routes as data, and the application made from them."""

from __future__ import annotations

from collections.abc import Iterable

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path
from starlette.types import Receive, Scope, Send

from multinode import wire
from multinode.errors import InvalidRequest, NotFound
from multinode_control_plane.api import deployments, installation, invocations, workers
from multinode_control_plane.api.border import Border, KnownHosts
from multinode_control_plane.api.calls import ControlPlane, Endpoint, answer_to, error_response

PROJECT = "/v1/projects/{project}"
INVOCATION = "/v1/invocations/{id}"

ENDPOINTS = (
    Endpoint("GET", "/healthz", installation.health, public=True),
    Endpoint("GET", "/v1/server", installation.server, role="read"),
    Endpoint("POST", "/v1/server/stop", installation.stop, wire.StopRequest, role="admin"),
    Endpoint("GET", "/v1/server/checks", installation.checks, role="deploy"),
    Endpoint("POST", "/v1/server/gc", installation.gc, role="admin"),
    Endpoint("GET", "/v1/keys", installation.list_keys, role="admin"),
    Endpoint("POST", "/v1/keys", installation.create_key, wire.KeyRequest, role="admin"),
    Endpoint("DELETE", "/v1/keys/{name}", installation.revoke_key, role="admin"),
    Endpoint("GET", "/v1/projects", deployments.list_projects, role="read"),
    Endpoint("GET", PROJECT, deployments.get_project, role="read"),
    Endpoint("DELETE", PROJECT, deployments.delete, role="deploy"),
    Endpoint("PUT", PROJECT + "/latest", deployments.make_latest, wire.LatestRequest, "deploy"),
    Endpoint(
        "POST",
        PROJECT + "/environments",
        deployments.build_environment,
        wire.BuildRequest,
        role="deploy",
    ),
    Endpoint(
        "PUT",
        PROJECT + "/environments/{digest}",
        deployments.report_image,
        wire.ImageReport,
        role="deploy",
    ),
    Endpoint(
        "POST", PROJECT + "/describe", deployments.describe, wire.DescribeRequest, role="deploy"
    ),
    Endpoint(
        "POST", PROJECT + "/versions", deployments.register, wire.RegisterRequest, role="deploy"
    ),
    Endpoint(
        "GET", PROJECT + "/versions/{version}", deployments.get_version, role="read", worker=True
    ),
    Endpoint("GET", "/v1/bundles/{digest}", deployments.get_bundle, role="deploy", worker=True),
    Endpoint("PUT", "/v1/bundles/{digest}", deployments.put_bundle, role="deploy"),
    Endpoint(
        "POST",
        PROJECT + "/functions/{function}/invocations",
        invocations.start,
        wire.StartRequest,
        role="invoke",
        worker=True,
    ),
    Endpoint("GET", "/v1/invocations", invocations.page, role="read", worker=True),
    Endpoint(
        "POST", "/v1/invocations/wait", invocations.wait, wire.WaitRequest, "read", worker=True
    ),
    Endpoint("GET", INVOCATION, invocations.get, role="read", worker=True),
    Endpoint("GET", INVOCATION + "/detail", invocations.detail, role="read"),
    Endpoint("GET", INVOCATION + "/values", invocations.values, role="read", worker=True),
    Endpoint("GET", INVOCATION + "/logs", invocations.logs, role="read"),
    Endpoint("POST", INVOCATION + "/cancel", invocations.cancel, role="invoke", worker=True),
    Endpoint("POST", INVOCATION + "/retry", invocations.retry, role="invoke"),
    Endpoint("GET", "/v1/executions/{id}", invocations.detail_of_execution, role="read"),
    Endpoint("POST", "/v1/cancel", invocations.cancel_many, wire.CancelRequest, role="invoke"),
    Endpoint("POST", "/v1/worker/exchange", workers.exchange, wire.ExchangeRequest, public=True),
    Endpoint("POST", "/v1/worker/claim", workers.claim, wire.Claim, worker=True),
    Endpoint("POST", "/v1/worker/report", workers.report, wire.Report, worker=True),
    Endpoint("POST", "/v1/worker/watch", workers.watch, wire.Watch, worker=True),
    Endpoint("POST", "/v1/worker/described", workers.described, wire.Described, worker=True),
)


WORKER_ENDPOINTS = tuple(
    item for item in ENDPOINTS if item.worker or item.path.startswith(("/v1/worker/", "/healthz"))
)
"""What a worker may ask for: all that is answered where only workers can reach the server."""


def make_app(
    plane: ControlPlane, hosts: KnownHosts, endpoints: Iterable[Endpoint] = ENDPOINTS
) -> Border:
    """The ASGI application, which answers to ``hosts``."""
    return Border(Routing(plane, endpoints), hosts)


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
        found = self._find(scope)
        if isinstance(found, Endpoint):
            answer = await answer_to(self._plane, found, Request(scope, receive))
        else:
            answer = found
        await answer(scope, receive, send)

    def _find(self, scope: Scope) -> Endpoint | Response:
        """The endpoint, its path's parameters put into ``scope``, or the answer that there is none."""
        path, method = scope["path"], scope["method"]
        for pattern, methods in self._paths:
            match = pattern.match(path)
            if match is not None:
                scope["path_params"] = match.groupdict()
                return methods.get("GET" if method == "HEAD" else method) or _no_method(scope)
        return error_response(NotFound(f"There is nothing at {path!r:.200}."))


def _no_method(scope: Scope) -> Response:
    refused = error_response(InvalidRequest(f"{scope['method']} is not for {scope['path']:.200}."))
    refused.status_code = 405
    return refused
