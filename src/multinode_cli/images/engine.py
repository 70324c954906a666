"""One Docker engine: the only module of the command line that knows the ``docker`` package."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Generator, Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from docker import auth
from docker.errors import APIError, DockerException, NotFound
from docker.utils.config import load_general_config
from docker.utils.proxy import ProxyConfig
from requests.exceptions import RequestException, Timeout
from urllib3.exceptions import HTTPError

from multinode.errors import EngineUnavailable
from multinode.wire import Registry
from multinode_cli.images.failures import EngineRefused
from multinode_engine import connection

Events = Generator[dict[str, Any], None, None]

CONNECT_S = 10.0
ANSWER_S = 600.0
"""Removing a large image, or a pull that extracts a large layer, may be silent for minutes."""
REGISTRY_S = 10.0
"""How long a registry may take to say whether it has an image."""


@dataclass(frozen=True)
class EngineFacts:
    """What an engine says of itself. ``root_dir`` is where it keeps images, on its own machine."""

    version: str
    api_version: str
    platform: str
    root_dir: str


class Engine:
    """An engine that has answered. Its methods raise EngineRefused with its words, EngineUnavailable where it is gone."""

    def __init__(self, found: connection.Connection) -> None:
        self._connection = found
        self._api = found.api
        self.address = found.place.address
        self.context = "default" if found.tunnel else found.place.context
        """The name of the docker command's context that it is, with ``variables`` in its environment."""
        self.variables = found.variables

    # --- images ---

    def image(self, name: str) -> Mapping[str, Any] | None:
        """What the engine knows about an image that it has; None where it has none of the name or id."""
        with self._words():
            try:
                found: Mapping[str, Any] = self._api.inspect_image(name)
            except NotFound:
                return None
            return found

    def platform(self) -> str:
        """Of the engine's machine, ``linux/amd64``."""
        with self._words():
            version = self._api.version()
        return f"{version['Os']}/{version['Arch']}"

    def facts(self) -> EngineFacts:
        """As they are now."""
        with self._words():
            version, info = self._api.version(), self._api.info()
        return EngineFacts(
            version=str(version["Version"]),
            api_version=str(version["ApiVersion"]),
            platform=f"{version['Os']}/{version['Arch']}",
            root_dir=str(info.get("DockerRootDir", "")),
        )

    def ask_registry(self, image: str) -> None:
        """Has the engine ask the image's registry whether it could be pulled. Raises EngineRefused with the reason."""
        repository = split_name(image)[0]
        url = f"{self._api.base_url}/v{self._api.api_version}/distribution/{image}/json"
        try:
            answer = self._api.get(
                url, headers=self._auth_header(None, repository), timeout=REGISTRY_S
            )
        except Timeout as error:
            words = f"i/o timeout: no answer within {REGISTRY_S:.0f} s"
            raise EngineRefused(words) from error
        except (RequestException, HTTPError) as error:
            raise self._connection.unavailable(error) from error
        if answer.status_code >= 400:
            raise EngineRefused(_message(answer.content))

    def pull(
        self, repository: str, tag: str, platform: str, login: Registry | None = None
    ) -> Events:
        """Pulls an image; yields the events."""
        parameters = {"fromImage": repository, "tag": tag, "platform": platform}
        headers = self._auth_header(login, repository)
        return self._events("/images/create", parameters, headers)

    def tag(self, image: str, repository: str, tag: str) -> None:
        """Gives an image one more name."""
        with self._words():
            self._api.tag(image, repository, tag)

    def push(self, registry: Registry, tag: str) -> Events:
        """Pushes an image; yields every event. The one with ``aux`` is the last of a push that came to its end."""
        headers = self._auth_header(registry, registry.repository)
        return self._events(f"/images/{registry.repository}/push", {"tag": tag}, headers)

    def digest_in_registry(self, registry: Registry, tag: str) -> str:
        """``sha256:…`` of what the registry has under the tag, as the engine sees it; empty where it has nothing."""
        with self._words():
            try:
                found = self._api.inspect_distribution(
                    f"{registry.repository}:{tag}", auth_config=_auth(registry)
                )
            except NotFound:
                return ""
            return str(found["Descriptor"]["digest"])

    def build(
        self,
        context: bytes,
        *,
        tag: str,
        labels: Mapping[str, str],
        platform: str | None,
        arguments: Mapping[str, str],
        no_cache: bool,
    ) -> Events:
        """Builds with the classic builder; yields the events. Closing the iterator makes the engine give the build up."""
        parameters = {
            "t": tag, "rm": True, "forcerm": True, "nocache": no_cache, "labels": json.dumps(dict(labels)),
            "buildargs": json.dumps({**_proxies(), **arguments}), **({"platform": platform} if platform else {}),
        }  # fmt: skip
        headers = {"Content-Type": "application/x-tar"}
        return self._events("/build", parameters, headers, context)

    def _events(
        self,
        path: str,
        parameters: Mapping[str, Any],
        headers: Mapping[str, str],
        data: bytes | None = None,
    ) -> Events:
        """The events that a POST is answered with; an error among them is raised.

        docker-py's own methods keep the connection, and with it the engine's work, until they are collected.
        """
        url = f"{self._api.base_url}/v{self._api.api_version}{path}"
        with self._words():
            answer = self._api.post(
                url, data=data, params=parameters, headers=headers, stream=True, timeout=None
            )
            with closing(answer):
                if answer.status_code >= 400:
                    raise EngineRefused(_message(answer.content))
                for line in answer.iter_lines():
                    event = json.loads(line or b"{}")
                    if "error" in event:
                        detail = event.get("errorDetail") or {}
                        raise EngineRefused(str(detail.get("message") or event["error"]))
                    yield event

    def _auth_header(self, login: Registry | None, repository: str) -> dict[str, str]:
        """Without a login the engine is given what ``docker login`` has kept for the registry."""
        if login and login.username:
            given = auth.encode_header(_auth(login))
        else:
            registry = auth.resolve_repository_name(repository)[0]
            given = auth.get_config_header(self._api, registry) or auth.encode_header({})
        return {"X-Registry-Auth": given.decode()}

    def remove_image(self, image: str) -> None:
        """Removes an image that is tagged nowhere, as far as none other is made from it."""
        with suppress(DockerException, RequestException):
            self._api.remove_image(image)

    # --- containers ---

    def read_file(self, image: str, path: str, labels: Mapping[str, str]) -> bytes | None:
        """A file in an image, by a container that is made and never started; None where there is no such file."""
        with self._words():
            container = self._api.create_container(image, ["true"], labels=dict(labels))["Id"]
            try:
                pieces, _ = self._api.get_archive(container, path)
                archive = b"".join(pieces)
            except NotFound:
                return None
            finally:
                self._api.remove_container(container, v=True, force=True)
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            file = tar.extractfile(tar.getmembers()[0])
            return file.read() if file else None

    def end_container(self, container: str) -> None:
        """Kills a container and waits until it is gone."""
        with suppress(DockerException, RequestException):
            self._api.remove_container(container, v=True, force=True)
        # Where the engine was removing it already.
        with suppress(DockerException, RequestException):
            self._api.wait(container, condition="removed", timeout=CONNECT_S)

    def close(self) -> None:
        """Ends the connections."""
        self._connection.close()

    @contextmanager
    def _words(self) -> Iterator[None]:
        try:
            yield
        except APIError as error:
            raise EngineRefused(str(error.explanation or error)) from error
        except connection.FOREIGN as error:
            raise self._connection.unavailable(error) from error


