"""``multinode deploy`` where the control plane orders an image, with a scripted engine to build it."""

import json
import subprocess
import sys

import pytest
from tests.cli.scripted_control_plane import (
    Lines,
    Refusal,
    environment,
    function,
    server_info,
    version,
)
from tests.cli.scripted_engine import running as engine_running
from tests.cli.scripted_engine import scripted_order

from multinode import wire
from multinode.distribution import sdk_digest
from multinode.errors import EnvironmentBuildFailed
from multinode_cli.commands.releasing import _BuildOutput
from multinode_cli.console import Console
from multinode_cli.settings import Settings

ENVIRONMENTS = "/v1/projects/billing/environments"
FAILED = [
    {"stream": "== Installing the requirements for Python 3.12.1\n"},
    {"stream": "ERROR: No matching distribution found for nothing\n"},
    {"error": "returned a non-zero code: 1"},
]


@pytest.fixture
def deployable(plane, monkeypatch, tmp_path):
    """A control plane that orders an image and an engine that builds it; ``plane.engine`` is that."""
    made = environment(image="sha256:made", created=True)
    plane.on("GET", "/v1/server", server_info(runner="docker"))
    plane.on("GET", "/v1/projects/billing/versions/latest", version())
    plane.on("POST", ENVIRONMENTS, Lines(wire.BuildEvent(image_order=scripted_order())))
    plane.on("PUT", f"{ENVIRONMENTS}/d1", made)
    plane.on("POST", "/v1/projects/billing/describe", wire.DescribeAnswer([function()]))
    answer = wire.RegisterAnswer("billing", "ver-1", True, True, [])
    plane.on("POST", "/v1/projects/billing/versions", answer)
    plane.on("GET", "/v1/projects/billing/versions/ver-1", version(environment=made))

    class AnyBundle(dict):
        def get(self, key, default=None):
            return b"" if key[1].startswith("/v1/bundles/") else super().get(key, default)

    plane.answers = AnyBundle(plane.answers)
    for name in ("PATH", "HOME", "PIP_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "nothing"))
    with engine_running() as engine:
        monkeypatch.setenv("DOCKER_HOST", engine.address)
        plane.engine = engine
        yield plane


def test_deploy_builds_what_is_ordered_and_reports_it(cli, project, deployable):
    project({"tasks/.env": "SECRET=s3cret\n"})
    outcome = cli("deploy", "--json")
    assert outcome.code == 0, outcome.err
    assert outcome.json["data"]["environment"]["image"] == "sha256:made"
    assert "  Checking the base image\n" in outcome.err
    (asked,) = deployable.bodies("POST", ENVIRONMENTS)
    (report,) = deployable.bodies("PUT", f"{ENVIRONMENTS}/d1")
    assert asked["sdk_digest"] == report["sdk_digest"] == sdk_digest()
    assert report["spec"] == asked["spec"]
    assert (report["image"], report["python_served"]) == ("sha256:made", "3.12.1")
    assert "s3cret" not in str(deployable.engine.requests)


def test_a_login_that_expires_during_the_build_is_asked_for_anew(cli, project, deployable):
    def order(request):
        key = "new" if json.loads(request.body)["login_refused"] else "old"
        registry = wire.Registry("r.example/mn", "AWS", key)
        return Lines(wire.BuildEvent(image_order=scripted_order(registry)))

    deployable.on("POST", ENVIRONMENTS, order)
    deployable.engine.expired = {"old"}
    project()
    outcome = cli("deploy", "--debug")
    assert outcome.code == 0, outcome.err
    first, second = deployable.bodies("POST", ENVIRONMENTS)
    assert second == {**first, "no_cache": True, "login_refused": True}
    assert deployable.engine.keys == ["old", "new", "new"]
    (report,) = deployable.bodies("PUT", f"{ENVIRONMENTS}/d1")
    assert report["image"] == "r.example/mn@sha256:pushed"


@pytest.mark.parametrize(("runner", "told"), [("docker", "https://***@x.example/"), ("process", "https://me:pw@x.example/")])  # fmt: skip
def test_credentials_of_indexes_are_told_to_who_installs_alone(
    cli, project, deployable, monkeypatch, runner, told
):
    monkeypatch.setenv("PIP_INDEX_URL", "https://me:pw@x.example/")
    deployable.on("GET", "/v1/server", server_info(runner=runner))
    project()
    assert cli("deploy").code == 0
    bodies = deployable.bodies("POST", ENVIRONMENTS) + deployable.bodies(
        "PUT", f"{ENVIRONMENTS}/d1"
    )
    assert [body["spec"]["settings"] for body in bodies] == [{"PIP_INDEX_URL": told}] * 2


@pytest.mark.parametrize(("runner", "told"), [("docker", {"PIP_INDEX_URL": "https://***@x.example/"}), ("process", None)])  # fmt: skip
def test_an_index_of_pip_conf_makes_another_image(
    cli, project, deployable, monkeypatch, tmp_path, runner, told
):
    (tmp_path / "pip.conf").write_text("[global]\nindex-url = https://me:pw@x.example/\n")
    monkeypatch.setenv("PIP_CONFIG_FILE", str(tmp_path / "pip.conf"))
    deployable.on("GET", "/v1/server", server_info(runner=runner))
    project()
    assert cli("deploy").code == 0
    (asked,) = deployable.bodies("POST", ENVIRONMENTS)
    assert asked["spec"].get("settings") == told


def test_a_build_that_fails_registers_nothing(cli, project, deployable):
    deployable.engine.build = FAILED
    project({"tasks/requirements.txt": "tqdm\nnothing\n"})
    outcome = cli("deploy")
    assert outcome.code == 2
    assert "error: The requirements cannot be installed on Python 3.12.1." in outcome.err
    assert "requirements.txt:2: nothing" in outcome.err
    assert {request.method for request in deployable.requests} == {"GET", "POST"}
    assert deployable.bodies("POST", "/v1/projects/billing/versions") == []


def test_a_report_that_is_refused_is_the_error(cli, project, deployable):
    message = "The image is not in the control plane's engine."
    deployable.on("PUT", f"{ENVIRONMENTS}/d1", Refusal(422, "environment_build_failed", message))
    project()
    outcome = cli("deploy")
    assert (outcome.code, f"error: {message}" in outcome.err) == (2, True)


def test_without_an_engine_deploy_says_what_to_do(cli, project, deployable, monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere.sock")
    project()
    outcome = cli("deploy")
    assert outcome.code == 1
    assert "error: No Docker engine answers at unix:///nowhere.sock" in outcome.err
    assert "Start Docker, or set DOCKER_HOST" in outcome.err


@pytest.mark.parametrize(
    ("toml", "said"),
    [
        ('apt = ["libgl1; rm -rf /"]', "is no name of a Debian package"),
        ("apt = [1]", "is no list of package names"),
        ('base_image = "python 3"', "is no name of an image"),
    ],
)
def test_names_that_nothing_can_have_are_found_before_anything_is_asked(
    cli, project, deployable, toml, said
):
    project(toml=f'project = "billing"\n[environment]\n{toml}\n')
    outcome = cli("deploy")
    assert (outcome.code, said in outcome.err) == (2, True)
    assert deployable.requests == []


# --- what is shown of a build ---


def shown(capsys, tmp_path, *, has_motion, fails):
    settings = Settings(home=tmp_path, environ={}, has_motion=has_motion)
    console = Console(settings)
    with console.changing_line("environment") as line:
        try:
            with _BuildOutput(console, line) as output:
                output.step("Installing the requirements")
                output.line("Collecting numpy")
                output.moment("layer 3 MB")
                if fails:
                    message = "no"
                    raise EnvironmentBuildFailed(message)
        except EnvironmentBuildFailed:
            pass
    return [line.strip() for line in capsys.readouterr().err.splitlines()]


BEGIN = ["Making the environment (once for these requirements):", "Installing the requirements"]


@pytest.mark.parametrize("fails", [False, True])
def test_without_a_terminal_every_line_is_shown_once(capsys, tmp_path, fails):
    lines = shown(capsys, tmp_path, has_motion=False, fails=fails)
    assert lines == [*BEGIN, "Collecting numpy"]


def test_on_a_terminal_steps_are_shown_and_the_log_where_it_fails(capsys, tmp_path):
    assert shown(capsys, tmp_path, has_motion=True, fails=False) == BEGIN
    log = ["Installing the requirements:", "Collecting numpy"]
    assert shown(capsys, tmp_path, has_motion=True, fails=True) == [*BEGIN, *log]


def test_describe_shows_the_image(cli, project, deployable):
    made = environment(image="sha256:made", base_image="python:3.12-bookworm@sha256:base")
    deployable.on("GET", "/v1/projects/billing/versions/latest", version(environment=made))
    info = wire.ProjectInfo("billing", made.created_at, "ver-1", ["add"], 0)
    deployable.on("GET", "/v1/projects/billing", wire.ProjectDetail(info, []))
    said = cli("describe", "billing").out
    assert "image        sha256:made, made from python:3.12-bookworm@sha256:base" in said


def test_docker_is_imported_only_where_an_image_is_made():
    code = "import sys, multinode_cli.commands.releasing; sys.exit(not {'docker', 'requests'}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
