"""What goes wrong while an image is made, in our words. Pure: from what engine, pip and apt say."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from multinode.errors import EnvironmentBuildFailed, MultinodeError, RegistryFailed, StorageFull
from multinode.limits import shorten
from multinode.wire import Registry
from multinode_engine.registries import missing_right, refuses_login

MAX_HINT_CHARACTERS = 2_000
REFUSED_BY_BASE_IMAGE = "multinode-error: "
"""What begins the line in which the Dockerfile says what the base image lacks."""

_FOREIGN = ("exec format error",)
"""The kernel's words for a program of another processor; for such it may have QEMU."""
_COMMAND_FAILED = re.compile(
    r"returned a non-zero code|executor failed running|did not complete successfully"
)
"""How the classic builder, and BuildKit then and now, say that a command in the build failed, and not the engine itself."""
_DISK_FULL = ("no space left on device", "disk quota exceeded")
_AWAY = (
    "dial tcp", "no such host", "connection refused", "i/o timeout", "TLS handshake", "x509:", "Client.Timeout",
    "server gave HTTP response", "network is unreachable", "context deadline exceeded",
)  # fmt: skip
_INDEX_AWAY = (
    "NewConnectionError", "Failed to establish a new connection", "Name or service not known", "ConnectTimeoutError",
    "Temporary failure in name resolution", "ReadTimeoutError", "Network is unreachable",
)  # fmt: skip
_UNTRUSTED_HOST = re.compile(r"host='([^']+)'[^\n]*CERTIFICATE_VERIFY_FAILED")
_INDEX_REFUSES = re.compile(
    r"(40[13]) (?:Client )?Error[:,]? [^\n]*?(https?://[^\s/]+)", re.IGNORECASE
)
_APT_AWAY = re.compile(
    r"^(?:Err:|[EW]: Failed to fetch |[EW]: .*(?:Temporary failure|Could not connect))",
    re.MULTILINE,
)
_APT_UNKNOWN = re.compile(
    r"^E: (?:Unable to locate package|Package '?|Version '.*?' for '?)\s*([a-z0-9][a-z0-9+.-]*)",
    re.MULTILINE,
)
_NEEDS_PYTHON = re.compile(r"(\S+) Requires-Python ([^;\n]+)")
_REQUIREMENT = re.compile(
    r"(?:satisfies the requirement|No matching distribution found for|Failed building wheel for|Invalid requirement:) '?([A-Za-z0-9][\w.-]*[^\s(]*)"
)
_VERSIONS = re.compile(r"\(from versions: (?:[^,()]+, )+((?:[^,()]+, ){4}[^,()]+)\)")
_CONTRADICTION = re.compile(r"Cannot install (.+?) because these package versions")
_PLACE = re.compile(r"-[rc] (\S+) \(line (\d+)\)")
_NAME = re.compile(r"[A-Za-z0-9](?:[\w.-]*[A-Za-z0-9])?")
_PYTHON = re.compile(r"== Installing the requirements for Python ([\d.]+)")


class EngineRefused(Exception):
    """The engine, or a registry behind it, answered with an error."""

    def __init__(self, words: str) -> None:
        super().__init__(words)
        self.words = words


def build_failed(
    words: str,
    lines: Sequence[str],
    *,
    base_image: str,
    platform: str,
    files: Mapping[str, bytes],
) -> MultinodeError:
    """What a build is told as that the engine ended with ``words`` after ``lines``; ``files`` are the requirements."""
    text = "\n".join(lines)
    if _has(f"{words}\n{text}", _DISK_FULL):
        return disk_full()
    if _has(f"{words}\n{text}", _FOREIGN):
        return _foreign(words, base_image, platform)
    if not _COMMAND_FAILED.search(words):
        return _engine_failed(words, lines, base_image)
    lacking = next((line for line in lines if line.startswith(REFUSED_BY_BASE_IMAGE)), "")
    if lacking:
        message = f"The base image {base_image} {lacking.removeprefix(REFUSED_BY_BASE_IMAGE)}."
        return EnvironmentBuildFailed(message, "Choose another `base_image` in multinode.toml.")
    python = _PYTHON.findall(text)
    if python:
        return _pip_failed(text, python[-1], files)
    if any(line.startswith("== Installing system packages") for line in lines):
        return _apt_failed(text, base_image)
    return _engine_failed(words, lines, base_image)


