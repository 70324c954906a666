"""The snapshot file: one section a case, with what was typed, the exit code and what was said.

    ## name of the case
    $ multinode check
    exit 2
    error: …

or, in a program, with the call, the class that was raised, its message and its hint:

    ## name of the case
    >>> fn.start(1)
    ArgumentsError: …
    …

A change of a message shows up as a change of ``messages.txt``, where it is read together with all others.
"""

import shlex


class Messages:
    """All cases; ``check`` and ``check_raised`` compare one, or with ``--update-snapshots`` take it over."""

    def __init__(self, path, *, is_updating):
        self._path = path
        self._is_updating = is_updating
        self._cases = _parse(path.read_text(encoding="utf-8")) if path.exists() else {}

    def check(self, name, argv, exit_code, said, replace=()):
        """Compare a command's case. ``said`` is stderr; ``replace`` are pairs of what differs from run to run and a word."""
        self._compare(
            name, f"$ {shlex.join(['multinode', *argv])}\nexit {exit_code}\n{said}", replace
        )

    def check_raised(self, name, call, error, replace=()):
        """Compare the case of a ``call`` that raised ``error``, a MultinodeError."""
        said = f"{type(error).__name__}: {error.message}\n{error.hint}"
        self._compare(name, f">>> {call}\n{said}", replace)

    def save(self):
        """Write the file, sorted by name, after an update."""
        if self._is_updating:
            sections = [f"## {name}\n{case}\n" for name, case in sorted(self._cases.items())]
            self._path.write_text("\n".join(sections), encoding="utf-8")

    def _compare(self, name, case, replace):
        for value, word in replace:
            case = case.replace(str(value), word)
        case = "\n".join(line.rstrip() for line in case.rstrip().splitlines())
        if self._is_updating:
            self._cases[name] = case
        assert case == self._cases.get(name), (
            f"{name!r} differs from {self._path.name}; if this is right, run pytest --update-snapshots:\n{case}"
        )


def _parse(text):
    cases = {}
    for section in f"\n{text}".split("\n## ")[1:]:
        name, _, case = section.partition("\n")
        cases[name] = case.rstrip("\n")
    return cases
