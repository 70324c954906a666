"""What crosses the network between SDK, worker, command line and control plane, under ``/v1``.

These classes are the only definition: the control plane's API validates and documents the same ones. Times
are strings in RFC 3339 with an offset (UTC); spans are seconds as floats, and their names end in ``_s``.
``input``, ``result`` and ``value`` are jsonpickle text, which only the SDK decodes.

A reader ignores fields that it does not know, and every field added after 2.0.0 has a default: workers live in
environments for months, and speak with control planes of later releases of the same major version.
"""

from __future__ import annotations

from .records import Record
from .records import dumps as dumps
from .records import from_plain as from_plain
from .records import loads as loads
from .records import to_plain as to_plain
from .wire_costs import AttemptCost as AttemptCost
from .wire_costs import CostEstimate as CostEstimate
from .wire_costs import CostHistory as CostHistory
from .wire_costs import CostLine as CostLine
from .wire_costs import CostReport as CostReport
from .wire_installation import AuditLine as AuditLine
from .wire_installation import AuditLog as AuditLog
from .wire_installation import Collected as Collected
from .wire_installation import Finding as Finding
from .wire_installation import KeyInfo as KeyInfo
from .wire_installation import KeyRequest as KeyRequest
from .wire_installation import RotatedKey as RotatedKey
from .wire_installation import ServerInfo as ServerInfo
from .wire_installation import StopRequest as StopRequest

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any, Dict, List, Optional

MAJOR_VERSION = 2

PENDING, RUNNING, CANCELLING = "PENDING", "RUNNING", "CANCELLING"
SUCCEEDED, FAILED, CANCELLED, TIMED_OUT = "SUCCEEDED", "FAILED", "CANCELLED", "TIMED_OUT"
STATUSES = (PENDING, RUNNING, CANCELLING, SUCCEEDED, FAILED, CANCELLED, TIMED_OUT)
FINAL_STATUSES = frozenset((SUCCEEDED, FAILED, CANCELLED, TIMED_OUT))
ROLES = ("admin", "deploy", "invoke", "read")


# --- errors ---------------------------------------------------------------------------------------------


class ErrorBody(Record):
    """The body of every answer that is no success: ``{"error": {"code", "message", "hint"}}``."""

    code: str
    message: str
    hint: str = ""


class FunctionError(Record):
    """How a function or its worker failed. ``type`` and ``traceback`` are empty for a lost worker."""

    message: str
    type: str = ""
    traceback: str = ""


# --- functions and versions -----------------------------------------------------------------------------


class FunctionSettings(Record):
    """The settings of one function, checked where the decorator stands (see docs/reference/sdk.md)."""

    cpu: float = 0.1
    memory_mib: int = 256
    timeout_s: float = 3600.0
    max_concurrency: int = 10
    max_retries: int = 0
    retry_delay_s: float = 0.0
    retry_on: Optional[List[str]] = None
    """Names of the exception classes, to show; None is every exception. The worker decides by the classes."""
    no_retry_on: Optional[List[str]] = None
    start_timeout_s: float = 900.0
    queue_timeout_s: Optional[float] = None
    min_workers: int = 0
    max_invocations_per_worker: int = 1
    idle_timeout_s: float = 60.0


class Parameter(Record):
    """One parameter of a function; ``kind`` as ``inspect.Parameter.kind.name`` in lower case."""

    name: str
    kind: str
    annotation: str = ""
    default: Optional[str] = None
    """The default's ``repr``, at most 100 characters; None where there is none."""


class FunctionDescription(Record):
    """One function as its decorator and signature describe it.

    ``kind`` is ``function``, ``coroutine``, ``generator`` or ``async_generator``.
    """

    name: str
    settings: FunctionSettings
    parameters: List[Parameter]
    kind: str = "function"
    doc: str = ""


