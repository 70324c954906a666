"""What images are made from, and the words for what goes wrong: without an engine, or with a scripted one."""

import io
import json
import os
import tarfile

import pytest
from tests.cli.scripted_engine import running as engine_running
from tests.cli.scripted_engine import scripted_order

from multinode.distribution import SDK_REQUIREMENTS
from multinode.errors import (
    EngineUnavailable,
    EnvironmentBuildFailed,
    InputError,
    OperationFailed,
    RegistryFailed,
    StorageFull,
)
from multinode.wire import EnvironmentSpec, Registry
from multinode_cli.images import buildkit, engine, failures, making
from multinode_cli.images.context import Context, base_image_of, make_context
from multinode_cli.images.failures import EngineRefused
from multinode_cli.images.indexes import hidden, read_indexes
from multinode_cli.images.output import Output
from multinode_cli.images.pip_settings import authorities, index_settings


class Follower:
    """Remembers what it is told."""

    def __init__(self):
        self.steps, self.lines, self.moments = [], [], []
        self.step, self.line, self.moment = (
            self.steps.append,
            self.lines.append,
            self.moments.append,
        )


@pytest.fixture
def home(tmp_path):
    """A user's folder and environment, with no docker command."""
    folder = tmp_path / "user"
    folder.mkdir()
    return folder, {"HOME": str(folder), "PATH": "", "PIP_CONFIG_FILE": str(folder / "pip.conf")}


def dockerfile(spec, environ, *, has_buildkit=False):
    return make_context(spec, environ).written(has_buildkit=has_buildkit)["Dockerfile"].decode()


# --- context ---


COMMAND_FAILED = "The command '/bin/sh -c …' returned a non-zero code: 1"


@pytest.mark.parametrize(
    ("spec", "image"),
    [
        (EnvironmentSpec(), "python:3.8-bullseye"),
        (EnvironmentSpec(python="3.12"), "python:3.12-bookworm"),
        (EnvironmentSpec(python="3.12", base_image="r.example/x@sha256:1"), "r.example/x@sha256:1"),
    ],
)
def test_the_base_image_is_that_of_the_python_unless_one_is_named(spec, image, home):
    assert base_image_of(spec) == image
    assert f"\nFROM {image}\n" in dockerfile(spec, home[1])


def test_the_context_holds_requirements_and_the_sdk_and_nothing_else(home):
    spec = EnvironmentSpec(requirements="numpy\n-r more.txt\n", files={"more.txt": "dHFkbQo="})
    files = make_context(spec, home[1]).files
    assert files["build/inputs/requirements.txt"] == b"numpy\n-r more.txt\n"
    assert files["build/inputs/more.txt"] == b"tqdm\n"
    assert files["build/sdk-requirements.txt"].decode().split() == list(SDK_REQUIREMENTS)
    assert "sdk/multinode/worker/supervisor.py" in files
    others = {name for name in files if not name.startswith(("sdk/", "build/inputs/"))}
    assert others == {
        "Dockerfile",
        "build/install.py",
        "build/sdk-requirements.txt",
        "build/indexes.json",
    }


def test_what_changes_least_is_in_the_first_layer(home):
    spec = EnvironmentSpec(apt=["tree", "graphviz"])
    text = dockerfile(spec, home[1])
    order = ["FROM", "apt-get install -q -y --no-install-recommends graphviz tree", "COPY build/"]
    order += ["install.py", "COPY sdk/", "USER 1000:1000"]
    places = [text.index(part) for part in order]
    assert places == sorted(places)
    assert "apt-get" not in dockerfile(EnvironmentSpec(), home[1])


def test_mounts_are_for_buildkit_alone(home):
    assert "--mount" not in dockerfile(EnvironmentSpec(), home[1])
    assert "--mount=type=secret" in dockerfile(EnvironmentSpec(), home[1], has_buildkit=True)
    assert "# syntax=" not in dockerfile(EnvironmentSpec(), home[1], has_buildkit=True)


def test_the_archive_depends_on_nothing_but_the_files(home):
    context = make_context(EnvironmentSpec(requirements="numpy\n"), home[1])
    archive = context.archive(has_buildkit=False)
    assert archive == context.archive(has_buildkit=False)
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        assert {(entry.mtime, entry.uid, entry.mode) for entry in tar} == {(0, 0, 0o644)}


