"""A connection to the engine of ``DOCKER_HOST``, else to that of the docker command's context; and what its failures mean."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import docker
from docker.context import ContextAPI
from docker.errors import APIError, DockerException
from docker.tls import TLSConfig
from docker.utils import kwargs_from_env
from requests.adapters import HTTPAdapter
from requests.exceptions import RequestException, Timeout
from urllib3.exceptions import HTTPError

from multinode.errors import EngineUnavailable
from multinode_engine.ssh import Tunnel, by_hand

DEFAULT_ADDRESS = "unix:///var/run/docker.sock"
OLDEST_API = (1, 40)
"""Docker 19.03."""
_OLDEST_TEXT = ".".join(map(str, OLDEST_API))
FOREIGN = (DockerException, RequestException, HTTPError, OSError, ValueError)
"""What docker-py, and the transport below it, raise."""


@dataclass(frozen=True)
class Place:
    """Where an engine is. ``context`` is the name of the docker command's context that it is."""

    address: str
    context: str = "default"
    tls: TLSConfig | None = None


@dataclass(frozen=True)
class Connection:
    """An engine that has answered."""

    api: docker.APIClient
    place: Place
    tunnel: Tunnel | None = None

    @property
    def variables(self) -> Mapping[str, str]:
        """What the docker command is to be told on top of its environment, so that it takes this way too."""
        if self.tunnel is not None:
            return {"DOCKER_HOST": self.tunnel.base_url, "DOCKER_CONTEXT": ""}
        return {"DOCKER_TLS_VERIFY": "1"} if self.place.tls else {}

    def close(self) -> None:
        """Lets go of it, from any thread: what is under way through ssh breaks off."""
        self.api.close()
        if self.tunnel is not None:
            self.tunnel.close()

    def unavailable(self, error: Exception) -> EngineUnavailable:
        """Why it does not answer any more."""
        return unavailable(self.place.address, error, self.tunnel, has_answered=True)


class _Client(docker.APIClient):  # type: ignore[misc]  # it has no types
    """docker-py's client, which would take REQUESTS_CA_BUNDLE in place of the authority that DOCKER_CERT_PATH names.

    See https://github.com/psf/requests/issues/3829.
    """

    def merge_environment_settings(
        self, url: str, proxies: Any, stream: Any, verify: Any, cert: Any
    ) -> Any:
        """The settings of one request."""
        chosen = self.verify if verify is None else verify
        return super().merge_environment_settings(url, proxies, stream, chosen, cert)


def connect(environ: Mapping[str, str], *, timeout_s: float, connections: int = 10) -> Connection:
    """The engine, once it has answered; ``connections`` are kept open.

    Raises EngineUnavailable, with what to do, where none does within ``timeout_s``, or it is too old.
    """
    address = environ.get("DOCKER_HOST") or DEFAULT_ADDRESS
    tunnel = None
    try:
        place = find(environ)
        address = place.address
        if address.startswith("ssh://"):
            tunnel = Tunnel(address, environ, timeout_s)
        base_url = tunnel.base_url if tunnel else address
        _knock(base_url)
        # Not version="auto": a client that fails while it is made leaves its connection open.
        with closing(_client(base_url, place.tls, _OLDEST_TEXT, timeout_s, 1)) as probe:
            found = probe.version(api_version=False)
        _check_version(found, address)
        api = _client(base_url, place.tls, found["ApiVersion"], timeout_s, connections)
    except (*FOREIGN, EngineUnavailable) as error:
        if tunnel is not None:
            tunnel.close()
        if isinstance(error, EngineUnavailable):
            raise
        raise unavailable(address, error, tunnel) from error
    return Connection(api, place, tunnel)


def find(environ: Mapping[str, str]) -> Place:
    """Where the engine is that these variables name. Raises docker-py's errors where a context or certificate cannot be read."""
    address = environ.get("DOCKER_HOST")
    if address:
        is_tcp = address.startswith(("tcp://", "https://"))
        return Place(address, tls=_tls(environ) if is_tcp else None)
    context = ContextAPI.get_context(environ.get("DOCKER_CONTEXT"))
    if context is None or not context.Host:
        return Place(DEFAULT_ADDRESS)
    address = context.Host.replace("http+unix://", "unix://")
    return Place(address, context.name, context.TLSConfig or None)


def _tls(environ: Mapping[str, str]) -> TLSConfig | None:
    """Whoever names certificates wants them looked at: docker-py would not without DOCKER_TLS_VERIFY."""
    if not environ.get("DOCKER_TLS_VERIFY") and not environ.get("DOCKER_CERT_PATH"):
        return None
    asked = {**environ, "DOCKER_TLS_VERIFY": "1"}
    found: TLSConfig = kwargs_from_env(environment=asked)["tls"]
    return found


def _client(
    base_url: str, tls: TLSConfig | None, version: str, timeout_s: float, connections: int
) -> docker.APIClient:
    made = _Client(
        base_url,
        tls=tls or False,
        version=version,
        timeout=timeout_s,
        max_pool_size=connections,
    )
    if base_url.startswith("unix://"):
        made.trust_env = False  # no proxy has a part in it
    else:  # here docker-py would leave out the size
        for scheme in ("http://", "https://"):
            made.mount(scheme, HTTPAdapter(pool_maxsize=connections))
    return made


