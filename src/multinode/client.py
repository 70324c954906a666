"""The one client of the control plane's API: requests, retries, errors; blocking and asynchronous.

What is to be done is written once, as generators (*steps*) that yield small effects: a ``Request`` to send, a ``Sleep``,
and, where results come one by one, an ``Emit``. Two drivers perform them: ``Client.run`` and ``Client.iterate`` block
(over ``HttpConnection``), ``Client.arun`` and ``Client.aiterate`` await (over ``httpx``). Everything above composes steps
with ``yield from client.exchange(…)``.

This module knows nothing of functions and invocations, and decodes no jsonpickle text.
"""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections import deque
from functools import lru_cache

from . import errors, settings, wire
from .http_connection import ClosedUnanswered, HttpConnection, NotHttp
from .records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    import ssl
    from collections.abc import AsyncIterator, Callable, Generator, Iterator
    from typing import Any, Deque, Dict, Optional, Type, TypeVar, Union
    from weakref import WeakKeyDictionary

    import httpx

    T = TypeVar("T")
    Effect = Union["Request", "Sleep", "Emit"]
    Outcome = Union["Reply", "ConnectionLost", None]
    Steps = Generator[Effect, Any, T]

CONNECT_TIMEOUT_S = 10.0
ANSWER_TIMEOUT_S = 30.0
"""How much later than ``wait_s`` an answer may come before the connection counts as lost."""
STREAM_TIMEOUT_S = 60.0
"""Silence after which a stream counts as lost: four heartbeats of 15 s."""
_AWAY = (
    "Check the URL (http or https?) and the network; `multinode doctor` says more, "
    "and `multinode server status` whether a local one runs."
)
_UNTRUSTED = (
    "Its certificate is not trusted here, or is for another name. "
    "Where an authority of your own vouches for it, SSL_CERT_FILE names that one's certificate."
)
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0


class Request(Record):
    """Effect: send this; the outcome is a ``Reply``, or ``ConnectionLost`` is thrown in."""

    method: str
    path: str
    body: Optional[bytes]
    headers: Dict[str, str]
    timeout_s: float


class Reply(Record):
    """What came back; ``version`` is the header ``Multinode-Version``, and both it and ``retry_after`` empty where missing."""

    status: int
    content_type: str
    version: str
    retry_after: str
    body: bytes


class Sleep(Record):
    """Effect: go on after this many seconds."""

    seconds: float


class Emit(Record):
    """Effect: hand this value to whoever iterates."""

    value: Any


