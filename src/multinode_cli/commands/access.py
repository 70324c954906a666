"""``login``, ``logout``, ``profile``, ``key``."""

from __future__ import annotations

from typing import Annotated

import typer

from multinode.client import Client, path_of
from multinode.errors import InputError
from multinode.settings import Profile, read_credentials
from multinode.wire import ROLES, KeyInfo, KeyRequest, ServerInfo, to_plain
from multinode_cli import settings
from multinode_cli.commands.frame import Answer, Commands, Session
from multinode_cli.commands.shown import age
from multinode_cli.console import Console
from multinode_cli.errors import nearest

commands = Commands()
_profile = commands.group("profile", "List the profiles of `multinode login`, and choose one.")
_key = commands.group("key", "Make, list and revoke API keys.")

DEFAULT_PROFILE = "default"


@commands.add("login")
def login(
    session: Session,
    url: Annotated[
        str | None,
        typer.Argument(metavar="URL", help="URL of the control plane.", show_default=False),
    ] = None,
    key_stdin: Annotated[
        bool, typer.Option("--key-stdin", help="Read the key from stdin.")
    ] = False,
) -> Answer:
    """Check a key and store it for the commands and the SDK. --profile says under which name.

    Example: multinode login https://multinode.example.com --profile team
    """
    console = session.console
    address = url or console.ask("URL of the control plane", flag="the URL")
    key = console.read_secret() if key_stdin else console.ask_secret("API key")
    if not key:
        message = "No key was given."
        raise InputError(
            message, "Type it when asked, or pipe it in: … | multinode login URL --key-stdin"
        )
    client = Client(address, key, retry_s=settings.COMMAND_RETRY_S)
    server = client.call(ServerInfo, "GET", "/v1/server")
    name = session.settings.profile or DEFAULT_PROFILE
    settings.save_profile(session.settings.home, Profile(name, client.url, key))
    data = {
        "profile": name,
        "url": client.url,
        "key_name": server.key_name,
        "role": server.role,
        "project": server.project,
    }
    rights = _rights(server.role, server.project)
    text = f"Logged in to {client.url} with the key {server.key_name!r} ({rights}), as profile {name!r}."
    return Answer(data, lambda console: console.out(text))


@commands.add("logout")
def logout(session: Session) -> Answer:
    """Forget a profile's key here; the key itself stays valid until it is revoked.

    Example: multinode logout --profile team
    """
    name = settings.remove_profile(session.settings.home, session.settings.profile)
    return Answer({"profile": name}, lambda console: console.out(f"Profile {name!r} is gone."))


@_profile.add("list")
def list_profiles(session: Session) -> Answer:
    """List the profiles; the current one has a star.

    Example: multinode profile list
    """
    credentials = read_credentials(session.settings.home)
    profiles = sorted(credentials.profiles.values(), key=lambda profile: profile.name)
    data = [
        {"name": profile.name, "url": profile.url, "current": profile.name == credentials.current}
        for profile in profiles
    ]

    def show(console: Console) -> None:
        if not data:
            console.note("There is no profile yet. `multinode login URL` makes one.")
            return
        rows = [
            ("*" if item["current"] else "", str(item["name"]), str(item["url"])) for item in data
        ]
        console.table(("", "PROFILE", "URL"), rows)

    return Answer(data, show)


@_profile.add("use")
def use_profile(
    session: Session,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The profile.", show_default=False)],
) -> Answer:
    """Make a profile the current one.

    Example: multinode profile use team
    """
    profile = settings.use_profile(session.settings.home, name)
    data = {"profile": profile.name, "url": profile.url}
    return Answer(
        data, lambda console: console.out(f"Profile {name!r} ({profile.url}) is the current one.")
    )


@_key.add("create")
def create_key(
    session: Session,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="A name for the key.", show_default=False)
    ],
    role: Annotated[
        str, typer.Option("--role", metavar="ROLE", help="admin, deploy, invoke or read.")
    ],
    project: Annotated[
        str | None,
        typer.Option(
            "--project",
            metavar="PROJECT",
            help="The only project that it is for; without it, all of them.",
        ),
    ] = None,
) -> Answer:
    """Make an API key and print it. It is shown this once, and stored hashed.

    Example: multinode key create ci --role deploy --project shop
    """
    if role not in ROLES:
        message = f"There is no role {role!r}."
        raise InputError(message, nearest(role, ROLES) or f"The roles are {', '.join(ROLES)}.")
    made = session.client.call(KeyInfo, "POST", path_of("keys"), KeyRequest(name, role, project))

    def show(console: Console) -> None:
        console.note(f"Key {made.name!r} ({_rights(made.role, made.project)}), shown this once:")
        console.out(made.key or "")

    return Answer(to_plain(made), show)


def _rights(role: str, project: str | None) -> str:
    return f"{role}, for the project {project!r} alone" if project else role


@_key.add("list")
def list_keys(session: Session) -> Answer:
    """List the keys with their roles; never the keys themselves.

    Example: multinode key list
    """
    keys = session.client.call(list[KeyInfo], "GET", path_of("keys"))

    def show(console: Console) -> None:
        rows = [
            (
                item.name,
                item.role,
                item.project or "all",
                age(item.created_at),
                f"revoked {age(item.revoked_at)} ago" if item.revoked_at else "",
            )
            for item in keys
        ]
        console.table(("KEY", "ROLE", "PROJECT", "AGE", ""), rows)

    return Answer([to_plain(item) for item in keys], show)


@_key.add("revoke")
def revoke_key(
    session: Session,
    name: Annotated[
        str, typer.Argument(metavar="NAME", help="The key's name.", show_default=False)
    ],
) -> Answer:
    """Revoke a key, from now on.

    Example: multinode key revoke ci
    """
    revoked = session.client.call(KeyInfo, "DELETE", path_of("keys", name))
    return Answer(to_plain(revoked), lambda console: console.out(f"Key {name!r} is revoked."))
