"""infra/aws is well-formed, fits the AWS provider's schema, and plans what its README says."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest
from tests.terraform.bench import MODULE, VARIABLES, Plan, Workspace, program

from multinode.limits import WAIT_S
from multinode_control_plane.listening import KEEP_ALIVE_S

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]


@pytest.fixture(scope="module")
def plans(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Plan]:
    """Of both examples, which `terraform validate` has passed."""
    return {
        example: Workspace.copy(tmp_path_factory.mktemp(example), example).plan()
        for example in VARIABLES
    }


@pytest.fixture(params=sorted(VARIABLES))
def plan(request: pytest.FixtureRequest, plans: dict[str, Plan]) -> Plan:
    """Of each example."""
    return plans[request.param]


def test_it_is_formatted() -> None:
    done = subprocess.run(
        [*program(), "fmt", "-check", "-recursive", str(MODULE)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"`terraform fmt -recursive infra/aws` changes: {done.stdout}"


def test_it_needs_no_provider_but_that_of_aws() -> None:
    text = "\n".join(path.read_text() for path in MODULE.rglob("*.tf"))
    assert set(re.findall(r'^\s+source\s*=\s*"([^".]+)"', text, re.M)) == {"hashicorp/aws"}
    kinds = set(re.findall(r'^(?:resource|data|ephemeral) "(\w+?)_', text, re.M))
    assert kinds == {"aws"}


def test_its_own_tests_pass(tmp_path: Path) -> None:
    """Those of ``terraform test``, which everybody can run who has the module."""
    workspace = Workspace.copy(tmp_path)
    assert workspace.run("init", "-backend=false", folder=workspace.module).code == 0
    done = workspace.run("test", folder=workspace.module)
    assert done.code == 0, done
    assert "4 passed, 0 failed" in done.output


def test_descriptions_of_security_groups_are_such_as_ec2_takes(plan: Plan) -> None:
    of_groups = plan.of("aws_security_group")
    rules = plan.of("aws_vpc_security_group_ingress_rule") | plan.of(
        "aws_vpc_security_group_egress_rule"
    )
    for address, each in (of_groups | rules).items():
        taken = r"[a-zA-Z0-9. _\-:/()#,@\[\]+=&;{}!$*]{1,255}"
        assert re.fullmatch(taken, each["description"]), address


# --- the control plane ------------------------------------------------------------------------------------


def test_the_state_and_the_plan_hold_no_secret(plan: Plan) -> None:
    assert "ephemeral-secret" not in json.dumps(plan.json)
    for version in plan.of("aws_secretsmanager_secret_version").values():
        assert version["secret_string_wo"] is None
        assert version["secret_string_wo_version"] == 1


def test_it_is_deployed_one_after_another_and_taken_back(plan: Plan) -> None:
    service = plan["aws_ecs_service.control_plane"]
    assert service["deployment_minimum_healthy_percent"] == 100
    assert service["deployment_maximum_percent"] == 200
    assert service["deployment_circuit_breaker"] == [{"enable": True, "rollback": True}]
    assert service["network_configuration"][0]["assign_public_ip"] is False
    assert service["enable_execute_command"] is False
    assert len(service["load_balancer"]) == 2


def test_it_is_two_control_planes_by_default(plans: dict[str, Plan]) -> None:
    assert plans["complete"]["aws_ecs_service.control_plane"]["desired_count"] == 2


def test_load_balancers_wait_longer_than_clients_and_less_than_the_server(plan: Plan) -> None:
    for balancer in plan.of("aws_lb").values():
        assert max(60, WAIT_S) < balancer["idle_timeout"] < KEEP_ALIVE_S
        assert balancer["drop_invalid_header_fields"] is True
    for group in plan.of("aws_lb_target_group").values():
        assert int(group["deregistration_delay"]) > WAIT_S
        assert group["health_check"][0]["path"] == "/readyz"


# --- what is open to whom ---------------------------------------------------------------------------------


def test_only_https_and_only_from_those_who_are_named(plans: dict[str, Plan]) -> None:
    for listener in plans["complete"].of("aws_lb_listener").values():
        assert (listener["port"], listener["protocol"]) == (443, "HTTPS")
        assert "TLS13" in listener["ssl_policy"]
    rules = plans["complete"].of("aws_vpc_security_group_ingress_rule")
    open_to_networks = [rule for rule in rules.values() if rule.get("cidr_ipv4")]
    assert [(rule["cidr_ipv4"], rule["from_port"]) for rule in open_to_networks] == [
        ("203.0.113.0/24", 443)
    ]


def test_each_rule_is_one_port_from_one_group(plan: Plan) -> None:
    rules = plan.of("aws_vpc_security_group_ingress_rule")
    for address, rule in rules.items():
        assert rule["ip_protocol"] == "tcp", address
        assert rule["from_port"] == rule["to_port"], address
        assert rule["from_port"] in (443, 5432, 9470), address
    edges = {(into(plan, address), frm(plan, address)) for address in rules}
    assert {edge for edge in edges if edge[1] != "network"} >= {
        ("workers", "functions"),
        ("control_plane", "clients"),
        ("control_plane", "workers"),
        ("control_plane", "control_plane"),
        ("database", "control_plane"),
    }
    assert not {edge for edge in edges if edge[0] == "functions"}, "nobody reaches functions"
    assert {who for into_, who in edges if into_ == "database"} == {"control_plane"}


def test_functions_reach_the_internal_load_balancer_whatever_else(plan: Plan) -> None:
    address = "aws_vpc_security_group_egress_rule.functions_to_control_plane"
    assert (into(plan, address), frm(plan, address)) == ("functions", "workers")
    assert plan['aws_lb.this["workers"]']["internal"] is True
    zone = plan["aws_route53_zone.workers"]
    assert zone["vpc"], "a private zone"
    environment = environment_of(plan)
    if environment:  # known before it is applied only where nothing of AWS is in it
        assert environment["MULTINODE_WORKER_URL"] == f"https://{zone['name']}"


def test_the_database_has_no_way_out(plan: Plan) -> None:
    groups = {into(plan, each) for each in plan.of("aws_vpc_security_group_egress_rule")}
    assert "database" not in groups
    for address in plan.of("aws_route"):
        assert not address.startswith("aws_route.database")


def test_the_database_is_encrypted_kept_and_not_public(plans: dict[str, Plan]) -> None:
    database = plans["complete"]["aws_db_instance.this"]
    expected = {
        "storage_encrypted": True,
        "publicly_accessible": False,
        "deletion_protection": True,
        "skip_final_snapshot": False,
        "manage_master_user_password": True,
        "multi_az": True,
    }
    assert {name: database[name] for name in expected} == expected
    assert database["backup_retention_period"] >= 7
    (parameter,) = plans["complete"]["aws_db_parameter_group.this"]["parameter"]
    assert (parameter["name"], parameter["value"]) == ("rds.force_ssl", "1")


def test_images_keep_their_tags_and_only_untagged_ones_expire(plan: Plan) -> None:
    assert plan["aws_ecr_repository.functions"]["image_tag_mutability"] == "IMMUTABLE"
    policy = json.loads(plan["aws_ecr_lifecycle_policy.functions"]["policy"])
    assert [rule["selection"]["tagStatus"] for rule in policy["rules"]] == ["untagged"]


def test_every_log_ends(plan: Plan) -> None:
    groups = plan.of("aws_cloudwatch_log_group")
    assert groups
    assert all(group["retention_in_days"] for group in groups.values())


def test_every_alarm_goes_to_the_topic(plan: Plan) -> None:
    assert plan.of("aws_cloudwatch_metric_alarm")
    for address, change in plan.resources.items():
        if address.startswith("aws_cloudwatch_metric_alarm."):
            assert change["after_unknown"]["alarm_actions"] == [True]
            assert plan[address]["alarm_description"]


def environment_of(plan: Plan) -> dict[str, str]:
    text = plan["aws_ecs_task_definition.control_plane"].get("container_definitions")
    return (
        {each["name"]: each["value"] for each in json.loads(text)[1]["environment"]} if text else {}
    )


def references(plan: Plan, address: str, argument: str) -> str:
    """The security group that a rule names in its configuration, since ids are not known before it is applied."""
    module = plan.json["configuration"]["root_module"]["module_calls"]["multinode"]["module"]
    name = re.sub(r"\[.*\]", "", address)
    (resource,) = (each for each in module["resources"] if each["address"] == name)
    key = re.search(r'\["(.+)"\]', address)
    named = resource["expressions"].get(argument, {}).get("references", [])
    if key and "each.value" in named:
        named = [resource["for_each_expression"]["references"]]
        return {"clients": "clients", "workers": "workers", "peers": "control_plane"}[key[1]]
    groups = [each for each in named if each.startswith("aws_security_group.")]
    return groups[0].split(".")[1] if groups else "network"


def into(plan: Plan, address: str) -> str:
    return references(plan, address, "security_group_id")


def frm(plan: Plan, address: str) -> str:
    return references(plan, address, "referenced_security_group_id")
