"""Who asks, where a proxy passes requests on: what its headers say is believed of the proxies that the settings name, of nobody else."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

from starlette.types import Scope

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class TrustedProxies:
    """The proxies at these addresses and in these networks (CIDR)."""

    def __init__(self, networks: Iterable[str]) -> None:
        self._networks = [ipaddress.ip_network(text) for text in networks]

    def client_of(self, scope: Scope) -> str:
        """The client's address: the last one in X-Forwarded-For that is not a proxy's own, where a proxy is connected; else who is."""
        peer = scope["client"][0] if scope.get("client") else ""
        if not self._networks or not self._has(peer):
            return str(peer)
        said = b",".join(value for name, value in scope["headers"] if name == b"x-forwarded-for")
        client = peer
        for text in reversed(said.decode("latin-1").split(",")):
            address = _address(text.strip())
            if address is None:  # what is before it may be anything
                break
            client = str(address)
            if not self._has(client):
                break
        return str(client)

    def scheme_of(self, scope: Scope) -> str:
        """``http`` or ``https``: what X-Forwarded-Proto says, where a proxy is connected."""
        peer = scope["client"][0] if scope.get("client") else ""
        said = [value for name, value in scope["headers"] if name == b"x-forwarded-proto"]
        if said and said[-1] in (b"http", b"https") and self._has(peer):
            return str(said[-1].decode())
        return str(scope.get("scheme", "http"))

    def _has(self, text: str) -> bool:
        address = _address(text)
        return address is not None and any(address in network for network in self._networks)


def _address(text: str) -> Address | None:
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        return None
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return mapped or address
