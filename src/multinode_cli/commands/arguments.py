"""Arguments of a function as the terminal gives them, and whether they fit its signature."""

from __future__ import annotations

import inspect
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from multinode.errors import ArgumentsError, InputError
from multinode.wire import FunctionDescription
from multinode_cli.errors import nearest

_NAMED = re.compile(r"(?P<name>[^\W\d]\w*)=(?P<value>.*)", re.DOTALL)
_NUMBER = re.compile(r"-(\d|\.\d|Infinity)")

Given = tuple[list[Any], dict[str, Any]]


def read_arguments(words: Sequence[str], input_file: str | None) -> Given:
    """The positional and the named arguments. Raises InputError where they cannot be told.

    Values are JSON where they parse as JSON, else texts. ``input_file`` holds ``[args, kwargs]`` instead; ``-`` is stdin.
    """
    if input_file is not None:
        if words:
            message = "Arguments were given, and --input as well."
            raise InputError(message, "Give one or the other.")
        return _read_input(input_file)
    positional: list[Any] = []
    named: dict[str, Any] = {}
    for word in words:
        if word.startswith("-") and len(word) > 1 and not _NUMBER.match(word):
            message = f"No such option: {word}"
            raise InputError(
                message, f"A text that begins with a dash is written as JSON: '\"{word}\"'."
            )
        matched = _NAMED.fullmatch(word)
        if matched is None:
            positional.append(_value(word))
        elif matched["name"] in named:
            message = f"The argument {matched['name']!r} was given twice."
            raise InputError(message, "Give it once.")
        else:
            named[matched["name"]] = _value(matched["value"])
    return positional, named


def check_arguments(function: FunctionDescription, given: Given) -> None:
    """Raise ArgumentsError where ``given`` does not fit the function's signature."""
    kinds = {kind.name.lower(): kind for kind in inspect._ParameterKind}
    parameters = [
        inspect.Parameter(
            item.name,
            kinds[item.kind],
            default=inspect.Parameter.empty if item.default is None else item.default,
        )
        for item in function.parameters
    ]
    positional, named = given
    known = [item.name for item in function.parameters if not item.kind.startswith("var_")]
    takes = f"It takes {', '.join(known) or 'no arguments'}."
    if not any(item.kind == "var_keyword" for item in function.parameters):
        for name in named:
            if name not in known:
                message = f"{function.name} has no argument {name!r}."
                raise ArgumentsError(message, nearest(name, known) or takes)
    try:
        inspect.Signature(parameters).bind(*positional, **named)
    except TypeError as error:
        message = f"{function.name}: {error}."
        raise ArgumentsError(message, takes) from error


def _value(text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_refuse)
    except ValueError:
        return text


def _refuse(text: str) -> Any:
    raise ValueError(text)


def _read_input(name: str) -> Given:
    hint = "It holds one JSON array: [[positional, …], {named: …}]."
    try:
        text = sys.stdin.read() if name == "-" else Path(name).read_text(encoding="utf-8")
        data = json.loads(text)
    except OSError as error:
        message = f"--input {name} cannot be read: {error.strerror}."
        raise InputError(message, hint) from error
    except ValueError as error:
        what = "UTF-8" if isinstance(error, UnicodeDecodeError) else "JSON"
        message = f"--input {name} is no {what}: {error}."
        raise InputError(message, hint) from error
    if not isinstance(data, list) or list(map(type, data)) != [list, dict]:
        message = f"--input {name} is JSON, but not arguments: {text.strip()!r:.60}."
        raise InputError(message, hint)
    return data[0], data[1]
