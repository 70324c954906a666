"""The server's log: its formats, its ids, the way of a request's id, and that no secret is in it."""

from __future__ import annotations

import json
import logging

import httpx
import pytest
from tests.control_plane.told_plane import serving

from multinode import wire
from multinode.errors import InputError
from multinode_control_plane.api import installation
from multinode_control_plane.settings import parser, resolve
from multinode_control_plane.telemetry.log_lines import JsonLines, TextLines, without_secrets
from multinode_control_plane.telemetry.request import Asked, current, request_id_of


class Lines(logging.Handler):
    """Keeps what a formatter makes."""

    def __init__(self, formatter: logging.Formatter) -> None:
        super().__init__()
        self.setFormatter(formatter)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def logged():
    """All that is logged, at every level, as JSON."""
    root, handler = logging.getLogger(), Lines(JsonLines())
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler.lines
    root.removeHandler(handler)
    root.setLevel(before)


def record(message: str, *arguments: object, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("multinode", logging.WARNING, "f.py", 1, message, arguments, None)
    made.__dict__.update(extra, created=1769860800.25, msecs=250.0)
    return made


def test_a_line_of_json_says_when_how_bad_who_what_and_about_what():
    line = json.loads(JsonLines().format(record("it %s", "broke\nhere", worker_id="wrk-1")))
    assert line == {
        "time": "2026-01-31T12:00:00.250Z",
        "level": "warning",
        "logger": "multinode",
        "message": "it broke\nhere",
        "worker_id": "wrk-1",
    }


def test_a_line_of_text_ends_with_the_ids():
    token = current.set(Asked("req-7", project="shop"))
    try:
        assert (
            TextLines()
            .format(record("it broke", execution_id="exe-1"))
            .endswith(
                " WARNING multinode: it broke [request_id=req-7 project=shop execution_id=exe-1]"
            )
        )
    finally:
        current.reset(token)
    assert TextLines().format(record("it broke")).endswith(": it broke")


def test_a_traceback_is_a_field_of_its_own():
    try:
        raise ValueError("bad bound")
    except ValueError as error:
        made = record("it broke")
        made.exc_info = (ValueError, error, error.__traceback__)
    text = JsonLines().format(made)
    assert "\n" not in text
    assert "ValueError: bad bound" in json.loads(text)["traceback"]


@pytest.mark.parametrize(
    ("header", "is_taken"),
    [("abc-1.2_Z", True), ("a" * 64, True), ("a" * 65, False), ("", False), ("a b", False),
     ("é", False), ("a\r\nSet-Cookie: x", False), ("a\n", False), (None, False)],
)  # fmt: skip
def test_a_callers_request_id_is_taken_where_it_is_harmless(header, is_taken):
    assert (request_id_of(header) == header) == is_taken
    assert request_id_of(header)


def test_an_answer_has_the_requests_id_whatever_it_is(tmp_path):
    with serving(tmp_path) as served:
        own = {"X-Request-Id": "mine-1"}
        for path in ("/healthz", "/nothing", "/v1/projects"):
            assert httpx.get(served.url + path, headers=own).headers["x-request-id"] == "mine-1"
        refused = httpx.get(served.url + "/healthz", headers={**own, "Host": "evil.example"})
        assert (refused.status_code, refused.headers["x-request-id"]) == (403, "mine-1")
        made = [httpx.get(served.url + "/healthz").headers["x-request-id"] for _ in range(2)]
        assert made[0] != made[1]


def test_an_internal_error_and_its_line_in_the_log_share_an_id(tmp_path, monkeypatch, logged):
    def broken(*_arguments, **_options):
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(installation.deployments, "list_projects", broken)
    with serving(tmp_path) as served:
        headers = {"Authorization": f"Bearer {served.key('read')}", "X-Request-Id": "mine-2"}
        answer = httpx.get(served.url + "/v1/server", headers=headers)
    assert answer.status_code == 500
    assert "mine-2" in answer.json()["error"]["hint"]
    [line] = [line for line in map(json.loads, logged) if line.get("request_id") == "mine-2"]
    assert line["level"] == "error"
    assert "a fault of ours" in line["traceback"]


def test_no_secret_is_logged(tmp_path, logged):
    """Not at any level: keys, tokens, claim codes, values of .env, and what SQLAlchemy puts into its messages."""
    with serving(tmp_path) as served:
        key = served.key("admin")
        with httpx.Client(
            base_url=served.url, headers={"Authorization": f"Bearer {key}"}
        ) as client:
            client.get("/v1/server")
            client.get("/v1/server", headers={"Authorization": "Bearer mnk_wrong-key-of-somebody"})

        async def run() -> tuple[str, str]:
            await served.plane.deploy()
            invocation_id = await served.plane.start(inputs=['[["the-input"],{}]'])
            launch = await served.plane.launch_of(invocation_id)
            assignment, _ = await served.plane.claim(invocation_id)
            with pytest.raises(Exception, match="no such table") as caught:
                await served.plane.store.write(
                    lambda tx: tx.connection.exec_driver_sql("INSERT INTO nowhere VALUES (?)", ("s3cret",))
                )  # fmt: skip
            logging.getLogger("multinode").error("a fault", exc_info=caught.value)
            return launch.claim_code, assignment.token

        claim_code, token = served.do(run())
        body = wire.dumps(wire.ExchangeRequest("wrk-x", "a-wrong-claim-code", "n"))
        httpx.post(served.url + "/v1/worker/exchange", content=body)
        logging.getLogger("multinode").error("with %s and Bearer %s", token, "abc.def-ghi")
    text = "\n".join(logged)
    assert text
    for secret in (
        key, claim_code, token, "mnk_wrong-key", "a-wrong-claim-code", "s3cret", "the-input",
        "abc.def-ghi",
    ):  # fmt: skip
        assert secret not in text, secret


def test_what_looks_like_a_secret_is_taken_out():
    assert without_secrets("key mnk_abcd-EF_1, mnw_abcdef.") == "key mnk_…, mnw_…."
    assert without_secrets("Authorization: bearer abc/def+==") == "Authorization: bearer …"
    assert without_secrets("nothing here, no bearer") == "nothing here, no bearer"


def test_a_format_that_there_is_not_is_refused(tmp_path):
    options = parser().parse_args([f"--home={tmp_path}", "--log-format=xml"])
    with pytest.raises(InputError, match="--log-format 'xml' is no format"):
        resolve(options, {})
    assert resolve(parser().parse_args([f"--home={tmp_path}"]), {"MULTINODE_LOG_FORMAT": "json"})
