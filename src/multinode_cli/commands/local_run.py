"""Runs a function of the local ``tasks/`` in this interpreter: its ``.env``, its ``main.py``, no control plane."""

from __future__ import annotations

import inspect
import os
import sys
import traceback
from collections.abc import Callable
from contextlib import nullcontext, redirect_stdout
from importlib import import_module
from typing import TYPE_CHECKING, Any

from multinode.codec import encode_output
from multinode.errors import ArgumentsError, FunctionNotFound, ImportFailed, OperationFailed
from multinode_cli.commands.arguments import Given
from multinode_cli.commands.shown import value_text
from multinode_cli.console import Console
from multinode_cli.errors import nearest, raise_for_problems
from multinode_cli.tasks_folder import ProjectFile, read_dotenv

if TYPE_CHECKING:
    from pdb import Pdb


def run(
    project: ProjectFile,
    name: str,
    read_given: Callable[[], Given],
    console: Console,
    *,
    debugged: bool = False,
) -> str:
    """The function's result as jsonpickle text; yielded values are told as they come, and with ``--json`` what it prints too.

    ``read_given`` says the arguments, once ``main.py`` is imported. ``debugged``: pdb stops at the first line, and where it raises.

    Raises ImportFailed, FunctionNotFound, ArgumentsError, and OperationFailed where the function raises, or the debugger is left.
    """
    with redirect_stdout(sys.stderr) if console.as_json else nullcontext():
        return _run_here(project, name, read_given, console, debugged=debugged)


def _run_here(
    project: ProjectFile,
    name: str,
    read_given: Callable[[], Given],
    console: Console,
    *,
    debugged: bool,
) -> str:
    main = project.tasks / "main.py"
    if not main.is_file():
        raise_for_problems(
            [f"{project.shown(main)}: is missing"], "Run this in a project's folder."
        )
    values, problems = read_dotenv(project)
    raise_for_problems(problems, "Correct this.")
    os.environ.update(values)
    function = _find(_import_main(project, console), name)
    given = read_given()
    positional, named = given
    try:
        inspect.signature(function).bind(*positional, **named)
    except TypeError as error:
        message = f"{name}: {error}."
        raise ArgumentsError(message, f"It is {name}{inspect.signature(function)}.") from error
    try:
        text = _debugged(function, given, console) if debugged else _run(function, given, console)
    except Exception as error:
        _tell(error, project, console)
        if debugged:
            _post_mortem(error)
        message = f"{name} raised {type(error).__name__}: {error}"
        raise OperationFailed(message) from error
    if text is None:
        message = f"The debugger was left before {name} had ended."
        raise OperationFailed(message)
    return text


_NOT_THEIRS = ["multinode*", "asyncio*", "contextlib", "inspect", "selectors"]


def _debugger() -> Pdb:
    """One that stops in the user's code alone."""
    from pdb import Pdb  # lazy: start-up time

    class AtLines(Pdb):
        """Stops at a function's first line, not at its call before that."""

        def user_call(self, frame: Any, argument_list: Any) -> None:
            """Goes on to the line."""

    return AtLines(skip=_NOT_THEIRS)


def _debugged(function: Any, given: Given, console: Console) -> str | None:
    """None where the debugger is left before the end."""
    text: str | None = _debugger().runcall(_run, function, given, console)
    return text


def _post_mortem(error: Exception) -> None:
    import pdb  # lazy, as above

    pdb.post_mortem(error.__traceback__)


def _import_main(project: ProjectFile, console: Console) -> Any:
    sys.path.insert(0, str(project.tasks))
    try:
        return import_module("main")
    except Exception as error:
        _tell(error, project, console)
        message = f"main.py cannot be imported: {type(error).__name__}: {error}"
        raise ImportFailed(
            message, "It runs in this Python; are its requirements installed?"
        ) from error


def _find(module: Any, name: str) -> Any:
    from multinode.function import Function  # lazy: start-up time

    functions = {key: item for key, item in vars(module).items() if isinstance(item, Function)}
    if name not in functions:
        message = f"main.py has no function {name!r}."
        raise FunctionNotFound(
            message, nearest(name, functions) or f"There are: {', '.join(functions)}."
        )
    return functions[name]


def _run(function: Any, given: Given, console: Console) -> str:
    positional, named = given
    outcome = function(*positional, **named)
    if inspect.isgenerator(outcome):
        last = "null"
        for number, value in enumerate(outcome, 1):
            last = encode_output(value)
            console.note(f"value {number}: {value_text(last)}")
        return last
    if inspect.isasyncgen(outcome) or inspect.isawaitable(outcome):
        import asyncio  # lazy: start-up time

        return asyncio.run(_await(outcome, console))
    return encode_output(outcome)


async def _await(outcome: Any, console: Console) -> str:
    if not inspect.isasyncgen(outcome):
        return encode_output(await outcome)
    last, number = "null", 0
    async for value in outcome:
        number += 1
        last = encode_output(value)
        console.note(f"value {number}: {value_text(last)}")
    return last


def _tell(error: Exception, project: ProjectFile, console: Console) -> None:
    """The traceback from the user's first line on; all of it where no line is the user's."""
    frames = traceback.extract_tb(error.__traceback__)
    first = next(
        (i for i, frame in enumerate(frames) if frame.filename.startswith(str(project.tasks))), 0
    )
    lines = ["Traceback (most recent call last):\n", *traceback.format_list(frames[first:])]
    lines += traceback.format_exception_only(type(error), error)
    console.note("".join(lines).rstrip())
