import asyncio
import itertools
import threading
from datetime import datetime, timezone

import pytest
from tests.sdk.callers_plane import CallersPlane, cut_off, reset, status

from multinode import InvocationStatus, Multinode, errors, get_deployed_function, wire

mn = Multinode()


@mn.function()
def half(x):
    if x % 2:
        message = f"{x} is odd"
        raise ValueError(message)
    return x // 2


@mn.function()
def count(to):
    progress = {"done": 0}
    for number in range(to):
        progress["done"] = number
        yield progress


@mn.function()
def minus(a, b):
    return a - b


@pytest.fixture
def plane(monkeypatch):
    with CallersPlane() as plane:
        plane.deploy("shop", mn)
        monkeypatch.setenv("MULTINODE_API_URL", plane.url)
        monkeypatch.setenv("MULTINODE_API_KEY", "key")
        monkeypatch.setenv("MULTINODE_RETRY_SECONDS", "5")
        yield plane


@pytest.fixture
def fn(plane):
    return get_deployed_function("shop", "half")


@pytest.fixture
def counter(plane):
    return get_deployed_function("shop", "count")


@pytest.fixture(params=["blocking", "asynchronous"])
def way(request):
    """Calls methods of a function, blocking or in a loop; what iterates gives a list."""

    def blocking(function, method, *args, **kwargs):
        found = getattr(function, method)(*args, **kwargs)
        return list(found) if hasattr(found, "__next__") else found

    async def finish(found):
        return [item async for item in found] if hasattr(found, "__anext__") else await found

    def asynchronous(function, method, *args, **kwargs):
        async def run():
            return await finish(getattr(function.aio, method)(*args, **kwargs))

        return asyncio.run(run())

    return blocking if request.param == "blocking" else asynchronous


def later(action, *args):
    timer = threading.Timer(0.05, action, args)
    timer.start()
    return timer


# --- one ---


def test_an_invocation_that_succeeded(way, fn):
    found = way(fn, "get", way(fn, "start", 4))

    assert found.status is InvocationStatus.SUCCEEDED
    assert found.status == "SUCCEEDED"
    assert found.status.is_final
    assert (found.result, found.error, found.terminated) == (2, None, True)
    assert (found.project, found.function, found.version_id) == ("shop", "half", "ver-1")
    assert found.created_at == datetime(2026, 11, 24, 12, tzinfo=timezone.utc)


def test_an_invocation_that_failed(way, fn):
    found = way(fn, "get", way(fn, "start", 3))

    assert found.status is InvocationStatus.FAILED
    assert found.error == "ValueError: 3 is odd"
    assert found.error_type == "ValueError"
    assert "in half" in found.traceback
    assert found.result is None


def test_an_invocation_that_waits(way, plane, fn):
    plane.is_holding = True

    found = way(fn, "get", way(fn, "start", 4))

    assert found.status is InvocationStatus.PENDING
    assert found.pending_reason == "waiting for room on this machine"
    assert (found.started_at, found.finished_at, found.terminated) == (None, None, False)


def test_a_result_of_an_unknown_class_does_not_hide_the_status(way, plane, fn):
    plane.is_holding = True
    started = way(fn, "start", 4)
    plane.end(started, wire.SUCCEEDED, result='{"py/object": "no_such.Thing"}')

    found = way(fn, "get", started)

    assert found.status is InvocationStatus.SUCCEEDED
    with pytest.raises(errors.DecodingError, match=r"no_such\.Thing"):
        found.result  # noqa: B018 - the access raises


def test_await_result_waits_until_it_has_ended(way, plane, fn):
    plane.is_holding = True
    started = way(fn, "start", 4)
    timer = later(plane.run, started)

    assert way(fn, "await_result", started) == 2
    timer.join()


@pytest.mark.parametrize("method", ["await_result", "call_remote"])
def test_a_failure_is_raised_with_what_is_known_of_it(way, fn, method):
    with pytest.raises(errors.InvocationFailedError, match="ValueError: 3 is odd") as caught:
        way(fn, method, way(fn, "start", 3) if method == "await_result" else 3)
    assert caught.value.invocation_id.startswith("inv-")
    assert caught.value.error_type == "ValueError"
    assert "in half" in caught.value.traceback


