"""Functions: the settings of ``@mn.function()``, what a decorated function is, and how it, or a deployed one, is invoked.

Only the definition is here at import: no network, no ``inspect``, no ``typing``, since workers and applications pay for each
import. What talks to the control plane is imported at its first use.
"""

from __future__ import annotations

from . import errors, limits
from .function_settings import check_settings, exception_classes, integer_of, seconds_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable, Iterator
    from typing import Any, Dict, Generic, List, Optional, Tuple, Union

    from typing_extensions import ParamSpec, TypeVar

    from .client import Client, Steps
    from .function_settings import Duration
    from .invocation import Invocation, InvocationIdsList, InvocationStatus, StartOptions, Target
    from .signatures import Signature
    from .wire import FunctionDescription

    P = ParamSpec("P", default=...)
    R = TypeVar("R", default=Any)
    C = TypeVar("C", default=Any)
else:
    P = R = C = None

    class Generic:
        """Stands for ``typing.Generic``: importing ``typing`` would take longer than all of this package."""

        def __class_getitem__(cls, item: object) -> type:
            return cls


FRESH_S = 30.0
"""For how long the signature of the latest version is taken for current."""


class Function(Generic[P, R, C]):
    """A function that can be invoked: a decorated one, or a deployed one (``get_deployed_function``).

    Calling a decorated one calls the plain function. ``start`` and the other methods that need a control plane work for
    deployed functions, and inside a task for its siblings. ``aio`` has the same methods as coroutines.

    Those methods raise NotLoggedIn, ControlPlaneUnreachable and the other errors of ``multinode.errors``.
    """

    def __init__(
        self,
        name: str,
        *,
        func: Optional[Callable[P, C]] = None,
        settings: Optional[Dict[str, Any]] = None,
        deployed: Optional[_Deployed] = None,
    ) -> None:
        self.name = name
        self.func: Callable[P, C] = _elsewhere(name) if func is None else func
        settings = dict(settings or {})
        self._retry_on = exception_classes("retry_on", settings.get("retry_on"))
        self._no_retry_on = exception_classes("no_retry_on", settings.get("no_retry_on"))
        self._settings = check_settings(**settings)
        self._deployed = deployed
        self._signature: Optional[Signature] = None
        self._idempotency_key: Optional[str] = None
        self._delay_s = 0.0
        for attribute in ("__module__", "__name__", "__qualname__", "__doc__"):
            if func is not None:
                setattr(self, attribute, getattr(func, attribute))
        self.__wrapped__ = self.func

    def __repr__(self) -> str:
        place = "" if self._deployed is None else f"{self._deployed.project}/"
        return f"<Function {place}{self.name}>"

    def __reduce__(self) -> Union[str, Tuple[Any, ...]]:
        if self._deployed is None:
            return self.name  # by its name in its module, as a plain function
        place = self._deployed
        return get_deployed_function, (place.project, self.name, place.version_id)

    def __call__(self, /, *args: P.args, **kwargs: P.kwargs) -> C:
        """What the plain function gives."""
        return self.func(*args, **kwargs)

    # --- of a decorated function ---

    def describe(self) -> FunctionDescription:
        """Name, settings, signature, kind and the first paragraph of the docstring (200 characters at most)."""
        import inspect  # lazy: start-up time

        from .signatures import kind_of, parameters_of
        from .wire import FunctionDescription, FunctionSettings

        func: Any = self.func
        paragraph = " ".join((inspect.getdoc(func) or "").split("\n\n")[0].split())
        return FunctionDescription(
            name=self.name,
            settings=FunctionSettings(**self._settings),
            parameters=parameters_of(func),
            kind=kind_of(inspect.unwrap(func)),
            doc=paragraph if len(paragraph) <= 200 else paragraph[:199] + "…",
        )

    def retryable(self, exception: BaseException) -> bool:
        """Whether ``retry_on`` and ``no_retry_on`` call this exception worth a retry."""
        if self._no_retry_on is not None and isinstance(exception, self._no_retry_on):
            return False
        return self._retry_on is None or isinstance(exception, self._retry_on)

    def call_local(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """Runs it here and returns its result: for a generator the last value, after it is exhausted."""
        returned: Any = self.func(*args, **kwargs)
        if not (hasattr(returned, "__await__") or hasattr(returned, "__anext__")):
            last: R = _last(returned)
            return last
        import asyncio  # lazy: start-up time

        result: R = asyncio.run(_finish(returned))
        return result

    # --- invoking ---

    @property
    def aio(self) -> AsyncFunction[P, R]:
        """The same methods as coroutines and asynchronous iterators (asyncio)."""
        return AsyncFunction(self)

    def with_options(
        self,
        *,
        idempotency_key: Optional[str] = None,
        delay: Optional[Duration] = None,
        version_id: Optional[str] = None,
    ) -> Function[P, R, C]:
        """The same function, whose ``start`` and ``call_remote`` use these options; what is None stays as it was.

        The same ``idempotency_key`` for the same function within 24 hours gives the same invocation, and with other arguments
        IdempotencyConflict. ``delay`` (a timedelta or seconds, 30 days at most) is how long it stays PENDING at least.
        """
        changed: Function[P, R, C] = object.__new__(type(self))
        changed.__dict__.update(self.__dict__)
        if idempotency_key is not None:
            if not isinstance(idempotency_key, str) or not idempotency_key:
                message = (
                    f"idempotency_key is {idempotency_key!r}; it must be a text that is not empty."
                )
                raise errors.InputError(message)
            changed._idempotency_key = idempotency_key
        if delay is not None:
            changed._delay_s = seconds_of("delay", delay, limits.MAX_DELAY_S, can_be_zero=True)
        if version_id is not None:
            changed._deployed = self._place().at(version_id)
        return changed

    def start(self, /, *args: P.args, **kwargs: P.kwargs) -> str:
        """Starts an invocation and returns its id.

        Raises ArgumentsError where the arguments do not fit the signature, EncodingError and FunctionInputSizeLimitExceeded,
        all before anything is sent; ProjectNotFound, VersionNotFound, FunctionNotFound, ProjectBeingDeleted.
        """
        client = self._client()
        return client.run(self._start(client, args, kwargs))

    def get(self, invocation_id: str) -> Invocation:
        """The invocation as it is now. Raises InvocationNotFound, also for one of another function."""
        from . import invocation  # lazy: start-up time

        client = self._client()
        return client.run(invocation.get(client, self._target(), invocation_id))

    def await_result(self, invocation_id: str, timeout: Optional[Duration] = None) -> R:
        """Waits until it has ended and returns its result.

        Raises InvocationFailedError, InvocationCancelledError or InvocationTimedOutError for its end; the built-in TimeoutError
        where ``timeout`` (seconds or a timedelta) was over first, and the invocation goes on.
        """
        client = self._client()
        return client.run(self._await_result(client, invocation_id, timeout))

    def call_remote(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """``start``, then ``await_result``."""
        client = self._client()
        return client.run(self._call_remote(client, args, kwargs))

    def map(
        self,
        iterable: Iterable[Any],
        *,
        return_exceptions: bool = False,
        ordered: bool = True,
        window: int = 1000,
    ) -> Iterator[R]:
        """One invocation for each item; gives their results in the order of the items, each as soon as it is there.

        Starts when iterated over, and takes items as needed: at most ``window`` (1 to 10,000) invocations are started whose
        results were not taken. With ``ordered=False`` results come as invocations end. A failure is raised, or given in place of
        a result with ``return_exceptions``. Whoever stops early leaves what is started running: cancel it by ``list`` and
        ``cancel``.
        """
        return self.starmap(
            ((item,) for item in iterable),
            return_exceptions=return_exceptions,
            ordered=ordered,
            window=window,
        )

    def starmap(
        self,
        iterable: Iterable[Iterable[Any]],
        *,
        return_exceptions: bool = False,
        ordered: bool = True,
        window: int = 1000,
    ) -> Iterator[R]:
        """``map`` for items that are the positional arguments: ``fn.starmap([(1, 2), (3, 4)])``."""
        client = self._client()
        return client.iterate(self._map(client, iterable, (ordered, return_exceptions, window)))

    def progress(self, invocation_id: str, after: int = 0) -> Iterator[R]:
        """The values that it yields, from the one after number ``after`` (they start at 1), until it ends.

        How the invocation ended is not raised: ask ``await_result``. Warns where older values are no longer kept.
        """
        client = self._client()
        return client.iterate(self._progress(client, invocation_id, after))

    def numbered_progress(self, invocation_id: str, after: int = 0) -> Iterator[Tuple[int, R]]:
        """``progress`` as ``(number, value)``, to come back later with ``after=number``."""
        client = self._client()
        return client.iterate(self._progress(client, invocation_id, after, with_numbers=True))

    def cancel(self, invocation_id: str) -> None:
        """Asks for cancellation and does not wait for it; an invocation that has ended is left as it is."""
        from . import invocation  # lazy: start-up time

        client = self._client()
        client.run(invocation.cancel(client, self._target(), invocation_id))

    def list(
        self,
        status: Optional[Union[InvocationStatus, str]] = None,
        offset: Optional[str] = None,
    ) -> InvocationIdsList:
        """The ids of recent invocations, newest first, 50 a page; ``offset`` is the page before's ``next_offset``."""
        from . import invocation  # lazy: start-up time

        client = self._client()
        return client.run(invocation.page(client, self._target(), status=status, offset=offset))

    # --- steps, which the methods above and `aio` drive ---

    def _start(self, client: Client, args: Any, kwargs: Any) -> Steps[str]:
        from . import invocation  # lazy: start-up time

        text, options = yield from self._asked(client, args, kwargs)
        ids = yield from invocation.start(client, self._target(), [text], options)
        return ids[0]

    def _asked(self, client: Client, args: Any, kwargs: Any) -> Steps[Tuple[str, StartOptions]]:
        """The arguments as text, when they fit, and how it is to be started."""
        from . import invocation  # lazy: start-up time
        from .codec import encode_input

        yield from self._check_arguments(client, args, kwargs)
        options = invocation.StartOptions(self._idempotency_key, self._delay_s)
        return encode_input(args, kwargs), options

    def _await_result(
        self, client: Client, invocation_id: str, timeout: Optional[Duration]
    ) -> Steps[R]:
        from . import invocation  # lazy: start-up time

        total_seconds = getattr(timeout, "total_seconds", None)
        timeout_s: Any = timeout if total_seconds is None else total_seconds()
        return invocation.result(client, self._target(), invocation_id, timeout_s=timeout_s)

    def _call_remote(self, client: Client, args: Any, kwargs: Any) -> Steps[R]:
        from . import invocation  # lazy: start-up time

        text, options = yield from self._asked(client, args, kwargs)
        result: R = yield from invocation.call(client, self._target(), text, options)
        return result

    def _map(
        self, client: Client, iterable: Iterable[Iterable[Any]], options: Tuple[bool, bool, int]
    ) -> Steps[None]:
        from . import invocation  # lazy: start-up time
        from .codec import encode_input

        if self._idempotency_key is not None:
            message = "An idempotency key goes with one invocation, not with a map."
            raise errors.InputError(message, "Use start, with a key for each item.")
        chosen = invocation.MapOptions(*options)
        integer_of("window", chosen.window, 1, 10_000)
        signature = yield from self._place_signature(client, must_be_fresh=True)
        inputs = (encode_input(signature.checked(tuple(item)), {}) for item in iterable)
        yield from invocation.map_results(
            client, self._target(), inputs, delay_s=self._delay_s, options=chosen
        )

    def _progress(
        self, client: Client, invocation_id: str, after: int, *, with_numbers: bool = False
    ) -> Steps[None]:
        from . import invocation  # lazy: start-up time

        integer_of("after", after, 0, None)
        target = self._target()
        return invocation.values(
            client, target, invocation_id, after=after, with_numbers=with_numbers
        )

    def _check_arguments(self, client: Client, args: Any, kwargs: Any) -> Steps[None]:
        signature = yield from self._place_signature(client)
        if signature.problem(args, kwargs):  # perhaps of a version that is no longer the latest
            signature = yield from self._place_signature(client, must_be_fresh=True)
        signature.checked(args, kwargs)

    def _place_signature(self, client: Client, *, must_be_fresh: bool = False) -> Steps[Signature]:
        if self._deployed is not None:
            signature = yield from self._deployed.signature(client, must_be_fresh=must_be_fresh)
            return signature
        if self._signature is None:
            from .signatures import Signature, parameters_of  # lazy: start-up time

            self._signature = Signature(self.name, parameters_of(self.func))
        return self._signature

    # --- where it is ---

    def _place(self) -> _Deployed:
        from .settings import worker_context  # lazy: start-up time

        if self._deployed is not None:
            return self._deployed
        context = worker_context()
        if context is None:
            message = f"{self.name!r} is a definition; outside of a task it can only be run here, by call_local."
            hint = (
                "To invoke what is deployed: "
                f"get_deployed_function(project_name=…, function_name={self.name!r})."
            )
            raise errors.InputError(message, hint)
        return _Deployed(context.project, self.name, context.version_id)

    def _client(self) -> Client:
        self._place()
        return _client()

    def _target(self) -> Target:
        from .invocation import Target  # lazy: start-up time
        from .settings import uses_worker_token, worker_context

        place, context = self._place(), worker_context()
        parent_id = context.invocation_id if context and uses_worker_token() else None
        return Target(place.project, place.function, place.version_id, parent_id or None)


class AsyncFunction(Generic[P, R]):
    """``fn.aio``: the methods of ``Function`` as coroutines, and those that iterate as asynchronous iterators."""

    def __init__(self, function: Function[P, R, Any]) -> None:
        self._function = function

    async def start(self, /, *args: P.args, **kwargs: P.kwargs) -> str:
        """See ``Function.start``."""
        client = self._function._client()
        return await client.arun(self._function._start(client, args, kwargs))

    async def get(self, invocation_id: str) -> Invocation:
        """See ``Function.get``."""
        from . import invocation  # lazy: start-up time

        client, target = self._function._client(), self._function._target()
        return await client.arun(invocation.get(client, target, invocation_id))

    async def await_result(self, invocation_id: str, timeout: Optional[Duration] = None) -> R:
        """See ``Function.await_result``."""
        client = self._function._client()
        steps = self._function._await_result(client, invocation_id, timeout)
        return await client.arun(steps)

    async def call_remote(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """See ``Function.call_remote``."""
        client = self._function._client()
        steps = self._function._call_remote(client, args, kwargs)
        return await client.arun(steps)

    async def call_local(self, /, *args: P.args, **kwargs: P.kwargs) -> R:
        """See ``Function.call_local``; a function that is no coroutine blocks the loop."""
        returned: Any = self._function.func(*args, **kwargs)
        is_async = hasattr(returned, "__await__") or hasattr(returned, "__anext__")
        result: R = await _finish(returned) if is_async else _last(returned)
        return result

    def map(
        self,
        iterable: Iterable[Any],
        *,
        return_exceptions: bool = False,
        ordered: bool = True,
        window: int = 1000,
    ) -> AsyncIterator[R]:
        """See ``Function.map``."""
        return self.starmap(
            ((item,) for item in iterable),
            return_exceptions=return_exceptions,
            ordered=ordered,
            window=window,
        )

    def starmap(
        self,
        iterable: Iterable[Iterable[Any]],
        *,
        return_exceptions: bool = False,
        ordered: bool = True,
        window: int = 1000,
    ) -> AsyncIterator[R]:
        """See ``Function.starmap``."""
        client = self._function._client()
        options = (ordered, return_exceptions, window)
        return client.aiterate(self._function._map(client, iterable, options))

    def progress(self, invocation_id: str, after: int = 0) -> AsyncIterator[R]:
        """See ``Function.progress``."""
        client = self._function._client()
        return client.aiterate(self._function._progress(client, invocation_id, after))

    def numbered_progress(self, invocation_id: str, after: int = 0) -> AsyncIterator[Tuple[int, R]]:
        """See ``Function.numbered_progress``."""
        client = self._function._client()
        steps = self._function._progress(client, invocation_id, after, with_numbers=True)
        return client.aiterate(steps)

    async def cancel(self, invocation_id: str) -> None:
        """See ``Function.cancel``."""
        from . import invocation  # lazy: start-up time

        client, target = self._function._client(), self._function._target()
        await client.arun(invocation.cancel(client, target, invocation_id))

    async def list(
        self,
        status: Optional[Union[InvocationStatus, str]] = None,
        offset: Optional[str] = None,
    ) -> InvocationIdsList:
        """See ``Function.list``."""
        from . import invocation  # lazy: start-up time

        client, target = self._function._client(), self._function._target()
        return await client.arun(invocation.page(client, target, status=status, offset=offset))


# --- deployed functions ---


def get_deployed_function(
    project_name: str, function_name: str, version_id: Optional[str] = None
) -> Function[..., Any, Any]:
    """A function of a project that is deployed; without ``version_id`` that of the latest version at each ``start``.

    Raises ProjectNotFound, VersionNotFound or FunctionNotFound at once, and NotLoggedIn where no control plane is known.
    """
    place = _Deployed(project_name, function_name, version_id)
    client = _client()
    client.run(place.signature(client))
    return Function(function_name, deployed=place)


def _client() -> Client:
    # Resolved for each call: in a worker that serves several invocations, each has a token of its own.
    from .client import client_for  # lazy: start-up time
    from .settings import resolve

    return client_for(resolve(waits_for_local=True))


class _Deployed:
    """Where a function is deployed, and its signature as it was read last."""

    def __init__(self, project: str, function: str, version_id: Optional[str]) -> None:
        self.project = project
        self.function = function
        self.version_id = version_id
        self._signature: Optional[Signature] = None
        self._read_at = 0.0

    def at(self, version_id: str) -> _Deployed:
        """The same function of a certain version."""
        return _Deployed(self.project, self.function, version_id)

    def signature(self, client: Client, *, must_be_fresh: bool = False) -> Steps[Signature]:
        """The signature: read once for a version, which never changes; for the latest every half minute."""
        import time  # lazy: start-up time

        is_current = self.version_id is not None or (
            not must_be_fresh and time.monotonic() - self._read_at < FRESH_S
        )
        if self._signature is None or not is_current:
            self._signature = yield from self._read(client)
            self._read_at = time.monotonic()
        return self._signature

    def _read(self, client: Client) -> Steps[Signature]:
        from .client import path_of  # lazy: start-up time
        from .signatures import Signature
        from .wire import VersionInfo

        path = path_of("projects", self.project, "versions", self.version_id or "latest")
        version = yield from client.exchange(VersionInfo, "GET", path)
        for described in version.functions:
            if described.name == self.function:
                return Signature(self.function, described.parameters)
        raise self._missing([described.name for described in version.functions])

    def _missing(self, names: List[str]) -> errors.FunctionNotFound:
        import difflib  # lazy: start-up time

        which = f"version {self.version_id}" if self.version_id else "the latest version"
        near = difflib.get_close_matches(self.function, names, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"It has: {', '.join(names)}."
        message = f"Project {self.project!r} has no function {self.function!r} in {which}."
        return errors.FunctionNotFound(message, hint)


# --- running here ---


def _elsewhere(name: str) -> Callable[..., Any]:
    """What stands for the code of a deployed function."""

    def refuse(*_args: Any, **_kwargs: Any) -> Any:
        message = f"The code of {name!r} is not here: it is deployed, and runs elsewhere."
        raise errors.InputError(message, "Use call_remote, or start.")

    return refuse


def _last(returned: Any) -> Any:
    """The last value of a generator; what is none is the result itself."""
    if not (hasattr(returned, "__next__") and hasattr(returned, "throw")):
        return returned
    last = None
    for value in returned:
        last = value
    return last


async def _finish(returned: Any) -> Any:
    if hasattr(returned, "__await__"):
        return await returned
    last = None
    async for value in returned:
        last = value
    return last
