"""checkov's rules for AWS, without a network."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.terraform.bench import BENCH, MODULE, missing

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]
PROGRAM = BENCH / "checkov" / "bin" / "checkov"


def test_all_rules_pass_but_those_that_are_listed_with_reasons(tmp_path: Path) -> None:
    if not PROGRAM.exists():
        missing("there is no checkov here")
    for path in MODULE.glob("*.tf"):  # without its own configuration, which checkov would read
        shutil.copy(path, tmp_path)
    options = ["--framework", "terraform", "--skip-download", "--quiet", "--compact", "-o", "json"]
    done = subprocess.run(
        [PROGRAM, "-d", ".", *options], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    report = json.loads(done.stdout)
    assert report["summary"]["passed"] > 100
    failed = {check["check_id"] for check in report["results"]["failed_checks"]}
    listed = re.findall(r"^  - (CKV\w+) # \S", (MODULE / ".checkov.yaml").read_text(), re.M)
    assert failed == set(listed)
