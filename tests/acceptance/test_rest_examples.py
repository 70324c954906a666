"""The examples of the docs that call the REST API run as they stand, and answer what they show."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from tests.acceptance.product import HERE, Product

DOCS = Path(__file__).resolve().parents[2] / "docs"
BLOCK = re.compile(r"^```(sh|json)\n(.*?)^```", re.DOTALL | re.MULTILINE)
MARK = "--- end of an example ---"


def blocks(page: str, heading: str) -> list[tuple[str, Any]]:
    """Each command below ``heading`` with the answer that stands below it, None where none does."""
    text = (DOCS / page).read_text(encoding="utf-8").partition(f"\n{heading}\n")[2]
    found: list[tuple[str, Any]] = []
    for kind, body in BLOCK.findall(text):
        if kind == "sh":
            found.append((body, None))
        else:
            found[-1] = (found[-1][0], json.loads(body))
    return found


def shape(answer: Any) -> Any:
    """An answer without what differs from run to run: keys stay, and the types of what they hold."""
    if isinstance(answer, dict):
        return {key: shape(item) for key, item in answer.items()}
    if isinstance(answer, list):
        return [shape(item) for item in answer[:1]]
    return "number" if isinstance(answer, int | float) else type(answer).__name__


def values(text: str) -> list[Any]:
    """The JSON values in a text, one after another."""
    found, at, decoder = [], 0, json.JSONDecoder()
    while text[at:].strip():
        at += len(text[at:]) - len(text[at:].lstrip())
        value, at = decoder.raw_decode(text, at)
        found.append(value)
    return found


@pytest.fixture
def tutorial(tmp_path):
    """The tutorial's project, deployed, as seen from its folder."""
    missing = [name for name in ("curl", "jq") if shutil.which(name) is None]
    if missing:
        said = f"{' and '.join(missing)} is not on PATH"
        pytest.fail(said) if os.environ.get("CI") else pytest.skip(said)
    product = Product(tmp_path)
    product.run("init", "hello")
    product.folder = tmp_path / "hello"
    config = product.folder / "multinode.toml"
    config.write_text(re.sub(r'python = "[^"]*"', f'python = "{HERE}"', config.read_text()))
    product.run("server", "start", "--port", "0")
    product.run("deploy")
    yield product
    product.run("server", "stop", "--now")


def run(product: Product, script: str) -> list[str]:
    """What each of the examples prints; the shell ends at the first that fails."""
    server = json.loads(Path(product.environ["MULTINODE_HOME"], "server.json").read_text())
    done = subprocess.run(
        ["sh", "-eu", "-c", script],
        cwd=product.folder,
        env={
            **os.environ,
            "MULTINODE_API_URL": server["url"],
            "MULTINODE_API_KEY": server["key"],
            "PYTHON": HERE,
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr}"
    return done.stdout.split(MARK)


@pytest.mark.parametrize(
    ("page", "heading"),
    [
        ("reference/rest.md", "## From curl"),
        ("how-to/call-from-another-language.md", "## Start, wait, read"),
    ],
)
def test_the_examples_of_a_page_run_as_they_stand(tutorial, page, heading):
    examples = blocks(page, heading)
    script = "".join(f"{command}\necho '{MARK}'\n" for command, _ in examples)
    printed = run(tutorial, script)
    assert len(printed) == len(examples) + 1
    for (command, expected), text in zip(examples, printed, strict=False):
        if expected is not None:
            assert shape(values(text)[-1]) == shape(expected), command
