"""Every error that Multinode raises, one tree, each with a stable ``code``.

    MultinodeError (Exception)
    ├── InputError                          what was given is wrong; nothing was changed
    │   ├── ParameterValidationError        a setting of @mn.function() out of bounds or of a wrong type
    │   ├── ArgumentsError                  arguments that do not fit the function's signature
    │   ├── EncodingError                   a value that cannot be encoded, or would not come back the same
    │   ├── FunctionInputSizeLimitExceeded  arguments longer than 250,000 characters
    │   ├── FunctionOutputSizeLimitExceeded result longer than 250,000 characters
    │   ├── DecodingError                   a value whose class this program does not have
    │   ├── InvalidName                     a project or function name that is not allowed
    │   ├── InvalidTasks                    something in tasks/ or multinode.toml is wrong
    │   ├── InvalidRequest                  a request that the control plane cannot read
    │   ├── RequestTooLarge                 a request whose body is over its limit
    │   ├── BundleTooLarge                  the files of tasks/ are over 100 MiB
    │   ├── EnvironmentBuildFailed          requirements that do not resolve or install
    │   ├── PythonMissing                   no Python that the environment asks for
    │   └── ImportFailed                    main.py raised while it was imported
    ├── NotFound
    │   ├── ProjectNotFound  VersionNotFound  FunctionNotFound  InvocationNotFound  ExecutionNotFound
    │   └── EnvironmentNotFound  BundleNotFound  KeyNotFound  ProfileNotFound
    ├── Conflict
    │   ├── ProjectBeingDeleted             a project that takes no new work
    │   ├── IdempotencyConflict             the same key with another input
    │   ├── ClaimRefused                    an execution or worker that this token may no longer act for
    │   └── NotEnded                        an invocation that has no result yet
    ├── AccessError
    │   ├── NotLoggedIn                     no credentials, or a key that is wrong or revoked
    │   │   └── TooManyWrongKeys            a wrong key, after many from the same address
    │   ├── NotAllowed                      a key whose role does not permit this, or a foreign Host
    │   └── TooManyRequests                 too many open requests with one key
    ├── ControlPlaneError
    │   ├── ControlPlaneUnreachable         no answer within MULTINODE_RETRY_SECONDS
    │   ├── UnexpectedAnswer                something that is no Multinode control plane answered
    │   ├── IncompatibleVersion             a control plane of another major version
    │   ├── StorageFull                     the disk or database of the control plane, or a Docker engine's disk, is full
    │   ├── ServerStopping                  the control plane is shutting down
    │   ├── NotReady                        a control plane that cannot serve now, as `/readyz` says
    │   ├── StoreUnreachable                the control plane's database does not answer
    │   ├── AwsFailed                       AWS did not do what the control plane asked it for
    │   └── InternalError                   a fault of the control plane itself
    ├── OperationFailed                     a command that could not do what it was asked for
    │   ├── InvocationFailedError           the invocation ended FAILED
    │   ├── MissingExtra                    a part of Multinode that is not installed
    │   ├── EngineUnavailable               no Docker engine that this user may use
    │   ├── RegistryFailed                  a registry that is away, or refuses an image
    │   └── ServerStartFailed               the local control plane did not come up
    ├── RemoteInvocationCancelledError      (also an InvocationCancelledError)
    └── RemoteInvocationTimedOutError       (also an InvocationTimedOutError)

    InvocationInterrupted (BaseException)
    ├── InvocationCancelledError            raised inside a function that is cancelled
    └── InvocationTimedOutError             raised inside a function whose timeout is over

The last two are no ``Exception`` inside a function, so that a plain ``except Exception`` does not swallow
them, as with ``asyncio.CancelledError``. What ``await_result`` raises to a caller are their *Remote*
subclasses, which are ``Exception`` as well.

``HTTP_STATUS`` and ``EXIT_CODE`` are the only places that say how an error travels and ends.
"""

from __future__ import annotations


class MultinodeError(Exception):
    """Base of all: ``message`` says what happened to what, ``hint`` what to do next."""

    code = "error"

    def __init__(self, message: str, hint: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message} {self.hint}".strip()

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.message, self.hint), self.__dict__)


class InputError(MultinodeError):
    """What was given is wrong; nothing was changed."""

    code = "invalid_input"


