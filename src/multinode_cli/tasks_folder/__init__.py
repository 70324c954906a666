"""What lies on disk: ``multinode.toml``, ``tasks/``, and the archive that is made of it. Reads; changes nothing."""

from __future__ import annotations

from multinode_cli.tasks_folder.bundle import Bundle, list_files, pack
from multinode_cli.tasks_folder.inputs import Requirements, read_dotenv, read_requirements
from multinode_cli.tasks_folder.project_file import (
    Environment,
    ProjectFile,
    check_project_name,
    read_project_file,
    unreadable,
)

__all__ = [
    "Bundle",
    "Environment",
    "ProjectFile",
    "Requirements",
    "check_project_name",
    "list_files",
    "pack",
    "read_dotenv",
    "read_project_file",
    "read_requirements",
    "unreadable",
]