# --- indexes ---


def test_the_users_pip_settings_and_netrc_go_into_the_secret_alone(home):
    folder, environ = home
    (folder / "pip.conf").write_text(
        "[global]\nindex-url = https://conf:conf-pw@one.example/simple\n"
        "find-links = /opt/wheels https://two.example/files\n"
    )
    (folder / ".netrc").write_text(
        "machine two.example login me password netrc/pw\nmachine other.example login me password other-pw\n"
    )
    settings = index_settings(
        {**environ, "UV_INDEX": "inner=https://env:env-pw@three.example/simple"}
    )
    files = {"requirements.txt": b"tool @ https://line:line-pw@four.example/tool.whl\n"}
    indexes = read_indexes(settings, environ, files)
    assert indexes.public == {
        "PIP_INDEX_URL": "https://***@one.example/simple",
        "PIP_FIND_LINKS": "https://***@two.example/files",
        "PIP_EXTRA_INDEX_URL": "https://***@three.example/simple",
    }
    assert indexes.files == {
        "requirements.txt": b"tool @ https://${MULTINODE_CREDENTIALS_1}@four.example/tool.whl\n"
    }
    assert indexes.variables["PIP_FIND_LINKS"] == "https://me:netrc%2Fpw@two.example/files"
    assert "other" not in indexes.secret.text
    secrets = {"conf-pw", "env-pw", "netrc/pw", "netrc%2Fpw", "line:line-pw"}
    assert secrets <= set(hidden(indexes.secret))
    context = make_context(
        EnvironmentSpec(requirements=files["requirements.txt"].decode(), settings=settings), environ
    )
    for content in (context.archive(has_buildkit=True), context.archive(has_buildkit=False)):
        assert b"-pw" not in content
    assert "env-pw" not in repr(context)


def test_a_url_in_requirements_gets_netrcs_login_as_a_variable(home):
    (home[0] / ".netrc").write_text("machine x.example login me password pw\n")
    files = {"requirements.txt": b"a @ https://x.example:8/a.whl\nb @ https://y.example/b.whl\n"}
    indexes = read_indexes({}, home[1], files)
    assert indexes.files["requirements.txt"].splitlines() == [
        b"a @ https://${MULTINODE_CREDENTIALS_1}@x.example:8/a.whl",
        b"b @ https://y.example/b.whl",
    ]
    assert indexes.variables == {"MULTINODE_CREDENTIALS_1": "me:pw"}


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, {"PIP_INDEX_URL": "https://conf/simple", "PIP_FIND_LINKS": "https://conf/files"}),
        (
            {"UV_DEFAULT_INDEX": "https://env/simple", "PIP_TRUSTED_HOST": "env"},
            {
                "PIP_INDEX_URL": "https://env/simple",
                "PIP_FIND_LINKS": "https://conf/files",
                "PIP_TRUSTED_HOST": "env",
            },
        ),
        (
            {"PIP_FIND_LINKS": "/wheels", "PIP_INDEX_URL": "https://env/simple"},
            {"PIP_INDEX_URL": "https://env/simple"},
        ),
    ],
)
def test_variables_win_over_pips_files_and_paths_are_left_out(home, variables, expected):
    folder, environ = home
    (folder / "pip.conf").write_text(
        "[global]\nindex-url = https://conf/simple\nextra-index-url = file:///opt/simple\n"
        "[install]\nfind_links =\n  /opt/wheels\n  https://conf/files\n"
    )
    assert index_settings({**environ, **variables}) == expected


CERTIFICATE = "-----BEGIN CERTIFICATE-----\nMIIB{}\n-----END CERTIFICATE-----\n"


def test_pips_certificates_are_in_the_secret_without_a_key_beside_them(home):
    folder, environ = home
    key = "-----BEGIN PRIVATE KEY-----\nMIIK\n-----END PRIVATE KEY-----\n"
    bundle = folder / "ca.pem"
    bundle.write_text(f"# ours\n{CERTIFICATE.format(1)}{key}{CERTIFICATE.format(2)}")
    (folder / "pip.conf").write_text("[global]\ncert = ~/ca.pem\n")
    named = {**environ, "PIP_CERT": str(bundle)}
    assert authorities(named) == CERTIFICATE.format(1) + CERTIFICATE.format(2)
    assert authorities({**environ, "PIP_CERT": str(folder)}) == authorities(named)
    assert authorities({**environ, "PIP_CONFIG_FILE": "/dev/null"}) == ""
    told = json.loads(read_indexes({}, named, {}).secret.text)
    assert told == {"certificates": authorities(named)}
    assert read_indexes({}, named, {}).public == {}


