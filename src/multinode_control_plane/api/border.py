"""Around the whole application: who may knock at all, before any key is looked at.

A web page can make a browser send requests to this server: under a name of its own that resolves here (DNS rebinding),
or straight to an address. The first has a foreign Host header, the second an Origin; both are refused. This module must
not know keys or routes.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from multinode.errors import NotAllowed
from multinode_control_plane import __version__
from multinode_control_plane.api.calls import error_response
from multinode_control_plane.api.proxies import TrustedProxies
from multinode_control_plane.service import traceparent
from multinode_control_plane.settings import host_name
from multinode_control_plane.telemetry.request import Asked, current, request_id_of

SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-store"),
)
"""With every answer: a browser takes it for what it says that it is, runs and frames nothing of it; nobody keeps it."""


@dataclass(frozen=True)
class KnownHosts:
    """The hosts that a request may name, whatever the port: ``names`` and, with ``addresses``, every IP address.

    Addresses are no danger: rebinding needs a name. The port is none either: a tunnel or a proxy may have another.
    """

    names: frozenset[str]
    addresses: bool = False

    def __contains__(self, header: str) -> bool:
        """Whether a Host header is one of them."""
        name = host_name(header)
        return name is not None and (name in self.names or (self.addresses and _is_address(name)))


def _is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


class Border:
    """Refuses foreign hosts and web pages, and says with every answer which version gave it, and the request's id."""

    def __init__(self, app: ASGIApp, hosts: KnownHosts, proxies: TrustedProxies) -> None:
        self._app = app
        self._hosts = hosts
        self._proxies = proxies

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One ASGI call."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        headers = {k: v.decode("latin-1") for k, v in reversed(scope["headers"])}
        asked = Asked(request_id_of(headers.get(b"x-request-id")))
        asked.traceparent = traceparent.valid(headers.get(b"traceparent"))
        asked.address = self._proxies.client_of(scope)
        scope["scheme"] = self._proxies.scheme_of(scope)
        current.set(asked)

        async def send_with_version(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] += [
                    (b"multinode-version", __version__.encode()),
                    (b"x-request-id", asked.request_id.encode()),
                    *SECURITY_HEADERS,
                ]
            await send(message)

        refusal = self._refusal(headers)
        if refusal is not None:
            await error_response(refusal)(scope, receive, send_with_version)
            return
        await self._app(scope, receive, send_with_version)

    def _refusal(self, headers: Mapping[bytes, str]) -> NotAllowed | None:
        host, origin = headers.get(b"host", ""), headers.get(b"origin")
        if host not in self._hosts:
            message = f"The Host header {host!r:.100} is not one of this control plane's."
            return NotAllowed(
                message,
                "Use the URL that it printed when it started, or start it with --allowed-hosts "
                "(MULTINODE_ALLOWED_HOSTS) and the name that you use.",
            )
        if origin is not None and origin.lower().partition("://")[2] != host.lower():
            message = f"A web page of {origin!r:.100} may not use this control plane."
            return NotAllowed(message, "Call it from your web application's server.")
        return None
