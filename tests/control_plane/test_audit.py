"""The audit log: a line for each act, in its transaction, and none for what changed nothing."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from tests.control_plane.told_plane import Plane, ServedPlane, api_of, on_plane, serving

from multinode import wire
from multinode.client import Client
from multinode.errors import InvocationNotFound, NotAllowed
from multinode_control_plane import model
from multinode_control_plane.forgetting import forget_old
from multinode_control_plane.service import audit
from multinode_control_plane.service.access import Caller
from multinode_control_plane.service.audit import Act
from multinode_control_plane.store import Transaction

FUNCTION = "/v1/projects/shop/functions/f/invocations"
LATER = {"inputs": ["[[],{}]"], "delay_s": 3600}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ServedPlane]:
    with serving(tmp_path) as made:
        made.do(made.plane.deploy())
        yield made


def as_key(served: ServedPlane, role: str, name: str, project: str | None = None) -> Client:
    return served.client(served.key(role, name, project))


def told(client: Client, query: str = "") -> list[tuple[Any, ...]]:
    lines = client.call(wire.AuditLog, "GET", f"/v1/audit{query}").lines
    return [(x.key_name, x.action, x.project, x.target, x.count) for x in reversed(lines)]


def test_each_act_is_told_with_who_did_it(served: ServedPlane) -> None:
    admin, web = as_key(served, "admin", "ada"), as_key(served, "deploy", "web", "shop")
    call = web.call
    first = call(wire.StartAnswer, "POST", FUNCTION, wire.StartRequest(**LATER)).invocation_ids[0]
    two = wire.StartRequest(**{**LATER, "inputs": ["[[],{}]"] * 2})
    others = call(wire.StartAnswer, "POST", FUNCTION, two).invocation_ids
    call(wire.InvocationInfo, "POST", f"/v1/invocations/{first}/cancel")
    call(wire.InvocationInfo, "POST", f"/v1/invocations/{first}/cancel")  # has ended: no act
    again = call(wire.StartAnswer, "POST", f"/v1/invocations/{first}/retry").invocation_ids[0]
    call(wire.CancelAnswer, "POST", "/v1/cancel", wire.CancelRequest(invocation_ids=others))
    admin.call(wire.KeyInfo, "POST", "/v1/keys", wire.KeyRequest("ci", "read", "shop"))
    admin.call(wire.KeyInfo, "DELETE", "/v1/keys/ci")
    call(wire.DeletedProject, "DELETE", "/v1/projects/shop")
    expected = [
        ("web", "invoke", "shop", first, 1),
        ("web", "invoke", "shop", others[0], 2),
        ("web", "cancel", "shop", first, 1),
        ("web", "retry", "shop", again, 1),
        ("web", "cancel", "shop", others[0], 2),
        ("ada", "make key", "shop", "ci", 1),
        ("ada", "revoke key", "shop", "ci", 1),
        ("web", "remove", "shop", "shop", 1),
    ]
    assert told(admin) == expected
    assert told(admin, "?project=shop") == expected
    assert told(admin, "?project=other") == []
    with pytest.raises(NotAllowed):
        web.call(wire.AuditLog, "GET", "/v1/audit")


def test_a_deploy_is_told_where_it_changed_something(served: ServedPlane) -> None:
    admin = as_key(served, "admin", "ada")
    digest = "d" * 64
    path = served.plane.context.settings.data_dir / "bundles" / f"{digest}.tar.gz"
    path.write_bytes(b"")
    functions = [wire.FunctionDescription("f", wire.FunctionSettings(), [])]
    request = wire.RegisterRequest("e" * 64, digest, {}, functions)
    for _ in range(2):
        made = admin.call(wire.RegisterAnswer, "POST", "/v1/projects/shop/versions", request)
    plan = request.replace(dotenv={"A": "1"}, plan=True)
    admin.call(wire.RegisterAnswer, "POST", "/v1/projects/shop/versions", plan)
    back = admin.call(
        wire.VersionItem, "PUT", "/v1/projects/shop/latest", wire.LatestRequest()
    ).version_id
    assert told(admin) == [
        ("ada", "deploy", "shop", made.version_id, 1),
        ("ada", "rollback", "shop", back, 1),
    ]


def test_what_is_refused_leaves_no_line(served: ServedPlane) -> None:
    admin = as_key(served, "admin", "ada")
    for path in ("/v1/invocations/none/cancel", "/v1/invocations/none/retry"):
        with pytest.raises(InvocationNotFound):
            admin.call(wire.InvocationInfo, "POST", path)
    assert told(admin) == []


@pytest.mark.parametrize(("keep_audit_s", "left"), [(1000.0, [7, 8]), (0.0, [*range(9)])])
def test_old_lines_are_removed_step_by_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, keep_audit_s: float, left: list[int]
) -> None:
    monkeypatch.setattr(audit, "STEP", 3)
    steps: list[bool] = []
    forget = audit.forget
    monkeypatch.setattr(
        audit, "forget", lambda tx, before: steps.append(True) or forget(tx, before)
    )

    async def test(plane: Plane) -> None:
        for number in range(9):
            await plane.store.write(lambda tx, n=number: note_at(tx, n))
        await forget_old(api_of(plane), NOW)
        log = await plane.store.read(
            lambda connection: audit.page(connection, since=None, project=None, offset=None)
        )
        assert [int(line.target) for line in reversed(log.lines)] == left
        assert len(steps) == (3 if keep_audit_s else 0)

    on_plane(tmp_path, test, keep_audit_s=keep_audit_s)


NOW = 1_800_000_000.0


def note_at(tx: Transaction, number: int) -> None:
    """A line that is a second over 1,000 s old, but for the two newest."""
    audit.note(tx, (Caller("ada", "admin"), Act("invoke", str(number))))
    at = NOW - 1001 if number < 7 else NOW - 999
    tx.connection.execute(
        sa.update(model.audit).where(model.audit.c.target == str(number)).values(at=at)
    )


def test_it_comes_in_pages_and_since(tmp_path: Path) -> None:
    async def test(plane: Plane) -> None:
        caller = Caller("ada", "admin")
        for number in range(audit.PAGE + 5):
            act = Act("invoke", f"inv-{number}")
            await plane.store.write(lambda tx, act=act: audit.note(tx, (caller, act)))

        async def page(**options: Any) -> wire.AuditLog:
            asked = {"since": None, "project": None, "offset": None, **options}
            return await plane.store.read(lambda connection: audit.page(connection, **asked))

        first = await page()
        assert first.lines[0].target == f"inv-{audit.PAGE + 4}"
        second = await page(offset=int(first.next_offset or 0))
        assert [line.target for line in second.lines] == [f"inv-{n}" for n in (4, 3, 2, 1, 0)]
        assert second.next_offset is None
        assert (await page(since=2e9 * 2)).lines == []

    on_plane(tmp_path, test)