@pytest.mark.parametrize(
    ("end", "cls"),
    [
        (wire.CANCELLED, errors.InvocationCancelledError),
        (wire.TIMED_OUT, errors.InvocationTimedOutError),
    ],
)
def test_cancelled_and_timed_out_are_raised_as_exceptions(way, plane, fn, end, cls):
    plane.is_holding = True
    started = way(fn, "start", 4)
    plane.end(started, end)

    with pytest.raises(cls, match=started) as caught:
        way(fn, "await_result", started)
    assert isinstance(caught.value, Exception)
    assert caught.value.invocation_id == started


@pytest.mark.parametrize("timeout", [0, 0.1])
def test_a_wait_that_is_over_is_the_built_in_timeout_error(way, plane, fn, timeout):
    plane.is_holding = True
    started = way(fn, "start", 4)

    with pytest.raises(TimeoutError, match="it goes on"):
        way(fn, "await_result", started, timeout=timeout)
    assert plane.invocations[started].status == wire.PENDING


def test_a_wait_with_a_timeout_does_not_ask_a_lost_control_plane_for_longer(way, plane, fn):
    plane.is_holding = True
    started = way(fn, "start", 4)
    plane.misbehave(plane_serves, *[reset] * 100)

    with pytest.raises(TimeoutError, match=started):
        way(fn, "await_result", started, timeout=0.3)


def plane_serves(handler):
    handler.serve()


def test_lost_answers_start_nothing_twice(way, plane, fn):
    def answer_is_lost(handler):
        handler.server.plane.answer(*handler.place, handler.body)
        reset(handler)

    plane.misbehave(answer_is_lost, status(503), cut_off)

    assert way(fn, "call_remote", 4) == 2
    assert len(plane.invocations) == 1


def test_an_id_of_another_function_is_not_found(way, plane, fn, counter):
    started = way(counter, "start", 2)

    for method in ("get", "await_result", "cancel", "progress"):
        with pytest.raises(errors.InvocationNotFound, match=r"of shop/count, not of shop/half"):
            way(fn, method, started)


@pytest.mark.parametrize("wrong", ["", None, 3])
def test_what_is_no_id_is_refused(way, fn, wrong):
    with pytest.raises(errors.InputError, match="no invocation id"):
        way(fn, "get", wrong)


def test_an_unknown_id_is_not_found(way, fn):
    with pytest.raises(errors.InvocationNotFound, match="inv-99"):
        way(fn, "await_result", "inv-99")


def test_cancel_ends_what_waits_and_leaves_what_has_ended(way, plane, fn):
    ended = way(fn, "start", 4)
    plane.is_holding = True
    waiting = way(fn, "start", 4)

    way(fn, "cancel", ended)
    way(fn, "cancel", waiting)

    assert way(fn, "get", ended).status == "SUCCEEDED"
    assert way(fn, "get", waiting).status == "CANCELLED"


# --- progress ---


def test_progress_gives_every_value_until_the_end(way, counter):
    started = way(counter, "start", 5)

    assert way(counter, "progress", started) == [{"done": number} for number in range(5)]


def test_progress_goes_on_after_a_number(way, counter):
    started = way(counter, "start", 5)

    assert way(counter, "progress", started, after=3) == [{"done": 3}, {"done": 4}]
    assert way(counter, "progress", started, after=5) == []


def test_numbered_progress_gives_the_numbers_too(way, counter):
    started = way(counter, "start", 2)

    assert way(counter, "numbered_progress", started) == [(1, {"done": 0}), (2, {"done": 1})]


def test_progress_warns_of_values_that_are_no_longer_kept(way, plane, counter):
    started = way(counter, "start", 2)
    answer = wire.ValuesAnswer([wire.Value(8, "1")], ended=True, left_out=7)
    plane.misbehave(
        plane_serves,
        status(200, wire.dumps(answer), "application/json", Multinode_Version="2.0.0"),
    )

    with pytest.warns(UserWarning, match="7 older values"):
        assert way(counter, "progress", started) == [1]


# --- many ---


