"""Environments whose images are in ECR alone: what is ordered, checked, listed and removed. With moto's ECR."""

from __future__ import annotations

import asyncio
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from tests.control_plane.test_ecr import URI, made_image, moto  # noqa: F401 - a fixture

from multinode.errors import EnvironmentBuildFailed, InvalidRequest
from multinode.wire import BuildEvent, BuildRequest, EnvironmentInfo, EnvironmentSpec, ImageReport
from multinode_control_plane.runners.ecr import EcrRepository
from multinode_control_plane.runners.images import Images
from multinode_control_plane.runners.pushed_images import PushedPlace
from multinode_control_plane.runners.storage import Discarded

SDK = "5" * 64
SPEC = EnvironmentSpec(python="3.12", requirements="numpy\n")


class Bench:
    def __init__(self, folder: Path, client: Any, platform: str = "linux/amd64") -> None:
        self.client = client
        repository = EcrRepository("envs", makes_it=True)
        place = PushedPlace(repository, platform=platform, installation="here")
        self.images = Images(folder, place=place, installation="here")
        self.images.open()

    def build(self, **options: Any) -> BuildEvent:
        async def main() -> list[BuildEvent]:
            request = BuildRequest(SPEC, **{"sdk_digest": SDK, **options})
            return [event async for event in self.images.build(request)]

        (event,) = asyncio.run(main())
        return event

    def take(self, digest: str, image: str) -> EnvironmentInfo:
        report = ImageReport(SPEC, SDK, image, "3.12.1", ["numpy==2"], "python:3.12@sha256:d", [])
        return asyncio.run(self.images.take(digest, report))

    def made(self, *, suffix: str = "", text: str = "a") -> EnvironmentInfo:
        """Order, push, report."""
        order = self.build(no_cache=True).image_order
        assert order is not None
        pushed = made_image(self.client, f"here-{order.digest}{suffix}", text)
        return self.take(order.digest, f"{URI}@{pushed}")

    def stored(self, *in_use: str) -> list[Any]:
        return asyncio.run(self.images.stored(in_use))

    def discard(self, item: Any) -> Discarded:
        return asyncio.run(self.images.discard(item))

    def pushed(self) -> set[str]:
        details = self.client.describe_images(repositoryName="envs")["imageDetails"]
        return {f"{URI}@{each['imageDigest']}" for each in details}


@pytest.fixture
def bench(tmp_path: Path, moto: Any) -> Bench:  # noqa: F811
    return Bench(tmp_path / "images", moto)


def test_an_order_has_the_address_as_aws_gives_it_and_a_login(bench: Bench) -> None:
    order = bench.build().image_order
    assert order is not None
    assert order.registry is not None
    assert order.tag == f"{URI}:here-{order.digest}"
    assert (order.registry.repository, order.registry.username) == (URI, "AWS")
    assert order.registry.key


def test_a_plan_asks_for_no_login(bench: Bench) -> None:
    planned = bench.build(plan=True)
    assert (bool(planned.missing), planned.image_order) == (True, None)
    assert bench.client.describe_repositories()["repositories"] == []


def test_what_was_pushed_and_reported_is_answered_from_then_on(bench: Bench) -> None:
    made = bench.made()
    assert made.image.startswith(f"{URI}@sha256:")
    found = bench.build().environment
    assert found is not None
    assert (found.image, found.packages) == (made.image, ["numpy==2"])
    bench.images.place._repository.remove(made.image)  # type: ignore[attr-defined]
    assert bench.build().image_order is not None, "somebody removed it in AWS"


def test_an_image_that_is_not_there_is_refused(bench: Bench) -> None:
    order = bench.build().image_order
    assert order is not None
    with pytest.raises(EnvironmentBuildFailed, match="is not in the registry"):
        bench.take(order.digest, f"{URI}@sha256:{'9' * 64}")
    with pytest.raises(InvalidRequest, match="is not pushed to"):
        bench.take(order.digest, f"elsewhere/envs@sha256:{'9' * 64}")


def test_an_image_that_was_pushed_for_another_environment_is_refused(bench: Bench) -> None:
    order = bench.build().image_order
    assert order is not None
    others = [f"here-{'0' * 64}", f"there-{order.digest}"]
    for text, tag in zip("ab", others, strict=True):
        with pytest.raises(InvalidRequest, match="was pushed for another one"):
            bench.take(order.digest, f"{URI}@{made_image(bench.client, tag, text)}")
    assert bench.stored()[0].name.startswith(URI), (
        "that of another environment, not of another installation"
    )
    assert len(bench.stored()) == 1


def test_another_platform_is_another_environment(bench: Bench, tmp_path: Path) -> None:
    arm = Bench(tmp_path / "arm", bench.client, "linux/arm64").build().image_order
    assert arm is not None
    own = bench.build().image_order
    assert own is not None
    assert (arm.platform, arm.digest == own.digest) == ("linux/arm64", False)


def test_what_no_version_uses_is_removed_from_ecr(bench: Bench) -> None:
    made = bench.made()
    assert bench.stored(made.digest) == []
    (item,) = bench.stored()
    assert (item.kind, item.name) == ("environment", made.digest)
    assert item.size_bytes > 0
    assert bench.discard(item) == Discarded(is_gone=True)
    assert (bench.pushed(), bench.stored()) == (set(), [])


def test_an_image_that_was_replaced_is_removed_and_its_successor_stays(bench: Bench) -> None:
    first = bench.made()
    second = bench.made(suffix="-0123456789ab", text="b")
    (item,) = bench.stored(second.digest)
    assert (item.kind, item.name) == ("image", first.image)
    assert bench.discard(item).is_gone
    assert bench.pushed() == {second.image}


def test_an_image_whose_deploy_was_broken_off_is_told(bench: Bench) -> None:
    """It was pushed and never reported: nobody would know of it but ECR."""
    order = bench.build().image_order
    assert order is not None
    name = f"{URI}@{made_image(bench.client, f'here-{order.digest}')}"
    (item,) = bench.stored()
    assert (item.kind, item.name) == ("image", name)
    bench.take(order.digest, name)  # the deploy goes on after all
    assert not bench.discard(item).is_gone
    assert bench.pushed() == {name}


def test_while_aws_is_away_an_environment_stays_one(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench.made()
    (item,) = bench.stored()

    def away(*_: Any, **__: Any) -> None:
        from multinode.errors import AwsFailed

        message = "AWS does not answer."
        raise AwsFailed(message, reason="Away", is_passing=True)

    with monkeypatch.context() as patch:
        patch.setattr("multinode_control_plane.aws.Service.call", away)
        assert not bench.discard(item).is_gone
        assert [each.kind for each in bench.stored()] == ["environment"]
    assert bench.discard(item).is_gone


def test_environments_of_another_leader_are_learnt(bench: Bench, tmp_path: Path) -> None:
    made = bench.made()
    next_leader = Bench(tmp_path / "next", bench.client)
    assert next_leader.build().image_order is not None
    asyncio.run(next_leader.images.learn([made, made.replace(digest="f" * 64, image="")]))
    assert next_leader.images.info(made.digest).image == made.image
    item = next(each for each in next_leader.stored() if each.kind == "environment")
    made_at = datetime.fromisoformat(made.created_at).timestamp()
    assert item.used_at == pytest.approx(made_at, abs=0.001)
    assert next_leader.build().environment is not None, "which is a use"
    anew = bench.made(suffix="-0123456789ab", text="b")
    asyncio.run(next_leader.images.learn([anew]))
    assert next_leader.images.info(made.digest).image == anew.image
