"""Builds with the engine's classic builder, through its API."""

from __future__ import annotations

import re
from collections.abc import Mapping

from multinode_cli.images.context import Context
from multinode_cli.images.engine import Engine
from multinode_cli.images.output import Output

_RUNNING = re.compile(r" ---> Running in ([0-9a-f]+)")
_LAYER = re.compile(r" ---> ([0-9a-f]+)$")
_OWN_WORDS = re.compile(
    r"Step \d+/\d+ : | ---> |Removing intermediate container |Successfully (built|tagged) |\[Warning\] "
)


def build_image(
    engine: Engine,
    context: Context,
    output: Output,
    *,
    tag: str,
    labels: Mapping[str, str],
    platform: str | None,
    no_cache: bool,
) -> None:
    """Builds, and tags the image. Raises EngineRefused. What an interrupted build has made is removed.

    Layers of a build that failed stay: they are what the next one begins with.
    """
    arguments = context.secret.as_arguments() if context.secret else {}
    events = engine.build(
        context.archive(has_buildkit=False),
        tag=tag,
        labels=labels,
        platform=platform,
        arguments=arguments,
        no_cache=no_cache,
    )
    left = _LeftOver(engine)
    try:
        for event in events:
            text = str(event.get("stream", ""))
            left.note(text)
            if not _OWN_WORDS.match(text):
                output.take(text)
    except KeyboardInterrupt:
        events.close()
        left.remove()
        raise
    finally:
        events.close()


class _LeftOver:
    """What a build would leave if it ended now."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._container = ""
        self._layers: list[str] = []
        self._is_cached = False

    def note(self, text: str) -> None:
        """Reads the builder's own words."""
        running, layer = _RUNNING.match(text), _LAYER.match(text.rstrip("\n"))
        if text.startswith("Step "):
            self._is_cached = text.startswith("Step 1/")  # FROM makes nothing
        elif text.startswith(" ---> Using cache"):
            self._is_cached = True
        elif running:
            self._container = running[1]
        elif layer and not self._is_cached:
            self._layers.append(layer[1])

    def remove(self) -> None:
        """Removes it, as far as nobody else uses it: layers may have become another build's."""
        if self._container:
            self._engine.end_container(self._container)
        for layer in reversed(self._layers):
            self._engine.remove_image(layer)
