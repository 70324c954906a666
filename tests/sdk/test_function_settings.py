import math
from datetime import timedelta

import pytest

from multinode import errors
from multinode.function_settings import check_settings
from multinode.wire import FunctionSettings


def test_the_defaults_are_those_of_the_wire():
    assert FunctionSettings(**check_settings()) == FunctionSettings()


@pytest.mark.parametrize(
    ("given", "memory_mib"),
    [
        ("256 MiB", 256),
        ("0.5 GiB", 512),
        ("64 GiB", 65536),
        ("1GiB", 1024),
        ("100.2 MiB", 101),
        ("0.0001 MiB", 1),
        (" 1 MiB ", 1),
    ],
)
def test_memory_is_rounded_up_to_mib(given, memory_mib):
    assert check_settings(memory=given)["memory_mib"] == memory_mib


@pytest.mark.parametrize("given", [90, 90.0, timedelta(minutes=1.5)])
def test_durations_are_timedeltas_or_seconds(given):
    assert check_settings(timeout=given)["timeout_s"] == 90.0


REFUSED = [
    ({"cpu": 0}, "greater than 0 and at most 16"),
    ({"cpu": 16.1}, "at most 16"),
    ({"cpu": -1}, "greater than 0"),
    ({"cpu": "1"}, "a number"),
    ({"cpu": True}, "a number"),
    ({"cpu": math.nan}, "a number"),
    ({"memory": 256}, 'memory="256 MiB"'),
    ({"memory": "256"}, "MiB or GiB"),
    ({"memory": "256 MB"}, "MiB or GiB"),
    ({"memory": "1 TiB"}, "MiB or GiB"),
    ({"memory": "0 MiB"}, "greater than 0"),
    ({"memory": "-1 GiB"}, "greater than 0"),
    ({"memory": "65 GiB"}, "at most 64 GiB"),
    ({"memory": "inf GiB"}, "a number"),
    ({"memory": "1e3 MiB"}, "a number"),
    ({"memory": "² GiB"}, "a number"),
    ({"memory": ""}, "a number"),
    ({"memory": None}, "a number"),
    ({"timeout": 0}, "greater than 0 and at most 24 hours"),
    ({"timeout": timedelta(hours=25)}, "at most 24 hours"),
    ({"timeout": "1h"}, "timedelta"),
    ({"timeout": math.nan}, "timedelta"),
    ({"timeout": None}, "timedelta"),
    ({"max_concurrency": 0}, "at least 1 and at most 100"),
    ({"max_concurrency": 101}, "at most 100"),
    ({"max_concurrency": 1.0}, "a whole number"),
    ({"max_retries": -1}, "at least 0 and at most 50"),
    ({"max_retries": 51}, "at most 50"),
    ({"max_retries": True}, "a whole number"),
    ({"retry_delay": -1}, "of at least 0"),
    ({"retry_delay": 3601}, "at most 1 hour"),
    ({"retry_on": ["ValueError"]}, "an exception class"),
    ({"retry_on": "ValueError"}, "an exception class"),
    ({"retry_on": int}, "an exception class"),
    ({"no_retry_on": 3}, "an exception class"),
    ({"start_timeout": 0}, "at most 24 hours"),
    ({"queue_timeout": 0}, "at most 30 days"),
    ({"queue_timeout": timedelta(days=31)}, "at most 30 days"),
    ({"min_workers": 11}, r"at most 10 \(max_concurrency\)"),
    ({"min_workers": -1}, "at least 0"),
    ({"max_invocations_per_worker": -1}, "at least 0"),
    ({"idle_timeout": 3601}, "at most 1 hour"),
]


@pytest.mark.parametrize(("given", "bounds"), REFUSED, ids=lambda item: str(item)[:40])
def test_a_setting_out_of_bounds_is_named_with_value_and_bounds(given, bounds):
    ((setting, value),) = given.items()

    with pytest.raises(errors.ParameterValidationError, match=bounds) as caught:
        check_settings(**given)
    assert caught.value.message.startswith(f"{setting} is {value!r}")


@pytest.mark.parametrize(
    "given",
    [
        {"cpu": 16, "memory": "64 GiB", "timeout": timedelta(hours=24), "max_retries": 50},
        {"max_concurrency": 100, "min_workers": 100, "max_invocations_per_worker": 0},
        {"retry_delay": 0, "idle_timeout": 0, "queue_timeout": timedelta(days=30)},
        {"cpu": 1, "max_concurrency": 1, "min_workers": 0},
    ],
)
def test_the_bounds_themselves_are_allowed(given):
    assert FunctionSettings(**check_settings(**given))
