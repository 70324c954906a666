"""An exception of the user's as text: its message, its type, its traceback from the user's first frame on.

Whatever the exception does (a ``__str__`` that raises, a message of a megabyte, lone surrogates), a text comes out.
"""

from __future__ import annotations

import os
import sys
import traceback

from ..errors import InputError, InvocationInterrupted
from ..limits import shorten
from ..wire import ErrorBody, FunctionError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from types import TracebackType
    from typing import Optional, Set

_PACKAGE = os.path.dirname(os.path.dirname(__file__)) + os.sep  # noqa: PTH120 - compared as text
_OURS = (_PACKAGE, "<frozen importlib", os.path.dirname(os.__file__) + os.sep + "importlib")  # noqa: PTH120
_IMPORT_SYSTEM = _OURS[1:]
_ASYNCIO = os.path.dirname(os.__file__) + os.sep + "asyncio"  # noqa: PTH120


def function_error(error: BaseException, code_dir: str) -> FunctionError:
    """How ``error`` is reported. Files below ``code_dir`` are named relative to it."""
    name = type_name(error)
    text = _text(error)
    return FunctionError(
        message=clean(f"{name}: {text}" if text else name),
        type=clean(name),
        traceback=clean(users_traceback(error, code_dir)),
    )


def import_error(error: BaseException, code_dir: str) -> ErrorBody:
    """Why ``main.py`` is of no use: an InputError's own words, with the line, or what its import raised."""
    if isinstance(error, InputError):
        place = _place(error, code_dir)
        return ErrorBody(error.code, clean(f"{place}{error.message}"), clean(error.hint))
    failed = function_error(error, code_dir)
    message = f"main.py could not be imported: {failed.message}"
    hint = f"{failed.traceback}{_cure(error)}, and deploy again."
    return ErrorBody("import_failed", clean(message), clean(hint))


def _cure(error: BaseException) -> str:
    if isinstance(error, ModuleNotFoundError) and error.name:
        return f"Add what provides {error.name!r} to requirements.txt, or correct the import"
    if isinstance(error, SyntaxError):
        version = "{}.{}".format(*sys.version_info[:2])
        return f"Correct this, or choose a newer Python than {version} in multinode.toml"
    return "Correct this"


def is_only_interrupt(error: BaseException) -> bool:
    """Whether ``error`` is an interrupt and nothing else: a task group wraps it in an exception group."""
    wrapped = getattr(error, "exceptions", None)
    if isinstance(wrapped, tuple) and wrapped:
        return all(is_only_interrupt(inner) for inner in wrapped)
    return isinstance(error, InvocationInterrupted)


def type_name(error: BaseException) -> str:
    """The class as a traceback names it: with its module, unless it is a built-in or in ``main.py``."""
    cls = type(error)
    name = str(getattr(cls, "__qualname__", cls.__name__))
    module = getattr(cls, "__module__", None)
    return name if module in ("builtins", "main", "__main__") else f"{module}.{name}"


def users_traceback(error: BaseException, code_dir: str) -> str:
    """The traceback without the frames, at its beginning, that are ours; empty where no other is left."""
    try:
        told = traceback.TracebackException(type(error), error, _trimmed(error.__traceback__))
        _trim_chain(told, set())
        # An import statement leaves these out by itself; importlib.import_module does not.
        told.stack[:] = [
            item for item in told.stack if not item.filename.startswith(_IMPORT_SYSTEM)
        ]
        has_frames = bool(told.stack) or told.exc_type is SyntaxError
        text = "".join(told.format()) if has_frames or told.__cause__ or told.__context__ else ""
    except Exception:  # a message that cannot be formatted, no memory, no stack left
        return ""
    return text.replace(f'File "{code_dir}{os.sep}', 'File "')


def clean(text: str) -> str:
    """``text`` as every database and terminal takes it, its middle left out where it is too long."""
    text = shorten(text).replace("\x00", "\\x00")
    return shorten(text.encode("utf-8", "backslashreplace").decode("utf-8"))


def _text(error: BaseException) -> str:
    try:
        return str(error)
    except Exception:
        return "<its __str__ raised>"


def _trimmed(trace: Optional[TracebackType]) -> Optional[TracebackType]:
    while trace is not None and _is_ours(trace.tb_frame.f_code.co_filename):
        trace = trace.tb_next
    return trace


def _trim_chain(told: traceback.TracebackException, seen: Set[int]) -> None:
    """Trims what the exception was raised from or during, as the exception itself."""
    for inner in (told.__cause__, told.__context__):
        if inner is not None and id(inner) not in seen:
            seen.add(id(inner))
            while inner.stack and _is_ours(inner.stack[0].filename):
                del inner.stack[0]
            _trim_chain(inner, seen)


def _is_ours(filename: str) -> bool:
    return filename.startswith(_OURS) or filename.startswith(_ASYNCIO)


def _place(error: BaseException, code_dir: str) -> str:
    """``main.py:12: ``, the innermost line of the user's that led to ``error``; empty where there is none."""
    place = ""
    trace = error.__traceback__
    while trace is not None:
        filename = trace.tb_frame.f_code.co_filename
        if filename.startswith(code_dir + os.sep):
            place = f"{filename[len(code_dir) + 1 :]}:{trace.tb_lineno}: "
        trace = trace.tb_next
    return place
