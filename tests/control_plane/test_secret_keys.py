"""The keys of `.env` values: where they are, who may make them, and the rotation to others, broken off anywhere."""

from __future__ import annotations

import base64
import stat
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from moto.server import ThreadedMotoServer
from tests.control_plane import scripted_aws
from tests.control_plane.bench import Bench, make_bench, make_settings
from tests.control_plane.told_plane import Plane, on_plane, serving

from multinode import wire
from multinode.errors import Conflict, InputError, InternalError, MissingExtra, NotAllowed
from multinode_control_plane import model, secret_keys
from multinode_control_plane.secret_keys import AwsSource, EnvironmentSource, FileSource
from multinode_control_plane.service import deployments, executions, sealing
from multinode_control_plane.service.dotenv import Sealer
from multinode_control_plane.service.executions import Context
from multinode_control_plane.settings import parser, resolve

OLD, NEW, OTHER = b"o" * 32, b"n" * 32, b"x" * 32
SECRET = "plain-value-of-env-5d1f"


def text(*keys: bytes) -> str:
    return secret_keys.as_text(keys)


def ring_file(folder: Path, *keys: bytes, mode: int = 0o600) -> FileSource:
    path = folder / "ring"
    path.write_text(text(*keys))
    path.chmod(mode)
    return FileSource(path)


def context_of(bench: Bench, source: Any) -> Context:
    """As a process that starts with this ring has it."""
    return Context(bench.context.settings, bench.do(sealing.open_sealer, source))


def deploy(bench: Bench, context: Context, code: str, value: str = SECRET) -> str:
    described = [wire.FunctionDescription("f", wire.FunctionSettings(), [])]
    info = wire.EnvironmentInfo("e" * 64, "3.11", "3.11.7", [], [], model.to_time(0))
    bench.do(deployments.save_environment, info)
    request = wire.RegisterRequest("e" * 64, code * 64, {"SECRET": value}, described)
    return bench.do(deployments.register, context, "shop", request).version_id


def opened(bench: Bench, sealer: Sealer) -> list[str]:
    query = sa.select(model.versions.c.dotenv).order_by(model.versions.c.number)
    rows = bench.look(lambda connection: list(connection.execute(query).scalars()))
    return [sealer.open(row)["SECRET"] for row in rows]


def rotate(bench: Bench, context: Context, request_key: str = "") -> sealing.Rotation:
    sealer, source = context.sealer, context.sealer.source
    assert source is not None
    target = bench.do(sealing.prepare, sealer, source, request_key)
    rotation = bench.do(sealing.begin, sealer, source, target, request_key)
    while bench.do(sealing.end, sealer, source, rotation) is None:
        pass
    return rotation


# --- places ---


@pytest.mark.parametrize("content", [
    OLD, text(OLD).encode(), text(OLD).strip().encode(), text(OLD, OLD).encode(),
    base64.urlsafe_b64encode(OLD), b"\n" + text(OLD).encode() + b"\n",
])  # fmt: skip
def test_a_ring_of_one_is_read_however_it_is_written(content: bytes) -> None:
    assert secret_keys.parsed(content, "it") == (OLD,)


def test_a_ring_of_several_keeps_its_order() -> None:
    for between in (",", "\n", " , "):
        joined = between.join(text(key).strip() for key in (NEW, OLD))
        assert secret_keys.parsed(joined.encode(), "it") == (NEW, OLD)


@pytest.mark.parametrize("content", ["hunter2", text(OLD)[:20], text(OLD) + "hunter2", "", "é"])
def test_what_is_no_ring_is_refused_and_not_repeated(content: str) -> None:
    with pytest.raises(InputError, match="it holds no ring of keys") as caught:
        secret_keys.parsed(content.encode(), "it")
    assert "hunter2" not in str(caught.value)
    assert "openssl rand -base64 32" in caught.value.hint


@pytest.mark.parametrize("place", ["hunter2", "file:", "env:", "env:A-B", "aws:", "vault:x", ":"])
def test_what_names_no_place_is_refused_and_not_repeated(place: str) -> None:
    with pytest.raises(InputError, match="names no place") as caught:
        resolve(parser().parse_args([f"--secret-key-from={place}"]), {})
    assert "hunter2" not in str(caught.value)


def test_each_place_is_the_one_that_was_named(tmp_path: Path) -> None:
    for place, kind in (
        (f"file:{tmp_path}/k", FileSource), ("env:KEYS", EnvironmentSource), ("aws:a/b:c", AwsSource),
    ):  # fmt: skip
        settings = resolve(parser().parse_args([]), {"MULTINODE_SECRET_KEY_FROM": place})
        assert isinstance(secret_keys.source_of(settings, {}), kind)
        assert settings.options()["secret_key_from"] == place
    source = secret_keys.source_of(make_settings(tmp_path), {})
    assert source.name == f"The file {tmp_path}/server/secret.key"


