"""ECR with a registry behind it: what is pushed there is an image here, and what is deleted here is gone there."""

from __future__ import annotations

import base64
import time
from typing import Any

import httpx
from tests.aws.calls import ACCOUNT, REGION, AwsError, Call, Moto

MANIFESTS = ", ".join(
    f"application/vnd.{kind}+json"
    for kind in (
        "docker.distribution.manifest.v2",
        "docker.distribution.manifest.list.v2",
        "oci.image.manifest.v1",
        "oci.image.index.v1",
    )
)
TOKEN_S = 12 * 3600.0
_HOST = f"{ACCOUNT}.dkr.ecr.{REGION}.amazonaws.com"
_LOOKS = ("DescribeImages", "ListImages", "BatchGetImage", "BatchDeleteImage")


class Ecr:
    """``registry`` is ``host:port``; ``password`` what its tokens hold."""

    def __init__(self, moto: Moto, registry: str, password: str) -> None:
        self._moto = moto
        self._registry = registry
        self.password = password

    def handle(self, call: Call) -> dict[str, Any]:
        """Answers a call of ECR's. Raises AwsError."""
        if call.operation == "GetAuthorizationToken":
            return {"authorizationData": [self._token()]}
        name = call.body.get("repositoryName", "")
        if call.operation in _LOOKS:
            self._take_over(name)
        answer = self._moto.ask("ecr", call.operation, call.body)
        if call.operation == "BatchDeleteImage":
            for item in answer.get("imageIds", []):
                self._ask("DELETE", name, f"manifests/{item['imageDigest']}")
        return self._renamed(answer)

    def _token(self) -> dict[str, Any]:
        token = base64.b64encode(f"AWS:{self.password}".encode()).decode()
        endpoint = f"http://{self._registry}"
        expires_at = time.time() + TOKEN_S
        return {"authorizationToken": token, "expiresAt": expires_at, "proxyEndpoint": endpoint}

    def _take_over(self, name: str) -> None:
        """Tells moto of each tag that was pushed since."""
        try:
            listed = self._moto.ask("ecr", "ListImages", {"repositoryName": name})
        except AwsError:  # no such repository: the call itself says so
            return
        known = {item.get("imageTag") for item in listed["imageIds"]}
        found = self._ask("GET", name, "tags/list")
        tags = (found.json().get("tags") or []) if found.status_code == 200 else []
        for tag in set(tags) - known:
            manifest = self._ask("GET", name, f"manifests/{tag}")
            if manifest.status_code != 200:  # its manifest was deleted, and the tag is left over
                continue
            self._moto.ask(
                "ecr",
                "PutImage",
                {
                    "repositoryName": name,
                    "imageManifest": manifest.text,
                    "imageManifestMediaType": manifest.headers["content-type"],
                    "imageDigest": manifest.headers["docker-content-digest"],
                    "imageTag": tag,
                },
            )

    def _ask(self, method: str, name: str, path: str) -> httpx.Response:
        return httpx.request(
            method,
            f"http://{self._registry}/v2/{name}/{path}",
            auth=("AWS", self.password),
            headers={"Accept": MANIFESTS},
        )

    def _renamed(self, answer: Any) -> Any:
        """With the registry's address where ECR says its own."""
        if isinstance(answer, dict):
            return {name: self._renamed(value) for name, value in answer.items()}
        if isinstance(answer, list):
            return [self._renamed(value) for value in answer]
        return answer.replace(_HOST, self._registry) if isinstance(answer, str) else answer