def _foreign(words: str, base_image: str, platform: str) -> MultinodeError:
    machine = platform.partition("/")[2]
    message = f"The image is for {platform}, and the Docker engine cannot run such programs: those of {base_image}."
    cure = (
        f"Deploy with DOCKER_HOST set to an engine on a machine that is {machine}, or let this one emulate it: "
        f"`docker run --privileged --rm tonistiigi/binfmt --install {machine}`."
    )
    return EnvironmentBuildFailed(message, f"{cure} The engine says:\n{words}")


def _engine_failed(words: str, lines: Sequence[str], base_image: str) -> MultinodeError:
    said = [line for line in lines if line][-20:]
    told = shorten("\n".join([*said, words]), MAX_HINT_CHARACTERS)
    message = f"The image cannot be built on {base_image}."
    return EnvironmentBuildFailed(message, f"The engine says:\n{told}")


def base_image_missing(words: str, base_image: str, platform: str) -> MultinodeError:
    """What it is told as that the base image cannot be pulled."""
    if _has(words, _DISK_FULL):
        return disk_full()
    if _has(words, _AWAY):
        message = f"The base image {base_image} is not here, and its registry cannot be reached."
        cure = "Look at the engine's network, or load the image there (`docker load`), and deploy again."
    elif refuses_login(words) and "repository does not exist" not in words:
        message = f"The registry of the base image {base_image} wants a login."
        cure = f"`docker login {base_image.partition('/')[0]}`, and deploy again."
    else:
        message = f"There is no base image {base_image} for {platform}."
        cure = "Correct `base_image` or `python` in multinode.toml; a private image may need `docker login`."
    return EnvironmentBuildFailed(message, f"{cure} The engine says:\n{words}")


def registry_failed(words: str, registry: Registry) -> MultinodeError:
    """What it is told as that the registry takes or gives no image."""
    if _has(words, _DISK_FULL):
        return disk_full()
    host = registry.repository.partition("/")[0]
    if _has(words, _AWAY):
        message = f"The registry {host} cannot be reached from the Docker engine."
        cure = "Look at the engine's network, and at the registry that the control plane names."
    elif (lacking := missing_right(words)) is not None:
        message = f"The control plane's AWS role may not {lacking.action}."
        cure = f"Its policy lacks: {lacking.statement}."
    elif refuses_login(words):
        message = f"The registry {host} does not let us in."
        if registry.username:
            cure = "The control plane hands out the login: `multinode doctor` says what is wrong with it."
        else:
            cure = f"The control plane hands out no login: `docker login {host}`, and deploy again."
    else:
        message = f"The registry refused the image for {registry.repository}."
        cure = "What was pushed so far is not used; deploy again when the registry takes it."
    return RegistryFailed(message, f"{cure} The engine says:\n{words}")


def is_hopeless(words: str) -> bool:
    """Whether a registry that answered so would not take a push either."""
    return _has(words, _AWAY) or refuses_login(words) or missing_right(words) is not None


def is_tag_taken(words: str) -> bool:
    """Whether the registry keeps tags as they are, and has this one for another image."""
    return "immutable" in words.lower()


def disk_full() -> StorageFull:
    """The error of an engine without room."""
    message = "The Docker engine's disk is full: the image cannot be made."
    return StorageFull(
        message,
        "`docker system df` says what is on it; `docker image prune` removes images that nothing uses.",
    )


def _has(text: str, signs: Sequence[str]) -> bool:
    lowered = text.lower()
    return any(sign.lower() in lowered for sign in signs)


