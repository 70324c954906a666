"""Runs while an image is built: installs requirements.txt together with what the SDK needs, and notes what came out of it.

Credentials of package indexes come as a secret: a file that BuildKit mounts, or, with the classic builder, inside
FTP_PROXY and ftp_proxy. These are among the build arguments which the engine keeps out of the image, its history and its
cache, and nothing here downloads by FTP. pip is given them as environment variables; the certificates by which it is to know
the indexes come along, for a file that is there for this time only.
"""

import base64
import json
import os
import re
import subprocess
import sys
import sysconfig
import tempfile
import zlib
from importlib.metadata import distributions
from pathlib import Path

HOME = Path("/opt/multinode")
BUILD = HOME / "build"
MOUNTED = Path("/run/secrets/multinode-indexes")
CACHE = Path("/var/cache/multinode-pip")
IN_ARGUMENT = "multinode:"


def secret():
    if MOUNTED.exists():
        return json.loads(MOUNTED.read_text())
    if os.environ.get("FTP_PROXY", "").startswith(IN_ARGUMENT):
        text = os.environ.pop("FTP_PROXY") + os.environ.pop("ftp_proxy", "")
        return json.loads(zlib.decompress(base64.b64decode(text[len(IN_ARGUMENT) :])))
    return {}


def install():
    variables = {
        "PIP_BREAK_SYSTEM_PACKAGES": "1",  # Debian's own Python asks for it; here is nothing else to break
        "PIP_DISABLE_PIP_VERSION_CHECK": "1",
        "PIP_NO_INPUT": "1",
        "PIP_PROGRESS_BAR": "off",
        "PIP_ROOT_USER_ACTION": "ignore",
    }
    if os.path.ismount(str(CACHE)):
        variables["PIP_CACHE_DIR"] = str(CACHE)
    else:
        variables["PIP_NO_CACHE_DIR"] = "1"
    command = [sys.executable, "-m", "pip", "install"]
    asked = ["-r", "requirements.txt", "-r", str(BUILD / "sdk-requirements.txt")]
    with tempfile.NamedTemporaryFile("w", suffix=".pem") as certificates:
        told = secret()
        if "certificates" in told:
            certificates.write(told.pop("certificates"))
            certificates.flush()
            variables["PIP_CERT"] = certificates.name
        environ = {**os.environ, **variables, **told}
        return subprocess.call(command + asked, cwd=str(BUILD / "inputs"), env=environ)


def note():
    found = {
        re.sub(r"[-_.]+", "-", item.metadata["Name"]).lower(): item.version
        for item in distributions()
    }
    packages = sorted(name + "==" + version for name, version in found.items())
    python = ".".join(map(str, sys.version_info[:3]))
    noted = {"python": python, "packages": packages}
    (HOME / "environment.json").write_text(json.dumps(noted, indent=1) + "\n")


def main():
    print(
        "== Installing the requirements for Python",
        ".".join(map(str, sys.version_info[:3])),
        flush=True,
    )
    failed = install()
    if failed:
        sys.exit(failed)
    Path(sysconfig.get_paths()["purelib"], "multinode.pth").write_text(str(HOME) + "\n")
    note()


main()
