"""One request: authenticate, read, hand over, answer. Errors become JSON here and nowhere else."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, Hashable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from multinode import wire
from multinode.errors import (
    HTTP_STATUS,
    AccessError,
    InternalError,
    InvalidRequest,
    MultinodeError,
    NotAllowed,
    NotFound,
    NotLoggedIn,
    NotReady,
    ProjectNotFound,
)
from multinode_control_plane.api.forwarding import MARK, Forwarding
from multinode_control_plane.api.limits import OpenRequests, WrongKeys, body_of
from multinode_control_plane.api.parameters import Query, read_all
from multinode_control_plane.api.readiness import Readiness
from multinode_control_plane.runners import Runner
from multinode_control_plane.runners.bundles import Bundles
from multinode_control_plane.runners.storage import span
from multinode_control_plane.scheduler import Scheduler
from multinode_control_plane.service import access, audit, executions
from multinode_control_plane.service.access import Caller, KeyRing
from multinode_control_plane.service.audit import Act
from multinode_control_plane.service.executions import Context
from multinode_control_plane.service.facts import Fact
from multinode_control_plane.service.hashing import hash_secret
from multinode_control_plane.store import Store, Transaction
from multinode_control_plane.telemetry.metrics import Metrics
from multinode_control_plane.telemetry.request import current, waited

if TYPE_CHECKING:  # nothing of OpenTelemetry is imported where no endpoint is set
    from multinode_control_plane.telemetry.tracing import Tracing

T = TypeVar("T")
Item = TypeVar("Item")
log = logging.getLogger(__name__)

MAX_BODY_BYTES = 2 * 1024 * 1024
MAX_WAIT_S = 60.0


@dataclass
class ControlPlane:
    """The parts that answer requests. ``stop`` is called with a mode of `StopRequest`."""

    store: Store
    scheduler: Scheduler
    runner: Runner
    bundles: Bundles
    context: Context
    stop: Callable[[str], None]
    database_name: str
    started_at: float = field(default_factory=time.time)
    keys: KeyRing = field(default_factory=KeyRing)
    keys_lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    metrics: Metrics = field(default_factory=Metrics)
    tracing: Tracing | None = None
    leads: bool = True
    """Whether its scheduler and runner are open; where several share a database, in one of them only."""
    readiness: Readiness = field(init=False)
    wrong_keys: WrongKeys = field(default_factory=WrongKeys)
    open_requests: OpenRequests = field(init=False)
    forwarding: Forwarding | None = None

    def __post_init__(self) -> None:
        self.readiness = Readiness(self.store, self.context.sealer)
        self.open_requests = OpenRequests(self.context.settings.max_open_requests)
        self.store.on_commit, self.store.on_failure = self._committed, self.metrics.commit_failed
        self.scheduler.tell, self.scheduler.runner_failed = self._tell, self.metrics.runner_failed
        if self.tracing is not None:
            self.store.writer_of = current.get

    def _committed(self, writers: list[Any], lasted_s: float) -> None:
        self.metrics.committed(len(writers), lasted_s)
        if self.tracing is not None:
            self.tracing.committed(writers, len(writers), lasted_s)

    def _tell(self, fact: Fact) -> None:
        self.metrics.note(fact)
        if self.tracing is not None:
            self.tracing.note(fact)

    async def read_keys(self) -> None:
        """Takes the keys from the store. One at a time: an older reading that came late would revive a revoked key."""
        async with self.keys_lock:
            self.keys = await self.store.read(access.key_ring)


@dataclass(frozen=True)
class Call:
    """One request, authenticated and read. ``body`` is an instance of the endpoint's class, or None; ``asked`` its query."""

    plane: ControlPlane
    caller: Caller
    request: Request
    body: Any
    asked: Mapping[str, str | float | bool | None] = field(default_factory=dict)

    async def act(self, job: Callable[[Transaction], T], told: Callable[[T], Act | None]) -> T:
        """As ``store.write(job)``; in the same transaction the audit log gets the line that ``told`` makes of the result."""

        def both(tx: Transaction) -> T:
            result = job(tx)
            act = told(result)
            if act is not None:
                audit.note(tx, (self.caller, act))
            return result

        return await self.plane.store.write(both)

    async def act_with_others(
        self,
        kind: Hashable,
        item: Item,
        do_all: Callable[[Transaction, list[Item]], list[T]],
        told: Callable[[T], Act | None],
    ) -> T:
        """As `act`, through ``store.write_with_others``."""

        def both(tx: Transaction, asked: list[tuple[Caller, Item]]) -> list[T]:
            results = do_all(tx, [each for _, each in asked])
            acts = [
                (caller, told(result)) for (caller, _), result in zip(asked, results, strict=True)
            ]
            audit.note(tx, *((caller, act) for caller, act in acts if act is not None))
            return results

        return await self.plane.store.write_with_others(kind, (self.caller, item), both)

    def path(self, name: str) -> str:
        """A part of the path. Raises InvalidRequest where it holds what no name holds."""
        text = str(self.request.path_params[name])
        if "\0" in text:
            message = f"{text!r:.50} holds a NUL character."
            raise InvalidRequest(message)
        return text

    def query(self, name: str) -> str | None:
        """A query parameter that the endpoint declares; None where it is missing or empty."""
        value = self._asked(name)
        return None if value is None else str(value)

    def number(self, name: str, default: float = 0.0) -> float:
        """A query parameter that is a number of 0 or more."""
        value = self._asked(name)
        return default if value is None else float(value)

    def flag(self, name: str) -> bool:
        """Whether a query parameter is ``1`` or ``true``."""
        return self._asked(name) is True

    def _asked(self, name: str) -> str | float | bool | None:
        if name not in self.asked:
            message = f"{name} is no parameter of this endpoint: declare it in Endpoint.query"
            raise LookupError(message)
        return self.asked[name]

    @property
    def wait_s(self) -> float:
        """How long the caller waits for a change."""
        return min(self.number("wait_s"), MAX_WAIT_S)


