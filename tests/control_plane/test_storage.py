"""What is removed, when and why: by age, by the disk limit, never what is in use."""

import time

import pytest
import sqlalchemy as sa
from tests.control_plane.told_plane import Plane, on_plane

from multinode_control_plane import model
from multinode_control_plane.api.calls import ControlPlane
from multinode_control_plane.api.installation import collect
from multinode_control_plane.runners.bundles import Bundles
from multinode_control_plane.runners.storage import (
    DEPLOY_S,
    Limits,
    Stored,
    size,
    span,
    superfluous,
)
from multinode_control_plane.service import usage
from multinode_control_plane.settings import InputError, parser, resolve

NOW, HOUR, GIB = 1_000_000.0, 3600.0, 1024**3
WEEK_S = 7 * 24 * HOUR


def stored(kind, name, *, gib=1.0, hours=1.0, now=NOW):
    return Stored(kind, name, int(gib * GIB), now - hours * HOUR)


def gone(items, *, limit_gib=20.0, unused_s=WEEK_S):
    found = superfluous(items, Limits(unused_s, int(limit_gib * GIB)), NOW)
    return [(item.name, reason) for item, reason in found]


def test_what_was_not_used_for_long_goes_however_small_it_is():
    items = [
        stored("environment", "old", gib=0.001, hours=200),
        stored("bundle", "new", hours=100),
    ]
    assert gone(items) == [("old", "not used for 8 days")]


def test_within_the_limit_nothing_else_goes():
    assert gone([stored("image", "a", gib=10), stored("output", "b", gib=10, hours=9999)]) == []


def test_over_the_limit_what_was_not_used_longest_goes_first_and_no_more_than_has_to():
    items = [stored("image", str(hours), gib=8, hours=hours) for hours in (3, 1, 4, 2)]
    assert gone(items) == [
        ("4", "over the disk limit of 20 GiB"),
        ("3", "over the disk limit of 20 GiB"),
    ]


def test_output_goes_only_when_nothing_is_left_that_can_be_made_again():
    output = [stored("output", f"exe-{hours}", gib=8, hours=hours) for hours in (9, 7, 8)]
    names = [name for name, _ in gone([*output, stored("bundle", "b", gib=1)])]
    assert names == ["b", "exe-9"]


def test_what_has_gone_by_age_does_not_count():
    items = [stored("image", "old", gib=15, hours=200), stored("image", "new", gib=15)]
    assert [name for name, _ in gone(items)] == ["old"]


def test_what_a_deploy_may_be_about_to_use_stays_even_over_the_limit():
    fresh = DEPLOY_S / HOUR / 2
    items = [stored("environment", "now", gib=30, hours=fresh), stored("bundle", "b", gib=0.1)]
    assert [name for name, _ in gone(items)] == ["b"]
    assert gone([stored("output", "exe", gib=30, hours=0)]) != []


def test_a_limit_of_nothing_keeps_nothing_that_is_not_needed():
    items = [stored("environment", "a"), stored("output", "b", hours=0)]
    assert [name for name, _ in gone(items, limit_gib=0)] == ["a", "b"]