class ParameterValidationError(InputError):
    """A setting of ``@mn.function()`` is out of bounds, of a wrong type or in an unknown unit."""

    code = "invalid_setting"


class ArgumentsError(InputError, TypeError):
    """The arguments do not fit the function's signature."""

    code = "invalid_arguments"


class EncodingError(InputError):
    """A value cannot be encoded with jsonpickle, or would not come back as it was."""

    code = "cannot_encode"


class DecodingError(InputError):
    """A value cannot be decoded here, as a rule because this program lacks its class."""

    code = "cannot_decode"


class FunctionInputSizeLimitExceeded(InputError):
    """The encoded arguments are longer than 250,000 characters."""

    code = "input_too_long"


class FunctionOutputSizeLimitExceeded(InputError):
    """The encoded result or yielded value is longer than 250,000 characters."""

    code = "output_too_long"


class InvalidName(InputError):
    """A project or function name that is not allowed."""

    code = "invalid_name"


class InvalidTasks(InputError):
    """Something in ``tasks/`` or ``multinode.toml`` is wrong."""

    code = "invalid_tasks"


class InvalidRequest(InputError):
    """A request that the control plane cannot read."""

    code = "invalid_request"


class RequestTooLarge(InputError):
    """A request's body is over the limit of what it asks for."""

    code = "request_too_large"


class BundleTooLarge(InputError):
    """The files of ``tasks/`` are over 100 MiB."""

    code = "bundle_too_large"


class EnvironmentBuildFailed(InputError):
    """The environment's requirements do not resolve or install."""

    code = "environment_build_failed"


class PythonMissing(InputError):
    """No Python that the environment asks for can be had."""

    code = "python_missing"


class ImportFailed(InputError):
    """``main.py`` raised while it was imported in its environment, or defines its functions wrongly."""

    code = "import_failed"


class NotFound(MultinodeError):
    """What was named does not exist."""

    code = "not_found"


class ProjectNotFound(NotFound):
    """No project of this name."""

    code = "project_not_found"


class VersionNotFound(NotFound):
    """No version of this id in the project."""

    code = "version_not_found"


class FunctionNotFound(NotFound):
    """No function of this name in the version."""

    code = "function_not_found"


class InvocationNotFound(NotFound):
    """No invocation of this id."""

    code = "invocation_not_found"


class ExecutionNotFound(NotFound):
    """No execution or attempt of this id or number."""

    code = "execution_not_found"


class EnvironmentNotFound(NotFound):
    """No environment of this digest."""

    code = "environment_not_found"


class BundleNotFound(NotFound):
    """No bundle of this SHA-256."""

    code = "bundle_not_found"


class KeyNotFound(NotFound):
    """No API key of this name."""

    code = "key_not_found"


class ProfileNotFound(NotFound):
    """No profile of this name in ``credentials.json``."""

    code = "profile_not_found"


class Conflict(MultinodeError):
    """The state of what was named does not permit this."""

    code = "conflict"


class ProjectBeingDeleted(Conflict):
    """The project is being deleted and takes no new work."""

    code = "project_being_deleted"


class IdempotencyConflict(Conflict):
    """The idempotency key was used within 24 hours with another input."""

    code = "idempotency_conflict"


class ClaimRefused(Conflict):
    """The execution or worker has ended, or belongs to another token."""

    code = "claim_refused"


class NotEnded(Conflict):
    """The invocation has not ended yet."""

    code = "not_ended"


class AccessError(MultinodeError):
    """The control plane does not let this caller in. ``retry_after_s``: in how many seconds it may, where that is a matter of time."""

    code = "access_denied"

    def __init__(
        self, message: str = "", hint: str = "", *, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message, hint)
        self.retry_after_s = retry_after_s


class NotLoggedIn(AccessError):
    """No credentials, or a key that is wrong or revoked."""

    code = "not_logged_in"


class TooManyWrongKeys(NotLoggedIn):
    """A wrong key, after too many wrong ones from the same address: the next one is looked at when ``Retry-After`` is over. A valid key is never refused so."""

    code = "too_many_wrong_keys"


class NotAllowed(AccessError):
    """The key's role or the token does not permit this, or the Host or Origin header is foreign."""

    code = "not_allowed"


