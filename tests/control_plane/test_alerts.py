"""The alert rules and the dashboard: they name metrics, and labels of them, that a control plane has, and each rule fires when it should.

Prometheus' own promtool reads them, where it is installed; CI must have it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.control_plane.test_metrics import described
from tests.control_plane.told_plane import serving

ROOT = Path(__file__).resolve().parents[2]
OBSERVE = ROOT / "infra" / "observe"
PAGE = ROOT / "docs" / "how-to" / "observe.md"
ALERTS = (OBSERVE / "alerts.yml").read_text(encoding="utf-8")
DASHBOARD = json.loads((OBSERVE / "dashboard.json").read_text(encoding="utf-8"))
EXPRESSIONS = [
    *re.findall(r"^\s+expr: (.+)$", ALERTS, re.MULTILINE),
    *(target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]),
]


LABELS = {"le", "job"}
"""Of histograms, and those that Prometheus itself adds."""


def labels_of(metric: str) -> set[str]:
    """Its labels, as the reference has them."""
    page = (ROOT / "docs" / "reference" / "metrics.md").read_text("utf-8")
    (row,) = [line for line in page.splitlines() if line.startswith("|") and f"`{metric}`" in line]
    return set(re.findall(r"`(\w+)`", row.split("|")[3]))


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_label_is_one_of_a_metric_that_is_named(expression: str) -> None:
    named = set(re.findall(r"by \(([\w, ]+)\)|[{,]\s*(\w+)=", expression))
    labels = {label.strip() for pair in named for text in pair for label in text.split(",") if text}
    known = set(LABELS)
    for name in re.findall(r"\bmultinode_\w+", expression):
        whole = name if name in described() else re.sub(r"_(bucket|count|sum)$", "", name)
        known |= labels_of(whole)
    assert labels <= known


@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_metric_exists(expression: str) -> None:
    named = set(re.findall(r"\bmultinode_\w+", expression))
    assert named or re.match(r"up\{|process_", expression)
    known = described()
    for name in named:
        assert {name, re.sub(r"_(bucket|count|sum)$", "", name)} & known, name


def test_every_alert_is_explained_and_no_other() -> None:
    names = set(re.findall(r"- alert: (\w+)", ALERTS))
    assert len(names) > 5
    assert set(re.findall(r"^\| `(Multinode\w+)`", PAGE.read_text("utf-8"), re.MULTILINE)) == names


def test_panels_have_names_and_places_of_their_own() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["title"] for panel in panels}) == len(panels)
    assert len({(p["gridPos"]["x"], p["gridPos"]["y"]) for p in panels}) == len(panels)


# --- what promtool says -------------------------------------------------------------------------------------

Ask = Callable[..., None]


@pytest.fixture(scope="module")
def promtool() -> Ask:
    """Runs it; it has to find nothing wrong."""
    program = shutil.which("promtool")
    if program is None:
        missing = "promtool is not installed here: apt-get install prometheus"
        pytest.fail(missing) if os.environ.get("CI") else pytest.skip(missing)

    def ask(*arguments: str | Path, said: str = "") -> None:
        command = [str(program), *map(str, arguments)]
        done = subprocess.run(
            command, input=said, capture_output=True, text=True, timeout=60, check=False
        )
        assert (done.returncode, done.stderr) == (0, ""), done.stdout + done.stderr

    return ask


def test_the_rules_can_be_read(promtool: Ask) -> None:
    promtool("check", "rules", "--lint-fatal", OBSERVE / "alerts.yml")


def test_the_expressions_of_the_dashboard_can_be_read(promtool: Ask, tmp_path: Path) -> None:
    expressions = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
    rules = [{"record": f"panel:{n}", "expr": each} for n, each in enumerate(expressions)]
    file = tmp_path / "panels.yml"
    file.write_text(json.dumps({"groups": [{"name": "panels", "rules": rules}]}))  # JSON is YAML
    promtool("check", "rules", file)


def test_a_scrape_is_as_prometheus_wants_it(promtool: Ask, tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        served.do(served.plane.deploy())
        served.do(served.plane.start())
        headers = {"Authorization": f"Bearer {served.key('read')}"}
        scraped = httpx.get(served.url + "/metrics", headers=headers, trust_env=False).text
    promtool("check", "metrics", said=scraped)


@dataclass(frozen=True)
class Case:
    """Series, a value a minute, at the end of which the alert fires; and such at whose end it does not."""

    fires: dict[str, str]
    not_with: dict[str, str]
    says: str
    labels: dict[str, str]
    minutes: int = 20


def of(name: str, **labels: str) -> str:
    """A series of two processes' first."""
    text = ",".join(
        f'{k}="{v}"' for k, v in {"job": "multinode", "instance": "a", **labels}.items()
    )
    return f"{name}{{{text}}}"


