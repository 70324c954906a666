"""What the command line does with an ``ImageOrder``.

    order → context (Dockerfile, requirements, SDK) → base image here → build → push, where there is a registry → report

An image that the registry has is pulled in place of that.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from multinode.distribution import sdk_digest
from multinode.errors import OperationFailed
from multinode.wire import EnvironmentSpec, ImageOrder, ImageReport, Registry
from multinode_cli.images import buildkit, classic, failures
from multinode_cli.images.context import REPORT, Context, make_context
from multinode_cli.images.engine import Engine, connect, split_name
from multinode_cli.images.failures import EngineRefused
from multinode_cli.images.indexes import hidden
from multinode_cli.images.output import Output, Progress
from multinode_engine.registries import refuses_login

_Done = TypeVar("_Done")


def make_image(
    order: ImageOrder,
    spec: EnvironmentSpec,
    progress: Progress,
    *,
    environ: Mapping[str, str],
    no_cache: bool,
    another_login: Callable[[], Registry | None],
) -> ImageReport:
    """The image that was ordered, built in the engine of DOCKER_HOST and pushed where the order says so.

    ``another_login`` asks for the order's registry anew, where that does not take the login any more.

    Raises EnvironmentBuildFailed, EngineUnavailable, RegistryFailed and StorageFull; then nothing has changed for the project.
    """
    context = make_context(spec, environ)
    engine = connect(environ)
    try:
        work = _Work(engine, order, context, progress, environ)
        if order.registry is None:
            return work.report(spec, work.built(no_cache=no_cache))
        pushing = _Pushing(engine, order, progress, _Logins(order.registry, another_login))
        # Before the build: nobody waits for one that cannot be pushed.
        there = pushing.is_pushed()
        image = pushing.pulled() if there and not no_cache else ""
        if not image:
            built = work.built(no_cache=no_cache)
            image = pushing.pushed(built, is_tag_taken=there)
        return work.report(spec, image)
    finally:
        engine.close()


class _Work:
    """The steps of one order."""

    def __init__(
        self,
        engine: Engine,
        order: ImageOrder,
        context: Context,
        progress: Progress,
        environ: Mapping[str, str],
    ) -> None:
        self._engine = engine
        self._order = order
        self._context = context
        self._progress = progress
        self._environ = environ
        self._warnings: list[str] = []

    # --- the image ---

    def built(self, *, no_cache: bool) -> str:
        """Builds it; returns its id in the engine."""
        self._have_base_image(refresh=no_cache)
        output = Output(self._progress, hidden(self._context.secret))
        try:
            self._build(output, no_cache=no_cache)
        except EngineRefused as error:
            prefix = "build/inputs/"
            inputs = {
                name.removeprefix(prefix): data
                for name, data in self._context.files.items()
                if name.startswith(prefix)
            }
            words = output.cleaned(error.words)
            raise failures.build_failed(
                words,
                output.lines,
                base_image=self._context.base_image,
                platform=self._order.platform,
                files=inputs,
            ) from error
        image = self._engine.image(self._order.tag)
        if image is None:
            message = f"The image {self._order.tag} was built, and is not in the engine at {self._engine.address}."
            raise OperationFailed(message, "Somebody may have removed it: deploy again.")
        return str(image["Id"])

    def _build(self, output: Output, *, no_cache: bool) -> None:
        order, context = self._order, self._context
        environ = {**self._environ, **self._engine.variables}
        kit = buildkit.find(environ, self._engine.context)
        if kit is not None:
            buildkit.build_image(
                kit, context, output, tag=order.tag, labels=order.labels, platform=order.platform,
                no_cache=no_cache, environ=environ,
            )  # fmt: skip
            return
        is_own = order.platform == self._engine.platform()
        platform = None if is_own else order.platform
        classic.build_image(
            self._engine, context, output, tag=order.tag, labels=order.labels, platform=platform, no_cache=no_cache
        )  # fmt: skip

    def _have_base_image(self, *, refresh: bool) -> None:
        """Pulls the base image where it is not here; with ``refresh`` in any case, as far as its registry can be had."""
        name, platform = self._context.base_image, self._order.platform
        found = self._engine.image(name)
        is_here = found is not None and f"{found['Os']}/{found['Architecture']}" == platform
        if is_here and not refresh:
            return
        self._progress.step(f"Pulling the base image {name}")
        try:
            for event in self._engine.pull(*split_name(name), platform):
                self._progress.moment(_moment(event))
        except EngineRefused as error:
            if not is_here:
                raise failures.base_image_missing(error.words, name, platform) from error
            self._warnings.append(
                f"{name} could not be pulled anew; the one that is here was used."
            )

    # --- the report ---

    def report(self, spec: EnvironmentSpec, image: str) -> ImageReport:
        """What is in it, as the image itself says."""
        noted = self._engine.read_file(image, REPORT, self._order.labels)
        if noted is None:
            message = f"The image {image} was not made by `multinode deploy`: it has no {REPORT}."
            raise OperationFailed(message, "Remove it, or deploy with --no-cache.")
        inside = json.loads(noted)
        return ImageReport(
            spec=spec,
            sdk_digest=sdk_digest(),
            image=image,
            python_served=inside["python"],
            packages=inside["packages"],
            base_image=self._base_image_with_digest(),
            warnings=self._warnings,
        )

    def _base_image_with_digest(self) -> str:
        """The digest of its registry, or the engine's id of an image that came from none."""
        name = self._context.base_image
        image = self._engine.image(name) or {}
        repository = split_name(name)[0]
        for full in image.get("RepoDigests") or []:
            if split_name(full)[0].rpartition("/")[2] == repository.rpartition("/")[2]:
                return f"{name.partition('@')[0]}@{full.partition('@')[2]}"
        return f"{name.partition('@')[0]}@{image['Id']}" if image else name


