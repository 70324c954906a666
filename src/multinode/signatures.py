"""Signatures as they are deployed: parameters of a function as data, and arguments checked against such data."""

from __future__ import annotations

import inspect

from . import errors
from .wire import Parameter

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional


class _Shown(str):
    """A text that ``inspect`` shows as it is, where it would show a ``repr``."""

    def __repr__(self) -> str:
        return str(self)


class Signature:
    """What arguments a function takes, checked as Python would."""

    def __init__(self, name: str, parameters: List[Parameter]) -> None:
        kinds = {kind.name.lower(): kind for kind in inspect._ParameterKind}
        empty = inspect.Parameter.empty
        self._name = name
        self._signature = inspect.Signature(
            [
                inspect.Parameter(
                    item.name,
                    kinds[item.kind],
                    default=empty if item.default is None else _Shown(item.default),
                    annotation=_Shown(item.annotation) if item.annotation else empty,
                )
                for item in parameters
            ]
        )

    def problem(self, args: Any, kwargs: Any) -> str:
        """Why the arguments do not fit; empty where they do."""
        parameters = self._signature.parameters.values()
        if not any(item.kind is item.VAR_KEYWORD for item in parameters):
            for name in kwargs:  # a mistyped name; inspect would say that the right one is missing
                if name not in self._signature.parameters:
                    return f"got an unexpected keyword argument {name!r}"
        try:
            self._signature.bind(*args, **kwargs)
        except TypeError as error:
            return str(error)
        return ""

    def checked(self, args: Any, kwargs: Optional[Dict[str, Any]] = None) -> Any:
        """``args``, if they and ``kwargs`` fit. Raises ArgumentsError."""
        problem = self.problem(args, kwargs or {})
        if problem:
            message = f"{self._name}: {problem}."
            raise errors.ArgumentsError(message, f"It is {self._name}{self._signature}.")
        return args


def parameters_of(func: Any) -> List[Parameter]:
    """What a function takes, in its order."""
    empty = inspect.Parameter.empty
    return [
        Parameter(
            name=item.name,
            kind=item.kind.name.lower(),
            annotation="" if item.annotation is empty else _annotation(item.annotation),
            default=None if item.default is empty else _shown_default(item.default),
        )
        for item in inspect.signature(func).parameters.values()
    ]


def _annotation(annotation: Any) -> str:
    if isinstance(annotation, str):  # `from __future__ import annotations`
        return annotation
    return str(inspect.formatannotation(annotation))


def _shown_default(default: Any) -> str:
    try:
        text = repr(default)
    except Exception:  # whatever the user's __repr__ raises
        text = f"<{type(default).__name__}>"
    return text if len(text) <= 100 else text[:99] + "…"


def kind_of(func: Any) -> str:
    """``function``, ``coroutine``, ``generator`` or ``async_generator``."""
    if inspect.isasyncgenfunction(func):
        return "async_generator"
    if inspect.iscoroutinefunction(func):
        return "coroutine"
    return "generator" if inspect.isgeneratorfunction(func) else "function"
