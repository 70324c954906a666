"""multinode_cli.checks: what the text of main.py tells."""

import sys

import pytest

from multinode_cli.checks import check_code
from multinode_cli.tasks_folder import list_files, read_project_file

HEAD = "from datetime import timedelta\nfrom multinode import Multinode\nmn = Multinode()\n"


@pytest.fixture
def found(project):
    def read(main, *, python="3.8", files=None):
        toml = f'project = "billing"\n[environment]\npython = "{python}"\n'
        at = read_project_file(project({"tasks/main.py": main, **(files or {})}, toml=toml))
        return check_code(at, list_files(at)[0])

    return read


def test_functions_of_every_kind_are_found(found):
    body = "@mn.function()\ndef a(): pass\n@mn.function(cpu=1)\nasync def b(): yield\nif True:\n  @mn.function()\n  def c(): pass\n"
    findings = found(HEAD + body)
    assert (findings.functions, findings.problems) == (["a", "b", "c"], [])


@pytest.mark.parametrize(
    "head",
    [
        "import multinode\nmn = multinode.Multinode()\n",
        "import multinode as m\nmn: m.Multinode = m.Multinode()\n",
        "from multinode import Multinode as M\nmn = M()\n",
        "from app import mn\n",
    ],
)
def test_every_way_to_get_the_object_is_understood(found, head):
    findings = found(head + "@mn.function()\ndef a(): pass\n")
    assert (findings.functions, findings.problems) == (["a"], [])


@pytest.mark.parametrize(
    ("body", "line", "said"),
    [
        ("def f(:\n", 4, "invalid syntax"),
        ("return 1\n", 4, "'return' outside function"),
        ("x = 1\n", 1, "there is no function"),
        (
            "other = Multinode()\n@mn.function()\ndef f(): pass\n",
            4,
            "second Multinode() object, after mn in line 3",
        ),
        (
            "@mn.function()\ndef f(): pass\n@mn.function()\ndef f(): pass\n",
            7,
            "f is defined twice, first in line 5",
        ),
        ("class C:\n  @mn.function()\n  def f(self): pass\n", 6, "f is a method, in the class C"),
        ("def g():\n  @mn.function()\n  def f(): pass\n", 6, "f is nested, in the function g"),
        ("@mn.function()\nclass C: pass\n", 5, "the class C cannot be a function"),
        ("f = mn.function()(lambda x: x)\n", 4, "a lambda has no name"),
        ("@mn.function\ndef f(): pass\n", 4, "@mn.function needs parentheses"),
        ("@mn.function(cpu=17)\ndef f(): pass\n", 4, "cpu"),
        ("@mn.function(\n  cpu=1,\n  memory='1 GB',\n)\ndef f(): pass\n", 6, "memory"),
        ("@mn.function(timeout=timedelta(hours=25))\ndef f(): pass\n", 4, "timeout"),
        ("@mn.function(max_retries=51)\ndef f(): pass\n", 4, "max_retries"),
        ("@mn.function(max_retry=5)\ndef f(): pass\n", 4, "max_retry"),
        ("@mn.function(max_concurrency=2, min_workers=3)\ndef f(): pass\n", 4, "min_workers"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(found, body, line, said):
    problems = found(HEAD + body).problems
    assert len(problems) == 1, problems
    assert problems[0].startswith(f"tasks/main.py:{line}: ")
    assert said in problems[0]


def test_all_problems_are_told_at_once(found):
    body = "@mn.function(cpu=0, memory='1 TB')\ndef f(): pass\nclass C:\n  @mn.function()\n  def g(self): pass\n"
    assert len(found(HEAD + body).problems) == 3


def test_no_object_at_all_is_told(found):
    assert "Multinode is not imported" in found("x = 1\n").problems[0]
    assert "no Multinode() object" in found("from multinode import Multinode\n").problems[0]


def test_min_workers_goes_up_to_the_functions_own_max_concurrency(found):
    assert (
        found(HEAD + "@mn.function(min_workers=20, max_concurrency=50)\ndef f(): pass\n").problems
        == []
    )
    (problem,) = found(HEAD + "@mn.function(min_workers=20)\ndef f(): pass\n").problems
    assert "min_workers" in problem


def test_computed_settings_are_left_to_the_import(found):
    body = "N = 99\n@mn.function(cpu=N, timeout=timedelta(hours=N), **{})\ndef f(): pass\n"
    assert found(HEAD + body).problems == []


@pytest.mark.parametrize(
    ("code", "python"),
    [
        ("match x:\n  case 1: pass\n", "3.9"),
        pytest.param(
            "with (open('a') as b, open('c') as d): pass\n",
            "3.8",
            marks=pytest.mark.skipif(
                sys.version_info >= (3, 13), reason="ast knows no difference from Python 3.13 on"
            ),
        ),
        pytest.param(
            "try: pass\nexcept* ValueError: pass\n",
            "3.10",
            marks=pytest.mark.skipif(sys.version_info < (3, 11), reason="new in Python 3.11"),
        ),
    ],
)
def test_syntax_that_the_environment_lacks_is_told(found, code, python):
    main = HEAD + "@mn.function()\ndef f(): pass\n" + code
    problem = found(main, python=python).problems[0]
    assert f"the environment has Python {python}" in problem
    assert found(main, python=f"3.{sys.version_info[1]}").problems == []


def test_modules_that_main_imports_are_read_too(found):
    files = {
        "tasks/sub/__init__.py": "",
        "tasks/sub/a.py": "from . import b\n",
        "tasks/sub/b.py": "def (:\n",
        "tasks/unused.py": "def (:\n",
    }
    problems = found(
        HEAD + "from sub.a import x\n@mn.function()\ndef f(): pass\n", files=files
    ).problems
    assert [problem.split(": ")[0] for problem in problems] == ["tasks/sub/b.py:1"]


def test_a_newer_python_than_this_one_may_know_more(found):
    assert (
        found(HEAD + "@mn.function()\ndef f(): pass\nnew syntax !\n", python="3.99").problems == []
    )


def test_nul_and_bad_encoding_are_told(found, project, tmp_path):
    assert "tasks/main.py:1: " in found(HEAD + "\0").problems[0]
    (tmp_path / "tasks/main.py").write_bytes(b"x = '\xff'\n")
    at = read_project_file(tmp_path)
    assert "tasks/main.py:1: " in check_code(at, ["main.py"]).problems[0]
