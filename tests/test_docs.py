"""The reference in ``docs/reference`` is complete, links in the docs lead somewhere, and their Python compiles."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
from tests import command_tree

from multinode import Function, Multinode, errors, wire
from multinode_cli.commands import root
from multinode_control_plane.api.field_api.endpoints import FIELD_ENDPOINTS
from multinode_control_plane.api.routes import ENDPOINTS
from multinode_control_plane.runners.fargate_sizes import SIZES
from multinode_control_plane.settings import parser

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = ROOT / "docs" / "reference"
PAGES = sorted(
    [
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / f"{n}.md" for n in ("README", "CONTRIBUTING", "CHANGELOG", "infra/aws/README")),
    ]
)
EVERYWHERE = {"--json", "--profile", "--debug", "--help"}
"""Options of each command, described once at the top of the page."""


def page(name: str) -> str:
    return (REFERENCE / name).read_text(encoding="utf-8")


def section(text: str, heading: str) -> str:
    """What stands below ``heading`` up to the next heading of its level or above; empty where it is missing."""
    level = len(heading) - len(heading.lstrip("#"))
    pattern = rf"^{re.escape(heading)}\n(.*?)(?=^#{{1,{level}}} |\Z)"
    found = re.search(pattern, text, re.DOTALL | re.MULTILINE)
    return found[1] if found else ""


def rows(text: str) -> list[list[str]]:
    """The cells of each row of the tables in ``text``."""
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines]


def in_code(cell: str) -> set[str]:
    """The words of a table's cell that stand in backticks."""
    return set(re.findall(r"`([^`]+)`", cell))


def first_column(text: str) -> set[str]:
    return {word for row in rows(text) for word in in_code(row[0])}


# --- commands ---


def options(command: Any) -> set[str]:
    return {
        name
        for item in command.params
        if item.param_type_name == "option" and not item.hidden
        for name in (*item.opts, *item.secondary_opts)
    }


COMMANDS = command_tree.commands()


