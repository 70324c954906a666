"""``multinode init``: a new project from a template. Never touches a file that exists."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from multinode.errors import InputError
from multinode.limits import MAX_PROJECT_NAME
from multinode_cli.commands.frame import Answer, Commands, Session
from multinode_cli.console import Console
from multinode_cli.errors import nearest
from multinode_cli.template_files import templates_folder

commands = Commands()

DEFAULT_TEMPLATE = "hello"
_SHARED = "shared"
"""The folder of files that every template has."""
_FIRST_CALLS = {
    "hello": "slowly_calculate_sum_of_squares bound=3",
    "progress": "import_rows num_rows=20",
    "parallel": "count_all_primes limit=200000 num_parts=4",
}


@commands.add("init")
def init(
    session: Session,
    directory: Annotated[
        str, typer.Argument(metavar="DIR", help="The project's folder.", show_default=False)
    ] = ".",
    template: Annotated[
        str, typer.Option("--template", metavar="NAME", help="hello, progress or parallel.")
    ] = DEFAULT_TEMPLATE,
) -> Answer:
    """Write a new project: multinode.toml, tasks/, and an application that invokes its functions.

    Example: multinode init hello
    """
    folder = templates_folder()
    if template not in _FIRST_CALLS:
        message = f"There is no template {template!r}."
        raise InputError(
            message, nearest(template, _FIRST_CALLS) or f"There are: {', '.join(_FIRST_CALLS)}."
        )
    target = Path(directory)
    name = project_name(target.resolve().name)
    words = {"{{project}}": name, "{{python}}": f"{sys.version_info[0]}.{sys.version_info[1]}"}
    written: list[str] = []
    kept: list[str] = []
    for relative, text in _files(folder, template):
        for word, meaning in words.items():
            text = text.replace(word, meaning)
        (written if _write(target / relative, text) else kept).append(relative)
    data = {"project": name, "written": written, "kept": kept}
    steps = [f"cd {directory}"] * (target.resolve() != Path.cwd()) + [
        "multinode deploy",
        f"multinode invoke {_FIRST_CALLS[template]}",
    ]

    def show(console: Console) -> None:
        console.out(f"Project {name} in {target.resolve()}")
        for relative in written:
            console.out(f"  {relative}")
        for relative in kept:
            console.out(f"  {relative}  (was there, and is as it was)")
        console.out(f"Next: {' && '.join(steps)}")

    return Answer(data, show)


def project_name(folder_name: str) -> str:
    """A project name made of a folder's: lower case, with what is not allowed replaced."""
    name = re.sub(r"[^a-z0-9_-]+", "-", folder_name.lower()).strip("-_")[:MAX_PROJECT_NAME]
    return name or "project"


def _files(folder: Path, template: str) -> Iterator[tuple[str, str]]:
    """Path in the project and text of each file. ``dot_env`` stands for ``.env``: packaging drops dotted files."""
    for part in (_SHARED, template):
        for path in sorted((folder / part).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                relative = path.relative_to(folder / part)
                name = (
                    relative.name.replace("dot_", ".", 1)
                    if relative.name.startswith("dot_")
                    else relative.name
                )
                yield relative.with_name(name).as_posix(), path.read_text(encoding="utf-8")


def _write(path: Path, text: str) -> bool:
    """Write a new file; False, and nothing is done, where there is one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        if path.exists():
            return False
        message = f"{path.parent} is no folder."
        raise InputError(message, "Choose another folder.") from None
    except OSError as error:
        message = f"{path} cannot be written: {error.strerror}."
        raise InputError(message, "Choose a folder that you may write to.") from error
    return True