Handler = Callable[[Call], Awaitable[Any]]


@dataclass(frozen=True)
class Endpoint:
    """A route as data, which the OpenAPI document is made from too.

    ``role`` None: no API key will do; ``worker``: a worker's token will; ``public``: neither is asked. The handler's docstring says
    what it is for, its return annotation what it answers: a class of `wire`, or, with ``lines``, a stream of such, one JSON a line,
    or, with ``archive``, a bundle's archive (where the method is PUT it is sent), or, with ``text``, plain text. ``errors`` are those that not every endpoint has.
    """

    method: str
    path: str
    handler: Handler
    body: type | None = None
    role: str | None = None
    worker: bool = False
    public: bool = False
    query: tuple[Query, ...] = ()
    errors: tuple[type[MultinodeError], ...] = ()
    lines: type | None = None
    archive: bool = False
    text: bool = False
    leader: bool = False
    """Whether only the process that leads can answer: it has the runner."""
    max_body_bytes: int = MAX_BODY_BYTES
    """Of ``body``; an archive has a limit of its own."""
    refuse: Callable[[MultinodeError], Response] | None = None
    """How an error is answered, where that is not `error_response`."""

    @property
    def is_control(self) -> bool:
        """Whether an administrator gets a busy server in hand with it: to look at it, to stop it, to revoke a key."""
        return self.role == "admin" or self.path == "/v1/server"


def _check_meant(plane: ControlPlane, request: Request) -> None:
    """Raises NotReady for what was forwarded to another process than this one, or to this one when it led."""
    meant = request.headers.get(MARK)
    if meant is not None and not (plane.leads and meant == plane.store.id):
        message = "This process is not the one that leads."
        raise NotReady(message, "Ask again in a moment.")


