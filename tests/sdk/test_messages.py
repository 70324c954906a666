"""What the SDK says to definitions that are wrong: in one reviewed file, ``tests/snapshots/messages.txt``.

The calls that a control plane refuses are in ``tests/acceptance/test_messages.py``.
"""

import types
from datetime import timedelta

import pytest

from multinode import Multinode, errors
from multinode.app import find_app


def function():
    pass


class Class:
    def method(self):
        pass


def outer():
    def nested():
        pass

    return nested


SETTINGS = {
    "too much cpu": "mn.function(cpu=17)",
    "memory of an unknown unit": "mn.function(memory='512 MB')",
    "memory without its unit": "mn.function(memory=512)",
    "too much memory": "mn.function(memory='65 GiB')",
    "a timeout that is a text": "mn.function(timeout='1h')",
    "a timeout that is too long": "mn.function(timeout=timedelta(days=2))",
    "no retry delay": "mn.function(retry_delay=-1)",
    "half a retry": "mn.function(max_retries=1.5)",
    "no concurrency": "mn.function(max_concurrency=0)",
    "more workers kept than there may be": "mn.function(min_workers=20)",
    "an exception by its name": "mn.function(retry_on='OSError')",
}
DEFINITIONS = {
    "without parentheses": "mn.function(function)",
    "a lambda": "mn.function()(lambda x: x)",
    "a method": "mn.function()(Class.method)",
    "a nested function": "mn.function()(outer())",
    "a class": "mn.function()(Class)",
    "decorated twice": "mn.function()(mn.function()(function))",
    "two of one name": "[mn.function()(function), mn.function()(function)]",
    "a name that is too long": "mn.function()(named('x' * 2_000))",
}
MODULES = {
    "no Multinode() object": "find_app(module())",
    "two Multinode() objects": "find_app(module(mn=mn, other=Multinode()))",
    "no function": "find_app(module(mn=mn))",
}
CASES = {
    **{f"setting: {name}": case for name, case in SETTINGS.items()},
    **{f"definition: {name}": case for name, case in {**DEFINITIONS, **MODULES}.items()},
    "definition: invoked outside of a task": "mn.function()(function).start()",
}


def module(**members):
    made = types.ModuleType("main")
    made.__dict__.update(members)
    return made


def named(name):
    """A function of that name, at the level of a module."""
    made = types.FunctionType(function.__code__, {}, name)
    made.__qualname__ = name
    return made


@pytest.mark.parametrize("name", CASES)
def test_what_is_wrong_with_definitions(name, messages):
    mn = Multinode()
    names = {**globals(), "mn": mn, "find_app": find_app, "timedelta": timedelta}
    with pytest.raises(errors.MultinodeError) as raised:
        eval(CASES[name], names)
    messages.check_raised(name, CASES[name], raised.value)
