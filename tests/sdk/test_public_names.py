import importlib.util
import subprocess
import sys

import pytest

import multinode

NAMES = [
    "Function",
    "Invocation",
    "InvocationIdsList",
    "InvocationStatus",
    "Multinode",
    "__version__",
    "errors",
    "get_deployed_function",
]


def test_the_public_names_are_these():
    assert multinode.__all__ == NAMES
    assert dir(multinode) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_each_is_there(name):
    assert getattr(multinode, name) is not None


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Multinodes'"):
        multinode.Multinodes  # noqa: B018 - the access raises


def test_the_version_is_the_wires_major_version():
    from multinode import wire

    assert multinode.__version__ == "2.0.0"
    assert multinode.__version__.split(".")[0] == str(wire.MAJOR_VERSION)


def test_errors_is_a_submodule_that_need_not_be_imported():
    code = "import multinode; print(multinode.errors.NotLoggedIn.code)"
    root = next(iter(importlib.util.find_spec("multinode").submodule_search_locations))
    run = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {root!r} + '/..'); {code}"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert run.stdout == "not_logged_in\n"
