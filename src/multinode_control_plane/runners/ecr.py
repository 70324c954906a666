"""Amazon's registry (ECR): a repository of one installation, and short-lived logins for those who deploy. See ``Repository``.

Who deploys needs no login of AWS: the control plane, which has one, hands out what ECR gives it. Tags begin with the name of the
installation that has pushed them: what others have in the same repository is not seen.
"""

from __future__ import annotations

import base64
import json
import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Any

from multinode.errors import AwsFailed
from multinode.wire import Finding, Registry
from multinode_control_plane.aws import Service
from multinode_control_plane.runners.images import PlacedImage, pushed_tag
from multinode_control_plane.runners.registry import RegistryAway

log = logging.getLogger(__name__)

_OF_ENVIRONMENT = r"[0-9a-f]{64}(-[0-9a-f]{12})?"
"""In tags: the environment's digest; with the image's where that was made anew."""
RENEWAL_S = 5.0
"""A login that is younger is not made anew, however often it is said to be refused: it is not its age that is wrong."""
UNTAGGED_DAYS = 14
LIFECYCLE = {
    "rules": [
        {
            "rulePriority": 1,
            "description": "What pushes that broke off have left",
            "selection": {
                "tagStatus": "untagged",
                "countType": "sinceImagePushed",
                "countUnit": "days",
                "countNumber": UNTAGGED_DAYS,
            },
            "action": {"type": "expire"},
        }
    ]
}
"""Never by how many there are: the oldest image may be that of a version which is in use."""
_MISSING = "RepositoryNotFoundException"


def good_until(made_at: float, expires_at: float) -> float:
    """Until when a login is handed out: for half its life, so that whoever gets it has the other half. Unix times. Pure."""
    return made_at + max(0.0, expires_at - made_at) / 2


