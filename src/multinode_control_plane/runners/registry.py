"""The registry where images are pushed to and pulled from: its contract, and any one that speaks the protocol of them all.

What the engine cannot ask a registry for is asked here: to remove an image. Everything blocks.
"""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING, Protocol

from multinode.wire import Finding, Registry
from multinode_control_plane.runners.images import PlacedImage

if TYPE_CHECKING:
    import httpx

TIMEOUT_S = 20.0
_GONE = (200, 202, 204, 404)
_DOCKER_HUB = "registry-1.docker.io"
_PARAMETER = re.compile(r'(\w+)="([^"]*)"')


class RegistryAway(Exception):
    """It did not answer, or not with sense: later it may."""


class Repository(Protocol):
    """The repository of one installation. From any thread; each method blocks, and may raise AwsFailed where it is in AWS."""

    def login(self, *, is_refused: bool = False) -> Registry:
        """Its address, with a login that is good for hours; ``is_refused``: the last one is not taken any more."""
        ...

    def images(self, installation: str) -> list[PlacedImage]:
        """Images of the installation that it has, as far as it can list them."""
        ...

    def remove(self, image: str) -> str:
        """Removes ``repository@sha256:…``, with its tags; one that is gone is no error.

        Returns nothing, or a sentence where the registry keeps it. Raises RegistryAway.
        """
        ...

    def checks(self) -> list[Finding]:
        """What ``doctor`` should know of it, beside whether it answers the engine."""
        ...


class FixedRepository:
    """A repository of any registry, with the one login that the settings have. See ``Repository``."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry

    def login(self, *, is_refused: bool = False) -> Registry:
        """Always the same."""
        return self._registry

    def images(self, installation: str) -> list[PlacedImage]:
        """None: a registry lists tags, and tells neither sizes nor times without asking for each."""
        return []

    def checks(self) -> list[Finding]:
        """None."""
        return []

    def remove(self, image: str) -> str:
        """See ``Repository.remove``: many allow nobody to remove anything in this way, Docker's own unless it is set up so (405)."""
        host, _, name = self._registry.repository.partition("/")
        digest = image.partition("@")[2]
        answer = _ask(self._registry, host, f"/v2/{name}/manifests/{digest}")
        if answer.status_code in _GONE:
            return ""
        if answer.status_code >= 500 or answer.status_code == 429:
            message = f"The registry {host} answers {answer.status_code}."
            raise RegistryAway(message)
        return (
            f"The registry {host} keeps it: it does not remove images for us ({answer.status_code}). "
            "Remove it with the registry's own means."
        )


def _ask(registry: Registry, host: str, path: str) -> httpx.Response:
    import httpx  # not at the top: it is slow to import, and rarely needed

    address = _DOCKER_HUB if host == "docker.io" else host
    reasons = []
    with httpx.Client(timeout=TIMEOUT_S) as client:
        for scheme in ("https", "http") if _is_loopback(host) else ("https",):
            try:
                return _delete(client, registry, f"{scheme}://{address}{path}")
            except (httpx.HTTPError, ValueError, KeyError) as error:
                reasons.append(str(error) or type(error).__name__)
    message = f"The registry {host} cannot be asked to remove an image: {reasons[0]}."
    raise RegistryAway(message)


def _delete(client: httpx.Client, registry: Registry, url: str) -> httpx.Response:
    """Once without a login, and where that is refused as the answer says: a registry names its own way."""
    answer = client.delete(url)
    if answer.status_code != 401 or not registry.username:
        return answer
    login = (registry.username, registry.key)
    kind, _, rest = answer.headers.get("WWW-Authenticate", "").partition(" ")
    if kind.lower() != "bearer":
        return client.delete(url, auth=login)
    asked = dict(_PARAMETER.findall(rest))
    name = registry.repository.partition("/")[2]
    scope = {"service": asked.get("service", ""), "scope": f"repository:{name}:pull,delete"}
    given = client.get(asked["realm"], params=scope, auth=login).raise_for_status().json()
    token = given.get("token") or given["access_token"]
    return client.delete(url, headers={"Authorization": f"Bearer {token}"})


def _is_loopback(host: str) -> bool:
    """Whether the engine takes it without TLS, as it does these."""
    name = host.partition(":")[0]
    try:
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False