class TooManyRequests(AccessError):
    """Too many requests are open with one key; the header ``Retry-After`` says when to ask again."""

    code = "too_many_requests"


class ControlPlaneError(MultinodeError):
    """The control plane did not do its part."""

    code = "control_plane_error"


class ControlPlaneUnreachable(ControlPlaneError):
    """No answer within ``MULTINODE_RETRY_SECONDS``."""

    code = "unreachable"


class UnexpectedAnswer(ControlPlaneError):
    """Something that is no Multinode control plane answered, for example a proxy's HTML page."""

    code = "unexpected_answer"


class IncompatibleVersion(ControlPlaneError):
    """The control plane is of another major version."""

    code = "incompatible_version"


class StorageFull(ControlPlaneError):
    """The control plane's disk or database is full, or the disk of the Docker engine that builds."""

    code = "storage_full"


class ServerStopping(ControlPlaneError):
    """The control plane is shutting down; ask again."""

    code = "server_stopping"


class NotReady(ControlPlaneError):
    """A control plane that starts, stops, or whose store does not answer; what ``/readyz`` says."""

    code = "not_ready"


class StoreUnreachable(ControlPlaneError):
    """The control plane's database does not answer; ask again."""

    code = "store_unreachable"


class AwsFailed(ControlPlaneError):
    """AWS did not do what the control plane asked it for: a right or a login that is missing, no answer, too many requests.

    ``reason`` is AWS's own code, or ``AccessDenied``, ``Throttled``, ``NoCredentials``, ``NoRegion``, ``Away`` for all of a kind;
    ``is_passing``: the same may do later.
    """

    code = "aws_failed"

    def __init__(
        self, message: str, hint: str = "", *, reason: str = "", is_passing: bool = False
    ) -> None:
        super().__init__(message, hint)
        self.reason = reason
        self.is_passing = is_passing


class InternalError(ControlPlaneError):
    """A fault of the control plane itself; its log has the traceback."""

    code = "internal_error"


class OperationFailed(MultinodeError):
    """What was asked for was tried and did not succeed."""

    code = "failed"


class MissingExtra(OperationFailed):
    """A part of Multinode that is not installed; the hint is the command that installs it."""

    code = "missing_extra"


class EngineUnavailable(OperationFailed):
    """No Docker engine answers, or this user may not use it."""

    code = "engine_unavailable"


class RegistryFailed(OperationFailed):
    """A registry of images is away, lets nobody in, or refused an image."""

    code = "registry_failed"


class ServerStartFailed(OperationFailed):
    """The local control plane did not come up."""

    code = "server_start_failed"


class InvocationFailedError(OperationFailed):
    """The invocation ended FAILED.

    ``error_type`` and ``traceback`` are those of the exception in the function; both are empty for a lost
    worker, whose end the message tells.
    """

    code = "invocation_failed"

    def __init__(
        self,
        message: str,
        hint: str = "",
        *,
        invocation_id: str = "",
        error_type: str = "",
        traceback: str = "",
    ) -> None:
        super().__init__(message, hint)
        self.invocation_id = invocation_id
        self.error_type = error_type
        self.traceback = traceback


class InvocationInterrupted(BaseException):
    """Base of what is raised inside a function that has to end early."""

    code = "interrupted"

    def __init__(self, message: str = "", *, invocation_id: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.invocation_id = invocation_id

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.message,), self.__dict__)


class InvocationCancelledError(InvocationInterrupted):
    """Inside a function: it is cancelled. From ``await_result``: the invocation ended CANCELLED."""

    code = "invocation_cancelled"


class InvocationTimedOutError(InvocationInterrupted):
    """Inside a function: its timeout is over. From ``await_result``: the invocation ended TIMED_OUT."""

    code = "invocation_timed_out"


class RemoteInvocationCancelledError(InvocationCancelledError, MultinodeError):
    """What ``await_result`` raises for an invocation that ended CANCELLED."""

    def __init__(self, message: str = "", hint: str = "", *, invocation_id: str = "") -> None:
        MultinodeError.__init__(self, message, hint)
        self.invocation_id = invocation_id