class EnvironmentSpec(Record):
    """What an environment is made from. ``files`` are those that ``requirements`` includes: path below
    ``tasks/`` to base64 content. ``settings`` are index settings (``UV_*`` and ``PIP_*`` names)."""

    python: str = "3.8"
    """``major.minor``."""
    requirements: str = ""
    files: Optional[Dict[str, str]] = None
    settings: Optional[Dict[str, str]] = None
    base_image: Optional[str] = None
    apt: Optional[List[str]] = None


class BuildRequest(Record):
    """Body of ``POST /v1/projects/{project}/environments``."""

    spec: EnvironmentSpec
    no_cache: bool = False
    strict_python: bool = False
    sdk_digest: str = ""
    """Of the SDK that the sender puts into images (``distribution.sdk_digest``); it is part of an image's digest."""
    plan: bool = False
    """Make and order nothing: only tell whether it is there."""
    login_refused: bool = False
    """The registry does not take the login of the order before any more: another is wanted. With ``no_cache``."""


class EnvironmentInfo(Record):
    """An environment that is there. ``python`` was asked for, ``python_served`` (``3.11.7``) runs."""

    digest: str
    python: str
    python_served: str
    packages: List[str]
    """What was resolved, ``name==version``, sorted."""
    warnings: List[str]
    created_at: str
    created: bool = False
    """Whether this request made it."""
    image: str = ""
    """Where environments are images: ``sha256:…`` in the runner's engine, or ``repository@sha256:…``."""
    base_image: str = ""
    """What it was made from, with the digest that this had: ``python:3.12-bookworm@sha256:…``."""


class Registry(Record):
    """Where images are pushed to and pulled from. ``repository`` is ``host[:port]/name``; an empty ``username``: no login.

    The login may be one that expires within hours.
    """

    repository: str
    username: str = ""
    key: str = ""
    """The password or token."""


class ImageOrder(Record):
    """An environment that is not there, for the sender of the BuildRequest to build as an image, and report."""

    digest: str
    platform: str
    """``linux/amd64``."""
    tag: str
    """The name to build it under: ``multinode:<digest>``, or ``<repository>:<installation>-<digest>`` where there is a registry."""
    labels: Dict[str, str]
    """To be put on the image: by them the control plane knows its own."""
    registry: Optional[Registry] = None
    """Where to push it; None: it is left in the engine, which has to be the runner's."""


class ImageReport(Record):
    """Body of ``PUT /v1/projects/{project}/environments/{digest}``: the image that was built to an ImageOrder."""

    spec: EnvironmentSpec
    sdk_digest: str
    image: str
    """``sha256:…``, or ``repository@sha256:…`` after a push."""
    python_served: str
    packages: List[str]
    base_image: str
    warnings: List[str]


class BuildEvent(Record):
    """One line of the answer's stream: a line of build output, or at last the environment, an order to build it, or an error.

    To a plan the digest is told of an environment that would have to be made: ``missing``.
    """

    line: Optional[str] = None
    environment: Optional[EnvironmentInfo] = None
    error: Optional[ErrorBody] = None
    image_order: Optional[ImageOrder] = None
    missing: Optional[str] = None


class DescribeRequest(Record):
    """Body of ``POST /v1/projects/{project}/describe``: import ``main.py`` in the environment."""

    environment_digest: str
    bundle_digest: str
    dotenv: Dict[str, str]


class DescribeAnswer(Record):
    """The functions that ``main.py`` defines."""

    functions: List[FunctionDescription]


class RegisterRequest(Record):
    """Body of ``POST /v1/projects/{project}/versions``.

    ``create`` makes the project where it is missing; without it a missing project is ProjectNotFound.
    """

    environment_digest: str
    bundle_digest: str
    dotenv: Dict[str, str]
    functions: List[FunctionDescription]
    create: bool = True
    plan: bool = False
    """Only tell what would happen, as far as that is known without ``functions``, which may be empty then."""


class RegisterAnswer(Record):
    """``created`` is False where the version existed already; ``changes`` says what differs from the latest
    version in words (``function add: memory 256 MiB -> 512 MiB``)."""

    project: str
    version_id: str
    created: bool
    made_latest: bool
    changes: List[str]


