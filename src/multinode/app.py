"""``Multinode``: the object of ``tasks/main.py`` that collects the functions, and how it is found there."""

from __future__ import annotations

from . import errors, limits
from .function import Function

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
    from types import ModuleType
    from typing import Any, Dict, Optional, Protocol, TypeVar, overload

    from typing_extensions import ParamSpec

    from .function_settings import Duration, Exceptions

    P = ParamSpec("P")
    R = TypeVar("R")

    class Decorator(Protocol):
        """What ``mn.function(…)`` returns: makes a ``Function`` whose result is what is awaited, yielded or returned."""

        @overload
        def __call__(
            self, func: Callable[P, Coroutine[Any, Any, R]], /
        ) -> Function[P, R, Coroutine[Any, Any, R]]: ...
        @overload
        def __call__(
            self, func: Callable[P, AsyncIterator[R]], /
        ) -> Function[P, R, AsyncIterator[R]]: ...
        @overload
        def __call__(self, func: Callable[P, Iterator[R]], /) -> Function[P, R, Iterator[R]]: ...
        @overload
        def __call__(self, func: Callable[P, R], /) -> Function[P, R, R]: ...


_FUNCTION_TYPE = type(lambda: None)


class Multinode:
    """The functions of a project. ``tasks/main.py`` has exactly one, at module level: ``mn = Multinode()``.

    ``functions`` are those that are decorated with ``@mn.function()``, by name.
    """

    def __init__(self) -> None:
        self.functions: Dict[str, Function[..., Any, Any]] = {}

    def function(
        self,
        *without_parentheses: Any,
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
    ) -> Decorator:
        """Makes a function of a module a task: ``@mn.function(memory="1 GiB", timeout=timedelta(minutes=5))``.

        Durations are timedeltas or seconds. What is out of bounds raises ParameterValidationError where the decorator stands;
        a lambda, method, nested function or second function of a name raises InvalidTasks.

        :param cpu: virtual CPUs for each execution, greater than 0, at most 16.
        :param memory: for each execution: a number and MiB or GiB, at most 64 GiB; rounded up to whole MiB.
        :param timeout: how long one execution may run, from when its code starts; at most 24 hours.
        :param max_concurrency: executions at one time, 1 to 100; more invocations wait in PENDING, oldest first.
        :param max_retries: further attempts after an exception or a lost worker, 0 to 50.
        :param retry_delay: wait before the first retry; doubles with each further one, with jitter; at most 1 hour.
        :param retry_on: the exceptions that are worth a retry; None is all. A lost worker always is.
        :param no_retry_on: exceptions that are not, whatever ``retry_on`` says.
        :param start_timeout: how long a worker may take to be ready; at most 24 hours.
        :param queue_timeout: how long an invocation may wait for its first execution before it is TIMED_OUT; at most 30 days.
        :param min_workers: workers kept started and waiting, at most ``max_concurrency``.
        :param max_invocations_per_worker: invocations that one worker serves, one after another; 0 is no limit.
        :param idle_timeout: how long a worker that may serve more waits for the next one; at most 1 hour.
        """
        if without_parentheses:
            message = "@mn.function is used without parentheses."
            raise errors.InvalidTasks(message, "Write @mn.function().")
        settings = {
            name: value
            for name, value in locals().items()
            if name not in ("self", "without_parentheses")
        }
        checked: Function[..., Any, Any] = Function("", settings=settings)

        def decorate(func: Any) -> Any:
            return self._add(func, settings)

        del checked  # made for its checks: they are to raise at the settings, not at the `def`
        return decorate

    def _add(self, func: Any, settings: Dict[str, Any]) -> Function[..., Any, Any]:
        name = _check_function(func)
        if name in self.functions:
            message = f"There are two functions named {name!r}."
            raise errors.InvalidTasks(message, "Give one of them another name.")
        self.functions[name] = Function(name, func=func, settings=settings)
        return self.functions[name]


def find_app(module: ModuleType) -> Multinode:
    """The one ``Multinode`` object of a module, with at least one function. Raises InvalidTasks."""
    found = {name: item for name, item in vars(module).items() if isinstance(item, Multinode)}
    apps = {id(item): item for item in found.values()}
    where = f"{module.__name__}.py"
    if not apps:
        message = f"{where} has no Multinode() object at module level."
        raise errors.InvalidTasks(message, "Write `mn = Multinode()` above the functions.")
    if len(apps) > 1:
        message = f"{where} has {len(apps)} Multinode() objects: {', '.join(found)}."
        raise errors.InvalidTasks(message, "Keep one, and decorate all functions with it.")
    (app,) = apps.values()
    if not app.functions:
        message = f"{where} has no function that is decorated with @mn.function()."
        raise errors.InvalidTasks(message, "Decorate at least one.")
    return app


def _check_function(func: Any) -> str:
    """The function's name, if it is a function of a module."""
    hint = "Decorate a function that is defined with `def` at the level of a module."
    if isinstance(func, Function):
        message = f"{func.name!r} is decorated twice."
        raise errors.InvalidTasks(message, "Remove one of the decorators.")
    if not isinstance(func, _FUNCTION_TYPE):
        what = "class" if isinstance(func, type) else type(func).__name__
        message = f"@mn.function() decorates a {what}, which is no plain function."
        raise errors.InvalidTasks(message, hint)
    name = str(func.__name__)
    if name == "<lambda>":
        message = "@mn.function() decorates a lambda, which has no name to be invoked by."
        raise errors.InvalidTasks(message, hint)
    if "." in func.__qualname__:
        kind = "a nested function" if "<locals>" in func.__qualname__ else "a method"
        message = f"@mn.function() decorates {kind}: {func.__qualname__}."
        raise errors.InvalidTasks(message, hint)
    if len(name) > limits.MAX_FUNCTION_NAME:
        message = f"The name {name[:20]!r}… has {len(name)} characters; {limits.MAX_FUNCTION_NAME} at most."
        raise errors.InvalidTasks(message, "Shorten it.")
    return name
