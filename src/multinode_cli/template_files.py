"""Where the files of ``templates/`` are."""

from __future__ import annotations

from pathlib import Path

from multinode.errors import OperationFailed


def templates_folder() -> Path:
    """The templates: inside the package in a wheel, at the repository's root in an editable installation."""
    package = Path(__file__).resolve().parent
    for folder in (package / "templates", package.parents[1] / "templates"):
        if (folder / "shared").is_dir():
            return folder
    message = "The templates are not where this installation should have them."
    raise OperationFailed(message, "Install Multinode again, from its wheel or repository.")