@pytest.mark.parametrize("content", [None, "no certificate\n"])
def test_certificates_that_cannot_be_had_are_named(home, content):
    folder, environ = home
    if content:
        (folder / "ca.pem").write_text(content)
    (folder / "pip.conf").write_text(f"[global]\ncert = {folder}/ca.pem\n")
    with pytest.raises(InputError, match=r"ca\.pem") as raised:
        read_indexes({}, environ, {})
    assert "`cert` in pip.conf" in raised.value.hint


def test_without_settings_there_is_no_secret(home):
    assert read_indexes({}, home[1], {"requirements.txt": b"numpy\n"}).secret is None


def test_variables_in_requirements_and_the_user_of_ssh_stay(home):
    files = {"requirements.txt": b"a @ https://${TOKEN}@x/a.whl\nb @ git+ssh://git@x/b.git\n"}
    assert read_indexes({}, home[1], files).files == files


@pytest.mark.parametrize(
    ("name", "text"), [("pip.conf", "index-url = x\n"), (".netrc", "machine x passphrase y\n")]
)
def test_a_file_that_cannot_be_read_is_named(name, text, home):
    folder, environ = home
    (folder / name).write_text(text)
    with pytest.raises(InputError, match=name):
        read_indexes(index_settings(environ), environ, {})


def test_a_secret_too_long_for_arguments_is_refused(home):
    settings = {"PIP_INDEX_URL": f"https://x.example/{os.urandom(200_000).hex()}"}
    secret = read_indexes(settings, home[1], {}).secret
    with pytest.raises(InputError, match="too long for Docker's classic builder"):
        secret.as_arguments()


# --- output ---


def test_output_is_told_by_line_and_step_without_secrets_and_colours():
    follower = Follower()
    output = Output(follower, ["s3cret"])
    output.take("== Installing the requ")
    output.take("irements\nLooking in https://me:pw@x.example, s3cret\n\x1b[91mold\rnew\x1b[0m\n")
    assert follower.steps == ["Installing the requirements"]
    assert follower.lines == ["Looking in https://***@x.example, ***", "new"]


# --- failures ---

NUMPY = """\
== Installing the requirements for Python 3.8.18
ERROR: Ignored the following versions that require a different python version: 1.26.0 Requires-Python <3.13,>=3.9; 1.26.1 Requires-Python <3.13,>=3.9
ERROR: Could not find a version that satisfies the requirement numpy==1.26.1 (from versions: 1.3.0, 1.4.1, 1.5.0, 1.6.0, 1.7.0, 1.8.0)
ERROR: No matching distribution found for numpy==1.26.1"""
CONFLICT = """\
== Installing the requirements for Python 3.12.1
ERROR: Cannot install -r /opt/multinode/build/sdk-requirements.txt (line 1) and httpx<0.20 because these package versions have conflicting dependencies.
The conflict is caused by:
    The user requested httpx<0.20 (from -r requirements.txt (line 2))"""
OLDER_PIPS_CONFLICT = """\
== Installing the requirements for Python 3.8.18
ERROR: Cannot install httpx<0.20 and httpx>=0.24 because these package versions have conflicting dependencies."""
AWAY = """\
== Installing the requirements for Python 3.12.1
WARNING: Retrying (Retry(total=0)) after connection broken by 'NewConnectionError(…)': /simple/tqdm/
ERROR: Could not find a version that satisfies the requirement tqdm (from versions: none)"""
CLOSED = """\
== Installing the requirements for Python 3.12.1
WARNING: 401 Error, Credentials not correct for https://pypi.example/simple/tqdm/
ERROR: No matching distribution found for tqdm"""


