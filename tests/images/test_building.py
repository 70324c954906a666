"""Images built by a real engine with its classic builder: what is in them, what is not, what is left."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from tests.cli import scripted_control_plane
from tests.cli.scripted_control_plane import Lines, environment, function, server_info, version
from tests.images.bench import engine_socket, everything_saved, relay
from tests.images.certificates import server_context, write_certificates
from tests.secure_shell import secure_shell

from multinode import wire
from multinode.errors import EnvironmentBuildFailed
from multinode.wire import EnvironmentSpec
from multinode_control_plane.runners.docker_containers import HOME

pytestmark = [pytest.mark.slow, pytest.mark.timeout(400)]

ROOT = Path(__file__).parents[2]
TRY = "import sys, os, multinode.worker, numpy; print(sys.version_info[:2], os.getuid(), os.environ['HOME'], os.getcwd())"


# --- what is in them ---


@pytest.mark.parametrize(("python", "served"), [("3.8", (3, 8)), ("3.12", (3, 12))])
def test_a_function_finds_its_python_its_packages_and_the_sdk(bench, python, served):
    report = bench.make(EnvironmentSpec(python=python, requirements="numpy\n"))
    said = bench.run(report.image, "python", "-c", TRY, read_only=True, cap_drop=["ALL"])
    assert said == f"{served} 1000 /work /work\n"
    assert report.python_served.startswith(f"{python}.")
    names = {package.partition("==")[0] for package in report.packages}
    assert {"numpy", "httpx", "jsonpickle"} <= names
    assert "multinode" not in names
    assert re.fullmatch(rf"python:{python}-\w+@sha256:[0-9a-f]{{64}}", report.base_image)


def test_it_is_labelled_runs_nothing_by_itself_and_is_compiled(shared_bench):
    bench = shared_bench
    report = bench.make(EnvironmentSpec(base_image=bench.base_image))
    config = bench.api.inspect_image(report.image)["Config"]
    assert config["Labels"].items() >= bench.labels.items()
    assert not config["Entrypoint"]
    assert not config["Cmd"]
    assert (config["User"], config["WorkingDir"]) == ("1000:1000", "/work")
    code = "import multinode.wire as w, os, jsonpickle as j; print(*(os.path.exists(m.__cached__) for m in (w, j)))"
    assert bench.run(report.image, "python", "-c", code, read_only=True) == "True True\n"
    owner = f"import os; open('{HOME}/x', 'w'); print(os.stat('{HOME}').st_uid)"
    assert bench.run(report.image, "python", "-c", owner) == "1000\n"


def test_a_system_package_is_there(shared_bench):
    bench = shared_bench
    report = bench.make(EnvironmentSpec(base_image=bench.base_image, apt=["tree"]))
    assert bench.run(report.image, "tree", "--version").startswith("tree v")


def test_a_changed_requirement_or_sdk_reuses_what_is_before(shared_bench, monkeypatch):
    bench = shared_bench
    spec = EnvironmentSpec(base_image=bench.base_image, apt=["tree"])
    first = bench.make(spec, digest="1" * 64)
    other = bench.make(spec.replace(requirements="tqdm\n"), digest="2" * 64)
    assert "Installing system packages" not in bench.follower.steps
    assert "Installing the requirements for Python 3.8.18" in bench.follower.steps
    files = dict(_sdk_files())
    files["sdk/multinode/added.py"] = b"ADDED = 1\n"
    monkeypatch.setattr("multinode_cli.images.context._sdk", lambda: files)
    third = bench.make(spec.replace(requirements="tqdm\n"), digest="3" * 64)
    assert bench.follower.steps == ["Adding Multinode itself"]
    layers = [bench.layers(report.image) for report in (first, other, third)]
    bases = len(bench.layers(bench.base_image))
    assert layers[1][: bases + 2] == layers[0][: bases + 2]  # base, user, apt
    assert layers[2][: bases + 4] == layers[1][: bases + 4]  # requirements too
    assert layers[2] != layers[1]


def _sdk_files():
    from multinode_cli.images import context

    return context._sdk()


# --- secrets ---


@pytest.fixture
def deploy(bench, tmp_path, monkeypatch):
    """Runs ``multinode deploy`` as a process against a control plane that orders an image."""
    base_image = bench.base()
    with scripted_control_plane.running() as plane:
        order = bench.order("e" * 64)
        _answer_a_deploy(plane, order)
        inherited = {name: value for name, value in os.environ.items() if name[:4] != "PIP_"}
        environ = {
            **inherited, "PATH": "", "MULTINODE_API_URL": plane.url, "MULTINODE_API_KEY": "key-1",
            "MULTINODE_RETRY_SECONDS": "0", "PIP_CONFIG_FILE": os.devnull, "HOME": str(tmp_path),
        }  # fmt: skip
        project = tmp_path / "project"

        def start(files, **changes):
            toml = f'project = "billing"\n[environment]\nbase_image = "{base_image}"\n'
            for name, text in {"multinode.toml": toml, **files}.items():
                path = project / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
            command = [sys.executable, "-m", "multinode_cli", "deploy"]
            return subprocess.Popen(
                command, cwd=project, env={**environ, **changes}, stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT, text=True, start_new_session=True,
            )  # fmt: skip

        start.plane, start.order = plane, order
        yield start


def _answer_a_deploy(plane, order):
    def take(request):
        report = wire.loads(wire.ImageReport, request.body)
        return environment(image=report.image, created=True)

    plane.on("GET", "/v1/server", server_info(runner="docker"))
    plane.on("GET", "/v1/projects/billing/versions/latest", version(bundle_digest="b" * 64))
    path = "/v1/projects/billing/environments"
    plane.on("POST", path, Lines(wire.BuildEvent(image_order=order)))
    plane.on("PUT", f"{path}/{order.digest}", take)
    plane.on("POST", "/v1/projects/billing/describe", wire.DescribeAnswer([function()]))
    answer = wire.RegisterAnswer("billing", "ver-1", True, True, [])
    plane.on("POST", "/v1/projects/billing/versions", answer)
    plane.on("GET", "/v1/projects/billing/versions/ver-1", version())
    plane.answers = _AnyBundle(plane.answers)


class _AnyBundle(dict):
    """Says of every bundle that it is there."""

    def get(self, key, default=None):
        return b"" if key[1].startswith("/v1/bundles/") else super().get(key, default)


MAIN = """\
from multinode import Multinode