def test_the_walk_finds_the_commands() -> None:
    assert {"init", "deploy", "invoke", "server start", "key create"} <= set(COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_described_with_exactly_its_options(name: str) -> None:
    described = section(page("commands.md"), f"### multinode {name}")
    assert described, f"docs/reference/commands.md has no section '### multinode {name}'"
    own = {option for option in options(COMMANDS[name]) if option not in EVERYWHERE | {"-h"}}
    named = first_column(described)
    if name in ("server run", "server start"):  # theirs are in settings.md, see below
        named |= own
    assert named == own


def test_no_command_is_described_that_does_not_exist() -> None:
    described = re.findall(r"^### multinode (.+)$", page("commands.md"), re.MULTILINE)
    assert sorted(described) == sorted(COMMANDS)


def test_the_options_of_each_command_are_described_once() -> None:
    top = page("commands.md").partition("\n### ")[0]
    assert first_column(top) >= EVERYWHERE
    for option in options(root()) - EVERYWHERE:
        assert f"`{option}`" in top


def test_every_command_takes_the_options_of_each_command() -> None:
    for name, command in COMMANDS.items():
        missing = EVERYWHERE - options(command) - {"--help"}
        assert missing == ({"--json"} if name in ("server run", "dev") else set()), name


# --- server options ---


def server_options() -> dict[str, str]:
    """Each option of the control plane with its environment variable."""
    found = {}
    for action in parser()._actions:
        option = action.option_strings[-1]
        if action.help == "==SUPPRESS==" or option == "--help":
            continue
        is_home = action.dest == "home"
        found[option] = "MULTINODE_HOME" if is_home else f"MULTINODE_{action.dest.upper()}"
    return found


def test_every_server_option_is_described_with_its_environment_variable() -> None:
    described = {}
    for row in rows(section(page("settings.md"), "## Server options")):
        if row[0].startswith("`--"):
            described[row[0].strip("`")] = row[1].strip("`")
    assert described == server_options()


@pytest.mark.parametrize("name", ["server run", "server start"])
def test_the_options_of_the_server_commands_are_among_them(name: str) -> None:
    known = {option for option in options(COMMANDS[name]) if option not in EVERYWHERE | {"-h"}}
    assert known <= set(server_options())


def test_every_environment_variable_of_clients_is_described() -> None:
    named = set()
    for package in ("multinode", "multinode_cli"):
        for path in (ROOT / "src" / package).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            named |= set(re.findall(r"environ(?:\.get\(|\[)\"(MULTINODE_\w+|NO_COLOR)\"", text))
    assert {"MULTINODE_HOME", "MULTINODE_API_URL", "MULTINODE_API_KEY"} <= named
    assert named <= first_column(page("settings.md"))


# --- SDK ---


def test_every_setting_of_the_decorator_is_described_with_its_default() -> None:
    described = {
        word: row[1]
        for row in rows(section(page("sdk.md"), "## Defining"))
        for word in in_code(row[0])
    }
    parameters = inspect.signature(Multinode.function).parameters.values()
    settings = {item.name: item.default for item in parameters if item.kind == item.KEYWORD_ONLY}
    assert set(described) == set(settings)
    for name in ("cpu", "max_concurrency", "max_retries", "min_workers"):
        assert described[name] == f"`{settings[name]}`"
    assert described["memory"] == f'`"{settings["memory"]}"`'


def test_every_method_of_a_function_is_described() -> None:
    described = section(page("sdk.md"), "## Invoking")
    public = {name for name in vars(Function) if not name.startswith("_")}
    internal = {"describe", "retryable"}  # what the worker asks it
    for name in public - internal:
        assert re.search(rf"`fn\.{name}\b", described), name


# --- REST ---


def test_every_endpoint_is_described_and_no_other() -> None:
    described = set()
    for row in rows(page("rest.md")):
        method = row[0].partition(" ")[0]
        described |= {(method, path) for path in in_code(row[0])}
    assert described == {(item.method, item.path) for item in ENDPOINTS}


@pytest.mark.parametrize("endpoint", ENDPOINTS, ids=lambda item: f"{item.method} {item.path}")
def test_an_endpoint_is_described_with_its_role_and_body(endpoint: Any) -> None:
    row = next(
        row for row in rows(page("rest.md")) if row[0] == f"{endpoint.method} `{endpoint.path}`"
    )
    if endpoint.role:
        assert row[2].startswith(endpoint.role)
    assert ("worker" in row[2]) == endpoint.worker
    if endpoint.body is not None:
        assert row[1].startswith(endpoint.body.__name__)


def test_every_endpoint_of_2023_is_described_with_its_role_and_no_other() -> None:
    described = {row[0]: row[2] for row in rows(page("rest-2023.md"))[2:]}
    expected = {f"{e.method} `{e.path}`": e.role or "no key" for e in FIELD_ENDPOINTS}
    assert described == expected


# --- errors, states ---


def error_rows() -> dict[str, list[str]]:
    found = {}
    for row in rows(page("errors.md")):
        if row[0].startswith("`"):
            found[row[0].strip("`")] = row
    return found


def test_every_error_code_is_described_with_its_class_status_and_exit_code() -> None:
    described = error_rows()
    codes = set(errors.by_code()) | set(errors.EXIT_CODE)
    assert set(described) == codes
    for code, row in described.items():
        assert row[2:4] == [str(errors.HTTP_STATUS[code]), str(errors.EXIT_CODE[code])], code
    for code, cls in errors.by_code().items():
        assert row_names(described[code], cls), code


def row_names(row: list[str], cls: type) -> bool:
    return in_code(row[1]) == {cls.__name__}


def test_every_exit_code_is_described() -> None:
    described = {row[0] for row in rows(page("exit-codes.md"))}
    assert {str(code) for code in (0, *errors.EXIT_CODE.values(), 130)} <= described


def test_every_status_is_described() -> None:
    assert first_column(section(page("states.md"), "## An invocation")) == set(wire.STATUSES)


# --- all pages ---


def anchors(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    words = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {word.replace(" ", "-") for word in words}


def without_code(text: str) -> str:
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def links(path: Path) -> list[str]:
    found = re.findall(r"\]\(([^)\s]+)\)", without_code(path.read_text(encoding="utf-8")))
    return [link for link in found if not re.match(r"[a-z]+:", link)]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_the_links_of_a_page_lead_somewhere(path: Path) -> None:
    for link in links(path):
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), f"{path}: {link}"
        if anchor:
            assert anchor in anchors(file), f"{path}: {link}"


def test_every_page_can_be_reached_from_the_readme() -> None:
    reached: set[Path] = set()
    queue = [ROOT / "README.md"]
    while queue:
        path = queue.pop()
        if path in reached or path.suffix != ".md" or not path.exists():
            continue
        reached.add(path)
        queue += [(path.parent / link.partition("#")[0]).resolve() for link in links(path)]
    assert set(PAGES) <= reached


def python_blocks() -> list[Any]:
    """Each Python block of the docs, with the page and its number."""
    found = []
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
        name = path.relative_to(ROOT).as_posix()
        found += [pytest.param(block, id=f"{name}-{i}") for i, block in enumerate(blocks, 1)]
    return found


@pytest.mark.parametrize("block", python_blocks())
def test_a_python_block_compiles(block: str) -> None:
    compile(block, "block", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)


@pytest.mark.parametrize("block", python_blocks())
def test_what_a_python_block_defines_and_imports_is_accepted(block: str) -> None:
    """Runs the imports of ours and the definitions, with their decorators; nothing that would call a control plane."""
    tree = ast.parse(block)
    kept = [node for node in tree.body if is_harmless(node)]
    names: dict[str, Any] = {"__name__": "main", "mn": Multinode()}
    exec(compile(ast.Module(kept, []), "block", "exec"), names)


def is_harmless(node: ast.stmt) -> bool:
    if isinstance(node, ast.ImportFrom):
        return (node.module or "").partition(".")[0] in ("multinode", "datetime", "__future__")
    if isinstance(node, ast.Import):
        return True
    if isinstance(node, ast.Assign):
        return ast.unparse(node) == "mn = Multinode()"
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef)


def test_commands_in_the_docs_exist() -> None:
    words = {name.split()[0] for name in COMMANDS}
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        for command in re.findall(
            r"(?:^|[`$] ?|&& |    )multinode ([a-z]+)\b(?!\.)", text, re.MULTILINE
        ):
            assert command in words, f"{path}: multinode {command}"


def test_no_text_says_to_install_the_other_program_of_our_name() -> None:
    for path in PAGES:
        assert "pip install multinode" not in path.read_text(encoding="utf-8"), path


# --- sizes ---


def test_the_table_of_fargates_sizes_is_the_one_that_is_used() -> None:
    told = set()
    for cpu, memory in rows(section(page("aws.md"), "## Sizes"))[2:]:
        steps = re.fullmatch(r"(\d+) to (\d+), (?:each|every (\d+)) GiB", memory)
        if steps:
            first, last, step = int(steps[1]), int(steps[2]), int(steps[3] or 1)
            told |= {(float(cpu), gib * 1024) for gib in range(first, last + 1, step)}
        else:
            told |= {(float(cpu), int(float(gib) * 1024)) for gib in memory.split(", ")}
    assert told == {(size.cpu, size.memory_mib) for size in SIZES}