NEWER_PIPS_WORDS = f"""\
== Installing the requirements for Python 3.8.18
Collecting jsonpickle (from -r requirements.txt (line 1))
{NUMPY.partition(chr(10))[2]}"""
BROKEN_BACKEND = """\
== Installing the requirements for Python 3.12.1
Collecting tqdm (from -r requirements.txt (line 1))
Collecting numpy==1.19.5 (from -r requirements.txt (line 2))
  Getting requirements to build wheel: finished with status 'done'
ERROR: Exception:
ModuleNotFoundError: No module named 'distutils'"""


@pytest.mark.parametrize(
    ("said", "requirements", "message", "place"),
    [
        (NUMPY, "jsonpickle\nnumpy==1.26.1\n", "numpy==1.26.1 needs Python <3.13,>=3.9; the environment has 3.8.18.", "requirements.txt:2: numpy==1.26.1"),
        (NEWER_PIPS_WORDS, "jsonpickle\nnumpy==1.26.1\n", "numpy==1.26.1 needs Python <3.13,>=3.9; the environment has 3.8.18.", "requirements.txt:2: numpy==1.26.1"),
        (BROKEN_BACKEND, "tqdm\nnumpy==1.19.5\n", "The requirements cannot be installed on Python 3.12.1.", "requirements.txt:2: numpy==1.19.5"),
        (CONFLICT, "tqdm\nhttpx<0.20\n", "The requirements cannot be installed on Python 3.12.1.", "requirements.txt:2: httpx<0.20"),
        (OLDER_PIPS_CONFLICT, "tqdm\n\nhttpx<0.20\n", "The requirements cannot be installed on Python 3.8.18.", "requirements.txt:3: httpx<0.20"),
        (AWAY, "tqdm\n", "The package index cannot be reached while the image is built.", "requirements.txt:1: tqdm"),
        (CLOSED, "tqdm\n", "The package index https://pypi.example does not let us in (401).", "requirements.txt:1: tqdm"),
    ],
)  # fmt: skip
def test_a_requirement_that_fails_is_told_with_its_line(said, requirements, message, place):
    files = {"requirements.txt": requirements.encode()}
    error = failures.build_failed(
        COMMAND_FAILED,
        said.splitlines(),
        base_image="python:3.8",
        platform="linux/amd64",
        files=files,
    )
    assert isinstance(error, EnvironmentBuildFailed)
    assert error.message == message
    assert error.hint.splitlines()[0] == place
    assert "Ignored the following" not in error.hint


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("E: Unable to locate package libgl7", "There is no system package libgl7 for python:3.8."),
        ("E: Version '1' for 'tree' was not found", "There is no system package tree for python:3.8."),
        ("Err:1 http://deb.debian.org bookworm InRelease", "The system packages for python:3.8 cannot be fetched."),
        ("E: Sub-process /usr/bin/dpkg returned an error code (1)", "The system packages cannot be installed on python:3.8."),
        ("multinode-error: has no apt-get", "The base image python:3.8 has no apt-get."),
    ],
)  # fmt: skip
def test_a_system_package_that_fails_is_named(line, message):
    lines = ["== Installing system packages", line]
    error = failures.build_failed(
        COMMAND_FAILED, lines, base_image="python:3.8", platform="linux/amd64", files={}
    )
    assert error.message == message


@pytest.mark.parametrize(
    "words",
    [
        COMMAND_FAILED,
        "executor failed running [/bin/sh -c python install.py]: exit code: 1",
        'ERROR: failed to solve: process "/bin/sh -c python install.py" did not complete successfully: exit code: 1',
    ],
)
def test_each_builder_says_in_its_own_way_that_a_command_failed(words):
    lines = ["== Installing system packages", "E: Unable to locate package libgl7"]
    error = failures.build_failed(
        words, lines, base_image="python:3.8", platform="linux/amd64", files={}
    )
    assert error.message == "There is no system package libgl7 for python:3.8."


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("The command '/bin/sh -c x' returned a non-zero code: 1", "exec /bin/sh: exec format error"),
        ("OCI runtime create failed: exec user process caused: exec format error: unknown", ""),
        ('process "/bin/sh -c x" did not complete successfully: exit code: 1', "exec /bin/sh: exec format error"),
    ],
)  # fmt: skip
def test_an_image_for_a_processor_that_is_not_there_says_how_it_can_be_built(words, line):
    error = failures.build_failed(
        words, [line], base_image="python:3.12", platform="linux/arm64", files={}
    )
    assert error.message.startswith("The image is for linux/arm64, and the Docker engine cannot")
    assert "--install arm64" in error.hint
    assert "DOCKER_HOST" in error.hint


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("manifest for python:3.99 not found: manifest unknown", "There is no base image python:3.99 for linux/amd64."),
        ("pull access denied for x, repository does not exist or may require 'docker login': denied: unauthorized", "There is no base image"),
        ("dial tcp: lookup registry-1.docker.io: no such host", "is not here, and its registry cannot be reached."),
        ('Head "http://r/v2/": no basic auth credentials', "wants a login."),
    ],
)  # fmt: skip
def test_a_base_image_that_cannot_be_had_is_told_with_the_reason(words, message):
    error = failures.base_image_missing(words, "python:3.99", "linux/amd64")
    assert message in error.message
    assert words in error.hint