def _pip_failed(text: str, python: str, files: Mapping[str, bytes]) -> MultinodeError:
    said = shorten(_reason(text), MAX_HINT_CHARACTERS)
    refused = _INDEX_REFUSES.search(text)
    if refused and "No matching distribution" in text:
        message = f"The package index {refused[2]} does not let us in ({refused[1]})."
        cure = "Give its user and password in PIP_INDEX_URL, pip.conf or netrc, and deploy again."
    elif untrusted := _UNTRUSTED_HOST.search(text):
        message = f"The certificate of the package index {untrusted[1]} is not trusted."
        cure = "Name the certificates of its authority in PIP_CERT, or as `cert` in pip.conf, and deploy again."
    elif _has(text, _INDEX_AWAY):
        message = "The package index cannot be reached while the image is built."
        cure = "Look at the engine's network, and at the index that is set (PIP_INDEX_URL, pip.conf), and deploy again."
    else:
        message = _refusal(text, python)
        cure = "Correct requirements.txt, or set another `python` in multinode.toml."
    hint = "\n".join([*_places(text, files), f"{cure} pip says:", said])
    return EnvironmentBuildFailed(message, hint)


def _refusal(text: str, python: str) -> str:
    for requirement in _REQUIREMENT.findall(text):
        version = re.search(r"==\s*([\w.+!-]+)", requirement)
        for candidate, needed in _NEEDS_PYTHON.findall(text):
            if version and candidate == version[1]:
                return f"{requirement} needs Python {needed.strip()}; the environment has {python}."
    return f"The requirements cannot be installed on Python {python}."


def _reason(text: str) -> str:
    """pip's errors, without its list of every version that needs another Python."""
    lines = [
        line for line in text.splitlines() if not line.startswith("ERROR: Ignored the following")
    ]
    first = next(
        (number for number, line in enumerate(lines) if "ERROR:" in line or "error:" in line), -20
    )
    return _VERSIONS.sub(r"(from versions: …, \1)", "\n".join(lines[first:]))


def _places(text: str, files: Mapping[str, bytes]) -> list[str]:
    """``requirements.txt:2: numpy==1.26.1`` for each line that pip's errors name, by its number or by its package.

    Where they name none, it is the line that pip was at.
    """
    reason = _reason(text)
    contradicting = [
        name for names in _CONTRADICTION.findall(reason) for name in re.split(", | and ", names)
    ]
    named = {_plain(name) for name in [*_REQUIREMENT.findall(reason), *contradicting]}
    places = _PLACE.findall(reason) or ([] if named else _PLACE.findall(text)[-1:])
    numbered = {(name, int(number)) for name, number in places}
    found = []
    for name, data in files.items():
        lines = [] if name.endswith(".whl") else data.decode(errors="replace").splitlines()
        for number, line in enumerate(lines, 1):
            if (name, number) in numbered or _plain(line) in named - {""}:
                found.append(f"{name}:{number}: {line.strip()}")
    return found


def _plain(requirement: str) -> str:
    """The normalised name of the package that a line asks for; empty where it asks for none."""
    found = _NAME.match(requirement.strip())
    return re.sub(r"[-_.]+", "-", found[0]).lower() if found else ""


def _apt_failed(text: str, base_image: str) -> MultinodeError:
    unknown = _APT_UNKNOWN.findall(text)
    said = shorten(
        "\n".join(line for line in text.splitlines() if re.match(r"[EW]: |Err:", line)),
        MAX_HINT_CHARACTERS,
    )
    if unknown:
        names = ", ".join(dict.fromkeys(unknown))
        message = f"There is no system package {names} for {base_image}."
        return EnvironmentBuildFailed(
            message, f"Correct `apt` in multinode.toml. apt-get says:\n{said}"
        )
    if _APT_AWAY.search(text):
        message = f"The system packages for {base_image} cannot be fetched."
        return EnvironmentBuildFailed(
            message, f"Look at the engine's network, and deploy again. apt-get says:\n{said}"
        )
    message = f"The system packages cannot be installed on {base_image}."
    return EnvironmentBuildFailed(
        message, f"Correct `apt` in multinode.toml. apt-get says:\n{said}"
    )
