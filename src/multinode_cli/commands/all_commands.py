"""All commands by name and summary. A command's module is imported when that command is used, not for ``--help``."""

from __future__ import annotations

from importlib import import_module
from typing import Any

import typer

from multinode_cli.commands.plain_values import PlainCommand, PlainGroup

SUMMARIES = {
    "starting": {
        "init": "Write a new project: multinode.toml, tasks/, and an application that invokes its functions.",
    },
    "releasing": {
        "check": "Say what is wrong in tasks/, without importing or sending anything.",
        "deploy": "Create the project, or add a version to it and make that the latest.",
        "upgrade": "Like deploy, but the project must exist.",
    },
    "projects": {
        "undeploy": "Cancel what is in flight, then remove the project with its versions, results and logs.",
        "list": "List the projects: newest version, functions, invocations in flight.",
        "describe": "Describe a project, a function, or an invocation attempt by attempt.",
        "rollback": "Make an earlier version the latest.",
    },
    "invoking": {
        "invoke": "Start an invocation, follow it, and print its result alone on stdout.",
        "run": "Run a function of the local tasks/ here, in this terminal, with no control plane.",
    },
    "invocations": {
        "ps": "List the invocations in flight, with why a pending one is not running.",
        "logs": "Print the output of a function, stdout and stderr in the order in which they came.",
        "result": "Print the result of an invocation, or the newest value that it has yielded so far.",
        "cancel": "Ask for cancellation of invocations, or of everything in flight of a function. Asks; does not wait.",
        "retry": "Start a new invocation with the input of another one, and print its id.",
    },
    "developing": {
        "dev": "Deploy to a local control plane at every save, and print what functions do, until Ctrl-C.",
    },
    "replaying": {
        "replay": "Run an invocation's stored input here, on the local code of tasks/.",
    },
    "server": {
        "server": "Start, stop and look at the local control plane.",
    },
    "access": {
        "login": "Check a key and store it for the commands and the SDK. --profile says under which name.",
        "logout": "Forget a profile's key here; the key itself stays valid until it is revoked.",
        "profile": "List the profiles of `multinode login`, and choose one.",
        "key": "Make, list and revoke API keys.",
    },
    "audit": {
        "audit": "Print who deployed, invoked, cancelled, removed, and made or revoked keys, oldest first.",
    },
    "costs": {
        "cost": "Print vCPU seconds, GB seconds and price of the workers that have ended.",
    },
    "doctor": {
        "doctor": "Check Python, uv, Docker, the control plane, credentials, clock and disk.",
    },
}
"""Each module's commands, in the order of ``--help``, with the first line of their own help (a test compares the two)."""


class AllCommands(PlainGroup):
    """The group of all commands; each is a name and a summary until it is used."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = {
            name: PlainCommand(name, short_help=summary)
            for commands in SUMMARIES.values()
            for name, summary in commands.items()
        }

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:
        """As Typer does, with the command's module imported; shell completion comes this way too."""
        for module, commands in SUMMARIES.items():
            if args[0] in commands:
                self._load(module)
        return super().resolve_command(ctx, args)

    def _load(self, module: str) -> None:
        app = typer.Typer(rich_markup_mode=None)
        import_module(f"multinode_cli.commands.{module}").commands.add_to(app)
        self.commands.update(typer.main.get_group(app).commands)