# --- a scripted engine ---


@pytest.fixture
def scripted():
    with engine_running() as made:
        yield made


def make(scripted, home, *, registry=None, spec=None, no_cache=False, another_login=lambda: None):
    follower = Follower()
    order = scripted_order(registry)
    spec = spec or EnvironmentSpec(python="3.12")
    environ = {**home[1], "DOCKER_HOST": scripted.address}
    try:
        report = making.make_image(
            order, spec, follower, environ=environ, no_cache=no_cache, another_login=another_login
        )
    finally:
        scripted.follower = follower
    return report


def test_an_image_is_reported_as_it_says_itself(scripted, home):
    report = make(scripted, home)
    assert (report.image, report.python_served, report.packages) == (
        "sha256:made",
        "3.12.1",
        ["httpx==0.28.1"],
    )
    assert report.base_image == "python:3.12-bookworm@sha256:base"
    (asked,) = scripted.queries("POST", "/build")
    assert asked["t"] == ["multinode:d1"]
    assert json.loads(asked["labels"][0]) == {"multinode.installation": "i1"}
    assert scripted.follower.steps == ["Checking the base image"]
    assert scripted.left == []


def test_the_base_image_is_pulled_where_it_is_not_here_or_another_platforms(scripted, home):
    scripted.base_platform = ("linux", "arm64")
    make(scripted, home)
    (asked,) = scripted.queries("POST", "/images/create")
    assert (asked["fromImage"], asked["tag"], asked["platform"]) == (
        ["python"],
        ["3.12-bookworm"],
        ["linux/amd64"],
    )


def test_a_base_image_that_cannot_be_refreshed_serves_with_a_warning(scripted, home):
    scripted.pull = (500, {"message": "dial tcp: no such host"})
    report = make(scripted, home, no_cache=True)
    assert report.warnings == [
        "python:3.12-bookworm could not be pulled anew; the one that is here was used."
    ]
    assert scripted.queries("POST", "/build")[0]["nocache"] == ["True"]


@pytest.mark.parametrize("where", ["build", "pull", "event"])
def test_a_full_disk_of_the_engine_is_said(scripted, home, where):
    words = "write /var/lib/docker/overlay2/x: no space left on device"
    if where == "build":
        scripted.build = [{"error": words, "errorDetail": {"code": 1, "message": words}}]
    elif where == "event":
        scripted.build = [
            {"stream": f"OSError: [Errno 28] {words}\n"},
            {"error": "returned a non-zero code: 1"},
        ]
    else:
        scripted.base_platform = None
        scripted.pull = (200, {"error": words})
    with pytest.raises(StorageFull, match="The Docker engine's disk is full"):
        make(scripted, home)


def test_an_error_of_the_engine_itself_shows_the_whole_end(scripted, home):
    scripted.build = [{"stream": "Step 1/9 : FROM x\n"}, {"error": "something new"}]
    with pytest.raises(EnvironmentBuildFailed, match="image cannot be built on") as raised:
        make(scripted, home)
    assert "something new" in raised.value.hint


def test_a_build_that_the_engine_breaks_off_is_no_success(scripted, home):
    scripted.build = [{"stream": "Step 1/9 : FROM x\n"}, None]
    with pytest.raises(EngineUnavailable, match="No Docker engine answers"):
        make(scripted, home)