class ConnectionLost(Exception):
    """A request that got no whole answer, and why; never leaves this module."""

    def __init__(self, reason: str, *, is_hopeless: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.is_hopeless = is_hopeless


def path_of(*segments: str, **query: Optional[Union[str, float, bool]]) -> str:
    """``/v1/`` and the quoted segments, with those of ``query`` that are not None."""
    from urllib.parse import quote, urlencode  # 3 ms, which workers need not pay

    path = "/v1/" + "/".join(quote(segment, safe="") for segment in segments)
    given = {
        name: str(value).lower() if isinstance(value, bool) else value
        for name, value in query.items()
        if value is not None
    }
    return f"{path}?{urlencode(given)}" if given else path


@lru_cache(maxsize=8)
def client_for(connection: settings.Connection) -> Client:
    """The client of a connection, the same one each time, so that its connections are kept alive."""
    return Client(connection.url, connection.key, retry_s=connection.retry_s)


class Client:
    """Talks to the control plane at ``url`` (``http://host:port`` or ``https://…``) with an API key or a token.

    Safe to use from several threads, in several event loops and after a fork. What is lost on the way is asked again for up
    to ``retry_s`` seconds (connection errors, timeouts, 502, 503, 504 and ``server_stopping``), and so is what came too often
    (429, but for wrong keys), after ``Retry-After``. Raises InputError where ``url`` or ``key`` cannot be right. Proxies of the environment are not used.
    """

    def __init__(self, url: str, key: str, *, retry_s: float = settings.DEFAULT_RETRY_S) -> None:
        self.url = url.strip().rstrip("/")
        self.retry_s = retry_s
        self._address = _check_url(self.url)
        self._headers = {"Authorization": f"Bearer {_check_key(key)}", "Accept": "application/json"}
        self._ssl: Optional[ssl.SSLContext] = None
        self._idle: Deque[HttpConnection] = deque()
        self._pid = os.getpid()
        self._async_clients: Optional[WeakKeyDictionary[Any, Any]] = None

    # --- what callers use ---

    def call(
        self,
        answer_cls: Type[T],
        method: str,
        path: str,
        body: Any = None,
        *,
        wait_s: float = 0.0,
    ) -> T:
        """The answer as ``answer_cls``: a class of ``wire``, ``List`` of one, or ``bytes``.

        ``body`` is an instance of a class of ``wire``, bytes, or None. ``wait_s`` is how long the control plane may hold
        the request open. Raises the class of ``errors`` that the answer names, and ControlPlaneUnreachable,
        UnexpectedAnswer, IncompatibleVersion or NotLoggedIn.
        """
        return self.run(self.exchange(answer_cls, method, path, body, wait_s=wait_s))

    async def acall(
        self,
        answer_cls: Type[T],
        method: str,
        path: str,
        body: Any = None,
        *,
        wait_s: float = 0.0,
    ) -> T:
        """``call`` as a coroutine (asyncio)."""
        return await self.arun(self.exchange(answer_cls, method, path, body, wait_s=wait_s))

    def stream(self, method: str, path: str, body: Any = None) -> Iterator[bytes]:
        """The lines of a streaming answer as they come, without the blank ones that are heartbeats.

        Opening it is retried as ``call`` is; a stream that breaks off raises ControlPlaneUnreachable.
        """
        request = self._request(method, path, body, timeout_s=STREAM_TIMEOUT_S)
        opened = _Stream(self._connect)
        try:
            reply = self.run(self._retried(request, self.retry_s), send=opened.open)
            _check_reply(reply, self.url + path)
            yield from opened.lines()
        except ConnectionLost as lost:
            raise self._unreachable(lost, 0.0) from lost
        finally:
            opened.close()

    def close(self) -> None:
        """Closes the connections that are idle; the client can be used again."""
        while True:
            try:  # asking before would be no use: another thread may take the last one
                idle = self._idle.pop()
            except IndexError:
                return
            idle.close()

    def __del__(self) -> None:
        if "_idle" in self.__dict__:  # else __init__ has raised
            self.close()

    # --- steps ---

    def exchange(
        self,
        answer_cls: Type[T],
        method: str,
        path: str,
        body: Any = None,
        *,
        wait_s: float = 0.0,
        retry_s: Optional[float] = None,
    ) -> Steps[T]:
        """Steps of one request with its retries; what ``call`` and ``acall`` drive. Returns the answer."""
        request = self._request(method, path, body, timeout_s=wait_s + ANSWER_TIMEOUT_S)
        reply = yield from self._retried(request, self.retry_s if retry_s is None else retry_s)
        return _read_answer(answer_cls, reply, self.url + path)

    def _request(self, method: str, path: str, body: Any, *, timeout_s: float) -> Request:
        headers = dict(self._headers)
        trace = _traceparent()
        if trace is not None:
            headers["traceparent"] = trace
        if body is not None:
            is_bytes = isinstance(body, bytes)
            headers["Content-Type"] = "application/octet-stream" if is_bytes else "application/json"
            body = body if is_bytes else wire.dumps(body)
        return Request(method, self._address.path + path, body, headers, timeout_s)

    def _retried(self, request: Request, retry_s: float) -> Steps[Reply]:
        pause_s, failed_at = FIRST_PAUSE_S, None
        while True:
            reply: Optional[Reply] = None
            told_s = 0.0
            try:
                reply = yield request
                if not _is_worth_asking_again(reply):
                    return reply
                told_s = _told_pause_s(reply)
                lost = ConnectionLost(f"it answered {reply.status} {_first_words(reply.body)}")
            except ConnectionLost as error:
                lost = error
            now = time.monotonic()
            failed_at = now if failed_at is None else failed_at
            left_s = failed_at + retry_s - now
            if left_s <= told_s or lost.is_hopeless:
                if (
                    reply is not None and reply.status == 429
                ):  # which says more than that it is out of reach
                    return reply
                raise self._unreachable(lost, now - failed_at) from lost
            yield Sleep(min(left_s, told_s + pause_s * jitter()))
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _unreachable(self, lost: ConnectionLost, tried_s: float) -> errors.ControlPlaneUnreachable:
        tried = f" (tried for {tried_s:.0f} s)" if tried_s >= 1 else ""
        message = f"The control plane at {self.url} is out of reach: {lost.reason}{tried}."
        return errors.ControlPlaneUnreachable(message, _UNTRUSTED if lost.is_hopeless else _AWAY)

    # --- the blocking driver ---

    def run(self, steps: Steps[T], *, send: Optional[Callable[[Request], Reply]] = None) -> T:
        """Performs steps to their end, blocking, and returns what they return. ``send`` replaces how a request is sent."""
        send = send or self._send
        try:
            effect = next(steps)
            while True:
                effect = _resume(steps, _perform(effect, send))
        except StopIteration as stop:
            returned: T = stop.value
            return returned
        finally:
            steps.close()

    def iterate(self, steps: Steps[Any]) -> Iterator[Any]:
        """The values that steps emit, one after another, blocking."""
        try:
            effect = next(steps)
            while True:
                if isinstance(effect, Emit):
                    yield effect.value
                    effect = steps.send(None)
                else:
                    effect = _resume(steps, _perform(effect, self._send))
        except StopIteration:
            return
        finally:
            steps.close()

    def _send(self, request: Request) -> Reply:
        connection = self._take_idle()
        if connection is not None:
            try:
                return self._send_on(connection, request)
            except _StaleConnection:
                self.close()  # the others are as old
        try:
            return self._send_on(self._connect(), request)
        except _StaleConnection as stale:
            raise ConnectionLost(stale.reason) from stale

    def _send_on(self, connection: HttpConnection, request: Request) -> Reply:
        """One exchange. A connection whose exchange did not come to its end, for any reason, is never used again."""
        try:
            reply = _exchange(connection, request)
        except (ConnectionError, ClosedUnanswered) as error:
            raise _StaleConnection(_reason(error)) from error
        except (OSError, NotHttp) as error:
            raise ConnectionLost(_reason(error)) from error
        finally:
            if not connection.is_reusable:
                connection.close()
        if connection.is_reusable:
            self._idle.append(connection)
        return reply

    def _take_idle(self) -> Optional[HttpConnection]:
        if self._pid != os.getpid():  # forked: the sockets are the parent's
            self.close()
            self._pid = os.getpid()
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _connect(self) -> HttpConnection:
        address = self._address
        tls = self._tls() if address.is_tls else None
        try:
            return HttpConnection(address.host, address.port, timeout_s=CONNECT_TIMEOUT_S, tls=tls)
        except OSError as error:
            raise ConnectionLost(_reason(error), is_hopeless=_is_certificate(error)) from error

    def _tls(self) -> ssl.SSLContext:
        if self._ssl is None:
            import ssl  # only for https

            self._ssl = ssl.create_default_context()
        return self._ssl

    # --- the asynchronous driver ---

    async def arun(self, steps: Steps[T]) -> T:
        """Performs steps to their end in the running asyncio loop, and returns what they return."""
        try:
            effect = next(steps)
            while True:
                effect = _resume(steps, await self._aperform(effect))
        except StopIteration as stop:
            returned: T = stop.value
            return returned
        finally:
            steps.close()

    async def aiterate(self, steps: Steps[Any]) -> AsyncIterator[Any]:
        """The values that steps emit, one after another, in the running asyncio loop."""
        try:
            effect = next(steps)
            while True:
                if isinstance(effect, Emit):
                    yield effect.value
                    effect = steps.send(None)
                else:
                    effect = _resume(steps, await self._aperform(effect))
        except StopIteration:
            return
        finally:
            steps.close()

    async def _aperform(self, effect: Effect) -> Outcome:
        import asyncio  # costs 40 ms: only for those who have it already

        try:
            if isinstance(effect, Request):
                return await self._asend(effect)
            if isinstance(effect, Sleep):
                await asyncio.sleep(effect.seconds)
        except ConnectionLost as lost:
            return lost
        return None

    async def _asend(self, request: Request) -> Reply:
        import httpx  # costs 120 ms: only for asynchronous callers

        client = await self._async_client()
        timeout = httpx.Timeout(request.timeout_s, connect=CONNECT_TIMEOUT_S, pool=None)
        try:
            response = await client.request(
                request.method,
                self._address.origin + request.path,
                content=request.body,
                headers=request.headers,
                timeout=timeout,
            )
        except httpx.TransportError as error:
            raise ConnectionLost(_reason(error), is_hopeless=_is_certificate(error)) from error
        headers = response.headers
        return Reply(
            response.status_code,
            headers.get("content-type", ""),
            headers.get("multinode-version", ""),
            headers.get("retry-after", ""),
            response.content,
        )

    async def _async_client(self) -> httpx.AsyncClient:
        """The httpx client of the running loop: connections cannot change loops."""
        import asyncio  # costs 40 ms: only for those who have it already
        from weakref import WeakKeyDictionary

        if self._async_clients is None:
            self._async_clients = WeakKeyDictionary()
        loop = asyncio.get_running_loop()
        known = self._async_clients.get(loop)
        if known is None:
            owner = _open_async_client(self._tls() if self._address.is_tls else None)
            known = (await owner.__anext__(), owner)
            self._async_clients[loop] = known
        opened: httpx.AsyncClient = known[0]
        return opened


class _Address(Record):
    """A control plane's URL, taken apart; ``path`` is the prefix before ``/v1``."""

    is_tls: bool
    host: str
    port: int
    path: str
    origin: str


class _StaleConnection(Exception):
    """A connection that was closed by the other side, perhaps before the request came."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class _Stream:
    """One streaming answer on a connection of its own."""

    def __init__(self, connect: Callable[[], HttpConnection]) -> None:
        self._connect = connect
        self._connection: Optional[HttpConnection] = None

    def open(self, request: Request) -> Reply:
        """Sends the request; the reply of a success has no body yet."""
        self.close()
        self._connection = self._connect()
        try:
            return _exchange(self._connection, request, is_stream=True)
        except (OSError, NotHttp) as error:
            raise ConnectionLost(_reason(error)) from error

    def lines(self) -> Iterator[bytes]:
        """Its lines, without the blank ones. Raises ConnectionLost where it breaks off."""
        assert self._connection is not None, "it was not opened"
        rest = b""
        try:
            for piece in self._connection.body():
                *whole, rest = (rest + piece).split(b"\n")
                yield from (line for line in whole if line.strip())
        except (OSError, NotHttp) as error:
            reason = f"the stream broke off: {_reason(error)}"
            raise ConnectionLost(reason) from error
        if rest.strip():
            yield rest

    def close(self) -> None:
        """Closes the connection."""
        if self._connection is not None:
            self._connection.close()


def _perform(effect: Effect, send: Callable[[Request], Reply]) -> Outcome:
    try:
        if isinstance(effect, Request):
            return send(effect)
        if isinstance(effect, Sleep):
            time.sleep(effect.seconds)
    except ConnectionLost as lost:
        return lost
    return None


def _resume(steps: Steps[Any], outcome: Outcome) -> Effect:
    """Gives steps what came of their last effect; returns the next one, or raises StopIteration at their end."""
    return steps.throw(outcome) if isinstance(outcome, ConnectionLost) else steps.send(outcome)


async def _open_async_client(tls: Optional[ssl.SSLContext]) -> AsyncIterator[httpx.AsyncClient]:
    """Yields an httpx client and closes it when the loop ends.

    An asynchronous generator, because ``asyncio.run`` closes those (``loop.shutdown_asyncgens``) before it closes the
    loop: the one hook there is for closing connections in time.
    """
    import httpx

    limits = httpx.Limits(max_connections=None, max_keepalive_connections=100)
    # The same certificates and no proxies, as in the blocking driver.
    verify = True if tls is None else tls
    async with httpx.AsyncClient(limits=limits, verify=verify, trust_env=False) as client:
        yield client


def jitter() -> float:
    """A factor between 0.5 and 1; from the system, since the module ``random`` costs 3 ms and is the user's to seed."""
    return 0.5 + os.urandom(1)[0] / 510


# --- answers ---


def _exchange(connection: HttpConnection, request: Request, *, is_stream: bool = False) -> Reply:
    """Sends a request and reads its answer; of a success that is a stream only the head."""
    head = connection.send(
        request.method, request.path, request.headers, request.body, request.timeout_s
    )
    body = b"" if is_stream and head.status < 300 else b"".join(connection.body())
    return Reply(
        head.status,
        head.headers.get("content-type", ""),
        head.headers.get("multinode-version", ""),
        head.headers.get("retry-after", ""),
        body,
    )


def _read_answer(answer_cls: Type[T], reply: Reply, url: str) -> T:
    _check_reply(reply, url)
    if answer_cls is bytes:
        return reply.body  # type: ignore[return-value]
    try:
        data = json.loads(reply.body)
        if getattr(answer_cls, "__origin__", None) is list:
            (item_cls,) = answer_cls.__args__  # type: ignore[attr-defined]
            return [wire.from_plain(item_cls, item) for item in data]  # type: ignore[return-value]
        return wire.from_plain(answer_cls, data)
    except (ValueError, TypeError) as error:
        raise _unexpected(reply, url, f" ({error})") from error


def _check_reply(reply: Reply, url: str) -> None:
    """Raises what the reply means where it is no success of a control plane of our major version."""
    error = None if reply.status < 300 else _read_error(reply)
    if not reply.version and error is None and reply.status == 401:
        raise errors.NotLoggedIn(_refused(url), settings.LOGIN_HINT)
    if not reply.version:
        raise _unexpected(reply, url, " without the header Multinode-Version")
    if reply.version.split(".")[0] != str(wire.MAJOR_VERSION):
        message = (
            f"The control plane at {url} is version {reply.version}, "
            f"this program speaks version {wire.MAJOR_VERSION}."
        )
        raise errors.IncompatibleVersion(message, "Install the same major version on both sides.")
    if error is not None:
        raise error
    if reply.status >= 300:
        raise _unexpected(reply, url, "")


def _read_error(reply: Reply) -> Optional[errors.MultinodeError]:
    try:
        body = wire.from_plain(wire.ErrorBody, json.loads(reply.body)["error"])
    except (ValueError, KeyError, TypeError):
        return None
    default = errors.NotLoggedIn if reply.status == 401 else errors.MultinodeError
    return errors.by_code().get(body.code, default)(body.message, body.hint)


def _is_worth_asking_again(reply: Reply) -> bool:
    """Whether the same request may have another answer in a while. A wrong key stays wrong."""
    if reply.status == 429:
        return not isinstance(_read_error(reply), errors.TooManyWrongKeys)
    return reply.status in (502, 503, 504)


def _told_pause_s(reply: Reply) -> float:
    """How long the answer says to wait at least; 0 where it does not say that in seconds."""
    return float(reply.retry_after) if re.fullmatch(r"\d{1,6}", reply.retry_after) else 0.0


def _refused(url: str) -> str:
    return f"The control plane at {url} does not know this key."


def _unexpected(reply: Reply, url: str, detail: str) -> errors.UnexpectedAnswer:
    message = f"{url} answered {reply.status}{detail}: {_first_words(reply.body)}."
    hint = "Is this the URL of a Multinode control plane, or does a proxy stand in front of it?"
    return errors.UnexpectedAnswer(message, hint)


def _first_words(body: bytes) -> str:
    text = " ".join(body[:400].decode("utf-8", "replace").split())
    return repr(text[:80] + "…" if len(text) > 80 else text) if text else "nothing"


def _reason(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def _is_certificate(error: BaseException) -> bool:
    """Whether the other side's certificate is not trusted, which asking again does not change."""
    return "CERTIFICATE_VERIFY_FAILED" in str(error)


# --- addresses ---


# Not by urllib.parse, which costs 3 ms to import, in every worker.
_URL = r"(?P<scheme>https?)://(?:\[(?P<ip6>[\da-f:.]+)\]|(?P<host>[^\s/?#@:\[\]]+))(?::(?P<port>\d{1,5}))?(?P<path>/[!-~]*)?"


def _check_url(url: str) -> _Address:
    found = None if "?" in url or "#" in url else re.fullmatch(_URL, url, re.IGNORECASE)
    if found is None or int(found["port"] or 0) > 65535:
        message = f"{url!r} is not the URL of a control plane."
        hint = "Give one such as http://127.0.0.1:9470 or https://multinode.example.com."
        raise errors.InputError(message, hint)
    scheme, host = found["scheme"].lower(), (found["ip6"] or found["host"]).lower()
    is_tls = scheme == "https"
    port = int(found["port"] or (443 if is_tls else 80))
    origin = f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
    return _Address(is_tls, host, port, found["path"] or "", origin)


def _check_key(key: str) -> str:
    """The key, if it can stand in a header; never shown."""
    key = key.strip()
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        message = "The API key is empty, or has characters that no key has."
        raise errors.InputError(message, "Copy it again, as `multinode key create` printed it.")
    return key


# --- traces ---


def _traceparent() -> Optional[str]:
    """The trace that this request is part of: the caller's, where it uses OpenTelemetry; else the worker's own.

    Nothing is imported for it: who traces has imported it already.
    """
    tracing = sys.modules.get("opentelemetry.trace")
    if tracing is not None:
        context = tracing.get_current_span().get_span_context()
        if context.is_valid:
            return f"00-{context.trace_id:032x}-{context.span_id:016x}-{context.trace_flags:02x}"
    text = os.environ.get("TRACEPARENT", "")
    return text if re.fullmatch(r"[\da-f]{2}-[\da-f]{32}-[\da-f]{16}-[\da-f]{2}", text) else None