def test_a_file_that_others_can_use_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="can be used by others") as caught:
        ring_file(tmp_path, OLD, mode=0o640).read()
    assert caught.value.hint == f"Run: chmod 600 {tmp_path}/ring"


def test_first_starts_at_once_make_one_ring(tmp_path: Path) -> None:
    source = FileSource(tmp_path / "ring")
    with ThreadPoolExecutor(16) as threads:
        found = set(threads.map(lambda _: source.make(), range(64)))
    assert found == {source.read()}
    assert [path.name for path in tmp_path.iterdir()] == ["ring"]
    assert stat.S_IMODE((tmp_path / "ring").stat().st_mode) == 0o600


def test_a_folder_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be used"):
        FileSource(tmp_path / "file" / "ring").read()


def test_a_folder_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    source = FileSource(tmp_path / "mistpyed" / "ring")
    assert source.read() == ()
    with pytest.raises(InputError, match="cannot be made: its folder is not there") as caught:
        source.make()
    assert f"mkdir -p -m 700 {tmp_path}/mistpyed" in caught.value.hint
    assert list(tmp_path.iterdir()) == []


def test_a_variable_has_to_be_set() -> None:
    assert EnvironmentSource("KEYS", {"KEYS": text(NEW, OLD)}).read() == (NEW, OLD)
    with pytest.raises(
        InputError, match="The variable KEYS, which --secret-key-from names, is not"
    ):
        EnvironmentSource("KEYS", {}).read()


# --- starts ---


def test_a_ring_that_cannot_open_what_is_there_is_refused(bench: Bench, tmp_path: Path) -> None:
    deploy(bench, context_of(bench, ring_file(tmp_path, OLD)), "a")
    with pytest.raises(
        InputError, match=r"encrypted with the key [0-9a-f]{16}\. .*ring has"
    ) as caught:
        bench.do(sealing.open_sealer, ring_file(tmp_path, OTHER))
    assert secret_keys.key_id(OLD) in str(caught.value)
    missing = FileSource(tmp_path / "elsewhere")
    with pytest.raises(InputError, match="is not there"):
        bench.do(sealing.open_sealer, missing)
    assert not (tmp_path / "elsewhere").exists(), (
        "a new key would only hide that the old one is missed"
    )
    assert opened(bench, context_of(bench, ring_file(tmp_path, OTHER, OLD)).sealer) == [SECRET]


def test_values_of_before_there_was_a_row_are_still_opened(bench: Bench, tmp_path: Path) -> None:
    old = context_of(bench, ring_file(tmp_path, OLD))
    version = deploy(bench, old, "a")
    bench.do(lambda tx: tx.connection.execute(sa.delete(model.sealing)))
    bench.do(lambda tx: tx.connection.execute(sa.update(model.versions).values(sealed_with=None)))
    with pytest.raises(InputError, match="the key unknown"):
        bench.do(sealing.open_sealer, ring_file(tmp_path, OTHER))
    with pytest.raises(InputError, match="is not there"):
        bench.do(sealing.open_sealer, FileSource(tmp_path / "elsewhere"))
    (tmp_path / "ring").write_bytes(OLD)
    again = context_of(bench, FileSource(tmp_path / "ring"))
    assert again.sealer.token("w", "n") == old.sealer.token("w", "n")
    assert deploy(bench, again, "a") == version, "the same content is the same version"
    rotate(bench, again)
    assert opened(bench, context_of(bench, FileSource(tmp_path / "ring")).sealer) == [SECRET]


# --- rotation ---


def test_a_rotation_leaves_one_new_key_and_changes_nothing_else(
    bench: Bench, tmp_path: Path
) -> None:
    source = ring_file(tmp_path, OLD)
    context = context_of(bench, source)
    versions = [deploy(bench, context, code, code) for code in "abc"]
    before = context.sealer.digest({"A": "1"}), context.sealer.token("w", "n")
    rotation = rotate(bench, context)
    (key,) = source.read()
    assert key != OLD
    assert (rotation.key_id, rotation.retiring) == (
        secret_keys.key_id(key), (secret_keys.key_id(OLD),)
    )  # fmt: skip
    started = context_of(bench, source)
    assert opened(bench, started.sealer) == ["a", "b", "c"]
    assert (started.sealer.digest({"A": "1"}), started.sealer.token("w", "n")) == before
    assert [deploy(bench, started, code, code) for code in "abc"] == versions
    with pytest.raises(InputError):
        bench.do(sealing.open_sealer, ring_file(tmp_path, OLD))