async def answer_to(plane: ControlPlane, endpoint: Endpoint, request: Request) -> Response:
    """Authenticates, reads, hands over, answers."""
    caller = None
    refuse = endpoint.refuse or error_response
    try:
        _check_meant(plane, request)
        if endpoint.leader and not plane.leads and plane.forwarding is not None:
            return await _forwarded(plane, plane.forwarding, endpoint, request)
        caller = await _authenticate(plane, endpoint, request)
        _note_ids(caller, request)
        _count(plane, endpoint, caller)
        if "project" in request.path_params:  # here, so that no route can forget it
            caller.check(request.path_params["project"])
        asked = read_all(endpoint.query, request.query_params)
        body = await _read_body(endpoint, request)
        answer = await endpoint.handler(Call(plane, caller, request, body, asked))
    except ProjectNotFound as error:
        # Its hint names projects that are alike, of all that there are.
        is_limited = caller is not None and caller.within is not None
        return refuse(ProjectNotFound(error.message) if is_limited else error)
    except MultinodeError as error:
        plane.metrics.refused_with(error.code)
        refused = refuse(_with_retention(plane, error))
        if isinstance(error, AccessError) and error.retry_after_s is not None:
            refused.headers["retry-after"] = str(math.ceil(error.retry_after_s))
        return refused
    except ClientDisconnect:
        return Response(status_code=499)
    except Exception:
        log.exception("%s %s failed", request.method, request.url.path)
        message = f"The control plane failed at {request.method} {request.url.path}."
        about = current.get()
        where = f" at the request id {about.request_id}" if about else ""
        return refuse(InternalError(message, f"Its log has the traceback{where}."))
    return answer if isinstance(answer, Response) else json_response(answer)


def _with_retention(plane: ControlPlane, error: MultinodeError) -> MultinodeError:
    """The error for an id that was right once, and whose invocation may have been removed, says so."""
    kept_s = plane.context.settings.keep_invocations_s
    is_of_an_id = isinstance(error, NotFound) and _NO_SUCH_ID.match(error.message) is not None
    if not (is_of_an_id and kept_s) or error.hint.startswith("Did you mean"):
        return error
    told = f"It may have been removed: what ended over {span(kept_s)} ago is."
    return type(error)(error.message, f"{error.hint} {told}".strip())


async def _forwarded(
    plane: ControlPlane, forwarding: Forwarding, endpoint: Endpoint, request: Request
) -> Response:
    """The leader's answer. Keys are looked at here, where it is known who asks; workers' tokens by the leader."""
    if not _secret_of(request).startswith(WORKER_TOKEN):
        _count(plane, endpoint, await _authenticate(plane, endpoint, request))
    if endpoint.archive:
        return await forwarding.answer_to(request, request.stream())
    return await forwarding.answer_to(request, await body_of(request, endpoint.max_body_bytes))


def _count(plane: ControlPlane, endpoint: Endpoint, caller: Caller) -> None:
    """Counts the request as open, until `answered`. An administrator's are counted apart: one whose key has as many others
    open as it may can stop the server all the same."""
    asked = current.get()
    if asked is None or not caller.name:
        return
    name = f"The {'worker' if caller.worker else 'key'} {caller.name!r}"
    if endpoint.is_control and caller.role == "admin":
        name += ", as administrator,"
    plane.open_requests.begin(name, time.monotonic())
    asked.counted_as = name


def answered(plane: ControlPlane) -> None:
    """The request is no longer open: the last of its answer has been sent."""
    asked = current.get()
    if asked is not None and asked.counted_as is not None:
        plane.open_requests.end(asked.counted_as)


def _note_ids(caller: Caller, request: Request) -> None:
    """What the request is about, for the log."""
    asked = current.get()
    if asked is None:
        return
    asked.project = request.path_params.get("project") or caller.within
    named = request.path_params.get("id", "")
    if caller.worker is not None:
        asked.worker_id = caller.worker.worker_id
        asked.invocation_id = caller.worker.invocation_id or None
    if _INVOCATION_ID.fullmatch(named):
        asked.invocation_id = named


_INVOCATION_ID = re.compile(r"inv-[0-9a-f]{32}")
_NO_SUCH_ID = re.compile(r"There is no (invocation 'inv|execution 'exe)-[0-9a-f]{32}'")


def json_response(answer: Any) -> Response:
    """An answer of wire classes, or of lists of them."""
    return Response(wire.dumps(answer), media_type="application/json")


