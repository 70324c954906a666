"""Environments as images: which are there, what is to be built, and whether what was built is what was ordered.

    data folder/images/<digest>.json    the EnvironmentInfo that deploy was answered, with the image's id or address

The control plane never builds: the command line does, to an ``ImageOrder``, and reports. Where the images are is a `Place`'s matter.
Without a registry an image is known by its id in the engine, with one by the registry's digest.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
from collections.abc import AsyncIterator, Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Protocol

from multinode.errors import Conflict, EnvironmentNotFound, InvalidRequest, MultinodeError
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
from multinode_control_plane.runners.storage import Discarded, Stored, note_use, used_at

FORMAT = "1"
"""Part of every digest: change it when images are made in another way."""
INSTALLATION_LABEL = "multinode.installation"
ENVIRONMENT_LABEL = "multinode.environment"


def pushed_tag(installation: str, digest: str) -> str:
    """The tag under which the image of an environment is pushed. Only its own installation may remove what has it."""
    return f"{installation}-{digest}"


@dataclass(frozen=True)
class PlacedImage:
    """An image of this installation. ``name`` is what `Place.remove` takes, ``names`` are all that an environment may know it by."""

    name: str
    names: frozenset[str]
    size_bytes: int
    used_at: float
    """Unix time when it was last given a name, or seen to be used."""


class Place(Protocol):
    """Where the images of an installation are, and are run from. What it cannot do it says as MultinodeError."""

    platform: str
    """``linux/amd64``."""

    async def registry(self, *, is_refused: bool = False) -> Registry | None:
        """Where they are pushed, with a login that is good for hours; None: they stay in the engine.

        ``is_refused``: the registry does not take the last login any more.
        """

    async def has(self, image: str) -> bool:
        """Whether the image can be run now."""

    async def check(self, image: str, labels: Mapping[str, str]) -> None:
        """Raises EnvironmentBuildFailed where the image cannot be had, InvalidRequest where it was not built to the order."""

    async def images(self) -> list[PlacedImage]:
        """All of this installation, as far as they can be listed now."""
        ...

    async def layers(self) -> list[Stored]:
        """What builds that came to no image have left."""
        ...

    async def remove(self, image: str) -> Discarded:
        """Removes an image by a name of it; one that is gone is no error. It stays where something uses it."""
        ...


class Images:
    """The images of one installation. Belongs to one event loop."""

    def __init__(self, folder: Path, *, place: Place, installation: str) -> None:
        self.place = place
        self._folder = folder
        self._installation = installation

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

    # --- deploying -------------------------------------------------------------------------------------

    async def build(self, request: BuildRequest) -> AsyncIterator[BuildEvent]:
        """Yields one event: with ``environment`` where its image is to be had, else with ``image_order`` (``missing`` to a plan), or
        ``error``."""
        try:
            yield await self._answer(request)
        except MultinodeError as error:
            yield BuildEvent(error=ErrorBody(error.code, error.message, error.hint))

    async def _answer(self, request: BuildRequest) -> BuildEvent:
        specs.check(request.spec)
        digest = self.digest_of(request.spec, request.sdk_digest)
        if not request.no_cache and self._path(digest).exists():
            info = self.info(digest)
            if await self.place.has(info.image):
                note_use(self._path(digest))
                return BuildEvent(environment=info)
        if request.plan:
            return BuildEvent(missing=digest)
        registry = await self.place.registry(is_refused=request.login_refused)
        return BuildEvent(image_order=self._order(digest, registry))

    def _order(self, digest: str, registry: Registry | None) -> ImageOrder:
        tag = f"multinode:{digest}"
        if registry:
            tag = f"{registry.repository}:{pushed_tag(self._installation, digest)}"
        return ImageOrder(
            digest=digest,
            platform=self.place.platform,
            tag=tag,
            labels=self._labels(digest),
            registry=registry,
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
            "platform": self.place.platform,
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
        _check_name(report.image, await self.place.registry())
        await self.place.check(report.image, self._labels(digest))
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
        await asyncio.to_thread(self._keep, info)
        return info.replace(created=True)

    def _keep(self, info: EnvironmentInfo) -> None:
        whole_files.write(self._path(info.digest), dumps(info))

    async def learn(self, environments: Iterable[EnvironmentInfo]) -> None:
        """Keeps environments that another process has taken: what is in the folder of this one may be old."""
        for info in environments:
            if info.image:
                await asyncio.to_thread(self._learn, info)

    def _learn(self, info: EnvironmentInfo) -> None:
        path = self._path(info.digest)
        if path.exists() and self.info(info.digest).image == info.image:
            return
        self._keep(info)
        # When it was last in use is not known. Were it now, a server that is often restarted would keep for good what nothing uses.
        made_at = datetime.fromisoformat(info.created_at).timestamp()
        os.utime(path, (made_at, made_at))

    # --- what nothing needs ----------------------------------------------------------------------------

    async def stored(self, in_use: Collection[str]) -> list[Stored]:
        """Environments that are none of ``in_use``, whose use is noted, images that no environment has any more, and layers of
        builds that came to no image.

        An image that was made anew (``--no-cache``) leaves its predecessor without an environment.
        """
        images, found = await self.place.images(), []
        for path, info in self._environments():
            own = [image for image in images if info.image in image.names]
            images = [image for image in images if image not in own]
            if info.digest in in_use:
                note_use(path)
            else:
                size_bytes = sum(image.size_bytes for image in own)
                found.append(Stored("environment", info.digest, size_bytes, used_at(path)))
        left = [Stored("image", each.name, each.size_bytes, each.used_at) for each in images]
        return [*found, *left, *await self.place.layers()]

    def _environments(self) -> list[tuple[Path, EnvironmentInfo]]:
        paths = self._folder.glob("*.json")
        return [(path, loads(EnvironmentInfo, path.read_bytes())) for path in paths]

    async def discard(self, item: Stored) -> Discarded:
        """Removes an environment with its image, an image, or layers; it stays where something uses it after all."""
        if item.kind != "environment":
            if any(info.image == item.name for _, info in self._environments()):
                return Discarded(is_gone=False)  # a deploy has found it meanwhile
            return await self.place.remove(item.name)
        # First the image: while that cannot be removed, the environment is one still.
        done = await self.place.remove(self.info(item.name).image)
        if done.is_gone:
            self._path(item.name).unlink(missing_ok=True)
        return done

    def _path(self, digest: str) -> Path:
        if not re.fullmatch("[0-9a-f]{64}", digest):
            message = f"{digest!r:.100} is no digest of an environment."
            raise InvalidRequest(message)
        return self._folder / f"{digest}.json"


def _check_name(image: str, registry: Registry | None) -> None:
    before = f"{re.escape(registry.repository)}@" if registry else ""
    if not re.fullmatch(before + "sha256:[0-9a-f]{64}", image):
        where = f"pushed to {registry.repository}" if registry else "given by its id"
        message = f"The image {image!r:.300} is not {where}."
        raise InvalidRequest(message, "Deploy again.")