def _knock(base_url: str) -> None:
    """Raises OSError where nobody listens on a socket of this machine: docker-py would leave its own open."""
    if base_url.startswith("unix://"):
        path = base_url.removeprefix("unix://")
        with socket.socket(socket.AF_UNIX) as found:
            found.connect(path if path.startswith("/") else f"/{path}")


def _check_version(found: Mapping[str, Any], address: str) -> None:
    if tuple(map(int, str(found["ApiVersion"]).split("."))) < OLDEST_API:
        message = f"The Docker engine at {address} is {found['Version']}, which is too old."
        raise EngineUnavailable(message, "Install Docker 19.03 or later.")


# --- what failures mean -------------------------------------------------------------------------------------


def unavailable(
    address: str, error: Exception, tunnel: Tunnel | None = None, *, has_answered: bool = False
) -> EngineUnavailable:
    """Why an engine does not answer, and what to do. The reasons lie deep: requests wraps what urllib3 wraps what the socket said."""
    text = _reasons(error)
    if tunnel is not None and tunnel.complaint():
        return EngineUnavailable(
            f"The Docker engine at {address} cannot be reached on its machine ({tunnel.complaint()}).",
            "Does it run there, may this user use it (group docker), and does its sshd allow forwarding "
            f"(AllowTcpForwarding, AllowStreamLocalForwarding)? Try {by_hand(address)}.",
        )
    if address.startswith(("tcp://", "https://")) and not has_answered:
        found = _tls_failure(address, text)
        if found is not None:
            return found
    if "PermissionError" in text or "Permission denied" in text:
        return EngineUnavailable(
            f"This user may not use the Docker engine at {address}.",
            "Add the user to the group that may (`sudo usermod -aG docker $USER`), and log in again.",
        )
    if isinstance(error, Timeout) or "timed out" in text:
        message = f"The Docker engine at {address} does not answer."
    else:
        message = f"No Docker engine answers at {address}{_short(text, error)}."
    return EngineUnavailable(message, "Start Docker, or set DOCKER_HOST to an engine that runs.")


def _tls_failure(address: str, text: str) -> EngineUnavailable | None:
    lower = text.lower()
    if "tlsparametererror" in lower:
        return EngineUnavailable(
            f"The certificates for the Docker engine at {address} are not there.",
            "DOCKER_CERT_PATH (else ~/.docker) has to be a folder with ca.pem, cert.pem and key.pem.",
        )
    if "http request to an https server" in lower:
        return EngineUnavailable(
            f"The Docker engine at {address} wants TLS.",
            "Set DOCKER_TLS_VERIFY=1, and DOCKER_CERT_PATH to the folder with ca.pem, cert.pem and key.pem.",
        )
    if "wrong_version_number" in lower or "record layer failure" in lower:
        return EngineUnavailable(
            f"What listens at {address} speaks no TLS.",
            "An engine without TLS lets everybody in: start it with --tlsverify. Or is it another port?",
        )
    if "certificate_verify_failed" in lower or "certificate verify failed" in lower:
        return EngineUnavailable(
            f"The certificate of the Docker engine at {address} is not trusted (certificate verify failed{_why(text)}).",
            "ca.pem in DOCKER_CERT_PATH has to be the authority of that engine, and its certificate valid today, for the name in DOCKER_HOST.",
        )
    if "alert" in lower or "eof occurred in violation" in lower:  # dockerd closes, mostly untold
        return EngineUnavailable(
            f"The Docker engine at {address} does not accept this client's certificate{_alert(lower)}.",
            "cert.pem in DOCKER_CERT_PATH has to be signed by the authority that the engine was started with (--tlscacert), for clients, and valid today.",
        )
    return None


def _why(text: str) -> str:
    """OpenSSL's reason: ``: certificate has expired``."""
    found = text.partition("certificate verify failed")[2].partition("(_ssl")[0].strip(" :")
    return f": {found}" if 0 < len(found) < 150 else ""


def _alert(lower: str) -> str:
    """OpenSSL's words: ``[SSL: SSLV3_ALERT_CERTIFICATE_EXPIRED] …``."""
    found = lower.partition("alert")[2].partition("]")[0].replace("_", " ").strip()
    return f" ({found})" if 0 < len(found) < 60 else ""


def _reasons(error: BaseException) -> str:
    told = []
    seen: BaseException | None = error
    while seen is not None:
        explanation = str(seen.explanation) if isinstance(seen, APIError) else ""
        told.append(f"{type(seen).__name__}: {seen} {explanation}")
        seen = seen.__cause__ or seen.__context__
    return "\n".join(told)


_KNOWN = (
    "No such file or directory",
    "Connection refused",
    "Name or service not known",
    "Connection reset by peer",
)


def _short(text: str, error: Exception) -> str:
    found = next((reason for reason in _KNOWN if reason in text), "").lower()
    if not found and isinstance(error, APIError | ValueError):
        found = str(error).strip().rstrip(".")
    return f" ({found})" if found else ""
