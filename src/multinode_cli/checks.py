"""What can be seen to be wrong in ``main.py`` without importing it: pure ``ast``, every problem in one go.

A problem is ``path:line: what is wrong, what is right``. What cannot be decided from the text (a setting that is
computed, an object that another module makes) is left to the import in the environment.
"""

from __future__ import annotations

import ast
import sys
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

from multinode.limits import MAX_CONCURRENCY
from multinode_cli.tasks_folder import ProjectFile, unreadable

_SETTINGS_HINT = "docs/reference/sdk.md lists the settings"


@dataclass(frozen=True)
class Findings:
    """What the text of ``main.py`` says: the ``functions`` in order, and what is wrong."""

    functions: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)


def check_code(project: ProjectFile, files: list[str]) -> Findings:
    """Check ``main.py`` and the modules of ``tasks/`` that it imports, for the environment's Python."""
    main = project.tasks / "main.py"
    shown = project.shown(main)
    if not main.is_file():
        return Findings(
            problems=[
                f"{shown}: is missing; it holds the functions, `multinode init` writes an example"
            ]
        )
    if "main.py" not in files:
        return Findings(problems=[f"{shown}: is named by the ignore file; take it out of there"])
    problems: list[str] = []
    trees = _parse_all(project, problems)
    tree = trees.get("main.py")
    if tree is None:
        return Findings(problems=problems)
    reader = _MainReader(shown)
    reader.read(tree)
    return Findings(reader.functions, problems + reader.problems)


# --- syntax ---------------------------------------------------------------------------------------------


def _parse_all(project: ProjectFile, problems: list[str]) -> dict[str, ast.Module]:
    """The trees of ``main.py`` and, step by step, of the local modules that they import."""
    trees: dict[str, ast.Module] = {}
    waiting, seen = ["main.py"], {"main.py"}
    while waiting:
        relative = waiting.pop()
        path = project.tasks / relative
        tree = _parse(path, project.shown(path), project.environment.python_version, problems)
        if tree is None:
            continue
        trees[relative] = tree
        for imported in _local_imports(tree, project.tasks, Path(relative).parent):
            if imported not in seen:
                seen.add(imported)
                waiting.append(imported)
    return trees


def _parse(
    path: Path, shown: str, version: tuple[int, int], problems: list[str]
) -> ast.Module | None:
    """The tree, or None after a problem was noted.

    A Python that is older than the environment's cannot judge newer syntax: its refusal is then no problem, and
    the import in the environment decides.
    """
    here = sys.version_info[:2]
    try:
        source = path.read_bytes()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tree = ast.parse(source, str(path))
            compile(source, str(path), "exec", dont_inherit=True)
    except OSError as error:
        problems.append(f"{shown}: {unreadable(error)}")
        return None
    except (SyntaxError, ValueError) as error:
        if version <= here:
            line = getattr(error, "lineno", None) or 1
            problems.append(f"{shown}:{line}: {_syntax_message(error)}")
        return None
    if version < here:
        try:
            ast.parse(source, str(path), feature_version=version)
        except SyntaxError as error:
            asked = ".".join(map(str, version))
            problems.append(
                f"{shown}:{error.lineno or 1}: {_syntax_message(error)}, and the environment has Python {asked}; "
                "choose a newer one in multinode.toml, or write it otherwise"
            )
            return None
    return tree


def _syntax_message(error: Exception) -> str:
    return error.msg if isinstance(error, SyntaxError) and error.msg else str(error)


