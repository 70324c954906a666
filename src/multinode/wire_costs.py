"""What costs look like where they cross the network; part of ``wire``, which says what holds for all of it.

Costs are in the currency of the control plane's table of prices; 0 where nothing is paid.
"""

from __future__ import annotations

from .records import Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import List, Optional


class AttemptCost(Record):
    """What the worker of one attempt has cost: the size that was paid for ``billed_s`` seconds."""

    cpu: float
    memory_mib: int
    billed_s: float
    vcpu_s: float
    gb_s: float
    """GiB of memory, times seconds."""
    cost: float
    currency: str
    tariff: str
    """``x86_64``, ``arm64``, ``x86_64-spot``, ``arm64-spot``; empty: nothing is paid."""


class CostLine(Record):
    """A sum over the workers of so many executions."""

    name: str
    executions: int
    vcpu_s: float
    gb_s: float
    cost: float


class CostReport(Record):
    """Answer of ``GET /v1/costs``: workers that were gone from ``since`` until ``until``."""

    by: str
    since: str
    until: str
    currency: str
    source: str
    """Where the prices come from, in words."""
    lines: List[CostLine]
    """The dearest first, days in their order; a thousand at most."""
    total: CostLine
    paid_executions: int
    """Those whose workers are paid for: none of processes and containers."""
    has_more: bool = False


class CostHistory(Record):
    """What the newest invocations of a function, in any version, have cost."""

    invocations: int
    mean: float
    highest: float
    mean_vcpu_s: float
    mean_gb_s: float


class CostEstimate(Record):
    """Answer of ``GET /v1/projects/{project}/functions/{function}/estimate``.

    ``most``: each of ``attempts`` runs until its timeout. Starting and cleaning up come on top.
    """

    project: str
    function: str
    version_id: str
    cpu: float
    memory_mib: int
    timeout_s: float
    attempts: int
    most: CostLine
    history: Optional[CostHistory]
    currency: str
    source: str
    tariff: str
