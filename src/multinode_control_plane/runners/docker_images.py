"""Images in a Docker engine, which runs them: built there, or pulled from the registry where they were pushed."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any

from multinode.errors import EnvironmentBuildFailed, InvalidRequest, MultinodeError
from multinode.wire import Registry
from multinode_control_plane.runners.docker_engine import (
    Engine,
    EngineError,
    ImageState,
    NotInEngine,
)
from multinode_control_plane.runners.images import INSTALLATION_LABEL, PlacedImage
from multinode_control_plane.runners.registry import RegistryAway, Repository
from multinode_control_plane.runners.storage import Discarded, Stored
from multinode_engine.registries import refuses_login

log = logging.getLogger(__name__)

PART_LABEL = "multinode.part=environment"
"""On each layer that the command line builds (``templates/image``)."""

Do = Callable[..., Awaitable[Any]]
"""Runs a blocking call in a thread."""


class EnginePlace:
    """The images of one installation in its engine, and in its repository where there is one. See ``Place``."""

    def __init__(
        self, engine: Engine, *, do: Do, installation: str, repository: Repository | None
    ) -> None:
        self.platform = engine.facts.platform
        self._engine = engine
        self._do = do
        self._installation = installation
        self._repository = repository
        self._pulling: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._logging_in = asyncio.Lock()

    async def registry(self, *, is_refused: bool = False) -> Registry | None:
        """See ``Place.registry``."""
        if self._repository is None:
            return None
        # One at a time: where AWS is slow, all of the runner's threads would wait, and no container would start.
        async with self._logging_in:
            login: Registry = await self._do(self._repository.login, is_refused=is_refused)
            return login

    # --- one image -------------------------------------------------------------------------------------

    async def has(self, image: str) -> bool:
        """Whether the engine has the image, or can have it now."""
        try:
            await self.fetch(image)
        except NotInEngine:
            return False
        except EngineError as error:
            raise EnvironmentBuildFailed(error.message, error.hint) from error
        return True

    async def check(self, image: str, labels: Mapping[str, str]) -> None:
        """See ``Place.check``."""
        found = await self._fetched(image)
        for name, value in labels.items():
            if found.labels.get(name) != value:
                message = (
                    f"The image {image} has the label {name}={found.labels.get(name, '')!r:.100}, "
                    f"not {value!r}: it was not built to this control plane's order."
                )
                raise InvalidRequest(message, "Deploy again with --no-cache.")

    async def _fetched(self, image: str) -> ImageState:
        try:
            return await self.fetch(image)
        except NotInEngine as error:
            message = (
                f"The image {image} is not in the control plane's Docker engine "
                f"({self._engine.facts.url}): it was built in another one."
            )
            hint = "Deploy with DOCKER_HOST set to that engine, or give the control plane a --registry."
            if self._repository:
                message, hint = error.message, "Is it still in the registry?"
            raise EnvironmentBuildFailed(message, hint) from error
        except EngineError as error:
            raise EnvironmentBuildFailed(error.message, error.hint) from error

    async def fetch(self, image: str, *, told: Callable[[], None] = lambda: None) -> ImageState:
        """The image, pulled where it has an address and the engine does not have it; ``told`` is called before that.

        Raises NotInEngine where neither engine nor registry has it, EngineError where the registry fails otherwise.
        """
        if self._pulling[image].locked():
            told()
        async with self._pulling[image]:
            try:
                return await self._look(image)
            except NotInEngine as error:
                if self._repository is None or "@" not in image:
                    message = f"The image {image} is not in the Docker engine any more."
                    raise NotInEngine(message, "Deploy again: it is made anew.") from error
                told()
                await self._pull(image)
                return await self._look(image)

    async def _pull(self, image: str) -> None:
        """Once more where the registry refuses the login: one that was given to us may have expired."""
        login = await self._login()
        try:
            await self._do(self._engine.pull, image, login)
        except EngineError as error:
            if not refuses_login(error.message):
                raise
            another = await self._login(is_refused=True)
            if another == login:
                raise
            await self._do(self._engine.pull, image, another)

    async def _login(self, *, is_refused: bool = False) -> Registry:
        try:
            login = await self.registry(is_refused=is_refused)
        except MultinodeError as error:
            raise EngineError(error.message, error.hint) from error
        assert login is not None, "nothing is pulled without a registry"
        return login

    async def _look(self, image: str) -> ImageState:
        found: ImageState = await self._do(self._engine.image, image)
        return found

    # --- what nothing needs ----------------------------------------------------------------------------

    async def images(self) -> list[PlacedImage]:
        """See ``Place.images``: those in the engine, and those that only the repository has."""
        label = f"{INSTALLATION_LABEL}={self._installation}"
        found = []
        for item in await self._do(self._engine.images, label):
            with suppress(NotInEngine):  # gone meanwhile
                state = await self._look(item.image_id)
                names = frozenset((state.image_id, *state.digests))
                found.append(PlacedImage(state.image_id, names, state.size_bytes, state.created_at))
        here = {name for image in found for name in image.names}
        return [*found, *(each for each in await self._pushed() if each.name not in here)]

    async def _pushed(self) -> list[PlacedImage]:
        if self._repository is None:
            return []
        try:
            pushed: list[PlacedImage] = await self._do(self._repository.images, self._installation)
        except MultinodeError as error:  # the engine's can be told all the same
            log.warning("%s", error)
            return []
        return pushed

    async def layers(self) -> list[Stored]:
        """What builds that failed have left for the next one to begin with: of any installation, for layers have no label of one."""
        found = await self._do(self._engine.images, PART_LABEL, is_dangling=True)
        return [
            Stored("layers", item.image_id, item.size_bytes, item.created_at)
            for item in found
            if INSTALLATION_LABEL not in item.labels
        ]

    async def remove(self, image: str) -> Discarded:
        """Removes an image from engine and registry; it stays where a container uses it, or the registry is away."""
        try:
            if (
                "@" in image
            ):  # the registry's own name of it: the engine, which says whether it is used, is first
                await self._do(self._engine.remove_image, image)
                return Discarded(is_gone=True, note=await self._remove_pushed([image]))
            note = await self._remove_pushed((await self._look(image)).digests)
            await self._do(self._engine.remove_image, image)
            return Discarded(is_gone=True, note=note)
        except NotInEngine:
            return Discarded(is_gone=True)
        except (EngineError, RegistryAway, MultinodeError) as error:
            log.warning("%s", error)
            return Discarded(is_gone=False)

    async def _remove_pushed(self, names: Iterable[str]) -> str:
        """Removes from the repository what of these is there. Returns a sentence where that does not let us; raises RegistryAway."""
        note = ""
        for name in names:
            if self._repository and name.startswith(f"{(await self._login()).repository}@"):
                note = await self._do(self._repository.remove, name) or note
        return note