class _Logins:
    """The login of the order's registry, and the next one where that has expired."""

    def __init__(self, registry: Registry, another: Callable[[], Registry | None]) -> None:
        self.registry = registry
        self._another = another

    def tried(self, act: Callable[[Registry], _Done]) -> _Done:
        """What ``act`` returns; where the registry refuses the login, with another one. Raises EngineRefused."""
        try:
            return act(self.registry)
        except EngineRefused as error:
            another = self._another() if refuses_login(error.words) else None
            if another is None or another == self.registry:
                raise
            self.registry = another
            return act(another)


class _Pushing:
    """The steps of one order that speak to its registry."""

    def __init__(
        self, engine: Engine, order: ImageOrder, progress: Progress, logins: _Logins
    ) -> None:
        self._engine = engine
        self._order = order
        self._progress = progress
        self._logins = logins
        self._repository = logins.registry.repository
        self._tag = split_name(order.tag)[1]

    def is_pushed(self) -> bool:
        """Whether the registry has the image. Raises RegistryFailed where it is away or lets nobody in: before the build."""
        try:
            return self._digest_of(self._tag) != ""
        except EngineRefused as error:
            if failures.is_hopeless(error.words):
                raise failures.registry_failed(error.words, self._logins.registry) from error
            return False  # some registries refuse to speak of what is not there; the push will tell

    def _digest_of(self, tag: str) -> str:
        return self._logins.tried(lambda login: self._engine.digest_in_registry(login, tag))

    def pulled(self) -> str:
        """Pulls it; returns its name by digest, empty where it was not made to this order."""
        self._progress.step("Pulling the image, which the registry has")
        try:
            self._logins.tried(self._pull)
        except EngineRefused as error:
            raise failures.registry_failed(error.words, self._logins.registry) from error
        image = self._engine.image(self._order.tag) or {}
        labels = image.get("Config", {}).get("Labels") or {}
        if not labels.items() >= self._order.labels.items():
            return ""  # another control plane's, which shares the registry
        return self._known_as(image)

    def _pull(self, login: Registry) -> None:
        for event in self._engine.pull(self._repository, self._tag, self._order.platform, login):
            self._progress.moment(_moment(event))

    def _known_as(self, image: Mapping[str, Any]) -> str:
        """The name by digest of an image that came from the registry, or was pushed there before; else empty."""
        digests = [str(name) for name in image.get("RepoDigests") or []]
        return next((name for name in digests if split_name(name)[0] == self._repository), "")

    def pushed(self, image: str, *, is_tag_taken: bool) -> str:
        """Pushes it; returns its name by digest.

        Where the registry has another image of the tag already, it is pushed under a tag of its own: a registry may be set up
        so that a tag stays what it is. Nobody looks for that tag, but for the digest.
        """
        self._progress.step(f"Pushing the image to {self._repository}")
        try:
            name = "" if is_tag_taken else self._pushed_as(self._tag, image)
            own_tag = f"{self._tag}-{image.partition(':')[2][:12]}"  # so of this image alone
            return name or self._pushed_as(own_tag, image) or self._digest_name(own_tag)
        except EngineRefused as error:
            raise failures.registry_failed(error.words, self._logins.registry) from error

    def _pushed_as(self, tag: str, image: str) -> str:
        """Its name by digest; empty where the tag is another image's, and stays so."""
        try:
            return self._logins.tried(lambda login: self._push(login, tag, image))
        except EngineRefused as error:
            if not failures.is_tag_taken(error.words):
                raise
            # ECR refuses the very same image too: https://github.com/aws/containers-roadmap/issues/2380
            name = self._digest_name(tag)
            return name if name and name == self._known_as(self._engine.image(image) or {}) else ""

    def _push(self, login: Registry, tag: str, image: str) -> str:
        """A push is over when the registry has told the digest, not before."""
        self._engine.tag(image, self._repository, tag)
        digest = ""
        for event in self._engine.push(login, tag):
            digest = str((event.get("aux") or {}).get("Digest") or digest)
            self._progress.moment(_moment(event))
        if not digest:
            words = "(the push ended without a digest)"
            raise failures.registry_failed(words, login)
        return f"{self._repository}@{digest}"

    def _digest_name(self, tag: str) -> str:
        """By digest, what the registry has under the tag; empty where it has nothing."""
        digest = self._digest_of(tag)
        return f"{self._repository}@{digest}" if digest else ""


def _moment(event: Mapping[str, object]) -> str:
    words = (event.get("id"), event.get("status"), event.get("progress"))
    return " ".join(str(word) for word in words if word)