class RemoteInvocationTimedOutError(InvocationTimedOutError, MultinodeError):
    """What ``await_result`` raises for an invocation that ended TIMED_OUT."""

    def __init__(self, message: str = "", hint: str = "", *, invocation_id: str = "") -> None:
        MultinodeError.__init__(self, message, hint)
        self.invocation_id = invocation_id


HTTP_STATUS: dict[str, int] = {
    "error": 500,
    "invalid_input": 422,
    "invalid_setting": 422,
    "invalid_arguments": 422,
    "cannot_encode": 422,
    "cannot_decode": 422,
    "input_too_long": 413,
    "output_too_long": 413,
    "invalid_name": 422,
    "invalid_tasks": 422,
    "invalid_request": 422,
    "request_too_large": 413,
    "bundle_too_large": 413,
    "environment_build_failed": 422,
    "python_missing": 422,
    "import_failed": 422,
    "not_found": 404,
    "project_not_found": 404,
    "version_not_found": 404,
    "function_not_found": 404,
    "invocation_not_found": 404,
    "execution_not_found": 404,
    "environment_not_found": 404,
    "bundle_not_found": 404,
    "key_not_found": 404,
    "profile_not_found": 404,
    "conflict": 409,
    "project_being_deleted": 409,
    "idempotency_conflict": 409,
    "claim_refused": 409,
    "not_ended": 409,
    "access_denied": 403,
    "not_logged_in": 401,
    "not_allowed": 403,
    "too_many_wrong_keys": 429,
    "too_many_requests": 429,
    "control_plane_error": 500,
    "unreachable": 503,
    "unexpected_answer": 502,
    "incompatible_version": 400,
    "storage_full": 507,
    "server_stopping": 503,
    "not_ready": 503,
    "store_unreachable": 503,
    "aws_failed": 500,
    "internal_error": 500,
    "failed": 500,
    "missing_extra": 500,
    "engine_unavailable": 503,
    "registry_failed": 502,
    "server_start_failed": 500,
    "invocation_failed": 409,
    "interrupted": 409,
    "invocation_cancelled": 409,
    "invocation_timed_out": 409,
}
"""The HTTP status with which the control plane answers an error of each code."""

EXIT_CODE: dict[str, int] = {
    "error": 1,
    "invalid_input": 2,
    "invalid_setting": 2,
    "invalid_arguments": 2,
    "cannot_encode": 2,
    "cannot_decode": 2,
    "input_too_long": 2,
    "output_too_long": 2,
    "invalid_name": 2,
    "invalid_tasks": 2,
    "invalid_request": 2,
    "request_too_large": 2,
    "bundle_too_large": 2,
    "environment_build_failed": 2,
    "python_missing": 2,
    "import_failed": 2,
    "not_found": 3,
    "project_not_found": 3,
    "version_not_found": 3,
    "function_not_found": 3,
    "invocation_not_found": 3,
    "execution_not_found": 3,
    "environment_not_found": 3,
    "bundle_not_found": 3,
    "key_not_found": 3,
    "profile_not_found": 3,
    "conflict": 1,
    "project_being_deleted": 1,
    "idempotency_conflict": 2,
    "claim_refused": 1,
    "not_ended": 1,
    "access_denied": 4,
    "not_logged_in": 4,
    "not_allowed": 4,
    "too_many_wrong_keys": 4,
    "too_many_requests": 5,
    "control_plane_error": 1,
    "unreachable": 5,
    "unexpected_answer": 5,
    "incompatible_version": 5,
    "storage_full": 1,
    "server_stopping": 5,
    "not_ready": 5,
    "store_unreachable": 5,
    "aws_failed": 1,
    "internal_error": 1,
    "failed": 1,
    "missing_extra": 1,
    "engine_unavailable": 1,
    "registry_failed": 1,
    "server_start_failed": 1,
    "invocation_failed": 1,
    "interrupted": 1,
    "invocation_cancelled": 1,
    "invocation_timed_out": 1,
}
"""The exit code with which the command line ends on an error of each code; 130 is an interrupt's."""


def by_code() -> dict[str, type[MultinodeError]]:
    """Each ``code`` with the class that a client raises for it."""
    found: dict[str, type[MultinodeError]] = {}
    queue: list[type[MultinodeError]] = [MultinodeError]
    while queue:
        cls = queue.pop()
        found.setdefault(cls.code, cls)
        queue.extend(cls.__subclasses__())
    return found
