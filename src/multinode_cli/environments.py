"""The environment of a version: what it is made from, and its building by the control plane, or the order to build it here."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from multinode.errors import (
    ControlPlaneUnreachable,
    MultinodeError,
    by_code,
)
from multinode.wire import (
    BuildEvent,
    EnvironmentInfo,
    EnvironmentSpec,
    ErrorBody,
    ImageOrder,
    loads,
)
from multinode_cli.tasks_folder import Environment, Requirements
from multinode_cli.tasks_folder.project_file import DEFAULT_PYTHON

INDEX_SETTINGS = (
    "UV_DEFAULT_INDEX",
    "UV_INDEX",
    "UV_INDEX_URL",
    "UV_EXTRA_INDEX_URL",
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
)
"""The variables of the user's environment that say where packages come from, and so go along."""


def environment_spec(
    environment: Environment, requirements: Requirements, settings: Mapping[str, str]
) -> EnvironmentSpec:
    """What the environment is made from, with these index settings; empty parts are None."""
    return EnvironmentSpec(
        python=environment.python or DEFAULT_PYTHON,
        requirements=requirements.text,
        files=requirements.files or None,
        settings=dict(settings) or None,
        base_image=environment.base_image,
        apt=list(environment.apt) or None,
    )


@dataclass(frozen=True)
class Missing:
    """To a plan: the environment of this digest is not there."""

    digest: str


def follow_build(
    lines: Iterable[bytes], on_line: Callable[[str], None]
) -> EnvironmentInfo | ImageOrder | Missing:
    """The environment that a build's stream ends with, or the order to build an image; ``on_line`` gets each line of output before.

    Raises the error that the stream ends with, EnvironmentBuildFailed as a rule.
    """
    for data in lines:
        if not data.strip():
            continue
        event = loads(BuildEvent, data)
        if event.line is not None:
            on_line(event.line)
        if event.error is not None:
            raise _error(event.error)
        if event.environment is not None:
            return event.environment
        if event.image_order is not None:
            return event.image_order
        if event.missing is not None:
            return Missing(event.missing)
    message = "The control plane broke off while it built the environment."
    raise ControlPlaneUnreachable(message, "Deploy again; what was built so far is not used.")


def _error(body: ErrorBody) -> MultinodeError:
    cls = by_code().get(body.code, MultinodeError)
    return cls(body.message, body.hint)
