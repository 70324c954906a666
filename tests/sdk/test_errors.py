import pickle

import pytest

from multinode import errors


def classes():
    queue = [errors.MultinodeError, errors.InvocationInterrupted]
    found = []
    while queue:
        found.append(queue.pop())
        queue.extend(found[-1].__subclasses__())
    return sorted(
        {cls for cls in found if cls.__module__ == errors.__name__}, key=lambda c: c.__name__
    )


@pytest.mark.parametrize("cls", classes())
def test_every_class_has_a_status_an_exit_code_and_a_place_in_the_docstring(cls):
    assert cls.code in errors.HTTP_STATUS
    assert cls.code in errors.EXIT_CODE
    assert cls.__name__ in errors.__doc__
    assert cls.__doc__


@pytest.mark.parametrize("cls", classes())
def test_every_class_survives_pickling(cls):
    error = cls("what happened")
    error.invocation_id = "inv-1"

    again = pickle.loads(pickle.dumps(error))

    assert type(again) is cls
    assert (str(again), again.message, again.invocation_id) == (str(error), error.message, "inv-1")


def test_the_tables_name_no_code_that_no_class_has():
    codes = {cls.code for cls in classes()}

    assert set(errors.HTTP_STATUS) == codes
    assert set(errors.EXIT_CODE) == codes


def test_each_code_gives_one_class():
    by_code = errors.by_code()

    assert all(issubclass(cls, errors.MultinodeError) for cls in by_code.values())
    assert by_code["project_not_found"] is errors.ProjectNotFound
    assert by_code["invocation_cancelled"] is errors.RemoteInvocationCancelledError


def test_the_text_is_message_and_hint():
    assert str(errors.NotFound("No project 'a'.", "Deploy it.")) == "No project 'a'. Deploy it."


@pytest.mark.parametrize(
    "inside", [errors.InvocationCancelledError, errors.InvocationTimedOutError]
)
def test_an_interrupt_is_no_exception_inside_but_one_for_a_caller(inside):
    assert not issubclass(inside, Exception)
    (remote,) = inside.__subclasses__()
    assert issubclass(remote, Exception)
    assert remote("x", invocation_id="inv-1").invocation_id == "inv-1"


def test_wrong_arguments_are_a_type_error_too():
    assert issubclass(errors.ArgumentsError, TypeError)