def error_response(error: MultinodeError) -> Response:
    """``{"error": {"code", "message", "hint"}}`` with its status."""
    body = wire.ErrorBody(error.code, error.message, error.hint)
    return Response(
        wire.dumps({"error": body}),
        status_code=HTTP_STATUS.get(error.code, 500),
        media_type="application/json",
    )


async def _authenticate(plane: ControlPlane, endpoint: Endpoint, request: Request) -> Caller:
    if endpoint.public:
        return Caller("", "")
    secret = _secret_of(request)
    if not secret:
        message = "This request has no API key."
        raise NotLoggedIn(message, "Run `multinode login`, or set MULTINODE_API_KEY.")
    caller = plane.keys.find(secret) or await _worker_of(plane, secret)
    if caller is None:
        asked = current.get()
        plane.wrong_keys.note(asked.address if asked else "", time.monotonic())
        message = "The API key is wrong or was revoked."
        hint = "Run `multinode login` with a valid one, or correct MULTINODE_API_KEY where that is set."
        raise NotLoggedIn(message, hint)
    if not access.permits(caller, role=endpoint.role, worker=endpoint.worker):
        needed = f"the role {endpoint.role}" if endpoint.role else "a worker's token"
        whose = "A worker's token" if caller.worker else f"The key {caller.name!r}"
        message = f"{whose} has the role {caller.role}; this needs {needed}."
        raise NotAllowed(message, "Ask an admin for a key with that role.")
    return caller


WORKER_TOKEN = "mnw_"
"""How one begins."""


def _secret_of(request: Request) -> str:
    """The key or token that came with it; empty without one."""
    scheme, _, secret = request.headers.get("authorization", "").partition(" ")
    return secret if scheme.lower() == "bearer" else ""


async def _worker_of(plane: ControlPlane, token: str) -> Caller | None:
    if not token.startswith(WORKER_TOKEN):
        return None
    token_hash = hash_secret(token)
    who = plane.scheduler.tokens.get(token_hash)
    if who is None:
        who = await plane.store.read(lambda connection: executions.identity(connection, token))
        if who is None:
            return None
        plane.scheduler.remember(token_hash, who)
    return Caller(who.worker_id, "worker", who)


async def _read_body(endpoint: Endpoint, request: Request) -> Any:
    if endpoint.body is None:
        return None
    try:
        return wire.loads(endpoint.body, await _text_of(request, endpoint.max_body_bytes))
    except (ValueError, RecursionError) as error:
        message = f"The request's body cannot be read: {error}."
        raise InvalidRequest(message) from error


async def _text_of(request: Request, limit_bytes: int) -> str:
    # Decoded here: json.loads would take UTF-16 too, and halves of surrogate pairs.
    body = (await body_of(request, limit_bytes)).decode()
    if _ESCAPES.search(body) and not _storable(body):
        message = "The request's text holds a NUL character or half of a surrogate pair."
        raise InvalidRequest(message)
    return body


_ESCAPES = re.compile(r"\\u(0000|[dD][89a-fA-F])")


def _storable(body: str) -> bool:
    """Whether every string in it can be stored. jsonpickle's text escapes such characters once more, and may."""
    text = json.dumps(json.loads(body), ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return "\\u0000" not in text.replace("\\\\", "")


async def until(
    plane: ControlPlane,
    keys: list[str],
    wait_s: float,
    look: Callable[[], Awaitable[tuple[bool, T]]],
) -> T:
    """What ``look`` finds, as soon as it says that it is worth an answer, after ``wait_s``, or when the server stops.

    Subscribes before it looks, so that no change between the two is missed.
    """
    deadline = time.monotonic() + wait_s
    while True:
        with plane.store.changes.subscribe(*keys) as event:
            done, found = await look()
            left_s = deadline - time.monotonic()
            if done or left_s <= 0 or plane.store.changes.stopping:
                return found
            # A timer that sets the event, and no task: five thousand clients may wait.
            timer = asyncio.get_running_loop().call_later(left_s, event.set)
            began_at = time.perf_counter()
            try:
                await event.wait()
            finally:
                timer.cancel()
                waited(time.perf_counter() - began_at)
