"""``multinode``: the process's way in. Answers ``--version`` itself; the rest waits for Typer's import."""

import os
import sys


def main() -> None:
    """Run the command line of this process and exit."""
    # This file alone must be readable by older Pythons, so that this can be said:
    if sys.version_info < (3, 10):  # noqa: UP036
        found = ".".join(map(str, sys.version_info[:2]))
        sys.stderr.write(
            f"error: The multinode command needs Python 3.10 or later, this is {found}. "
            "Install it with a newer Python; functions may run on 3.8.\n"
        )
        sys.exit(2)
    if sys.argv[1:] == ["--version"]:
        from importlib.metadata import version

        sys.stdout.write("multinode " + version("multinode") + "\n")
        sys.exit(0)
    if "_MULTINODE_COMPLETE" in os.environ:
        # Typer lets Rich wrap the texts of completion, and fish takes each line for an offer.
        os.environ["COLUMNS"] = "1000"
    from multinode_cli.commands import run

    sys.exit(run(sys.argv[1:]))


if __name__ == "__main__":
    main()
