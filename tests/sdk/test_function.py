import asyncio
import inspect
import pickle
from datetime import timedelta
from fractions import Fraction

import pytest
from tests.sdk.callers_plane import CallersPlane

from multinode import Multinode, errors, get_deployed_function, settings
from multinode.wire import Parameter

mn = Multinode()


@mn.function(memory="1.5 GiB", timeout=timedelta(minutes=5), retry_on=[OSError, KeyError])
def add(a: int, b: "int" = 2, *rest, scale: float = 1.0, **others) -> int:
    """Adds numbers,
    and scales them.

    The second paragraph.
    """
    return (a + b) * scale


@mn.function()
async def double(x: int) -> int:
    return 2 * x


@mn.function()
def count(to):
    yield from range(to)


@mn.function()
async def acount(to):
    for number in range(to):
        yield number


@mn.function(no_retry_on=ValueError)
def positional(a, /, b):
    return a - b


# --- a decorated function in place ---


def test_calling_it_calls_the_plain_function():
    assert add(1) == 3
    assert list(count(3)) == [0, 1, 2]
    assert asyncio.run(double(2)) == 4


def test_it_looks_like_the_plain_function():
    assert (add.__name__, add.__module__) == ("add", __name__)
    assert add.__doc__.startswith("Adds numbers")
    assert inspect.signature(add) == inspect.signature(add.func)


def test_it_is_described_as_signature_settings_and_doc_say():
    described = add.describe()

    assert described.name == "add"
    assert described.kind == "function"
    assert described.doc == "Adds numbers, and scales them."
    assert described.settings.memory_mib == 1536
    assert described.settings.retry_on == ["OSError", "KeyError"]
    assert described.parameters == [
        Parameter("a", "positional_or_keyword", "int"),
        Parameter("b", "positional_or_keyword", "int", "2"),
        Parameter("rest", "var_positional"),
        Parameter("scale", "keyword_only", "float", "1.0"),
        Parameter("others", "var_keyword"),
    ]


@pytest.mark.parametrize(
    ("function", "kind"),
    [(double, "coroutine"), (count, "generator"), (acount, "async_generator")],
)
def test_the_kind_is_described(function, kind):
    assert function.describe().kind == kind


@pytest.mark.parametrize(
    ("function", "arguments", "result"),
    [(add, (1,), 3), (double, (2,), 4), (count, (3,), 2), (count, (0,), None), (acount, (3,), 2)],
)
def test_call_local_gives_the_result_or_the_last_value(function, arguments, result):
    assert function.call_local(*arguments) == result
    assert asyncio.run(function.aio.call_local(*arguments)) == result


def test_retry_on_and_no_retry_on_decide_by_class():
    assert add.retryable(FileNotFoundError())
    assert not add.retryable(ValueError())
    assert not positional.retryable(UnicodeError())
    assert positional.retryable(KeyError())
    assert double.retryable(KeyError())


def test_it_can_be_pickled_by_its_name(monkeypatch):
    import sys
    import types

    main = types.ModuleType("main")
    exec(
        "from multinode import Multinode\nmn = Multinode()\n@mn.function()\ndef f():\n    return 1",
        vars(main),
    )
    monkeypatch.setitem(sys.modules, "main", main)

    assert pickle.loads(pickle.dumps(main.f)) is main.f


def test_outside_of_a_task_a_definition_says_how_to_invoke_what_is_deployed():
    with pytest.raises(errors.InputError, match="get_deployed_function") as caught:
        add.start(1)
    assert "'add'" in str(caught.value)


# --- a deployed function ---


@pytest.fixture
def plane(monkeypatch):
    with CallersPlane() as plane:
        plane.deploy("shop", mn)
        monkeypatch.setenv("MULTINODE_API_URL", plane.url)
        monkeypatch.setenv("MULTINODE_API_KEY", "key")
        monkeypatch.setenv("MULTINODE_RETRY_SECONDS", "5")
        yield plane


@pytest.fixture
def deployed(plane):
    return get_deployed_function(project_name="shop", function_name="add")


def starts(plane):
    return [request for request in plane.requests if request[0] == "POST"]


def test_call_remote_gives_the_result(plane, deployed):
    assert deployed.call_remote(1, b=4, scale=2.0) == 10
    assert asyncio.run(deployed.aio.call_remote(1)) == 3
    assert get_deployed_function("shop", "count").call_remote(3) == 2


@pytest.mark.parametrize(
    ("names", "cls", "said"),
    [
        (("shops", "add"), errors.ProjectNotFound, "shops"),
        (("shop", "ad"), errors.FunctionNotFound, "Did you mean 'add'"),
        (("shop", "nothing"), errors.FunctionNotFound, "It has: add, double"),
        (("shop", "add", "ver-9"), errors.VersionNotFound, "ver-9"),
    ],
)
def test_what_is_not_deployed_is_said_at_once(plane, names, cls, said):
    with pytest.raises(cls, match=said):
        get_deployed_function(*names)


def test_without_credentials_it_says_how_to_log_in():
    with pytest.raises(errors.NotLoggedIn, match="multinode login"):
        get_deployed_function("shop", "add")


