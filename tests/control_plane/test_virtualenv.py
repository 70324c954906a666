"""Making virtual environments with uv. What needs an index uses a folder of small wheels made here."""

import asyncio
import base64
import errno
import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from multinode.errors import EnvironmentNotFound, PythonMissing
from multinode.wire import BuildRequest, EnvironmentSpec
from multinode_control_plane.runners import resolver, virtualenv
from multinode_control_plane.runners.pythons import Pythons, minor_of
from multinode_control_plane.runners.virtualenv import Virtualenvs, digest_of, find_uv, venv_of

HERE = f"3.{sys.version_info[1]}"
ROOT = Path(__file__).parents[2]


def wheel(folder, name, version, *, requires_python="", requires=(), script=""):
    """A wheel with one module, which may have a console script."""
    stem = f"{name}-{version}"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    metadata += f"Requires-Python: {requires_python}\n" if requires_python else ""
    metadata += "".join(f"Requires-Dist: {item}\n" for item in requires)
    files = {
        f"{name}.py": f"def main():\n    print({stem!r})\n",
        f"{stem}.dist-info/METADATA": metadata,
        f"{stem}.dist-info/WHEEL": "Wheel-Version: 1.0\nGenerator: x\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    if script:
        entry = f"[console_scripts]\n{script} = {name}:main\n"
        files[f"{stem}.dist-info/entry_points.txt"] = entry
    record = "".join(f"{path},,\n" for path in [*files, f"{stem}.dist-info/RECORD"])
    files[f"{stem}.dist-info/RECORD"] = record
    path = folder / f"{stem}-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        for inner, content in files.items():
            archive.writestr(inner, content)
    return path


@pytest.fixture
def index(tmp_path):
    """The settings of an index that has stand-ins for the SDK's dependencies and a few others."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    wheel(folder, "httpx", "0.28.1")
    wheel(folder, "jsonpickle", "4.0.0")
    wheel(folder, "tool", "1.0", script="tool")
    wheel(folder, "newer", "2.0", requires_python=">=3.99")
    wheel(folder, "clash", "1.0", requires=["httpx<0.20"])
    wheel(folder, "split", "1.0")
    wheel(folder, "split", "2.0", requires_python=f">={HERE}")
    return {"PIP_NO_INDEX": "1", "UV_FIND_LINKS": str(folder)}


@pytest.fixture
def environments(tmp_path):
    made = Virtualenvs(tmp_path / "environments", os.environ)
    made.open()
    return made


def build(environments, spec, **options):
    """The lines that the build wrote, and its last event."""

    async def main():
        request = BuildRequest(spec, **options)
        return [event async for event in environments.build(request)]

    *lines, last = asyncio.run(main())
    return [event.line for event in lines], last


def made(environments, spec, **options):
    _, last = build(environments, spec, **options)
    assert last.error is None, last.error
    return last.environment


def refused(environments, spec, **options):
    _, last = build(environments, spec, **options)
    assert last.environment is None
    leftovers = [path.name for path in environments._folder.iterdir()]
    assert not [name for name in leftovers if name.startswith(".making")]
    return last.error


def run(environments, digest, *command):
    folder = venv_of(environments.generation(digest)) / "bin"
    program, *arguments = command
    return subprocess.run(
        [folder / program, *arguments], check=True, capture_output=True, text=True, cwd="/", env={}
    ).stdout.strip()


def test_a_plan_makes_nothing(environments, index):
    spec = EnvironmentSpec(python=HERE, requirements="tool==1.0\n", settings=index)
    lines, planned = build(environments, spec, plan=True)
    assert (lines, list(environments._folder.iterdir())) == ([], [])
    digest = made(environments, spec).digest
    assert planned.missing == digest
    found = build(environments, spec, plan=True)[1].environment
    assert (found.digest, found.created) == (digest, False)


def test_an_environment_has_its_requirements_the_sdk_and_working_scripts(environments, index):
    spec = EnvironmentSpec(python=HERE, requirements="tool==1.0\n", settings=index)
    info = made(environments, spec)
    assert info.packages == ["httpx==0.28.1", "jsonpickle==4.0.0", "tool==1.0"]
    assert info.created
    assert info.python_served.startswith(f"{HERE}.")
    assert run(environments, info.digest, "tool") == "tool-1.0"
    program = "import importlib.metadata as m, multinode.wire as w; print(m.version('multinode'), w.__file__)"
    version, place = run(environments, info.digest, "python", "-c", program).split()
    assert version == "2.0.0"
    assert place.startswith(str(environments.generation(info.digest)))
    bytecode = Path(place).parent / "__pycache__"
    assert any(path.name.startswith("wire.") for path in bytecode.iterdir())


@pytest.mark.parametrize("has_links", [True, False])
def test_environments_of_one_python_share_the_compiled_sdk(
    environments, index, monkeypatch, has_links
):
    def refuse(*_args, **_kwargs):
        raise OSError(errno.EPERM, "no hard links here")

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    places = []
    for requirements in ("tool==1.0\n", "tool==1.0\n# another\n"):
        spec = EnvironmentSpec(python=HERE, requirements=requirements, settings=index)
        generation = environments.generation(made(environments, spec).digest)
        places += generation.glob("venv/lib/*/site-packages/multinode/__pycache__/wire.*.pyc")
    first, second = places
    assert first.samefile(second) is has_links
    assert first.read_bytes() == second.read_bytes()


def test_the_same_environment_is_answered_at_once(environments, index):
    spec = EnvironmentSpec(python=HERE, settings=index)
    first = made(environments, spec)
    lines, last = build(environments, spec)
    assert lines == []
    assert last.environment == first.replace(created=False)
    assert environments.info(first.digest) == last.environment


def test_two_that_ask_at_once_make_one(environments, index):
    spec = EnvironmentSpec(python=HERE, settings=index)

    async def one():
        return [event async for event in environments.build(BuildRequest(spec))][-1].environment

    async def main():
        return await asyncio.gather(one(), one())

    assert sorted(info.created for info in asyncio.run(main())) == [False, True]


def test_building_anew_leaves_the_old_generation_to_those_who_use_it(environments, index):
    spec = EnvironmentSpec(python=HERE, settings=index)
    first = made(environments, spec)
    old = environments.generation(first.digest)
    descriptor = virtualenv.lease(old)
    second = made(environments, spec, no_cache=True)
    assert (second.digest, second.created) == (first.digest, True)
    assert environments.generation(first.digest) != old
    environments.open()
    assert old.exists()
    os.close(descriptor)
    environments.open()
    assert not old.exists()
    assert run(environments, first.digest, "python", "-c", "import httpx, multinode") == ""


def test_a_build_that_is_given_up_leaves_nothing_and_can_be_repeated(environments, index):
    spec = EnvironmentSpec(python=HERE, settings=index, apt=["libgl1"])

    async def main():
        events = environments.build(BuildRequest(spec))
        assert "libgl1" in (await anext(events)).line
        await events.aclose()

    asyncio.run(main())
    assert list(environments._folder.iterdir()) == []
    assert made(environments, spec).created


def test_opening_removes_what_a_dead_server_was_making(environments):
    (environments._folder / ".making-abc-1" / "venv").mkdir(parents=True)
    environments.open()
    assert list(environments._folder.iterdir()) == []


def test_system_packages_are_warned_of(environments, index):
    info = made(environments, EnvironmentSpec(python=HERE, settings=index, apt=["libgl1"]))
    assert info.warnings == ["System packages are not installed by the process runner: libgl1."]


def test_included_files_and_local_wheels_are_used(environments, index, tmp_path):
    extra = wheel(tmp_path, "extra", "3.0")
    files = {
        "more/requirements.txt": base64.b64encode(b"tool\n").decode(),
        f"wheels/{extra.name}": base64.b64encode(extra.read_bytes()).decode(),
    }
    text = f"-r more/requirements.txt\n./wheels/{extra.name}\n"
    spec = EnvironmentSpec(python=HERE, requirements=text, files=files, settings=index)
    assert {"extra==3.0", "tool==1.0"} <= set(made(environments, spec).packages)


@pytest.mark.parametrize(
    ("requirements", "place", "reason"),
    [
        ("# c\ntool\nnewer==2.0\n", "requirements.txt:3: newer==2.0", "3.99"),
        ("tool\nNo_Such.package\n", "requirements.txt:2: No_Such.package", "not found"),
        ("clash\n", "requirements.txt:1: clash", "httpx"),
        ("tool==\n", "requirements.txt:1: tool==", "expected version"),
    ],
)
def test_what_cannot_be_installed_is_told_with_its_line(
    environments, index, requirements, place, reason
):
    spec = EnvironmentSpec(python=HERE, requirements=requirements, settings=index)
    error = refused(environments, spec)
    assert error.code == "environment_build_failed"
    assert error.message == f"The requirements cannot be installed on Python {HERE}."
    assert error.hint.splitlines()[0] == place
    assert reason in error.hint


def test_an_index_out_of_reach_is_told_without_its_password(environments):
    settings = {
        "UV_DEFAULT_INDEX": "http://user:secret@127.0.0.1:9/simple",
        "UV_HTTP_RETRIES": "0",
    }
    spec = EnvironmentSpec(python=HERE, requirements="no-such-package\n", settings=settings)
    lines, last = build(environments, spec)
    assert last.error.message == "The package index cannot be reached from the control plane."
    assert "secret" not in "\n".join([*lines, last.error.hint])


@pytest.mark.parametrize(
    ("spec", "code", "said"),
    [
        (
            EnvironmentSpec(requirements="tool\nMultinode>=1\n"),
            "invalid_input",
            "requirements.txt:2",
        ),
        (
            EnvironmentSpec(files={"a.txt": base64.b64encode(b"multinode").decode()}),
            "invalid_input",
            "a.txt:1",
        ),
        (EnvironmentSpec(files={"../a": ""}), "invalid_request", "../a"),
        (EnvironmentSpec(files={"a": "%"}), "invalid_request", "base64"),
        (EnvironmentSpec(settings={"LD_PRELOAD": "x"}), "invalid_request", "LD_PRELOAD"),
        (EnvironmentSpec(python="three"), "invalid_request", "three"),
        (EnvironmentSpec(python="3.7"), "invalid_request", "too old"),
    ],
)
def test_what_no_environment_can_be_made_from_is_refused(environments, spec, code, said):
    error = refused(environments, spec)
    assert (error.code, said in error.message) == (code, True)


def test_a_full_disk_is_told(environments, index, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(virtualenv, "_copy_sdk", full)
    assert (
        refused(environments, EnvironmentSpec(python=HERE, settings=index)).code == "storage_full"
    )
    told = resolver.error_of(["error: No space left on device"], requirements="", python=HERE)
    assert told.code == "storage_full"


def test_an_unknown_environment_is_not_found(environments):
    with pytest.raises(EnvironmentNotFound):
        environments.generation("0" * 64)


def test_the_digest_covers_what_decides_and_no_credentials():
    spec = EnvironmentSpec(python=HERE, settings={"UV_INDEX": "https://a:b@host/simple"})
    digest = digest_of(spec, "3.8.1")
    assert digest == digest_of(
        spec.replace(settings={"UV_INDEX": "https://c:d@host/simple"}), "3.8.1"
    )
    assert digest == digest_of(spec.replace(apt=["x"], base_image="y"), "3.8.1")
    others = [
        digest_of(spec, "3.8.2"),
        digest_of(spec.replace(python="3.9"), "3.8.1"),
        digest_of(spec.replace(requirements="a"), "3.8.1"),
        digest_of(spec.replace(files={"a": ""}), "3.8.1"),
        digest_of(spec.replace(settings={}), "3.8.1"),
    ]
    assert len({digest, *others}) == 6


def test_the_sdk_dependencies_are_those_of_the_project():
    project = (ROOT / "pyproject.toml").read_text()
    assert f'version = "{virtualenv.SDK_VERSION}"' in project
    for requirement in virtualenv.SDK_REQUIREMENTS:
        assert f'\n  "{requirement}",\n' in project


# --- Pythons ----------------------------------------------------------------------------------------------


def without(monkeypatch, *minors):
    """Takes these Pythons away from this machine, and the network with them."""
    candidates = Pythons._candidates

    async def nothing(*_):
        return None

    def fewer(self, minor):
        return iter(()) if minor in minors else candidates(self, minor)

    monkeypatch.setattr(Pythons, "_candidates", fewer)
    monkeypatch.setattr(Pythons, "_fetch", nothing)
    monkeypatch.setattr(Pythons, "_managed_by_uv", nothing)


def test_a_newer_python_serves_and_what_is_installed_fits_the_one_asked_for(
    environments, index, monkeypatch
):
    older = f"3.{sys.version_info[1] - 1}"
    without(monkeypatch, sys.version_info[1] - 1)
    info = made(environments, EnvironmentSpec(python=older, requirements="split", settings=index))
    assert info.python == older
    assert info.python_served.startswith(f"{HERE}.")
    assert "split==1.0" in info.packages
    assert info.warnings == [
        f"Python {older} is not here: {info.python_served} serves; requirements are resolved for {older}."
    ]


def test_what_the_python_asked_for_cannot_have_fails_in_its_terms(environments, index, monkeypatch):
    older = f"3.{sys.version_info[1] - 1}"
    without(monkeypatch, sys.version_info[1] - 1)
    spec = EnvironmentSpec(python=older, requirements="split==2.0\n", settings=index)
    error = refused(environments, spec)
    assert error.message == f"The requirements cannot be installed on Python {older}."
    assert error.hint.startswith("requirements.txt:1: split==2.0\n")
    assert "--python-version" not in error.hint


def test_strict_python_names_those_that_are_here(environments, monkeypatch):
    older = f"3.{sys.version_info[1] - 1}"
    without(monkeypatch, sys.version_info[1] - 1)
    error = refused(environments, EnvironmentSpec(python=older), strict_python=True)
    assert error.code == "python_missing"
    assert re.search(rf"Here are: .*{HERE}\.\d+.*Install Python {older}", error.hint)


def test_no_newer_python_is_an_error_too(monkeypatch):
    without(monkeypatch, *range(8, 16))
    pythons = Pythons(find_uv(), os.environ)
    with pytest.raises(PythonMissing) as raised:
        asyncio.run(pythons.serving("3.12", strict=False))
    assert "Here are: none" in raised.value.hint


def test_pyenv_versions_are_found_newest_first_and_shims_are_not(tmp_path, monkeypatch):
    def python(path, says):
        path.parent.mkdir(parents=True)
        path.write_text(f"#!/bin/sh\necho {says}\n")
        path.chmod(0o755)

    python(tmp_path / "versions/3.9.2/bin/python", "cpython 3 9 2")
    python(tmp_path / "versions/3.9.10/bin/python", "cpython 3 9 10")
    python(tmp_path / "versions/3.9.11/bin/python", "pypy 3 9 11")
    python(tmp_path / "shims/python3.9", "cpython 3 9 99")
    variables = {"PYENV_ROOT": str(tmp_path), "PATH": str(tmp_path / "shims")}
    found = asyncio.run(Pythons(find_uv(), variables).find(9))
    assert found.version == "3.9.10"


def test_a_download_that_failed_is_not_tried_again_at_once(tmp_path):
    uv = tmp_path / "uv"
    uv.write_text(f"#!/bin/sh\necho $2 >> {tmp_path}/calls\nexit 1\n")
    uv.chmod(0o755)
    pythons = Pythons(uv, {"PATH": os.environ["PATH"], "HOME": str(tmp_path)})
    for _ in range(2):
        assert asyncio.run(pythons._fetch(14)) is None
    assert (tmp_path / "calls").read_text().split().count("install") == 1


@pytest.mark.parametrize(("asked", "minor"), [("3.8", 8), ("3.13", 13)])
def test_a_version_is_major_and_minor(asked, minor):
    assert minor_of(asked) == minor


# --- what uv is run with ----------------------------------------------------------------------------------


def test_uv_gets_a_clean_set_of_variables():
    server = {"PATH": "/bin", "AWS_SECRET_ACCESS_KEY": "x", "UV_PYTHON": "3.9", "https_proxy": "p"}
    variables = resolver.variables_for_uv(server, {"UV_TARGET": "/x"})
    assert variables == {"PATH": "/bin", "https_proxy": "p", "NO_COLOR": "1", "UV_NO_PROGRESS": "1"}


@pytest.mark.parametrize(
    ("given", "got"),
    [
        ({"PIP_INDEX_URL": "a"}, {"UV_DEFAULT_INDEX": "a"}),
        ({"PIP_INDEX_URL": "a", "UV_INDEX_URL": "b"}, {"UV_INDEX_URL": "b"}),
        ({"PIP_EXTRA_INDEX_URL": "a b"}, {"UV_INDEX": "a b"}),
        ({"PIP_FIND_LINKS": "a b"}, {"UV_FIND_LINKS": "a,b"}),
    ],
)
def test_settings_of_pip_are_translated_where_uv_has_none(given, got):
    variables = resolver.variables_for_uv({}, given)
    assert {name: value for name, value in variables.items() if name[:2] == "UV"} == {
        **got,
        "UV_NO_PROGRESS": "1",
    }


@pytest.mark.parametrize(("value", "options"), [("1", ["--no-index"]), ("", []), ("false", [])])
def test_an_index_that_is_off_for_pip_is_off(value, options):
    assert resolver.options_for_uv({"PIP_NO_INDEX": value}) == options


def test_settings_of_the_version_go_before_those_of_the_server():
    server = {"UV_INDEX_URL": "server", "UV_DEFAULT_INDEX": "server"}
    variables = resolver.variables_for_uv(server, {"PIP_INDEX_URL": "version"})
    assert variables["UV_DEFAULT_INDEX"] == "version"


def test_the_frame_of_older_uvs_is_taken_off():
    lines = ["Using Python 3.8", "  × No solution found:", "  ╰─▶ Because you require b==1, no."]
    told = resolver.error_of(lines, requirements="a\nb==1\n", python="3.8")
    place, _, reason = told.hint.partition("\n")
    assert place == "requirements.txt:2: b==1"
    assert reason.endswith(" uv says:\nNo solution found:\nBecause you require b==1, no.")


@pytest.mark.parametrize(
    "line",
    [
        "Because the current Python version (3.8.18) does not satisfy Python>=3.9,<3.13 and n==1 "
        "depends on Python>=3.9,<3.13, we can conclude that n==1 cannot be used.",
        "And because n==1 depends on Python>=3.9,<3.13 and you require n==1, no.",
    ],
)
def test_a_package_that_needs_another_python_is_told_in_one_sentence(line):
    told = resolver.error_of([f"error: {line}"], requirements="n==1\n", python="3.8")
    assert told.message == "n==1 needs Python >=3.9,<3.13; the environment has 3.8."