class Killed(BaseException):
    """The process ends here."""


class DyingSource(FileSource):
    """Kills the process at one of its writes, before or after it has come about."""

    def __init__(self, path: Path, write: int, *, after: bool) -> None:
        super().__init__(path)
        self._left, self._after = write, after

    def write(self, keys: Any) -> None:
        self._left -= 1
        if self._left == 0 and not self._after:
            raise Killed
        super().write(keys)
        if self._left == 0:
            raise Killed


class DyingStore:
    """Rolls a transaction back, as a process that was killed before its commit does."""

    def __init__(self, bench: Bench, at: int) -> None:
        self._bench, self._left = bench, at

    def do(self, case: Any, *arguments: Any) -> Any:
        self._left -= 1
        dies = self._left == 0

        def job(tx: Any) -> Any:
            result = case(tx, *arguments)
            if dies:
                message = "killed"
                raise RuntimeError(message)
            return result

        return self._bench.do(job)


@pytest.mark.parametrize("at", [1, 2, 3, 4])
def test_a_rotation_killed_before_a_commit_is_continued(
    bench: Bench, tmp_path: Path, at: int
) -> None:
    source = ring_file(tmp_path, OLD)
    context = context_of(bench, source)
    for code in "abc":
        deploy(bench, context, code, code)
    with pytest.raises(RuntimeError, match="killed"):
        rotate(DyingStore(bench, at), context)  # type: ignore[arg-type]
    _continues(bench, source)


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("write", [1, 2])
def test_a_rotation_killed_at_a_write_of_the_ring_is_continued(
    sqlite_bench: Bench, tmp_path: Path, write: int, after: bool
) -> None:
    bench, source = sqlite_bench, ring_file(tmp_path, OLD)
    dying = DyingSource(tmp_path / "ring", write, after=after)
    context = context_of(bench, dying)
    for code in "abc":
        deploy(bench, context, code, code)

    def killed_in(case: Any, *arguments: Any) -> Any:
        def job(tx: Any) -> Any:
            try:
                return case(tx, *arguments)
            except Killed as killed:
                raise RuntimeError(*killed.args) from killed

        return bench.do(job)

    with pytest.raises(RuntimeError):
        rotate(type("Dying", (), {"do": staticmethod(killed_in)}), context)  # type: ignore[arg-type]
    _continues(bench, source)


def _continues(bench: Bench, source: FileSource) -> None:
    started = context_of(bench, source)
    assert opened(bench, started.sealer) == ["a", "b", "c"]
    deploy(bench, started, "d", "d")
    rotate(bench, started)
    assert len(source.read()) == 1
    assert source.read() != (OLD,)
    assert opened(bench, context_of(bench, source).sealer) == ["a", "b", "c", "d"]


def test_one_request_rotates_once_and_is_told_the_same_again(bench: Bench, tmp_path: Path) -> None:
    source = ring_file(tmp_path, OLD)
    context = context_of(bench, source)
    for code in "abc":
        deploy(bench, context, code, code)
    first = rotate(bench, context, "one")
    keys = source.read()
    again = rotate(bench, context_of(bench, source), "one")
    assert (again.key_id, again.retiring) == (first.key_id, first.retiring)
    assert (first.is_known, again.is_known, source.read()) == (False, True, keys)
    assert bench.do(sealing.end, context.sealer, source, again) == 3, "as the first time"
    assert rotate(bench, context, "another").retiring == (first.key_id,)
    assert len(source.read()) == 1


def test_a_key_that_was_left_in_the_ring_does_not_stand_for_a_new_one(
    bench: Bench, tmp_path: Path
) -> None:
    source = ring_file(tmp_path, NEW, OLD)
    context = context_of(bench, source)
    deploy(bench, context, "a")
    assert secret_keys.key_id(NEW) in rotate(bench, context).retiring
    (key,) = source.read()
    assert key not in (NEW, OLD)


def test_a_ring_that_was_removed_is_said_and_not_made_anew(bench: Bench, tmp_path: Path) -> None:
    context = context_of(bench, ring_file(tmp_path, OLD))
    deploy(bench, context, "a")
    (tmp_path / "ring").unlink()
    with pytest.raises(Conflict, match=r"ring, which had the keys .* is not there any more"):
        rotate(bench, context)
    assert not (tmp_path / "ring").exists()
    assert opened(bench, context.sealer) == [SECRET]
    ring_file(tmp_path, OLD)
    rotate(bench, context)
    assert opened(bench, context_of(bench, FileSource(tmp_path / "ring")).sealer) == [SECRET]


