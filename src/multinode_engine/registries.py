"""What registries say, as an engine or AWS passes it on. Pure."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass

_LOGIN_REFUSED = (
    "unauthorized", "no basic auth credentials", "authentication required", "incorrect username or password",
    "authorization token has expired", "token is expired",
)  # fmt: skip
"""The fifth is ECR's, 12 hours after its token was made (https://github.com/aws/aws-cli/issues/2351)."""
_ACTION = re.compile(r"not authorized to perform: ([\w-]+:\w+)")
_RESOURCE = re.compile(r"on resource: (arn:[^\s,]+|\*)")


@dataclass(frozen=True)
class MissingRight:
    """What a role of AWS may not do: ``ecr:PutImage``, on ``resource``."""

    action: str
    resource: str = "*"

    @property
    def statement(self) -> str:
        """The statement of a policy that would grant it, as JSON."""
        return json.dumps({"Effect": "Allow", "Action": self.action, "Resource": self.resource})


def refuses_login(words: str) -> bool:
    """Whether a registry that answered so does not take the login that it was given: a wrong one, or one that has expired."""
    lowered = words.lower()
    return any(sign in lowered for sign in _LOGIN_REFUSED)


def missing_right(words: str) -> MissingRight | None:
    """The right of AWS that is missing where the words name one. It may be another than that of the call: ``iam:PassRole``."""
    action, resource = _ACTION.search(words), _RESOURCE.search(words)
    if action is None:
        return None
    return MissingRight(action[1], resource[1] if resource else "*")
