import functools
import types

import pytest

from multinode import Multinode, errors
from multinode.app import find_app


def module(**contents):
    made = types.ModuleType("main")
    vars(made).update(contents)
    return made


def square(x):
    return x * x


def make_app(*functions):
    app = Multinode()
    for function in functions:
        app.function()(function)
    return app


def test_functions_are_collected_by_name():
    app = Multinode()

    decorated = app.function(cpu=2)(square)

    assert app.functions == {"square": decorated}
    assert app.functions["square"](3) == 9


def test_find_app_finds_the_one_object():
    app = make_app(square)

    assert find_app(module(mn=app, other=3)) is app


def test_one_object_under_two_names_is_one():
    app = make_app(square)

    assert find_app(module(mn=app, app=app)) is app


@pytest.mark.parametrize(
    ("contents", "reason"),
    [
        ({}, r"main\.py has no Multinode\(\) object"),
        ({"a": make_app(square), "b": make_app(square)}, r"2 Multinode\(\) objects: a, b"),
        ({"mn": Multinode()}, "no function that is decorated"),
    ],
)
def test_a_module_that_defines_nothing_to_deploy_is_refused(contents, reason):
    with pytest.raises(errors.InvalidTasks, match=reason) as caught:
        find_app(module(**contents))
    assert caught.value.hint


def test_two_functions_of_one_name_are_refused():
    with pytest.raises(errors.InvalidTasks, match="two functions named 'square'"):
        make_app(square, square)


class Shop:
    def method(self):
        pass


def nested():
    def inner():
        pass

    return inner


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda x: x, "a lambda"),
        (Shop.method, "a method: Shop.method"),
        (classmethod(square), "a classmethod"),
        (staticmethod(square), "a staticmethod"),
        (nested(), "a nested function"),
        (functools.partial(square, 1), "a partial"),
        (Shop, "a class"),
        (print, "a builtin"),
    ],
)
def test_what_is_no_function_of_a_module_is_refused(function, reason):
    with pytest.raises(errors.InvalidTasks, match=reason) as caught:
        Multinode().function()(function)
    assert "level of a module" in caught.value.hint


def test_a_function_that_is_decorated_twice_is_refused():
    app = Multinode()
    with pytest.raises(errors.InvalidTasks, match="decorated twice"):
        app.function()(app.function()(square))


def test_the_decorator_without_parentheses_is_refused_with_the_cure():
    with pytest.raises(errors.InvalidTasks, match=r"Write @mn\.function\(\)"):
        Multinode().function(square)


def test_a_setting_out_of_bounds_is_refused_before_the_function_is_seen():
    with pytest.raises(errors.ParameterValidationError, match="cpu is 32"):
        Multinode().function(cpu=32)


def test_an_unknown_setting_is_a_type_error():
    with pytest.raises(TypeError, match="gpu"):
        Multinode().function(gpu=1)
