"""Runs a program that is no Python package: `apt` in multinode.toml puts it into the image, so this needs containers."""

import subprocess

from multinode import Multinode

mn = Multinode()


@mn.function(cpu=0.5)
def qr_code(text):
    """Returns the QR code of a text, line by line."""
    done = subprocess.run(
        ["qrencode", "--type", "ASCII", "--margin", "1", "--output", "-", "--", text],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()