def test_spans_and_sizes_are_for_people():
    assert [span(s) for s in (5, 60, 7300, 86400, 8.6 * 86400)] == [
        "a moment", "1 minute", "2 hours", "1 day", "8 days",
    ]  # fmt: skip
    assert [size(b) for b in (5, 2048, 3 * 1024**2, int(1.5 * GIB))] == [
        "5 bytes", "2 KiB", "3 MiB", "1.5 GiB",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "size_bytes"), [("20GiB", 20 * GIB), ("512 MiB", GIB // 2), ("1000", 1000), ("0", 0)]
)
def test_the_disk_limit_is_a_size(tmp_path, text, size_bytes):
    argv = [f"--home={tmp_path}", f"--disk-limit={text}"]
    assert resolve(parser().parse_args(argv), {}).disk_limit_bytes == size_bytes
    environ = {"MULTINODE_DISK_LIMIT": text}
    assert resolve(parser().parse_args(argv[:1]), environ).disk_limit_bytes == size_bytes


@pytest.mark.parametrize("text", ["much", "20 GB", "-1", "1.2.3GiB"])
def test_a_disk_limit_that_is_no_size_is_told_with_the_right_way(tmp_path, text):
    with pytest.raises(InputError, match="--disk-limit"):
        resolve(parser().parse_args([f"--home={tmp_path}", f"--disk-limit={text}"]), {})


def test_a_restart_keeps_the_disk_limit(tmp_path):
    argv = [f"--home={tmp_path}", "--disk-limit=3GiB"]
    options = resolve(parser().parse_args(argv), {}).options()
    assert options["disk_limit"] == 3 * GIB
    again = resolve(parser().parse_args([f"--disk-limit={options['disk_limit']}"]), {})
    assert again.disk_limit_bytes == 3 * GIB


# --- collecting -----------------------------------------------------------------------------------------


async def collected(plane: Plane, *, dry_run=False, unused_s=WEEK_S):
    api = ControlPlane(
        plane.store,
        plane.scheduler,
        plane.runner,
        Bundles(plane.context.settings.data_dir),
        plane.context,
        lambda mode: None,
        "sqlite",
    )
    return await collect(api, unused_s=unused_s, dry_run=dry_run)


async def environments(plane: Plane) -> list[str]:
    return await plane.store.read(
        lambda connection: list(
            connection.execute(sa.select(model.environments.c.digest)).scalars()
        )
    )


def keep(plane: Plane, *items):
    plane.runner.kept = list(items)


def old(kind, name, hours=500.0):
    return stored(kind, name, hours=hours, now=time.time())


def test_output_of_what_runs_stays_whatever_the_limit(tmp_path):
    async def test(plane):
        await plane.deploy()
        running = (await plane.claim(await plane.start()))[0].execution_id
        launched = (await plane.launch_of(await plane.start())).execution_id
        keep(plane, *(old("output", name) for name in (running, launched, "exe-ended")))
        (told,) = await collected(plane)
        assert (told.kind, told.name) == ("output", "1 execution")
        assert told.reason == "over the disk limit of 0 bytes"
        assert {item.name for item in plane.runner.kept} == {running, launched}

    on_plane(tmp_path, test, disk_limit_bytes=0)


def test_output_of_an_execution_that_ended_stays_until_its_worker_is_gone(tmp_path):
    async def test(plane):
        await plane.deploy()
        claimed = await plane.claim(await plane.start())
        await plane.end(claimed, "succeeded")
        keep(plane, old("output", claimed[0].execution_id))
        assert await collected(plane) == []
        plane.runner.end(claimed[1].worker_id)
        await plane.until(lambda: _nobody_works(plane))
        assert len(await collected(plane)) == 1

    on_plane(tmp_path, test, disk_limit_bytes=0)


async def _nobody_works(plane):
    return await plane.workers() == 0


def test_what_a_version_uses_stays_although_it_is_not_the_latest(tmp_path):
    async def test(plane):
        await plane.deploy(code="a" * 64)
        await plane.deploy(code="b" * 64)
        used = [old("bundle", "a" * 64), old("bundle", "b" * 64), old("environment", "e" * 64)]
        keep(plane, *used, old("bundle", "c" * 64))
        assert [item.name for item in await collected(plane)] == ["c" * 64]
        assert plane.runner.kept == used

    on_plane(tmp_path, test, disk_limit_bytes=0)


def test_a_dry_run_tells_the_same_and_removes_nothing(tmp_path):
    async def test(plane):
        items = [old("environment", "e" * 64), old("output", "exe-1"), old("output", "exe-2")]
        keep(plane, *items)
        planned = await collected(plane, dry_run=True)
        assert plane.runner.kept == items
        assert [(item.kind, item.name, item.reason) for item in planned] == [
            ("environment", "e" * 64, "not used for 20 days"),
            ("output", "2 executions", "over the disk limit of 1 KiB"),
        ]
        assert await collected(plane) == planned
        assert plane.runner.kept == []

    on_plane(tmp_path, test, disk_limit_bytes=1024)


def test_what_is_held_is_not_told_as_removed(tmp_path):
    async def test(plane):
        keep(plane, old("image", "held"), old("image", "free"))
        plane.runner.held_back = {"held"}
        assert [item.name for item in await collected(plane)] == ["free"]

    on_plane(tmp_path, test)


def test_output_of_more_executions_than_a_statement_can_name_goes(tmp_path):
    async def test(plane):
        keep(plane, *(old("output", f"exe-{number}") for number in range(300_000)))
        names = {item.name for item in plane.runner.kept}
        assert await plane.store.write(lambda tx: usage.forget(tx, names)) == names

    on_plane(tmp_path, test)


def test_an_environment_that_is_removed_is_forgotten(tmp_path):
    async def test(plane):
        await plane.deploy()
        await plane.store.write(lambda tx: tx.connection.execute(sa.delete(model.versions)))
        keep(plane, old("environment", "e" * 64))
        await collected(plane)
        assert await environments(plane) == []

    on_plane(tmp_path, test)