def test_a_push_without_a_digest_is_no_success(scripted, home):
    scripted.push = [{"status": "Pushed", "id": "layer"}]
    with pytest.raises(RegistryFailed, match="refused the image for"):
        make(scripted, home, registry=Registry("r.example/mn", "user", "the-key"))


def test_an_image_of_another_control_plane_in_the_registry_is_built_anew(scripted, home):
    scripted.is_in_registry = True
    scripted.labels = {"multinode.installation": "another"}
    report = make(scripted, home, registry=Registry("r.example/mn"))
    assert report.image == "r.example/mn@sha256:pushed"
    assert len(scripted.queries("POST", "/build")) == 1


OLD, NEW = Registry("r.example/mn", "AWS", "old"), Registry("r.example/mn", "AWS", "new")


@pytest.mark.parametrize("where", ["look", "push"])
def test_a_login_that_has_expired_is_asked_for_anew(scripted, home, where):
    """At the first word with the registry, or only after a long build."""
    if where == "look":
        scripted.expired = {"old"}
    else:
        looked = scripted.answer

        def answer(method, path):
            scripted.expired = {"old"} if path == "/build" else scripted.expired
            return looked(method, path)

        scripted.answer = answer
    asked = []

    def another_login():
        asked.append(1)
        return NEW

    report = make(scripted, home, registry=OLD, another_login=another_login)
    assert report.image == "r.example/mn@sha256:pushed"
    assert len(asked) == 1
    assert len(scripted.queries("POST", "/build")) == 1
    assert scripted.keys == (["old", "new", "new"] if where == "look" else ["old", "old", "new"])


@pytest.mark.parametrize("another", [None, OLD])
def test_a_login_of_which_there_is_no_other_is_told_before_anything_is_built(
    scripted, home, another
):
    scripted.expired = {"old"}
    with pytest.raises(RegistryFailed, match="does not let us in") as raised:
        make(scripted, home, registry=OLD, another_login=lambda: another)
    assert "has expired" in raised.value.hint
    assert scripted.queries("POST", "/build") == []


def test_a_right_that_the_login_lacks_is_named_with_the_statement(scripted, home):
    scripted.registry_error = (
        "denied: User: arn:aws:sts::1:assumed-role/cp/x is not authorized to perform: ecr:BatchGetImage on "
        "resource: arn:aws:ecr:eu-west-2:1:repository/mn because no identity-based policy allows it"
    )
    with pytest.raises(RegistryFailed, match="AWS role may not ecr:BatchGetImage") as raised:
        make(scripted, home, registry=OLD)
    assert '"Resource": "arn:aws:ecr:eu-west-2:1:repository/mn"' in raised.value.hint
    assert scripted.queries("POST", "/build") == []


@pytest.mark.parametrize(
    ("known", "reported"),
    [("sha256:pulled", "r.example/mn@sha256:pulled"), ("sha256:x", "r.example/mn@sha256:pushed")],
)
def test_a_tag_that_stays_is_success_where_it_is_this_image(scripted, home, known, reported):
    """The engine knows what it has pushed before: ``r.example/mn@sha256:pulled``."""
    scripted.immutable_tags = {"d1"}
    looks = iter(["", known])
    scripted._distribution = lambda tag: (
        (200, {"Descriptor": {"digest": found}})
        if (found := next(looks))
        else (404, {"message": "manifest unknown"})
    )
    report = make(scripted, home, registry=OLD)
    assert report.image == reported


def test_an_images_own_tag_that_stays_is_success(scripted, home):
    """Deployed with --no-cache, pushed, and broken off before it was reported."""
    scripted.tags = {"d1": "sha256:first", "d1-made": "sha256:second"}
    scripted.immutable_tags = {"d1", "d1-made"}
    report = make(scripted, home, registry=OLD, no_cache=True)
    assert report.image == "r.example/mn@sha256:second"


def test_an_image_that_is_not_ours_inside_is_refused(scripted, home):
    scripted.noted = None
    with pytest.raises(OperationFailed, match="was not made by `multinode deploy`"):
        make(scripted, home)
    assert scripted.left == []