mn = Multinode()
MARK = "code-in-main"


@mn.function()
def add(a, b):
    return a + b
"""
SECRETS = [b"dotenv-value", b"code-in-main", b"env-pw", b"netrc-pw", b"line-pw", b"multinode:eN"]


def test_code_dotenv_and_credentials_are_nowhere(deploy, bench, index, tmp_path):
    (tmp_path / ".netrc").write_text(f"machine {index.host} login netrc password netrc-pw\n")
    (tmp_path / "pip.conf").write_text(
        f"[global]\nfind-links = {index.url('netrc')}\ntrusted-host = {index.host}\n"
    )
    files = {
        "tasks/main.py": MAIN,
        "tasks/.env": "SECRET=dotenv-value\n",
        "tasks/requirements.txt": f"from-env\nfrom-netrc\nfrom-line @ {index.url('line', 'line:line-pw')}from_line-1.0-py3-none-any.whl\n",
    }
    process = deploy(
        files,
        PIP_EXTRA_INDEX_URL=index.url("env", "env:env-pw"),
        PIP_CONFIG_FILE=str(tmp_path / "pip.conf"),
    )
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    image = deploy.order.tag
    noted = json.loads(bench.run(image, "cat", "/opt/multinode/environment.json"))
    assert {"from-env==1.0", "from-netrc==1.0", "from-line==1.0"} <= set(noted["packages"])

    places = {"output": output.encode(), "history": _json(bench.api.history(image))}
    for layer in bench.images():
        places[f"inspect {layer}"] = _json(bench.api.inspect_image(layer))
    places["report"] = b"".join(
        request.body
        for request in deploy.plane.requests
        if request.path.startswith("/v1/projects/billing/environments")
    ).replace(b"line:line-pw", b"")  # requirements.txt itself, which is the user's to write
    looked_at = [*places.items(), *everything_saved(bench.api, image)]
    assert any(
        name.endswith("opt/multinode/build/inputs/requirements.txt") for name, _ in looked_at
    )
    found = [(name, secret) for name, data in looked_at for secret in SECRETS if secret in data]
    assert found == []


def test_an_index_with_an_authority_of_its_own_is_known_by_pips_certificates(
    shared_bench, behind_tls
):
    bench, (spec, certificates) = shared_bench, behind_tls
    with pytest.raises(EnvironmentBuildFailed, match=r"certificate of .* is not trusted") as raised:
        bench.make(spec)
    assert "PIP_CERT" in raised.value.hint
    report = bench.make(spec, PIP_CERT=certificates)
    assert "from-tls==1.0" in report.packages
    history = _json(bench.api.history(report.image))
    assert b"FTP_PROXY" not in history.upper()
    saved = everything_saved(bench.api, report.image)
    assert not [name for name, _ in saved if "tmp/" in name and name.endswith(".pem")]


def _json(data):
    return json.dumps(data).encode()


# --- what goes wrong ---


def test_a_requirement_that_does_not_resolve_is_told_with_its_line(shared_bench):
    spec = EnvironmentSpec(base_image=shared_bench.base_image, requirements="tqdm\nnumpy==1.26.1\n")
    with pytest.raises(EnvironmentBuildFailed) as raised:
        shared_bench.make(spec)
    assert raised.value.message.startswith(
        "numpy==1.26.1 needs Python <3.13,>=3.9; the environment has 3.8"
    )
    assert raised.value.hint.startswith("requirements.txt:2: numpy==1.26.1\n")


def test_requirements_that_contradict_the_sdks_are_told_with_their_line(shared_bench):
    spec = EnvironmentSpec(base_image=shared_bench.base_image, requirements="tqdm\nhttpx<0.20\n")
    with pytest.raises(EnvironmentBuildFailed) as raised:
        shared_bench.make(spec)
    assert raised.value.hint.startswith("requirements.txt:2: httpx<0.20\n")


def test_a_system_package_that_there_is_not_is_named(shared_bench):
    spec = EnvironmentSpec(base_image=shared_bench.base_image, apt=["no-such-package-here"])
    with pytest.raises(EnvironmentBuildFailed, match="no system package no-such-package-here for"):
        shared_bench.make(spec)


def test_a_base_image_whose_registry_is_away_is_told(shared_bench):
    spec = EnvironmentSpec(base_image="127.0.0.1:1/nowhere:1")
    with pytest.raises(EnvironmentBuildFailed, match="its registry cannot be reached"):
        shared_bench.make(spec)


def test_a_build_that_failed_leaves_no_container(shared_bench):
    spec = EnvironmentSpec(
        base_image=shared_bench.base_image, requirements="no-such-package-here==1\n"
    )
    with pytest.raises(EnvironmentBuildFailed):
        shared_bench.make(spec)
    assert shared_bench.containers() == set()


def test_ctrl_c_in_the_middle_leaves_nothing(deploy, bench, index):
    before = bench.images()
    files = {"tasks/main.py": MAIN, "tasks/requirements.txt": "tqdm\n"}
    process = deploy(files, PIP_INDEX_URL=index.url("hang"), PIP_CONFIG_FILE=index.pip_conf)
    said = []
    with process:
        for line in process.stdout:
            said.append(line)
            if "Looking in indexes" in line:
                assert len(bench.images()) > len(before)
                process.send_signal(signal.SIGINT)
    assert process.returncode == 130, said
    assert "Interrupted. Project billing is as it was" in said[-1]
    assert bench.containers() - index.containers == set()
    assert bench.images() == before
    assert not [request for request in deploy.plane.requests if request.method == "PUT"]


# --- another engine ---


@pytest.fixture
def plain(shared_bench):
    """A spec whose layers other tests have made."""
    return EnvironmentSpec(base_image=shared_bench.base_image)


def test_docker_host_is_where_it_is_built(shared_bench, plain):
    with relay(engine_socket()) as (address, connections):
        assert shared_bench.make(plain, DOCKER_HOST=address).image.startswith("sha256:")
        assert connections


@pytest.fixture
def certificates(tmp_path):
    folder = tmp_path / "certificates"
    folder.mkdir()
    write_certificates(folder)
    return folder


def test_an_engine_behind_tls_builds(shared_bench, plain, certificates, monkeypatch, tmp_path):
    monkeypatch.setenv(
        "REQUESTS_CA_BUNDLE", str(tmp_path)
    )  # of others: the engine's own is what counts
    with relay(engine_socket(), server_context(certificates)) as (address, connections):
        environ = {"DOCKER_TLS_VERIFY": "1", "DOCKER_CERT_PATH": str(certificates)}
        report = shared_bench.make(plain, DOCKER_HOST=address, **environ)
        assert report.image.startswith("sha256:")
        assert connections


def test_an_engine_behind_ssh_builds(shared_bench, plain, tmp_path):
    with secure_shell(tmp_path) as shell:
        address = f"{shell.address}{engine_socket()}"
        path = str(tmp_path / "bin")  # without the docker command
        report = shared_bench.make(plain, DOCKER_HOST=address, PATH=path)
        assert report.image.startswith("sha256:")
