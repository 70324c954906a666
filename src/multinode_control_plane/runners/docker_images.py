"""Environments as images: which are there, what is to be built, and whether what was built is what was ordered.

    data folder/images/<digest>.json    the EnvironmentInfo that deploy was answered, with the image's id or address

The control plane never builds: the command line does, to an ``ImageOrder``, and reports. Without a registry an image lies in
the engine and is known by its id; with one it is known by the registry's digest, and pulled where the engine does not have it.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
from collections import defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextlib import suppress
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from multinode.errors import (
    Conflict,
    EnvironmentBuildFailed,
    EnvironmentNotFound,
    InvalidRequest,
    MultinodeError,
)
from multinode.wire import (
    BuildEvent,
    BuildRequest,
    EnvironmentInfo,
    EnvironmentSpec,
    ErrorBody,
    ImageOrder,
    ImageReport,
    Registry,
    dumps,
    loads,
)
from multinode_control_plane.runners import specs, whole_files
from multinode_control_plane.runners.docker_engine import (
    Engine,
    EngineError,
    ImageState,
    NotInEngine,
)
from multinode_control_plane.runners.registry import RegistryAway, remove_image
from multinode_control_plane.runners.storage import Discarded, Stored, note_use, used_at

log = logging.getLogger(__name__)

FORMAT = "1"
"""Part of every digest: change it when images are made in another way."""
INSTALLATION_LABEL = "multinode.installation"
ENVIRONMENT_LABEL = "multinode.environment"
PART_LABEL = "multinode.part=environment"
"""On each layer that the command line builds (``templates/image``)."""

Do = Callable[..., Awaitable[Any]]
"""Runs a blocking method of the engine in a thread."""


class Images:
    """The images of one installation. Belongs to one event loop."""

    def __init__(
        self, folder: Path, *, engine: Engine, do: Do, installation: str, registry: Registry | None
    ) -> None:
        self._folder = folder
        self._engine = engine
        self._do = do
        self._installation = installation
        self._registry = registry
        self._pulling: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def open(self) -> None:
        """Makes the folder. Blocks."""
        self._folder.mkdir(parents=True, exist_ok=True)

    def info(self, digest: str) -> EnvironmentInfo:
        """The environment of this digest. Raises EnvironmentNotFound."""
        try:
            return loads(EnvironmentInfo, self._path(digest).read_bytes())
        except OSError as error:
            message = f"The environment {digest!r} is not here."
            raise EnvironmentNotFound(message, "Deploy again: it will be made.") from error

    async def build(self, request: BuildRequest) -> AsyncIterator[BuildEvent]:
        """Yields one event: with ``environment`` where its image is to be had, else with ``image_order`` (``missing`` to a plan), or
        ``error``."""
        try:
            yield await self._answer(request)
        except (MultinodeError, EngineError) as error:
            code = getattr(error, "code", EnvironmentBuildFailed.code)
            yield BuildEvent(error=ErrorBody(code, error.message, error.hint))

    async def _answer(self, request: BuildRequest) -> BuildEvent:
        specs.check(request.spec)
        digest = self.digest_of(request.spec, request.sdk_digest)
        if not request.no_cache and self._path(digest).exists():
            info = self.info(digest)
            if await self._is_there(info.image):
                note_use(self._path(digest))
                return BuildEvent(environment=info)
        if request.plan:
            return BuildEvent(missing=digest)
        return BuildEvent(image_order=self._order(digest))

    async def _is_there(self, image: str) -> bool:
        """Whether the engine has the image, or can have it now."""
        try:
            await self.fetch(image)
        except NotInEngine:
            return False
        return True

    def _order(self, digest: str) -> ImageOrder:
        repository = self._registry.repository if self._registry else "multinode"
        return ImageOrder(
            digest=digest,
            platform=self._engine.facts.platform,
            tag=f"{repository}:{digest}",
            labels=self._labels(digest),
            registry=self._registry,
        )

    def _labels(self, digest: str) -> dict[str, str]:
        return {INSTALLATION_LABEL: self._installation, ENVIRONMENT_LABEL: digest}

    def digest_of(self, spec: EnvironmentSpec, sdk_digest: str) -> str:
        """The name of the environment: 64 hexadecimal digits over everything that decides what is in its image."""
        if not re.fullmatch("[0-9a-f]{64}", sdk_digest):
            message = "The request does not say which SDK goes into the image."
            raise InvalidRequest(message, "Use the multinode command of this release.")
        counted = {
            "format": FORMAT,
            **specs.counted(spec),
            "base_image": spec.base_image,
            "apt": spec.apt or [],
            "platform": self._engine.facts.platform,
            "sdk": sdk_digest,
        }
        return hashlib.sha256(json.dumps(counted, sort_keys=True).encode()).hexdigest()

    async def take(self, digest: str, report: ImageReport) -> EnvironmentInfo:
        """Checks an image that was built to an order, and keeps it as the environment's from now on.

        Raises Conflict where the report is for another environment, InvalidRequest for an image that is not what was ordered,
        and EnvironmentBuildFailed where the runner cannot have it.
        """
        specs.check(report.spec)
        own = self.digest_of(report.spec, report.sdk_digest)
        if own != digest:
            message = f"The image was built for the environment {own}, not for {digest!r:.100}."
            raise Conflict(message, "Deploy again.")
        self._check_name(report.image)
        self._check_labels(report.image, await self._fetched(report.image), digest)
        info = EnvironmentInfo(
            digest=digest,
            python=report.spec.python,
            python_served=report.python_served,
            packages=report.packages,
            warnings=report.warnings,
            created_at=datetime.now(timezone.utc).isoformat(),
            image=report.image,
            base_image=report.base_image,
        )
        await asyncio.to_thread(whole_files.write, self._path(info.digest), dumps(info))
        return info.replace(created=True)

    def _check_name(self, image: str) -> None:
        before = f"{re.escape(self._registry.repository)}@" if self._registry else ""
        if not re.fullmatch(before + "sha256:[0-9a-f]{64}", image):
            where = (
                f"pushed to {self._registry.repository}" if self._registry else "given by its id"
            )
            message = f"The image {image!r:.300} is not {where}."
            raise InvalidRequest(message, "Deploy again.")

    async def _fetched(self, image: str) -> ImageState:
        try:
            return await self.fetch(image)
        except NotInEngine as error:
            message = (
                f"The image {image} is not in the control plane's Docker engine "
                f"({self._engine.facts.url}): it was built in another one."
            )
            hint = "Deploy with DOCKER_HOST set to that engine, or give the control plane a --registry."
            if self._registry:
                message, hint = error.message, "Is it still in the registry?"
            raise EnvironmentBuildFailed(message, hint) from error
        except EngineError as error:
            raise EnvironmentBuildFailed(error.message, error.hint) from error

    def _check_labels(self, image: str, found: ImageState, digest: str) -> None:
        for name, value in self._labels(digest).items():
            if found.labels.get(name) != value:
                message = (
                    f"The image {image} has the label {name}={found.labels.get(name, '')!r:.100}, "
                    f"not {value!r}: it was not built to this control plane's order."
                )
                raise InvalidRequest(message, "Deploy again with --no-cache.")

    async def fetch(self, image: str) -> ImageState:
        """The image, pulled where it has an address and the engine does not have it.

        Raises NotInEngine where neither engine nor registry has it, EngineError where the registry fails otherwise.
        """
        async with self._pulling[image]:
            try:
                return await self._look(image)
            except NotInEngine as error:
                if self._registry is None or "@" not in image:
                    message = f"The image {image} is not in the Docker engine any more."
                    raise NotInEngine(message, "Deploy again: it is made anew.") from error
                await self._do(self._engine.pull, image, self._registry)
                return await self._look(image)

    async def stored(self, in_use: Collection[str]) -> list[Stored]:
        """Environments that are none of ``in_use``, whose use is noted, images that no environment has any more, and layers of
        builds that came to no image.

        An image that was made anew (``--no-cache``) leaves its predecessor without an environment.
        """
        label = f"{INSTALLATION_LABEL}={self._installation}"
        images = {item.image_id: item for item in await self._do(self._engine.images, label)}
        found = []
        for path in self._folder.glob("*.json"):
            info = loads(EnvironmentInfo, path.read_bytes())
            image = images.pop(await self._id_of(info.image), None)
            if info.digest in in_use:
                note_use(path)
            else:
                size_bytes = image.size_bytes if image else 0
                found.append(Stored("environment", info.digest, size_bytes, used_at(path)))
        return [*found, *await self._without_environment(images), *await self._layers()]

    async def _without_environment(self, image_ids: Collection[str]) -> list[Stored]:
        found = []
        for image_id in image_ids:
            with suppress(NotInEngine):
                item = await self._look(image_id)
                found.append(Stored("image", image_id, item.size_bytes, item.created_at))
        return found

    async def _layers(self) -> list[Stored]:
        """What builds that failed have left for the next one to begin with: of any installation, for layers have no label of one."""
        found = await self._do(self._engine.images, PART_LABEL, is_dangling=True)
        return [
            Stored("layers", item.image_id, item.size_bytes, item.created_at)
            for item in found
            if INSTALLATION_LABEL not in item.labels
        ]

    async def _id_of(self, image: str) -> str:
        try:
            return (await self._look(image)).image_id
        except NotInEngine:
            return ""

    async def discard(self, item: Stored) -> Discarded:
        """Removes an environment with its image, an image, or layers, from engine and registry; it stays where a container uses it."""
        try:
            if item.kind == "environment":
                return await self._discard_environment(item.name)
            note = await self._remove_pushed((await self._look(item.name)).digests)
            await self._do(self._engine.remove_image, item.name)
            return Discarded(is_gone=True, note=note)
        except NotInEngine:
            return Discarded(is_gone=True)
        except (EngineError, RegistryAway) as error:
            log.warning("%s", error)
            return Discarded(is_gone=False)

    async def _discard_environment(self, digest: str) -> Discarded:
        """First from the engine, which says whether a container uses it; while the registry is away it is an environment still."""
        image = self.info(digest).image
        await self._do(self._engine.remove_image, image)
        note = await self._remove_pushed([image])
        self._path(digest).unlink(missing_ok=True)
        return Discarded(is_gone=True, note=note)

    async def _remove_pushed(self, names: Iterable[str]) -> str:
        """Removes from the registry what of these is there. Returns a sentence where that does not let us; raises RegistryAway."""
        note = ""
        for name in names:
            if self._registry and name.startswith(f"{self._registry.repository}@"):
                note = await self._do(remove_image, self._registry, name) or note
        return note

    async def _look(self, image: str) -> ImageState:
        found: ImageState = await self._do(self._engine.image, image)
        return found

    def _path(self, digest: str) -> Path:
        if not re.fullmatch("[0-9a-f]{64}", digest):
            message = f"{digest!r:.100} is no digest of an environment."
            raise InvalidRequest(message)
        return self._folder / f"{digest}.json"
