"""The commands of ``multinode``, as its own parser finds them."""

import typer

from multinode_cli.commands import root


def commands(group=None, path=()):
    """Each command by its words; a command's module is imported for it."""
    group = root() if group is None else group
    found = {}
    for name in group.list_commands(typer.Context(group)):
        _, command, _ = group.resolve_command(typer.Context(group), [name])
        if hasattr(command, "commands"):
            found.update(commands(command, (*path, name)))
        else:
            found[" ".join((*path, name))] = command
    return found
