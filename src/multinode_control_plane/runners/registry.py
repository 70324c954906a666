"""What the engine cannot ask a registry for: to remove an image. The one module that speaks to a registry itself. Blocks."""

from __future__ import annotations

import ipaddress
import re
from typing import TYPE_CHECKING

from multinode.wire import Registry

if TYPE_CHECKING:
    import httpx

TIMEOUT_S = 20.0
_GONE = (200, 202, 204, 404)
_DOCKER_HUB = "registry-1.docker.io"
_PARAMETER = re.compile(r'(\w+)="([^"]*)"')


class RegistryAway(Exception):
    """It did not answer, or not with sense: later it may."""


def remove_image(registry: Registry, image: str) -> str:
    """Removes ``repository@sha256:…``, with its tags; one that is gone is no error.

    Returns nothing, or a sentence where the registry keeps it: many allow nobody to remove anything in this way, Docker's own
    unless it is set up so (405), ECR always. Raises RegistryAway.
    """
    host, _, name = registry.repository.partition("/")
    digest = image.partition("@")[2]
    answer = _ask(registry, host, f"/v2/{name}/manifests/{digest}")
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
