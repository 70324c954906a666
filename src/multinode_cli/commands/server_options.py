"""The options of a control plane, once for all commands that start one: each goes on to the server as it is."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from multinode_cli.commands.frame import Answer, Command, Session


@dataclass(frozen=True)
class Option:
    """``--name METAVAR``, or a switch where ``metavar`` is empty; the variable of the same name is read by the server itself."""

    name: str
    metavar: str
    help: str
    is_path: bool = False

    @property
    def flag(self) -> str:
        """As it is typed."""
        return f"--{self.name.replace('_', '-')}"

    def typed(self) -> Any:
        """What Typer has to know of it."""
        help_text = f"{self.help} (MULTINODE_{self.name.upper()})."
        return typer.Option(self.flag, metavar=self.metavar or None, help=help_text)

    def parameter(self) -> inspect.Parameter:
        """As Typer reads it from a signature."""
        annotation: Any = Annotated[str | None if self.metavar else bool, self.typed()]
        default = None if self.metavar else False
        kind = inspect.Parameter.KEYWORD_ONLY
        return inspect.Parameter(self.name, kind, default=default, annotation=annotation)

    def argument(self, value: str | bool | None) -> list[str]:
        """For the server, which runs in another folder."""
        if value is None or value is False or (self.is_path and not value):
            return []
        if value is True:
            return [self.flag]
        if self.is_path:
            value = str(Path(value).absolute())
        elif value.startswith("file:"):
            value = f"file:{Path(value[5:]).expanduser().absolute()}"
        return [f"{self.flag}={value}"]


DATABASE = Option("database", "URL", "The store")
DATA_DIR = Option("data_dir", "DIR", "Folder of everything that is stored", is_path=True)
Database = Annotated[str | None, DATABASE.typed()]
DataDir = Annotated[str | None, DATA_DIR.typed()]
"""Of other commands."""

OPTIONS = (
    Option("runner", "NAME", "auto, process, docker or ecs"),
    DATABASE,
    Option("host", "ADDRESS", "Address to listen on"),
    Option("port", "NUMBER", "Port; 0 is any free one"),
    DATA_DIR,
    Option("worker_url", "URL", "How workers reach it"),
    Option("capacity", "ROOM", "Room for workers, cpu=4,memory=8GiB"),
    Option("disk_limit", "SIZE", "How much is kept that nothing needs, 20GiB"),
    Option(
        "keep_invocations", "SECONDS", "How long after its end an invocation is kept, 0: for ever"
    ),
    Option("registry", "HOST/NAME", "Where images go"),
    Option("registry_username", "NAME", "Its user; the password is MULTINODE_REGISTRY_KEY"),
    Option("allow_process", "", "Run functions as this user although others can reach it"),
    Option("allow_http", "", "Speak plain HTTP beyond loopback, without a proxy that speaks TLS"),
    Option("allowed_hosts", "NAMES", "Further names by which it is called, e.g. mn.example.com"),
    Option("log_format", "text|json", "Lines of its own log"),
    Option("admin_key_file", "FILE", "Holds the key of the name admin", is_path=True),
    Option("tls_cert", "FILE", "Certificate, to speak TLS", is_path=True),
    Option("tls_key", "FILE", "The certificate's key", is_path=True),
    Option("trusted_proxies", "ADDRESSES", "Whose X-Forwarded-For is believed, e.g. 10.0.0.0/8"),
    Option("secret_key_from", "PLACE", "Keys of .env values, file:PATH, env:NAME or aws:ID"),
    Option("ecs_cluster", "NAME", "With --runner ecs: cluster in which tasks run"),
    Option("ecs_subnets", "IDS", "With --runner ecs: subnets of tasks"),
    Option("ecs_execution_role", "ARN", "With --runner ecs: role that fetches images"),
    Option("ecs_log_group", "NAME", "With --runner ecs: log group of functions' output"),
    Option("ecs_security_groups", "IDS", "With --runner ecs: security groups of tasks"),
    Option("ecs_task_role", "ARN", "With --runner ecs: role that functions have"),
    Option("ecs_name", "NAME", "With --runner ecs: tells installations in a cluster apart"),
    Option("ecs_architecture", "NAME", "With --runner ecs: X86_64 or ARM64"),
    Option("ecs_public_ip", "", "With --runner ecs: give tasks public addresses"),
    Option("ecs_spot", "", "With --runner ecs: run tasks on Fargate Spot"),
)


def takes_options(function: Callable[[Session, list[str]], Answer]) -> Command:
    """The command that has all of them, of a function that gets them as the server's arguments."""

    def command(session: Session, **given: str | bool | None) -> Answer:
        return function(session, _arguments(given))

    first = inspect.Parameter("session", inspect.Parameter.POSITIONAL_ONLY, annotation=Session)
    parameters = [first, *(option.parameter() for option in OPTIONS)]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__doc__ = function.__doc__
    return command


def _arguments(given: Mapping[str, str | bool | None]) -> list[str]:
    return [each for option in OPTIONS for each in option.argument(given[option.name])]
