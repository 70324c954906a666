"""Environments as images: made here, in a Docker engine. The control plane orders them, checks what is reported, and runs it.

Nothing is imported here: ``making`` is what a deploy begins with, and only ``engine`` knows the ``docker`` package.
"""