WRONG_ARGUMENTS = [
    ("add", (), {}, "missing a required argument"),
    ("positional", (1, 2, 3), {}, "too many positional arguments"),
    ("positional", (1, 2), {"c": 3}, "unexpected keyword argument 'c'"),
    ("positional", (1,), {"a": 2, "b": 1}, "'a'"),
]


@pytest.mark.parametrize(("name", "args", "kwargs", "said"), WRONG_ARGUMENTS)
def test_wrong_arguments_are_refused_before_anything_is_sent(plane, name, args, kwargs, said):
    function = get_deployed_function("shop", name)

    with pytest.raises(errors.ArgumentsError, match=said) as caught:
        function.start(*args, **kwargs)
    assert name in caught.value.message
    assert f"{name}(" in caught.value.hint
    assert starts(plane) == []


def test_the_signature_is_shown_as_it_was_written(plane, deployed):
    with pytest.raises(errors.ArgumentsError) as caught:
        deployed.start()
    signature = "add(a: int, b: int = 2, *rest, scale: float = 1.0, **others)"
    assert signature in caught.value.hint


later = Multinode()


def _later_add(a, b, c):
    return a + b + c


_later_add.__name__ = _later_add.__qualname__ = "add"
later.function()(_later_add)


def test_a_stale_signature_refuses_nothing(plane):
    function = get_deployed_function("shop", "positional")
    changed = Multinode()

    def positional(a, b, c):
        return a + b + c

    positional.__qualname__ = "positional"
    changed.function()(positional)
    plane.deploy("shop", changed, "ver-2")

    assert function.call_remote(1, 2, 3) == 6


def test_the_signature_is_not_asked_for_at_each_start(plane, deployed):
    before = len(plane.requests)

    deployed.start(1)
    deployed.start(2)

    assert len(plane.requests) == before + 2


def test_a_pinned_version_is_started_and_checked(plane):
    pinned = get_deployed_function("shop", "add", "ver-1")
    plane.deploy("shop", later, "ver-2")

    assert pinned.call_remote(1) == 3
    assert plane.options[-1].version_id == "ver-1"
    assert pinned.with_options(version_id="ver-2").call_remote(1, 2, 3) == 6


def test_options_go_along_with_the_start(plane, deployed):
    deployed.with_options(idempotency_key="order-7", delay=timedelta(minutes=1)).start(1)
    deployed.start(1)

    assert (plane.options[0].idempotency_key, plane.options[0].delay_s) == ("order-7", 60.0)
    assert (plane.options[1].idempotency_key, plane.options[1].delay_s) == (None, 0.0)


@pytest.mark.parametrize(
    "options", [{"delay": -1}, {"delay": timedelta(days=31)}, {"idempotency_key": ""}]
)
def test_options_out_of_bounds_are_refused(plane, deployed, options):
    with pytest.raises(errors.InputError):
        deployed.with_options(**options)


def test_a_value_that_cannot_be_encoded_is_refused_before_anything_is_sent(plane, deployed):
    with pytest.raises(errors.EncodingError, match="Argument 1"):
        deployed.start(lambda: 1)
    with pytest.raises(errors.FunctionInputSizeLimitExceeded):
        deployed.start("x" * 250_000)
    assert starts(plane) == []


def test_the_code_of_a_deployed_function_is_not_here(plane, deployed):
    with pytest.raises(errors.InputError, match="is not here"):
        deployed(1)
    with pytest.raises(errors.InputError, match="is not here"):
        deployed.call_local(1)


def test_a_deployed_function_can_be_pickled(plane, deployed):
    assert pickle.loads(pickle.dumps(deployed)).call_remote(1) == 3


# --- inside a task ---


@pytest.fixture
def in_task(plane, monkeypatch):
    monkeypatch.delenv("MULTINODE_API_URL")
    monkeypatch.delenv("MULTINODE_API_KEY")
    settings.set_worker_context(
        settings.WorkerContext(plane.url, "token", "shop", "ver-1", "inv-parent")
    )
    yield
    settings.set_worker_context(None)


def test_inside_a_task_a_sibling_is_called_in_the_tasks_own_version(plane, in_task):
    plane.deploy("shop", later, "ver-2")

    assert add.call_remote(1) == 3
    assert plane.options[-1].version_id == "ver-1"


def test_what_a_task_starts_is_its_child(plane, in_task):
    add.start(1)
    get_deployed_function("shop", "add").start(1)

    assert [request.parent_id for request in plane.options] == ["inv-parent", "inv-parent"]


def test_with_credentials_of_its_own_a_task_starts_no_children(plane, in_task, monkeypatch):
    monkeypatch.setenv("MULTINODE_API_URL", plane.url)
    monkeypatch.setenv("MULTINODE_API_KEY", "key")

    add.start(1)

    assert plane.options[-1].parent_id is None


def test_a_siblings_arguments_are_checked_without_a_request(plane, in_task):
    with pytest.raises(errors.ArgumentsError, match="add"):
        add.start()
    assert plane.requests == []


def test_values_of_other_classes_go_there_and_back(plane, deployed):
    assert deployed.call_remote(Fraction(1, 2), Fraction(1, 3), scale=1) == Fraction(5, 6)