def test_a_ring_that_is_replaced_in_the_middle_is_never_emptied(
    bench: Bench, tmp_path: Path
) -> None:
    source = ring_file(tmp_path, OLD)
    context = context_of(bench, source)
    deploy(bench, context, "a")
    target = bench.do(sealing.prepare, context.sealer, source, "")
    rotation = bench.do(sealing.begin, context.sealer, source, target, "")
    bench.do(sealing.go_on, context.sealer, rotation)
    ring_file(tmp_path, OTHER)
    with pytest.raises(Conflict, match=f"has the key {target} no more"):
        bench.do(sealing.end, context.sealer, source, rotation)
    assert source.read() == (OTHER,)


def test_another_process_reads_the_ring_anew(bench: Bench, tmp_path: Path) -> None:
    one, other = (context_of(bench, ring_file(tmp_path, OLD)) for _ in range(2))
    deploy(bench, one, "a")
    rotate(bench, one)
    assert opened(bench, other.sealer) == [SECRET]
    rotate(bench, one)
    deploy(bench, other, "b")
    fresh = context_of(bench, FileSource(tmp_path / "ring"))
    assert opened(bench, fresh.sealer) == [SECRET, SECRET], "it encrypts with the current key"


def test_a_process_with_another_ring_says_so(bench: Bench, tmp_path: Path) -> None:
    one = context_of(bench, ring_file(tmp_path, OLD))
    (tmp_path / "copy").mkdir()
    other = context_of(bench, ring_file(tmp_path / "copy", OLD))
    deploy(bench, one, "a")
    rotate(bench, one)
    with pytest.raises(InternalError, match="which this control plane uses, has"):
        opened(bench, other.sealer)
    with pytest.raises(InternalError, match="which this control plane uses, has"):
        deploy(bench, other, "b")


def test_a_variable_is_rotated_by_hand_in_two_steps(bench: Bench) -> None:
    keys = {"KEYS": text(OLD)}
    context = context_of(bench, EnvironmentSource("KEYS", keys))
    deploy(bench, context, "a")
    with pytest.raises(Conflict, match="The variable KEYS has one key") as caught:
        rotate(bench, context)
    assert "Put a new key before the one in it" in caught.value.hint
    keys["KEYS"] = text(NEW, OLD)
    started = context_of(bench, EnvironmentSource("KEYS", keys))
    deploy(bench, started, "b")
    assert rotate(bench, started).key_id == secret_keys.key_id(NEW)
    keys["KEYS"] = text(NEW)
    last = context_of(bench, EnvironmentSource("KEYS", keys))
    assert opened(bench, last.sealer) == [SECRET, SECRET]


def test_a_worker_that_asks_again_after_a_rotation_gets_the_same(tmp_path: Path) -> None:
    async def test(plane: Plane) -> None:
        await plane.deploy()
        launch = await plane.launch_of(await plane.start())
        first, _ = await plane.exchange(launch)
        sealer, source = plane.context.sealer, plane.source
        target = await plane.store.write(lambda tx: sealing.prepare(tx, sealer, source, ""))
        rotation = await plane.store.write(lambda tx: sealing.begin(tx, sealer, source, target, ""))
        await plane.store.write(lambda tx: sealing.go_on(tx, sealer, rotation))
        await plane.store.write(lambda tx: sealing.end(tx, sealer, source, rotation))
        again, _ = await plane.exchange(launch)
        assert again == first
        request = wire.ExchangeRequest(launch.worker_id, launch.claim_code, "n")
        started = await plane.store.write(lambda tx: sealing.open_sealer(tx, source))
        other = Context(plane.context.settings, started)
        answer, _ = await plane.store.write(lambda tx: executions.exchange(tx, other, request))
        assert answer == first, "after a restart too"

    on_plane(tmp_path, test)