def _local_imports(tree: ast.Module, tasks: Path, package: Path) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join(package.parts) if node.level else ""
            module = ".".join(part for part in (base, node.module or "") if part)
            names = [module, *(f"{module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            at = name.replace(".", "/")
            for relative in (f"{at}.py", f"{at}/__init__.py"):
                if name and (tasks / relative).is_file():
                    yield relative


# --- main.py --------------------------------------------------------------------------------------------


class _MainReader:
    """Reads one ``main.py``: its Multinode() objects, decorated functions, and settings."""

    def __init__(self, shown: str) -> None:
        self.shown = shown
        self.functions: list[str] = []
        self.problems: list[str] = []
        self._classes: set[str] = set()
        """Names, dotted where need be, that mean the class Multinode."""
        self._objects: dict[str, int] = {}
        self._imported: set[str] = set()
        self._lines: dict[str, int] = {}

    def read(self, tree: ast.Module) -> None:
        for node in ast.walk(tree):
            self._take_import(node)
        for statement in tree.body:
            self._take_object(statement)
        if not self._classes and not self._imported:
            self._say(
                1,
                "Multinode is not imported; write `from multinode import Multinode` and `mn = Multinode()`",
            )
            return
        self._visit(tree, inside="")
        self._conclude()

    def _conclude(self) -> None:
        unseen = bool(self._imported) and bool(self.functions)
        if not self._objects and not unseen:
            self._say(1, "there is no Multinode() object at module level; write `mn = Multinode()`")
        elif not self.functions and not self.problems:
            self._say(1, "there is no function; put `@mn.function()` above one")
        for name, line in list(self._objects.items())[1:]:
            first, at = next(iter(self._objects.items()))
            self._say(
                line,
                f"{name} is a second Multinode() object, after {first} in line {at}; keep one of them",
            )

    def _say(self, line: int, text: str) -> None:
        self.problems.append(f"{self.shown}:{line}: {text}")

    def _take_import(self, node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == "multinode":
                    self._classes.add(f"{alias.asname or alias.name}.Multinode")
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if node.module == "multinode" and alias.name == "Multinode":
                    self._classes.add(alias.asname or alias.name)
                elif node.module != "multinode":
                    self._imported.add(alias.asname or alias.name)

    def _take_object(self, statement: ast.stmt) -> None:
        if isinstance(statement, ast.Assign):
            targets, value = statement.targets, statement.value
        elif isinstance(statement, ast.AnnAssign) and statement.value is not None:
            targets, value = [statement.target], statement.value
        else:
            return
        if isinstance(value, ast.Call) and _dotted(value.func) in self._classes:
            for target in targets:
                if isinstance(target, ast.Name):
                    self._objects[target.id] = statement.lineno

    def _visit(self, node: ast.AST, *, inside: str) -> None:
        """``inside`` is empty at module level, else what surrounds the node."""
        for child in ast.iter_child_nodes(node):
            if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
                for decorator in child.decorator_list:
                    self._take_decorator(
                        child, decorator, inside=inside, in_body=isinstance(node, ast.Module)
                    )
                self._visit(child, inside=f"the function {child.name}")
            elif isinstance(child, ast.ClassDef):
                if any(self._is_function(item) for item in child.decorator_list):
                    self._say(
                        child.lineno,
                        f"the class {child.name} cannot be a function; decorate a `def`",
                    )
                self._visit(child, inside=f"the class {child.name}")
            else:
                self._take_lambda(child)
                self._visit(child, inside=inside)

    def _take_lambda(self, node: ast.AST) -> None:
        if (
            isinstance(node, ast.Call)
            and self._is_function(node.func)
            and any(isinstance(item, ast.Lambda) for item in node.args)
        ):
            self._say(
                node.lineno,
                "a lambda has no name to invoke it by; write it as a `def` with @mn.function()",
            )

    def _is_function(self, node: ast.expr) -> bool:
        if isinstance(node, ast.Call):
            return self._is_function(node.func)
        return (
            isinstance(node, ast.Attribute)
            and node.attr == "function"
            and isinstance(node.value, ast.Name)
            and (node.value.id in self._objects or node.value.id in self._imported)
        )

    def _take_decorator(
        self,
        function: ast.FunctionDef | ast.AsyncFunctionDef,
        decorator: ast.expr,
        *,
        inside: str,
        in_body: bool,
    ) -> None:
        if not self._is_function(decorator):
            return
        line, name = function.lineno, function.name
        if not isinstance(decorator, ast.Call):
            text = ast.unparse(decorator)
            self._say(decorator.lineno, f"@{text} needs parentheses; write @{text}()")
            return
        if inside:
            kind = "a method" if inside.startswith("the class") else "nested"
            self._say(line, f"{name} is {kind}, in {inside}; move it to module level")
            return
        if name in self._lines and in_body:
            self._say(
                line,
                f"{name} is defined twice, first in line {self._lines[name]}; rename one of them",
            )
            return
        if name not in self.functions:
            self.functions.append(name)
        if in_body:
            self._lines[name] = line
        self._check_settings(name, decorator)

    def _check_settings(self, name: str, decorator: ast.Call) -> None:
        if decorator.args:
            self._say(
                decorator.lineno, f'the settings of {name} are given by name, like memory="512 MiB"'
            )
        known: dict[str, Any] = {}
        for keyword in decorator.keywords:
            if keyword.arg is None:
                continue
            try:
                known[keyword.arg] = _literal(keyword.value)
            except _NotLiteral:
                continue
        lines = {item.arg: item.value.lineno for item in decorator.keywords if item.arg}
        faulty = False
        for setting, value in known.items():
            # min_workers goes up to max_concurrency: whether the two agree is looked at below.
            beside = {"max_concurrency": MAX_CONCURRENCY} if setting == "min_workers" else {}
            problem = _settings_problem({setting: value, **beside})
            if problem:
                faulty = True
                self._say(lines[setting], f"{name}: {problem}")
        if not faulty:
            problem = _settings_problem(known)
            if problem:
                self._say(decorator.lineno, f"{name}: {problem}")


def _settings_problem(settings: dict[str, Any]) -> str:
    """What the SDK itself says to these settings; empty where it takes them."""
    from multinode.errors import ParameterValidationError
    from multinode.function_settings import check_settings  # lazy: start-up time

    try:
        check_settings(**settings)
    except ParameterValidationError as error:
        return f"{error.message} {error.hint}".strip().rstrip(".")
    except TypeError:
        return f"{next(iter(settings))!r} is no setting of @mn.function(); {_SETTINGS_HINT}"
    return ""


def _dotted(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    return ""


class _NotLiteral(Exception):
    """The value is computed; only the import can tell."""


def _literal(node: ast.expr) -> Any:
    """The value of constants, arithmetic with them, and ``timedelta(…)`` of them."""
    if isinstance(node, ast.Call) and _dotted(node.func) in ("timedelta", "datetime.timedelta"):
        if any(keyword.arg is None for keyword in node.keywords):
            raise _NotLiteral
        try:
            return timedelta(
                *map(_literal, node.args),
                **{str(item.arg): _literal(item.value) for item in node.keywords},
            )
        except (TypeError, OverflowError) as error:
            raise _NotLiteral from error
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
        left, right = _literal(node.left), _literal(node.right)
        if isinstance(left, (int, float)) and isinstance(right, (int, float)):
            return left * right
        raise _NotLiteral
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError) as error:
        raise _NotLiteral from error