class EcrRepository:
    """The repository ``name`` in the account and region of this process. With ``makes_it`` it is made where it is missing."""

    def __init__(
        self, name: str, *, makes_it: bool = False, clock: Callable[[], float] = time.time
    ) -> None:
        self.name = name
        self._makes_it = makes_it
        self._clock = clock
        self._service = Service("ecr")
        self._lock = threading.Lock()
        self._uri = ""
        self._login: Registry | None = None
        self._made_at = 0.0
        self._good_until = 0.0

    # --- logins ----------------------------------------------------------------------------------------

    def login(self, *, is_refused: bool = False) -> Registry:
        """See ``Repository.login``. Raises AwsFailed."""
        with self._lock:
            now = self._clock()
            is_good = now < self._good_until
            if is_refused and now - self._made_at > RENEWAL_S:
                is_good = False
            if self._login is None or not is_good:
                self._renew(now)
            assert self._login is not None
            return self._login

    def _renew(self, now: float) -> None:
        uri = self._uri or self._found()
        what = f"No login for the ECR repository {self.name} can be had"
        (given,) = self._service.call("get_authorization_token", what)["authorizationData"]
        # The password may have colons.
        user, _, password = base64.b64decode(given["authorizationToken"]).decode().partition(":")
        self._login = Registry(uri, user, password)
        self._made_at, self._good_until = now, good_until(now, _unix_time(given["expiresAt"]))

    def _address(self) -> str:
        with self._lock:
            return self._uri or self._found()

    def _found(self) -> str:
        """Its address, as AWS gives it; made where it is missing and may be."""
        try:
            uri = str(self._described()["repositoryUri"])
        except AwsFailed as error:
            if error.reason != _MISSING:
                raise
            if not self._makes_it:
                where = f"There is no ECR repository {self.name} in {self._service.region}."
                cure = "Make it with Terraform, or let the control plane make it: MULTINODE_REGISTRY_CREATE=1."
                raise AwsFailed(where, cure, reason=error.reason) from error
            uri = self._make()
        if self._makes_it and not self._has_lifecycle_policy():
            what = f"The ECR repository {self.name} cannot be given a lifecycle policy"
            text = json.dumps(LIFECYCLE)
            arguments = {"repositoryName": self.name, "lifecyclePolicyText": text}
            self._service.call("put_lifecycle_policy", what, **arguments)
        self._uri = uri
        return uri

    def _described(self) -> dict[str, Any]:
        what = f"The ECR repository {self.name} cannot be looked at"
        answer = self._service.call("describe_repositories", what, repositoryNames=[self.name])
        described: dict[str, Any] = answer["repositories"][0]
        return described

    def _make(self) -> str:
        what = f"The ECR repository {self.name} cannot be made"
        arguments = {"repositoryName": self.name, "imageTagMutability": "IMMUTABLE"}
        try:
            made = self._service.call("create_repository", what, **arguments)["repository"]
        except AwsFailed as error:
            if error.reason != "RepositoryAlreadyExistsException":
                raise
            made = self._described()  # another process was faster
        log.info("made the ECR repository %s", made["repositoryUri"])
        return str(made["repositoryUri"])

    # --- images ----------------------------------------------------------------------------------------

    def find(self, image: str) -> PlacedImage | None:
        """What ECR has as ``repository@sha256:…``, with the names ``repository:tag`` too; None where it has nothing."""
        address, _, digest = image.partition("@")
        if address != self._address():
            return None
        what = f"The image {image} cannot be looked at"
        try:
            answer = self._service.call(
                "describe_images",
                what,
                repositoryName=self.name,
                imageIds=[{"imageDigest": digest}],
            )
        except AwsFailed as error:
            if error.reason in ("ImageNotFoundException", _MISSING):
                return None
            raise
        return self._placed(answer["imageDetails"][0])

    def images(self, installation: str) -> list[PlacedImage]:
        """See ``Repository.images``: what has no tag is left to the lifecycle policy."""
        own = re.compile(pushed_tag(re.escape(installation), _OF_ENVIRONMENT))
        return [
            self._placed(detail)
            for detail in self._details()
            if any(own.fullmatch(tag) for tag in detail.get("imageTags", ()))
        ]

    def _details(self) -> Iterator[dict[str, Any]]:
        token: dict[str, str] = {}
        while True:
            try:
                answer = self._service.call(
                    "describe_images",
                    f"The images in the ECR repository {self.name} cannot be listed",
                    repositoryName=self.name,
                    filter={"tagStatus": "TAGGED"},
                    maxResults=1000,
                    **token,
                )
            except AwsFailed as error:
                if error.reason == _MISSING:
                    return
                raise
            yield from answer["imageDetails"]
            if not answer.get("nextToken"):
                return
            token = {"nextToken": answer["nextToken"]}

    def _placed(self, detail: dict[str, Any]) -> PlacedImage:
        uri = self._address()
        name = f"{uri}@{detail['imageDigest']}"
        tags = [f"{uri}:{tag}" for tag in detail.get("imageTags", ())]
        times = (detail.get("imagePushedAt"), detail.get("lastRecordedPullTime"))
        used_at = max((_unix_time(at) for at in times if at), default=self._clock())
        size_bytes = int(detail.get("imageSizeInBytes", 0))
        return PlacedImage(name, frozenset((name, *tags)), size_bytes, used_at)

    def remove(self, image: str) -> str:
        """See ``Repository.remove``."""
        address, _, digest = image.partition("@")
        if address != self._address():
            return f"{image} is in another repository than {self.name}: remove it there."
        what = f"The image {image} cannot be removed"
        try:
            answer = self._service.call(
                "batch_delete_image",
                what,
                repositoryName=self.name,
                imageIds=[{"imageDigest": digest}],
            )
        except AwsFailed as error:
            if error.reason == _MISSING:
                return ""
            if error.is_passing:
                raise RegistryAway(str(error)) from error
            raise
        left = [each for each in answer.get("failures", ()) if not _is_gone(each)]
        if not left:
            return ""
        reason = str(left[0].get("failureReason") or left[0].get("failureCode")).rstrip(".")
        return f"The ECR repository {self.name} keeps it: {reason}."

    def close(self) -> None:
        """Ends its connections."""
        self._service.close()

    # --- doctor ----------------------------------------------------------------------------------------

    def checks(self) -> list[Finding]:
        """See ``Repository.checks``."""
        check = "ECR repository"
        try:
            uri = self.login(is_refused=True).repository
            described = self._described()
            has_policy = self._has_lifecycle_policy()
        except AwsFailed as error:
            return [Finding(check, "FAIL", error.message, error.hint)]
        lacking = []
        if not str(described.get("imageTagMutability", "")).startswith("IMMUTABLE"):
            lacking.append("its tags can be changed: set its tag mutability to IMMUTABLE")
        if not has_policy:
            lacking.append("it has no lifecycle policy: let untagged images expire")
        if lacking:
            return [Finding(check, "note", f"{uri} lets us in", f"But {'; '.join(lacking)}.")]
        return [Finding(check, "ok", f"{uri} lets us in")]

    def _has_lifecycle_policy(self) -> bool:
        what = f"The lifecycle policy of the ECR repository {self.name} cannot be looked at"
        try:
            self._service.call("get_lifecycle_policy", what, repositoryName=self.name)
        except AwsFailed as error:
            if error.reason == "LifecyclePolicyNotFoundException":
                return False
            if error.reason == "AccessDenied":  # it needs that for nothing else
                return True
            raise
        return True


def _is_gone(failure: dict[str, Any]) -> bool:
    return failure.get("failureCode") in ("ImageNotFound", "ImageTagDoesNotMatchDigest")


def _unix_time(at: datetime | float) -> float:
    return at.timestamp() if isinstance(at, datetime) else float(at)