class WorkerSize(Record):
    """What a worker is made with, and paid for, where its runner has it in fixed sizes: the smallest that holds what is asked for."""

    cpu: float
    """Virtual CPUs."""
    memory_mib: int


class VersionInfo(Record):
    """One version with its functions, settings and environment."""

    project: str
    version_id: str
    number: int
    """1 for the project's first version, and so on."""
    created_at: str
    is_latest: bool
    bundle_digest: str
    environment: EnvironmentInfo
    dotenv_names: List[str]
    functions: List[FunctionDescription]
    sizes: Optional[Dict[str, WorkerSize]] = None
    """By function, what its workers get and cost; None where that is what the function asks for."""


class VersionItem(Record):
    """One version in a list, newest first."""

    version_id: str
    number: int
    created_at: str
    is_latest: bool
    functions: List[str]


class ProjectInfo(Record):
    """One project. ``in_flight`` counts invocations that have not ended."""

    project: str
    created_at: str
    latest_version_id: str
    functions: List[str]
    in_flight: int
    deleting: bool = False


class ProjectDetail(Record):
    """A project with all its versions, newest first."""

    project: ProjectInfo
    versions: List[VersionItem]


class LatestRequest(Record):
    """Body of ``PUT /v1/projects/{project}/latest``; without a version: the one before the latest."""

    version_id: Optional[str] = None


class DeletedProject(Record):
    """Answer of ``DELETE /v1/projects/{project}``: it waits for what is in flight, up to ``wait_s``."""

    project: str
    removed: bool
    in_flight: int


# --- invocations ----------------------------------------------------------------------------------------


class StartRequest(Record):
    """Body of ``POST /v1/projects/{project}/functions/{function}/invocations``.

    One request starts ``len(inputs)`` invocations, all or none, in that order; or one, with plain JSON as ``args`` and ``kwargs``.
    ``request_key`` makes it safe to send again; ``idempotency_key`` is the user's (only with one input).
    """

    inputs: List[str] = []  # noqa: RUF012 - a Record is never changed
    """Each is jsonpickle text of ``[arguments as a tuple, keyword arguments as a dict]``."""
    args: Optional[List[Any]] = None
    """Arguments as plain JSON, instead of ``inputs``."""
    kwargs: Optional[Dict[str, Any]] = None
    """Keyword arguments as plain JSON, instead of ``inputs``."""
    request_key: str = ""
    version_id: Optional[str] = None
    idempotency_key: Optional[str] = None
    delay_s: float = 0.0
    parent_id: Optional[str] = None
    wait_s: float = 0.0
    """For how long the answer may be held back until one of them has ended."""


class StartAnswer(Record):
    """Ids in the order of the inputs."""

    invocation_ids: List[str]
    created: bool = True
    """False where the idempotency key named an invocation that existed."""
    ended: Optional[List[InvocationInfo]] = None
    """Those that have ended by now, where the request waited for it."""


class InvocationInfo(Record):
    """One invocation. ``revision`` grows with every change: give it back to wait for the next one. ``terminated``: it has ended, and no worker of it is left."""

    invocation_id: str
    project: str
    function: str
    version_id: str
    status: str
    result: Optional[str]
    """jsonpickle text: the returned value, or the newest yielded one; None where there is none yet."""
    error: Optional[FunctionError]
    pending_reason: Optional[str]
    num_failed_attempts: int
    created_at: str
    started_at: Optional[str]
    finished_at: Optional[str]
    terminated: bool
    num_values: int
    """Number of the newest yielded value, 0 where there is none."""
    revision: int
    parent_id: Optional[str] = None
    cancel_requested_at: Optional[str] = None
    unreachable: bool = False
    """Whether its worker has been silent for 30 s and the runner says that it lives."""
    next_try_at: Optional[str] = None
    """When a PENDING one is due that waits for a time: a delay, a retry, another try to make its worker."""
    plain_result: Optional[Any] = None
    """``result`` as plain JSON, where that was asked for with ``plain``."""


