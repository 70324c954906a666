"""What the ``ecs`` runner asks AWS for is what its role is given: in the docs, and by Terraform."""

import re
from pathlib import Path

import botocore.session
import pytest
from botocore import xform_name

ROOT = Path(__file__).parents[2]
WITHOUT_A_CALL = {"ecs:TagResource"}
"""Of what RunTask and RegisterTaskDefinition tag."""
CONDITIONS = {"ecs:CreateAction"}


def asked_for():
    """The actions of all calls in the modules that ask."""
    session, actions = botocore.session.get_session(), set(WITHOUT_A_CALL)
    for module, services in {"ecs_api.py": ["ecs"], "ecs_logs.py": ["logs"]}.items():
        text = (ROOT / "src/multinode_control_plane/runners" / module).read_text()
        words = set(re.findall(r'"([a-z_]+)"', text))
        for service in services:
            names = session.get_service_model(service).operation_names
            actions |= {f"{service}:{name}" for name in names if xform_name(name) in words}
    return actions


def section(path, begin, end):
    return (ROOT / path).read_text().partition(begin)[2].partition(end)[0]


@pytest.mark.parametrize(
    "given",
    [
        section("docs/reference/aws.md", "**The control plane's role**", "The execution role"),
        section("infra/aws/roles.tf", "DefineHowFunctionsRun", "ecr:CompleteLayerUpload"),
    ],
    ids=["docs", "Terraform"],
)
def test_the_role_has_each_right_and_no_other(given):
    assert len(asked_for()) > 10
    assert set(re.findall(r"(?:ecs|logs):[A-Z]\w+", given)) - CONDITIONS == asked_for()
