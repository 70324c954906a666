"""``cost``, ``invoke --estimate``, and what ``describe inv-…`` says of costs."""

from __future__ import annotations

import pytest
from tests.cli.scripted_control_plane import LATER, NOW, invocation

from multinode import wire
from multinode_cli.commands.shown import money


def line(name, cost, executions=2):
    return wire.CostLine(name, executions, 1234.5, 30.0, cost)


def report(*lines, **changes):
    given = {
        "by": "function", "since": NOW, "until": LATER, "currency": "USD",
        "source": "AWS Fargate, us-east-1, 2025", "lines": list(lines),
        "total": line("total", sum(item.cost for item in lines), 2 * len(lines)),
        "paid_executions": 2 * len(lines),
    }  # fmt: skip
    return wire.CostReport(**{**given, **changes})


def estimate(**changes):
    given = {
        "project": "billing", "function": "add", "version_id": "ver-1", "cpu": 0.25, "memory_mib": 512,
        "timeout_s": 600.0, "attempts": 3, "most": wire.CostLine("most", 3, 450.0, 900.0, 0.0123),
        "history": None, "currency": "USD", "source": "AWS Fargate, us-east-1, 2025", "tariff": "x86_64",
    }  # fmt: skip
    return wire.CostEstimate(**{**given, **changes})


@pytest.mark.parametrize(("amount", "text"), [
    (0, "0 USD"), (0.0002058, "0.000206 USD"), (0.01, "0.0100 USD"), (1.5, "1.5000 USD"),
    (1234.567, "1,234.57 USD"),
])  # fmt: skip
def test_money_has_as_many_digits_as_tell_something(amount, text):
    assert money(amount, "USD") == text


def test_cost_is_a_table_with_its_sum(cli, plane):
    plane.on("GET", "/v1/costs", report(line("shop/f", 1.5), line("shop/g", 0.0002)))
    outcome = cli("cost")
    rows = [row.split() for row in outcome.out.splitlines()]
    assert rows[0] == ["FUNCTION", "EXECUTIONS", "VCPU", "S", "GB", "S", "PRICE"]
    assert rows[1] == ["shop/f", "2", "1,234", "30", "1.5000", "USD"]
    assert rows[-1][:2] == ["total", "4"]
    assert "now: AWS Fargate, us-east-1, 2025. Check them against your bill." in outcome.err


def test_cost_asks_for_what_it_was_told(cli, plane):
    plane.on("GET", "/v1/costs", report(by="day"))
    assert "No worker has ended in the last 12h." in cli("cost", "--for", "12h", "--by", "day").err
    cli("cost", "--project", "shop")
    asked = [request.query for request in plane.requests]
    assert asked == [
        {"by": "day", "for_s": "43200.0"},
        {"by": "function", "for_s": "604800.0", "project": "shop"},
    ]


def test_cost_says_in_words_that_local_workers_cost_nothing(cli, plane):
    plane.on("GET", "/v1/costs", report(line("shop/f", 0.0), paid_executions=0))
    outcome = cli("cost")
    assert "1,234" in outcome.out
    assert "0 USD" in outcome.out
    assert "nothing is paid for them by the second" in outcome.err
    some = report(line("shop/f", 0.1), paid_executions=1, has_more=True)
    plane.on("GET", "/v1/costs", some)
    outcome = cli("cost")
    assert "of the machine's own are in it with 0" in outcome.err
    assert "… and more" in outcome.err


def test_cost_json_is_the_report(cli, plane):
    plane.on("GET", "/v1/costs", report(line("shop/f", 1.5)))
    data = cli("cost", "--json").json["data"]
    assert (data["lines"][0]["cost"], data["total"]["executions"]) == (1.5, 2)


def test_a_span_that_is_none_names_its_option(cli):
    outcome = cli("cost", "--for", "a week")
    assert outcome.code == 2
    assert "--for 'a week' is no span of time" in outcome.err


def test_an_estimate_starts_nothing(cli, plane):
    path = "/v1/projects/billing/functions/add/estimate"
    plane.on("GET", path, estimate())
    outcome = cli("invoke", "billing/add", "--estimate")
    assert "at most   0.0123 USD, 450 vCPU s, 900 GB s: 3 attempts of 600 s" in outcome.out
    assert "no invocation has ended yet" in outcome.out
    assert "x86_64: AWS Fargate, us-east-1, 2025." in outcome.err
    history = wire.CostHistory(2, 0.0004, 0.0006, 15.0, 30.0)
    plane.on("GET", path, estimate(history=history, tariff=""))
    outcome = cli("invoke", "billing/add@ver-1", "1", "--estimate")
    assert "0.000400 USD on average (15 vCPU s, 30 GB s), 0.000600 USD at most" in outcome.out
    assert "of the newest 2 invocations" in outcome.out
    assert "costs nothing" in outcome.err
    assert [request.query for request in plane.requests] == [{}, {"version": "ver-1"}]
    assert cli("invoke", "billing/add", "--estimate", "--json").json["data"]["attempts"] == 3


@pytest.mark.parametrize(("tariff", "text"), [
    ("arm64", "cost 0.000206 USD: 15 vCPU s, 30 GB s of 0.25 vCPU and 512 MiB, 60 s of arm64"),
    ("", "cost nothing: 15 vCPU s, 30 GB s of 0.25 vCPU and 512 MiB"),
])  # fmt: skip
def test_describe_says_what_each_attempt_has_cost(cli, plane, tariff, text):
    cost = wire.AttemptCost(0.25, 512, 60.0, 15.0, 30.0, 0.0002058, "USD", tariff)
    execution = wire.ExecutionInfo(
        "exe-1", 1, "ended", "wrk-1", "succeeded", None, None, None, None, 256, NOW, NOW, LATER, [], cost
    )  # fmt: skip
    told = wire.InvocationDetail(invocation(), "[[],{}]", [execution])
    plane.on("GET", "/v1/invocations/inv-1/detail", told)
    assert f"  {text}\n" in cli("describe", "inv-1").out