class InvocationItem(Record):
    """One invocation in a list; no input and no result."""

    invocation_id: str
    project: str
    function: str
    version_id: str
    status: str
    pending_reason: Optional[str]
    num_failed_attempts: int
    created_at: str
    started_at: Optional[str]
    finished_at: Optional[str]
    unreachable: bool = False
    next_try_at: Optional[str] = None


class InvocationList(Record):
    """A page of at most 50, newest first; ``next_offset`` is opaque, None on the last page."""

    invocations: List[InvocationItem]
    next_offset: Optional[str]


class WaitRequest(Record):
    """Body of ``POST /v1/invocations/wait``: answered when any of them has ended, or after ``wait_s``."""

    invocation_ids: List[str]
    wait_s: float = 25.0


class WaitAnswer(Record):
    """Those of the invocations asked for that have ended."""

    ended: List[InvocationInfo]


class Value(Record):
    """One yielded value. Numbers start at 1 and run on over attempts."""

    number: int
    value: str
    attempt: int = 1


class ValuesAnswer(Record):
    """Values after the number asked for, oldest first, at most 1,000 of them or 4 MiB.

    ``ended`` is True where the invocation has ended and nothing follows. ``left_out`` counts older values that are
    no longer kept.
    """

    values: List[Value]
    ended: bool
    left_out: int = 0
    plain_values: Optional[List[Any]] = None
    """The same ``values`` as plain JSON, where that was asked for with ``plain``."""


class CancelRequest(Record):
    """Body of ``POST /v1/cancel``: these ids, or everything in flight of one function or project."""

    invocation_ids: Optional[List[str]] = None
    project: Optional[str] = None
    function: Optional[str] = None


class CancelAnswer(Record):
    """``requested`` had not ended; ``ended`` had, and are left as they are."""

    requested: List[str]
    ended: List[str]


class TimelineStep(Record):
    """One step of an attempt, e.g. ``worker requested``, ``ms`` after the step before."""

    name: str
    at: str
    ms: float


class ExecutionInfo(Record):
    """One attempt. ``state`` is ``starting``, ``running`` or ``ended``; ``outcome`` is ``succeeded``, ``failed``,
    ``cancelled``, ``timed_out`` or ``lost``."""

    execution_id: str
    attempt: int
    state: str
    worker_id: str
    outcome: Optional[str]
    error: Optional[FunctionError]
    exit_code: Optional[int]
    signal: Optional[int]
    peak_memory_mib: Optional[float]
    memory_limit_mib: int
    created_at: str
    started_at: Optional[str]
    ended_at: Optional[str]
    timeline: List[TimelineStep]
    cost: Optional[AttemptCost] = None


class InvocationDetail(Record):
    """An invocation with its input and every attempt, oldest first."""

    invocation: InvocationInfo
    input: str
    executions: List[ExecutionInfo]
    plain_input: Optional[Any] = None
    """``input`` as plain JSON, ``[arguments, keyword arguments]``, where that was asked for with ``plain``."""


class LogRecord(Record):
    """One piece of output as it was read: ``stream`` is ``stdout``, ``stderr`` or ``system`` (our own notes).

    ``text`` may hold several lines or a part of one.
    """

    at: str
    stream: str
    text: str
    attempt: int = 1


# --- workers --------------------------------------------------------------------------------------------


class ExchangeRequest(Record):
    """Body of ``POST /v1/worker/exchange``, the only request without a token.

    The claim code is used up by the first nonce; the same nonce again gets the same answer (a lost one can be
    asked for), another is refused.
    """

    worker_id: str
    claim_code: str
    nonce: str


