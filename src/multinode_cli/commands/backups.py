"""``multinode server backup`` and ``restore``: by the control plane's own code, on its machine, without its API."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from multinode_cli.commands import local_server
from multinode_cli.commands.frame import Answer, Commands, Session
from multinode_cli.commands.shown import age, counted
from multinode_cli.console import Console

commands = Commands()

_DataDir = Annotated[
    str | None,
    typer.Option(
        "--data-dir",
        metavar="DIR",
        help="The control plane's data folder (MULTINODE_DATA_DIR).",
    ),
]
_SecretKeyFrom = Annotated[
    str | None,
    typer.Option(
        "--secret-key-from",
        metavar="PLACE",
        help="Where the keys of .env values are (MULTINODE_SECRET_KEY_FROM).",
    ),
]


@commands.add("backup")
def backup(
    session: Session,
    file: Annotated[
        str,
        typer.Argument(
            metavar="FILE", help="The archive to write, or a folder.", show_default=False
        ),
    ],
    data_dir: _DataDir = None,
    secret_key_from: _SecretKeyFrom = None,
) -> Answer:
    """Write the store, bundles, output and keys of this machine's control plane into one file, while it runs.

    Example: multinode server backup /srv/backups/
    """
    made = _act(session, "make", file, data_dir, secret_key_from)
    size_mib = made["size_bytes"] / 1024**2
    text = f"Wrote {made['file']}: {_contents(made)}, {size_mib:.1f} MiB. It holds secrets."

    def show(console: Console) -> None:
        console.out(text)
        if made["ring"]:
            console.note(
                f"The keys of .env values are not in it. {made['ring']} has them: "
                "without a copy of those no function of the backup can run."
            )

    return Answer(made, show)


@commands.add("restore")
def restore(
    session: Session,
    file: Annotated[
        str,
        typer.Argument(metavar="FILE", help="What `backup` has written.", show_default=False),
    ],
    data_dir: _DataDir = None,
    secret_key_from: _SecretKeyFrom = None,
) -> Answer:
    """Put a backup into a data folder that has no store; the control plane must not be running.

    Example: multinode server restore multinode-20261124T120000Z.tar.gz
    """
    done = _act(session, "restore", file, data_dir, secret_key_from)

    def show(console: Console) -> None:
        console.out(
            f"Restored {_contents(done)}, as of {age(done['created_at'])} ago. "
            "`multinode server start` goes on from there."
        )
        console.note("Environments are not in a backup: `multinode deploy` makes them again.")

    return Answer(done, show)


def _contents(told: dict[str, Any]) -> str:
    """``2 projects, 14 invocations``."""
    bundles = len(told["missing"])
    without = f", without {counted(bundles, 'bundle')} that its versions name" if bundles else ""
    return (
        f"{counted(told['projects'], 'project')}, {counted(told['invocations'], 'invocation')}"
        f"{without}"
    )


def _act(
    session: Session, act: str, file: str, data_dir: str | None, secret_key_from: str | None
) -> dict[str, Any]:
    """What the control plane's own program says. Raises the error that it tells."""
    local_server.check_installed()
    server = local_server.find(session.settings.home)
    folder = Path(data_dir).absolute() if data_dir else server.data_dir if server else None
    ring = secret_key_from
    if ring is None and server is not None and folder == server.data_dir:
        ring = server.options.get("secret_key_from")
    given = {"home": session.settings.home, "data-dir": folder, "secret-key-from": ring}
    options = [f"--{name}={value}" for name, value in given.items() if value is not None]
    with session.console.changing_line("copying"):
        return local_server.ask(
            "backup",
            [act, str(Path(file).absolute()), *options],
            f"The {'backup' if act == 'make' else 'restore'} broke off.",
        )
