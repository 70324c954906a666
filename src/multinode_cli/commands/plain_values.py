"""Commands and groups whose values are texts and flags, and so pass through Typer as they are.

Typer 0.29 imports pydantic, which takes 80 ms, even to make a text of a text. What is a number or a path is read from
its text by the command itself.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from typer.core import TyperCommand, TyperGroup

from multinode.errors import InputError


class _PlainValues:
    """Mixed in before Typer's classes."""

    def get_params(self, ctx: Any) -> Any:
        """The parameters, the one for ``--help`` among them, each made to take its value as it is."""
        parameters = super().get_params(ctx)  # type: ignore[misc]  # Typer's class comes next
        for parameter in parameters:
            convert = getattr(parameter, "process_value", None)  # None: a later Typer without it
            if convert is not None and not isinstance(convert, partial):
                parameter.process_value = partial(_process, parameter, convert)
        return parameters


class PlainCommand(_PlainValues, TyperCommand):
    """A command."""


class PlainGroup(_PlainValues, TyperGroup):
    """A group of commands."""


def _process(parameter: Any, convert: Any, context: Any, value: Any) -> Any:
    has_many = parameter.nargs == -1
    is_given = value is not None and value != ()
    if not is_given and not parameter.required:
        return () if has_many else None
    is_text = isinstance(value, str) or (is_given and has_many)
    return value if is_text and parameter.callback is None else convert(context, value)


def whole_number(text: str, option: str, *, least: int) -> int:
    """``text`` as a number. Raises InputError, which names the option."""
    try:
        number = int(text)
    except ValueError:
        number = least - 1
    if number < least:
        message = f"{option} {text!r} is no whole number from {least} up."
        raise InputError(message, f"For example: {option} {max(least, 1)}.")
    return number