PAGE_ME, TICKET = {"severity": "page"}, {"severity": "ticket"}
COMMITS, REQUESTS = (
    "multinode_store_commit_duration_seconds_bucket",
    "multinode_http_request_duration_seconds_count",
)
REFUSED, ENDED = "multinode_http_requests_refused_total", "multinode_attempts_ended_total"
CASES = {
    "MultinodeDown": Case(
        {of("up"): "1x15 0x4"}, {of("up"): "1x18 0x1"},
        "A control plane process does not answer.", {**PAGE_ME, "job": "multinode", "instance": "a"},
    ),
    "MultinodeNoLeader": Case(
        {of("multinode_leader"): "0x20", of("multinode_leader", instance="b"): "1x15 0x4"},
        {of("multinode_leader"): "0x20", of("multinode_leader", instance="b"): "1x20"},
        "No process schedules: nothing new runs.", PAGE_ME,
    ),
    "MultinodeStoreErrors": Case(
        {of("multinode_store_errors_total", error="storage_full"): "0x18 1x1"},
        {of("multinode_store_errors_total", error="storage_full"): "0x5 1x14"},
        "The database refuses changes (storage_full).", {**PAGE_ME, "error": "storage_full"},
    ),
    "MultinodeStoreSlow": Case(
        {of(COMMITS, le="0.25"): "0+10x40", of(COMMITS, le="0.5"): "0+20x40", of(COMMITS, le="+Inf"): "0+20x40"},
        {of(COMMITS, le="0.25"): "0+20x40", of(COMMITS, le="0.5"): "0+20x40", of(COMMITS, le="+Inf"): "0+20x40"},
        "Commits take more than 250 ms.", TICKET, 40,
    ),
    "MultinodeDiskFills": Case(
        {of("multinode_data_free_bytes"): "1900000000x20"}, {of("multinode_data_free_bytes"): "2100000000x20"},
        "Less than 2 GB are free where the data folder lies.",
        {**PAGE_ME, "job": "multinode", "instance": "a"},
    ),
    "MultinodeQueueOld": Case(
        {of("multinode_queue_oldest_age_seconds", project="shop"): "0+60x25"},
        {of("multinode_queue_oldest_age_seconds", project="shop"): "0+60x14 0+60x10"},
        "shop: something has waited for a slot or room for 15 minutes.", {**TICKET, "project": "shop"}, 25,
    ),
    "MultinodeWorkersNotMade": Case(
        {of("multinode_workers_not_made_total", project="shop"): "0+1x20"},
        {of("multinode_workers_not_made_total", project="shop"): "0x16 5x3"},
        "shop: workers cannot be made.", {**TICKET, "project": "shop"},
    ),
    "MultinodeRunnerErrors": Case(
        {of("multinode_runner_errors_total", operation="start"): "0+1x20"},
        {of("multinode_runner_errors_total", operation="start"): "0x16 5x3"},
        "The runner fails (start).", {**TICKET, "operation": "start"},
    ),
    "MultinodeAttemptsLost": Case(
        {of(ENDED, project="shop", outcome="lost"): "0+1x20"},
        {of(ENDED, project="shop", outcome="failed"): "0+1x20"},
        "shop: functions lose their workers.", {**TICKET, "project": "shop"},
    ),
    "MultinodeWorkersUnreachable": Case(
        {of("multinode_workers_unreachable"): "0x14 1x5"}, {of("multinode_workers_unreachable"): "0x17 1x2"},
        "Workers live and are silent.", TICKET,
    ),
    "MultinodeWrongKeys": Case(
        {of(REFUSED, error="too_many_wrong_keys"): "0x18 1x1"},
        {of(REFUSED, error="not_logged_in"): "0+30x20", of(REFUSED, error="too_many_wrong_keys"): "3x20"},
        "Somebody tries keys, or has a revoked one and asks on.", TICKET,
    ),
    "MultinodeKeyAtLimit": Case(
        {of(REFUSED, error="too_many_requests"): "0x18 1x1"}, {of(REFUSED, error="too_many_requests"): "3x20"},
        "Requests are refused: too many are open with one key.", TICKET,
    ),
    "MultinodeRequestsFail": Case(
        {of(REQUESTS, route="/v1/projects", method="GET", status="5xx"): "0+10x20"},
        {of(REQUESTS, route="/v1/projects", method="GET", status="4xx"): "0+100x20"},
        "Requests end with a fault of the server's.", PAGE_ME,
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", re.findall(r"- alert: (\w+)", ALERTS))
def test_an_alert_fires_when_it_should_and_only_then(
    promtool: Ask, tmp_path: Path, name: str
) -> None:
    case = CASES[name]
    told = {"exp_labels": case.labels, "exp_annotations": {"summary": case.says}}

    def run(series: dict[str, str], alerts: list[Any]) -> dict[str, Any]:
        inputs = [{"series": key, "values": values} for key, values in series.items()]
        asked = {"eval_time": f"{case.minutes}m", "alertname": name, "exp_alerts": alerts}
        return {"interval": "1m", "input_series": inputs, "alert_rule_test": [asked]}

    tests = [run(case.fires, [told]), run(case.not_with, [])]
    file = tmp_path / "test.yml"
    file.write_text(json.dumps({"rule_files": [str(OBSERVE / "alerts.yml")], "tests": tests}))
    promtool("test", "rules", file)
