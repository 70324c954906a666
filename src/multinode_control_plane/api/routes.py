"""All routes as data, and the application made from them."""

from __future__ import annotations

from starlette.routing import Route, Router

from multinode import wire
from multinode_control_plane.api import deployments, installation, invocations, workers
from multinode_control_plane.api.border import Border, KnownHosts
from multinode_control_plane.api.calls import (
    ControlPlane,
    Endpoint,
    PathEndpoints,
    no_path,
)

PROJECT = "/v1/projects/{project}"
INVOCATION = "/v1/invocations/{id}"

ENDPOINTS = (
    Endpoint("GET", "/healthz", installation.health, public=True),
    Endpoint("GET", "/v1/server", installation.server, role="read"),
    Endpoint("POST", "/v1/server/stop", installation.stop, wire.StopRequest, role="admin"),
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


def make_app(plane: ControlPlane, hosts: KnownHosts) -> Border:
    """The ASGI application, which answers to ``hosts``."""
    by_path: dict[str, dict[str, Endpoint]] = {}
    for item in ENDPOINTS:
        by_path.setdefault(item.path, {})[item.method] = item
    routes = [Route(path, PathEndpoints(plane, items)) for path, items in by_path.items()]
    return Border(Router(routes, redirect_slashes=False, default=no_path), hosts)