def test_map_gives_results_in_order(way, fn):
    assert way(fn, "map", range(0, 2000, 2)) == list(range(1000))


def test_map_starts_in_batches(way, plane, fn):
    way(fn, "map", range(0, 1000, 2))

    assert len(plane.options) <= 10
    assert sum(len(request.inputs) for request in plane.options) == 500


def test_starmap_gives_each_item_as_arguments(way, plane):
    minus_fn = get_deployed_function("shop", "minus")

    assert way(minus_fn, "starmap", [(3, 1), [5, 2]]) == [2, 3]


def test_map_over_nothing_sends_nothing(way, plane, fn):
    assert way(fn, "map", []) == []
    assert plane.options == []


def test_map_is_lazy_over_an_endless_input(plane, fn):
    results = fn.map(itertools.count(0, 2), window=50)

    assert list(itertools.islice(results, 120)) == list(range(120))
    assert len(plane.invocations) <= 120 + 50


def test_map_starts_no_more_than_the_window(plane, fn):
    plane.is_holding = True
    results = fn.map(itertools.count(0, 2), window=20)
    timer = later(plane.run, "inv-1")

    assert next(results) == 0
    timer.join()
    assert len(plane.invocations) == 20


def test_map_hands_out_in_order_whatever_ends_first(plane, fn):
    plane.is_holding = True
    results = fn.map([0, 2, 4])

    def run_backwards():
        for number in (3, 2, 1):
            plane.run(f"inv-{number}")

    timer = later(run_backwards)
    assert list(results) == [0, 1, 2]
    timer.join()


def test_unordered_map_hands_out_what_ends_first(plane, fn):
    plane.is_holding = True
    results = fn.map([0, 2, 4], ordered=False)

    timer = later(plane.run, "inv-3")
    assert next(results) == 2
    timer.join()
    plane.run("inv-2")
    assert next(results) == 1
    plane.run("inv-1")
    assert list(results) == [0]


def test_a_slow_input_does_not_hold_up_what_it_gave(plane, fn):
    given = []

    def slow():
        for number in (0, 2, 4):
            given.append(number)
            yield number
            for _ in range(100):
                threading.Event().wait(0.001)

    results = fn.map(slow())

    assert next(results) == 0
    assert len(given) < 3
    assert list(results) == [1, 2]


def test_map_raises_the_first_failure(way, fn):
    with pytest.raises(errors.InvocationFailedError, match="3 is odd"):
        way(fn, "map", [2, 3, 5, 4])


def test_map_gives_failures_in_place_where_asked_to(way, fn):
    first, second, third = way(fn, "map", [2, 3, 4], return_exceptions=True)

    assert (first, third) == (1, 2)
    assert isinstance(second, errors.InvocationFailedError)


def test_map_refuses_wrong_arguments_and_an_idempotency_key(way, plane, fn):
    with pytest.raises(errors.ArgumentsError):
        way(fn, "starmap", [(1, 2)])
    with pytest.raises(errors.InputError, match="idempotency key"):
        way(fn.with_options(idempotency_key="a"), "map", [1])
    with pytest.raises(errors.InputError, match="window"):
        way(fn, "map", [1], window=0)
    assert plane.options == []


# --- list ---


def test_list_gives_pages_of_ids_newest_first(way, plane, fn):
    list(fn.map(range(0, 120, 2)))

    first = way(fn, "list")
    second = way(fn, "list", offset=first.next_offset)

    assert first.invocation_ids[0] == "inv-60"
    assert len(first.invocation_ids) == 50
    assert second.invocation_ids == [f"inv-{number}" for number in range(10, 0, -1)]
    assert second.next_offset is None


@pytest.mark.parametrize("wanted", ["FAILED", InvocationStatus.FAILED])
def test_list_can_be_of_one_status(way, fn, wanted):
    list(fn.map([2, 3, 4], return_exceptions=True))

    assert way(fn, "list", status=wanted).invocation_ids == ["inv-2"]


def test_an_unknown_status_is_refused_with_the_known(way, fn):
    with pytest.raises(errors.InputError, match="PENDING, RUNNING"):
        way(fn, "list", status="DONE")