class Assignment(Record):
    """What a worker is for. ``kind`` is ``invocation`` or ``describe``; the rest of the fields that an
    invocation has are empty for a describe.

    With a ``function`` and no ``execution_id`` the worker was started ahead: it imports ``main.py`` and asks for its first task."""

    token: str
    kind: str
    project: str
    version_id: str
    bundle_digest: str
    dotenv: Dict[str, str]
    function: str = ""
    execution_id: str = ""
    invocation_id: str = ""
    attempt: int = 1
    input: str = ""
    timeout_s: float = 3600.0
    grace_s: float = 120.0
    memory_mib: int = 256
    log_limit_bytes: int = 64 * 1024 * 1024
    first_value_number: int = 1
    """Number of the next yielded value: they run on over attempts."""
    max_invocations: int = 1
    """How many invocations the worker may serve, one after another, before it exits; 0 is no limit."""


class Task(Record):
    """An invocation that is handed to a worker which is there: its execution has started with this answer, without a claim.

    It is of the function and version of the worker's `Assignment`, whose limits hold for it too.
    """

    number: int
    """It is the worker's so-manyth, from 1."""
    execution_id: str
    invocation_id: str
    attempt: int = 1
    input: str = ""
    first_value_number: int = 1
    variables: Optional[Dict[str, str]] = None
    """Put into the environment for this invocation alone: those of a trace."""


class Claim(Record):
    """Body of ``POST /v1/worker/claim``: ``main.py`` is imported, the code starts when this is answered.

    ``import_ms`` is how long the import took. Asking again gets the same answer.
    """

    execution_id: str
    import_ms: float = 0.0


class ExecutionEnd(Record):
    """How an execution ended, as its worker saw it.

    ``outcome`` is ``succeeded``, ``failed``, ``cancelled``, ``timed_out``, ``lost`` (a child that died without a
    result, a SIGTERM from outside) or ``unstarted`` (a `Task` that no code has seen: it is given back, and costs no
    attempt). ``result`` only with a returned value.
    """

    outcome: str
    result: Optional[str] = None
    error: Optional[FunctionError] = None
    retryable: bool = True
    """False where ``retry_on`` or ``no_retry_on`` say that a retry is pointless."""
    exit_code: Optional[int] = None
    signal: Optional[int] = None
    peak_memory_bytes: Optional[int] = None
    run_ms: Optional[float] = None


class Report(Record):
    """Body of ``POST /v1/worker/report``. Values and end may be sent twice: twice changes nothing.

    ``end`` may come without a claim where the import of ``main.py`` failed.
    """

    execution_id: str
    values: Optional[List[Value]] = None
    end: Optional[ExecutionEnd] = None


class NextRequest(Record):
    """Body of ``POST /v1/worker/next``, held open up to ``wait_s``: ends what the worker has done and asks for more.

    Asking again with the same ``number`` gets the same tasks, and ends may be sent twice: a lost answer can be asked for.
    With a ``wait_s`` of 0 it may be sent while tasks run: then it tells ends, and gets more where there are more.
    A worker that was made for an execution asks first for number 2, one that was started ahead for number 1.
    """

    number: int
    """Of the first task that it asks for: one more than it was handed so far."""
    most: int = 1
    """How many it would take at once; it runs them one after another."""
    reports: Optional[List[Report]] = None
    """The last ones of executions, each with its end; nothing of them is left in the worker."""
    import_ms: float = 0.0
    wait_s: float = 25.0


class Next(Record):
    """Answer of ``POST /v1/worker/next``: tasks, or none after ``wait_s``, or the order to leave."""

    tasks: Optional[List[Task]] = None
    leave: bool = False
    """There will be no more: the worker exits."""


class Watch(Record):
    """Body of ``POST /v1/worker/watch``, held open up to ``wait_s``; each one renews the lease."""

    execution_id: str
    wait_s: float = 25.0


class Order(Record):
    """Answer of claim, report and watch: ``order`` is None or ``cancel``."""

    order: Optional[str] = None


class Described(Record):
    """Body of ``POST /v1/worker/described``: the functions, or why ``main.py`` could not be imported."""

    functions: Optional[List[FunctionDescription]] = None
    error: Optional[ErrorBody] = None


class Empty(Record):
    """An answer that says only that it worked."""
