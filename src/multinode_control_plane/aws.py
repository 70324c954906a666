"""AWS as the control plane asks it: one `Service` for each, and what its refusals mean. The one module of runners that knows boto3.

Region, login and endpoint come from AWS's usual places: ``AWS_REGION``, ``AWS_PROFILE``, the role of the task or machine.
Everything here blocks.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from multinode.errors import AwsFailed, MissingExtra
from multinode_engine.registries import MissingRight, missing_right

CONNECT_S = 5.0
ANSWER_S = 20.0
ATTEMPTS = 5
"""Of one call, with boto3's own pauses between them (standard mode: up to 20 s, with jitter)."""

_DENIED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "AuthorizationError")
_NO_LOGIN = (
    "ExpiredToken", "ExpiredTokenException", "InvalidClientTokenId", "InvalidSignatureException", "RequestExpired",
    "SignatureDoesNotMatch", "UnrecognizedClientException", "IncompleteSignature", "MissingAuthenticationToken",
)  # fmt: skip
_THROTTLED = (
    "Throttling", "ThrottlingException", "ThrottledException", "RequestThrottled", "RequestThrottledException",
    "TooManyRequestsException", "RequestLimitExceeded", "BandwidthLimitExceeded", "SlowDown", "EC2ThrottledException",
)  # fmt: skip
_THROTTLED_WORDS = re.compile(r"rate exceeded|throttl|too many requests", re.IGNORECASE)
"""ECS wraps a throttle of a service behind it in a code of its own: ``ClientException: Rate exceeded``."""
_CURES = {"ClusterNotFoundException": "Is --ecs-cluster right, and AWS_REGION?"}
_LOGIN_CURE = (
    "Give the control plane a role (of its task, or of its machine), or AWS_PROFILE, or AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY. Who deploys needs none."
)


class Service:
    """One AWS service (``ecr``, ``ecs``, ``logs``, …) in the region of this process. From any thread."""

    def __init__(self, name: str, *, attempts: int = ATTEMPTS) -> None:
        self.name = name
        self._attempts = attempts
        self._client: Any = None
        self._making = threading.Lock()

    @property
    def region(self) -> str:
        """``eu-west-1``. Raises AwsFailed where none is set."""
        return str(self._made().meta.region_name)

    def call(self, operation: str, what: str, **arguments: Any) -> dict[str, Any]:
        """The answer to ``describe_images(…)`` and the like. ``what`` begins the message of a failure: ``The image is not found``.

        Raises AwsFailed, after it was tried again where that may help: throttled, unanswered, or AWS's own fault.
        """
        client = self._made()
        action = f"{self.name}:{client.meta.method_to_api_mapping[operation]}"
        with _told(what, action, self.name, str(client.meta.region_name)):
            answer: dict[str, Any] = getattr(client, operation)(**arguments)
            return answer

    def _made(self) -> Any:
        with self._making:
            if self._client is None:
                self._client = self._make()
            return self._client

    def _make(self) -> Any:
        try:
            import boto3  # lazy: half a second, and an extra
            from botocore import exceptions as foreign
            from botocore.config import Config
        except ImportError as error:
            from multinode.distribution import install_command

            message = f"AWS needs boto3, which is not installed here ({error})."
            raise MissingExtra(message, f"Install it with: {install_command('aws')}") from error
        config = Config(
            connect_timeout=CONNECT_S,
            read_timeout=ANSWER_S,
            retries={"mode": "standard", "total_max_attempts": self._attempts},
        )
        with _told(f"AWS's {self.name} cannot be used", "", self.name, ""):
            # A session of its own: the default one is not for several threads. Unlike AWS's other libraries, and unlike what
            # Fargate sets, boto3 knows only AWS_DEFAULT_REGION.
            session = boto3.session.Session(region_name=os.environ.get("AWS_REGION") or None)
            if not session.region_name:
                raise foreign.NoRegionError
            return session.client(self.name, config=config)

    def close(self) -> None:
        """Ends its connections."""
        with self._making:
            if self._client is not None:
                self._client.close()
            self._client = None


@contextmanager
def _told(what: str, action: str, service: str, region: str) -> Iterator[None]:
    from botocore import exceptions as foreign

    no_login = (
        foreign.NoCredentialsError,
        foreign.PartialCredentialsError,
        foreign.CredentialRetrievalError,
        foreign.MetadataRetrievalError,
        foreign.ProfileNotFound,
        foreign.TokenRetrievalError,
        foreign.SSOError,
    )
    try:
        yield
    except foreign.ClientError as error:
        raise refused(error.response, what, action) from error
    except no_login as error:
        message = f"{what}: the control plane has no AWS credentials ({error})."
        raise AwsFailed(message, _LOGIN_CURE, reason="NoCredentials") from error
    except (foreign.NoRegionError, foreign.InvalidRegionError) as error:
        message = f"{what}: the control plane's AWS region is not set, or is none ({error})."
        raise AwsFailed(message, "Set AWS_REGION where it runs.", reason="NoRegion") from error
    except foreign.ParamValidationError as error:
        message = f"{what}: {error}."
        raise AwsFailed(message, reason="ParamValidation") from error
    except foreign.BotoCoreError as error:  # what is left are connections
        message = f"{what}: AWS's {service} in {region or 'this region'} does not answer: {str(error).rstrip('.')}."
        hint = (
            "Is AWS_REGION right, and does the control plane's network have a way there: to the internet, "
            f"or a VPC endpoint for {service}?"
        )
        raise AwsFailed(message, hint, reason="Away", is_passing=True) from error


def refused(answer: dict[str, Any], what: str, action: str) -> AwsFailed:
    """What a refusal of AWS means: ``answer`` is that of botocore's ClientError, ``action`` the call as IAM names it. Pure."""
    error = answer.get("Error", {})
    code, words = str(error.get("Code", "")), str(error.get("Message", "")).strip().rstrip(".")
    status = int(answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))
    if code in _NO_LOGIN:
        message = f"{what}: AWS does not accept the control plane's credentials ({code}: {words})."
        return AwsFailed(message, _LOGIN_CURE, reason=code)
    if code in _DENIED or (status == 403 and code in ("403", "")):
        return _denied(what, action, code, words)
    if code in _THROTTLED or status == 429 or _THROTTLED_WORDS.search(words):
        message = f"{what}: AWS has had too many requests ({code}: {words})."
        return AwsFailed(message, "Later it will do.", reason="Throttled", is_passing=True)
    if status >= 500:
        message = f"{what}: AWS failed ({code}: {words})."
        return AwsFailed(message, "Later it may do.", reason=code, is_passing=True)
    message = f"{what}: AWS refuses {action} ({code}: {words})."
    return AwsFailed(message, _CURES.get(code, ""), reason=code)


def _denied(what: str, action: str, code: str, words: str) -> AwsFailed:
    """Names what the role lacks, as AWS says it where it does."""
    lacking = missing_right(words) or MissingRight(action)
    message = f"{what}: the control plane's AWS role may not {lacking.action}."
    hint = f"Add to the role's policy: {lacking.statement}. AWS says: {words or code}."
    if "explicit deny" in words:
        hint = f"A policy denies it: {words}."
    return AwsFailed(message, hint, reason="AccessDenied")