def test_rotate_key_over_http_is_for_admins_and_in_the_audit_log(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        served.do(served.plane.deploy())
        with pytest.raises(NotAllowed):
            served.client(served.key("deploy")).call(
                wire.RotatedKey, "POST", "/v1/server/rotate-key"
            )
        admin = served.client(served.key("admin", "ada"))
        done = admin.call(wire.RotatedKey, "POST", "/v1/server/rotate-key")
        (key,) = served.plane.source.read()
        assert done == wire.RotatedKey(
            secret_keys.key_id(key), 1, [secret_keys.key_id(b"k" * 32)], ""
        )
        (line,) = admin.call(wire.AuditLog, "GET", "/v1/audit").lines
        assert (line.key_name, line.action, line.target) == ("ada", "rotate key", done.key_id)


def test_rotate_key_asked_again_over_http_is_told_the_same(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        served.do(served.plane.deploy())
        admin = served.client(served.key("admin"))
        first, again, other = (
            admin.call(wire.RotatedKey, "POST", f"/v1/server/rotate-key?request_key={key}")
            for key in ("one", "one", "other")
        )
        assert (first.versions, again) == (1, first)
        assert other.retired == [first.key_id]
        assert len(admin.call(wire.AuditLog, "GET", "/v1/audit").lines) == 2


# --- what is stored ---


def _tables(bench: Bench) -> bytes:
    """All that is in all tables."""

    def read(connection: sa.Connection) -> bytes:
        rows: list[bytes] = []
        for table in model.metadata.sorted_tables:
            for row in connection.execute(sa.select(table)):
                rows += [
                    bytes(x) if isinstance(x, bytes | memoryview) else repr(x).encode() for x in row
                ]
        return b"\n".join(rows)

    return bench.look(read)


def test_neither_values_nor_keys_are_in_the_database(bench: Bench, tmp_path: Path) -> None:
    source = ring_file(tmp_path, OLD)
    context = context_of(bench, source)
    version = deploy(bench, context, "a")
    keys = [OLD, context.sealer._mac_key]
    rotate(bench, context)
    keys += source.read()
    contents = {"tables": _tables(bench)}
    if bench.store.database.name == "sqlite":
        contents |= {path.name: path.read_bytes() for path in tmp_path.glob("test.sqlite*")}
        assert "test.sqlite-wal" in contents
    assert version.encode() in contents["tables"]
    for key in keys:
        forms = (key, base64.b64encode(key), base64.urlsafe_b64encode(key), key.hex().encode())
        for form in (*forms, SECRET.encode(), base64.b64encode(SECRET.encode())[:-4]):
            assert [name for name, content in contents.items() if form in content] == []


# --- AWS ---


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """A client of a Secrets Manager in this process."""
    import boto3

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_DEFAULT_REGION": "eu-central-1",
        "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    client = boto3.client("secretsmanager")
    yield client
    client.close()
    server.stop()


def test_a_ring_in_aws_is_used_and_rotated(aws: Any, tmp_path: Path) -> None:
    aws.create_secret(Name="team/ring", SecretString=text(OLD))
    aws.create_secret(Name="team/raw", SecretBinary=OLD)
    assert AwsSource("team/raw").read() == (OLD,)
    source = AwsSource("team/ring")
    bench = make_bench(tmp_path)
    try:
        context = context_of(bench, source)
        deploy(bench, context, "a")
        rotate(bench, context)
        (key,) = source.read()
        assert key != OLD
        assert aws.get_secret_value(SecretId="team/ring")["SecretString"] == text(key)
        assert opened(bench, context_of(bench, source).sealer) == [SECRET]
    finally:
        bench.close()


def test_an_empty_secret_in_aws_is_filled_once(aws: Any, tmp_path: Path) -> None:
    arn = aws.create_secret(Name="team/empty")["ARN"]
    source = AwsSource(arn)
    assert source.read() == ()
    first = source.make()
    assert AwsSource(arn).read() == first
    assert len(first) == 1
    bench = make_bench(tmp_path)
    try:
        context = context_of(bench, source)
        deploy(bench, context, "a")
        rotate(bench, context)
        assert source.read() != first
        assert opened(bench, context_of(bench, source).sealer) == [SECRET]
    finally:
        bench.close()


def test_who_fills_an_empty_secret_second_takes_what_is_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with scripted_aws.running() as aws:
        scripted_aws.log_in(monkeypatch, aws.url)
        aws.on("PutSecretValue", scripted_aws.refusal("ResourceExistsException"))
        aws.on("GetSecretValue", {"SecretString": text(OLD)})
        assert AwsSource("team/ring").make() == (OLD,)
        (_, asked), _ = aws.asked
        assert len(asked["ClientRequestToken"]) == 36


def test_a_secret_that_aws_does_not_have_is_said(aws: Any) -> None:
    with pytest.raises(InputError, match="The AWS secret nobody's cannot be used") as caught:
        AwsSource("nobody's").read()
    assert "aws secretsmanager create-secret" in caught.value.hint


def test_without_boto3_the_command_to_install_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "boto3", None)
    with pytest.raises(MissingExtra, match="needs boto3") as caught:
        AwsSource("a").read()
    assert "[aws]" in caught.value.hint