def connect(environ: Mapping[str, str]) -> Engine:
    """The engine of DOCKER_HOST, else of the docker command's context. Raises EngineUnavailable, with what to do."""
    try:
        found = connection.connect(environ, timeout_s=CONNECT_S)
    except EngineUnavailable as error:
        why = "The control plane runs functions in containers, and this command builds their image"
        raise EngineUnavailable(error.message, f"{why}. {error.hint}") from error
    found.api.timeout = ANSWER_S
    return Engine(found)


def split_name(image: str) -> tuple[str, str]:
    """``registry:5000/name:tag`` as repository and tag; ``latest`` where there is none, the digest where that is given."""
    if "@" in image:
        repository, _, digest = image.partition("@")
        return repository, digest
    repository, colon, tag = image.rpartition(":")
    return (repository, tag) if colon and "/" not in tag else (image, "latest")


def _message(body: bytes) -> str:
    with suppress(ValueError, KeyError, TypeError):
        return str(json.loads(body)["message"])
    return body.decode(errors="replace")[:500]


def _auth(login: Registry | None) -> dict[str, str] | None:
    """None: the engine is given what ``docker login`` has kept for the registry."""
    return {"username": login.username, "password": login.key} if login and login.username else None


def _proxies() -> dict[str, str]:
    """The proxies of ``~/.docker/config.json``, which the docker command gives to builds too."""
    configured = (load_general_config().get("proxies") or {}).get("default") or {}
    found: dict[str, str] = ProxyConfig.from_dict(configured).get_environment()
    return found
