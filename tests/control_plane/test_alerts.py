"""The alert rules and the dashboard name metrics, and labels of them, that a control plane has."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from tests.control_plane.test_metrics import described

ROOT = Path(__file__).resolve().parents[2]
OBSERVE = ROOT / "infra" / "observe"
PAGE = ROOT / "docs" / "how-to" / "observe.md"
ALERTS = (OBSERVE / "alerts.yml").read_text(encoding="utf-8")
DASHBOARD = json.loads((OBSERVE / "dashboard.json").read_text(encoding="utf-8"))
EXPRESSIONS = [
    *re.findall(r"^\s+expr: (.+)$", ALERTS, re.MULTILINE),
    *(target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]),
]


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
