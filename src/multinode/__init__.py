"""Multinode runs Python functions as asynchronous tasks: define them with ``Multinode``, invoke them from anywhere."""

from __future__ import annotations

# What follows is imported at first use: `import multinode` costs little more than the interpreter's own start.
TYPE_CHECKING = False
if TYPE_CHECKING:
    from . import errors
    from .app import Multinode
    from .function import Function, get_deployed_function
    from .invocation import Invocation, InvocationIdsList, InvocationStatus

__version__ = "2.0.0"

__all__ = [
    "Function",
    "Invocation",
    "InvocationIdsList",
    "InvocationStatus",
    "Multinode",
    "__version__",
    "errors",
    "get_deployed_function",
]

_MODULES = {
    "Function": "function",
    "Invocation": "invocation",
    "InvocationIdsList": "invocation",
    "InvocationStatus": "invocation",
    "Multinode": "app",
    "get_deployed_function": "function",
}


def __getattr__(name: str) -> object:
    if name != "errors" and name not in _MODULES:
        message = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(message)
    from importlib import import_module  # already loaded by the interpreter's own start

    if name == "errors":
        return import_module(".errors", __name__)
    value: object = getattr(import_module("." + _MODULES[name], __name__), name)
    globals()[name] = value  # the next access does not come here
    return value


def __dir__() -> list[str]:
    return __all__
