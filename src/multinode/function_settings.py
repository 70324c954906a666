"""The settings of ``@mn.function()``: their bounds, and what is said of one that is out of them.

Imported by every application and worker that defines a function: so it imports next to nothing.
"""

from __future__ import annotations

from . import errors, limits

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import timedelta
    from typing import Any, Dict, List, Optional, Tuple, Type, Union

    Duration = Union[timedelta, float]
    Exceptions = Union[Type[BaseException], Iterable[Type[BaseException]]]


def check_settings(
    *,
    cpu: float = 0.1,
    memory: str = "256 MiB",
    timeout: Duration = 3600.0,
    max_concurrency: int = 10,
    max_retries: int = 0,
    retry_delay: Duration = 0.0,
    retry_on: Optional[Exceptions] = None,
    no_retry_on: Optional[Exceptions] = None,
    start_timeout: Duration = 900.0,
    queue_timeout: Optional[Duration] = None,
    min_workers: int = 0,
    max_invocations_per_worker: int = 1,
    idle_timeout: Duration = 60.0,
) -> Dict[str, Any]:
    """The settings by their names in ``wire.FunctionSettings``; durations are timedeltas or seconds.

    Raises ParameterValidationError, which names the setting, the value and the bounds.
    """
    most_workers = integer_of("max_concurrency", max_concurrency, 1, limits.MAX_CONCURRENCY)
    return {
        "cpu": _number("cpu", cpu, limits.MAX_CPU, "virtual CPUs"),
        "memory_mib": _memory_mib(memory),
        "timeout_s": seconds_of("timeout", timeout, limits.MAX_TIMEOUT_S),
        "max_concurrency": most_workers,
        "max_retries": integer_of("max_retries", max_retries, 0, limits.MAX_RETRIES),
        "retry_delay_s": seconds_of(
            "retry_delay", retry_delay, limits.MAX_RETRY_DELAY_S, can_be_zero=True
        ),
        "retry_on": _names("retry_on", retry_on),
        "no_retry_on": _names("no_retry_on", no_retry_on),
        "start_timeout_s": seconds_of("start_timeout", start_timeout, limits.MAX_START_TIMEOUT_S),
        "queue_timeout_s": (
            None
            if queue_timeout is None
            else seconds_of("queue_timeout", queue_timeout, limits.MAX_QUEUE_TIMEOUT_S)
        ),
        "min_workers": integer_of("min_workers", min_workers, 0, most_workers, "max_concurrency"),
        "max_invocations_per_worker": integer_of(
            "max_invocations_per_worker", max_invocations_per_worker, 0, None
        ),
        "idle_timeout_s": seconds_of(
            "idle_timeout", idle_timeout, limits.MAX_IDLE_TIMEOUT_S, can_be_zero=True
        ),
    }


def _refuse(
    setting: str, value: object, rule: str, hint: str = ""
) -> errors.ParameterValidationError:
    message = f"{setting} is {value!r:.100}; it must be {rule}."
    return errors.ParameterValidationError(message, hint)


def _number(setting: str, value: float, most: float, unit: str) -> float:
    rule = f"a number greater than 0 and at most {most:g} ({unit})"
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= most:
        raise _refuse(setting, value, rule)
    return float(value)


def integer_of(setting: str, value: int, least: int, most: Optional[int], most_is: str = "") -> int:
    """``value``, where it is a whole number within its bounds. Raises ParameterValidationError."""
    bound = f"at most {most}" + (f" ({most_is})" if most_is else "")
    rule = f"a whole number of at least {least}" + ("" if most is None else f" and {bound}")
    is_whole = isinstance(value, int) and not isinstance(value, bool)
    if not is_whole or value < least or (most is not None and value > most):
        raise _refuse(setting, value, rule)
    return value


def seconds_of(setting: str, value: Duration, most_s: float, *, can_be_zero: bool = False) -> float:
    """A duration in seconds, within its bounds. Raises ParameterValidationError."""
    # A timedelta is known by its method: `datetime` need not be imported for that.
    total_seconds = getattr(value, "total_seconds", None)
    seconds: Any = value if total_seconds is None else total_seconds()
    least = "of at least 0" if can_be_zero else "greater than 0"
    rule = f"a timedelta, or a number of seconds, {least} and at most {_span(most_s)}"
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)):
        raise _refuse(setting, value, rule, "For example timedelta(minutes=30).")
    if not 0 <= seconds <= most_s or (seconds == 0 and not can_be_zero):
        raise _refuse(setting, value, rule)
    return float(seconds)


def _span(seconds: float) -> str:
    for name, length_s in (("days", 86400), ("hours", 3600)):
        if seconds % length_s == 0 and seconds > length_s:
            return f"{seconds / length_s:g} {name}"
    return "1 hour" if seconds == 3600 else f"{seconds:g} s"


_MEMORY_RULE = (
    f"a number and MiB or GiB, greater than 0 and at most {limits.MAX_MEMORY_MIB // 1024} GiB"
)
_UNITS_MIB = {"MiB": 1, "GiB": 1024}


def _memory_mib(memory: str) -> int:
    """``memory`` in MiB, rounded up."""
    setting = "memory"
    if not isinstance(memory, str):
        is_number = isinstance(memory, (int, float)) and not isinstance(memory, bool)
        example = f'"{memory} MiB"' if is_number else '"256 MiB"'
        raise _refuse(setting, memory, _MEMORY_RULE, f"Write it with its unit: memory={example}.")
    number, unit = memory.strip()[:-3].strip(), memory.strip()[-3:]
    if unit not in _UNITS_MIB or not number.replace(".", "", 1).isdecimal() or not number.isascii():
        raise _refuse(setting, memory, _MEMORY_RULE, 'For example "512 MiB" or "2 GiB".')
    exact = float(number) * _UNITS_MIB[unit]
    rounded = int(exact) + (exact > int(exact)) if exact <= limits.MAX_MEMORY_MIB else 0
    if rounded == 0:
        raise _refuse(setting, memory, _MEMORY_RULE)
    return rounded


def exception_classes(
    setting: str, given: Optional[Exceptions]
) -> Optional[Tuple[Type[BaseException], ...]]:
    """The exception classes of ``retry_on`` or ``no_retry_on``; None where there are none. Raises ParameterValidationError."""
    if given is None:
        return None
    classes = (given,) if isinstance(given, type) else given
    rule = "an exception class, or a list of them"
    if isinstance(classes, str) or not hasattr(classes, "__iter__"):
        raise _refuse(setting, given, rule)
    found = tuple(classes)
    for item in found:
        if not (isinstance(item, type) and issubclass(item, BaseException)):
            raise _refuse(setting, given, rule)
    return found


def _names(setting: str, given: Optional[Exceptions]) -> Optional[List[str]]:
    classes = exception_classes(setting, given)
    if classes is None:
        return None
    return [
        item.__qualname__
        if item.__module__ in ("builtins", "main", "__main__")
        else f"{item.__module__}.{item.__qualname__}"
        for item in classes
    ]