# --- no engine ---


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("unix:///nowhere/docker.sock", "(no such file or directory)"),
        ("tcp://127.0.0.1:1", "(connection refused)"),
        ("what:ever", ""),
    ],
)
def test_no_engine_is_said_with_its_address(address, reason):
    with pytest.raises(EngineUnavailable) as raised:
        engine.connect({"DOCKER_HOST": address})
    assert raised.value.message.startswith("No Docker engine answers at ")
    assert reason in raised.value.message
    assert "DOCKER_HOST" in raised.value.hint


def test_a_socket_that_this_user_may_not_use_is_said(forbidden_socket):
    with pytest.raises(
        EngineUnavailable, match="This user may not use the Docker engine"
    ) as raised:
        engine.connect({"DOCKER_HOST": f"unix://{forbidden_socket}"})
    assert "usermod -aG docker" in raised.value.hint


DOCKER_COMMAND = """\
#!/bin/sh
case "$*" in
  "buildx version") exit {buildx} ;;
  --version) echo "{version}" ;;
  *) cat {log}; exit 1 ;;
esac
"""
D20, D28 = "Docker version 20.10.24+dfsg1, build 297e128", "Docker version 28.2.2, build e6534b4"


@pytest.fixture
def docker_command(tmp_path):
    def write(*, has_buildx=False, version=D28, log=""):
        (tmp_path / "log").write_text(log)
        text = DOCKER_COMMAND.format(
            buildx=int(not has_buildx), version=version, log=tmp_path / "log"
        )
        (tmp_path / "docker").write_text(text)
        (tmp_path / "docker").chmod(0o755)
        return {"PATH": f"{tmp_path}:/usr/bin:/bin"}

    return write


@pytest.mark.parametrize(
    ("has_buildx", "version", "expected"),
    [
        (True, D28, ["buildx", "build", "--builder", "far", "--load"]),
        (True, D20, ["buildx", "build", "--builder", "far", "--load"]),
        (False, D20, ["build"]),
        (False, D28, None),
        (False, "Docker version 19.03.15, build 99e3ed8919", None),
        (False, "podman version 4.3.1", None),
    ],
)
def test_buildkit_is_found_in_buildx_or_in_the_command(
    docker_command, has_buildx, version, expected
):
    environ = docker_command(has_buildx=has_buildx, version=version)
    kit = buildkit.find(environ, "far")
    assert (list(kit.command[1:]) if kit else None) == expected
    assert buildkit.find({**environ, "DOCKER_BUILDKIT": "0"}, "far") is None
    assert buildkit.find({"PATH": ""}, "far") is None


FAILED = """\
#0 building with "default" instance using docker driver

#4 [stage-0 2/3] RUN python install.py
#4 sha256:864e7bbd6a1218660a471eae2006f402526649a15cd80bf43e0f7831325b037a
#4 0.152 == Installing
#4 0.200 resolved all
#4 0.200 [x] DONE
#4 0.201 #5 mine
#4 0.274 boom
#4 ERROR: executor failed running [/bin/sh -c python install.py]: exit code: 3
------
 > [stage-0 2/3] RUN python install.py:
0.274 boom
------
ERROR: failed to solve: executor failed running [/bin/sh -c python install.py]: exit code: 3
"""


def test_of_buildkits_output_the_commands_lines_are_told_each_once(docker_command):
    environ = docker_command(version=D20, log=FAILED)
    kept = Output(Follower(), [])
    with pytest.raises(EngineRefused, match=r"^ERROR: failed to solve: .* exit code: 3$"):
        buildkit.build_image(
            buildkit.find(environ, "default"), Context("base", {"Dockerfile": b""}, None), kept,
            tag="t", labels={}, platform="linux/amd64", no_cache=False, environ=environ,
        )  # fmt: skip
    assert kept.lines == ["== Installing", "resolved all", "[x] DONE", "#5 mine", "boom"]


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("python", ("python", "latest")),
        ("python:3.8", ("python", "3.8")),
        ("r.example:5000/x", ("r.example:5000/x", "latest")),
        ("r.example:5000/x:1", ("r.example:5000/x", "1")),
        ("x@sha256:1", ("x", "sha256:1")),
    ],
)
def test_names_of_images_are_taken_apart(name, parts):
    assert engine.split_name(name) == parts
