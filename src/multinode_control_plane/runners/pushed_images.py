"""Images for a runner without an engine: those of a repository of ECR alone, from where AWS fetches them. See ``Place``."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping

from multinode.errors import EnvironmentBuildFailed, InvalidRequest, MultinodeError
from multinode.wire import Registry
from multinode_control_plane.runners.ecr import EcrRepository
from multinode_control_plane.runners.images import ENVIRONMENT_LABEL, PlacedImage, pushed_tag
from multinode_control_plane.runners.registry import RegistryAway
from multinode_control_plane.runners.storage import Discarded, Stored

log = logging.getLogger(__name__)


class PushedPlace:
    """The images of one installation in ``repository``, for workers of ``platform``."""

    def __init__(self, repository: EcrRepository, *, platform: str, installation: str) -> None:
        self.platform = platform
        self._installation = installation
        self._repository = repository

    async def registry(self, *, is_refused: bool = False) -> Registry:
        """See ``Place.registry``."""
        return await asyncio.to_thread(self._repository.login, is_refused=is_refused)

    async def has(self, image: str) -> bool:
        """See ``Place.has``."""
        return await asyncio.to_thread(self._repository.find, image) is not None

    async def check(self, image: str, labels: Mapping[str, str]) -> None:
        """See ``Place.check``: labels are inside of the image, which is not fetched; its tags begin as the order's."""
        found = await asyncio.to_thread(self._repository.find, image)
        if found is None:
            message = f"The image {image} is not in the registry."
            raise EnvironmentBuildFailed(message, "Deploy again: it is pushed anew.")
        tag = pushed_tag(self._installation, labels[ENVIRONMENT_LABEL])
        before = f"{image.partition('@')[0]}:{tag}"
        if not any(name.startswith(before) for name in found.names):
            message = f"The image {image} has no tag of the environment {labels[ENVIRONMENT_LABEL]}: it was pushed for another one."
            raise InvalidRequest(message, "Deploy again with --no-cache.")

    async def images(self) -> list[PlacedImage]:
        """See ``Place.images``."""
        try:
            return await asyncio.to_thread(self._repository.images, self._installation)
        except MultinodeError as error:  # what else is stored can be told all the same
            log.warning("%s", error)
            return []

    async def layers(self) -> list[Stored]:
        """None: nothing is built here."""
        return []

    async def remove(self, image: str) -> Discarded:
        """See ``Place.remove``. Tasks that run have their image already."""
        try:
            note = await asyncio.to_thread(self._repository.remove, image)
        except (RegistryAway, MultinodeError) as error:
            log.warning("%s", error)
            return Discarded(is_gone=False)
        return Discarded(is_gone=True, note=note)
