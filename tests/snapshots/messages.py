"""The snapshot file: one section a case, with what was typed, the exit code and what was said.

    ## name of the case
    $ multinode check
    exit 2
    error: …

A change of a message shows up as a change of ``messages.txt``, where it is read together with all others.
"""


class Messages:
    """All cases; ``check`` compares one, or with ``--update-snapshots`` takes it over."""

    def __init__(self, path, *, is_updating):
        self._path = path
        self._is_updating = is_updating
        self._cases = _parse(path.read_text(encoding="utf-8")) if path.exists() else {}

    def check(self, name, argv, exit_code, said, replace=()):
        """Compare a case. ``said`` is stderr; ``replace`` are pairs of what differs from run to run and a word."""
        for value, word in replace:
            said = said.replace(str(value), word)
        case = "\n".join([f"$ multinode {' '.join(argv)}", f"exit {exit_code}", said.rstrip()])
        if self._is_updating:
            self._cases[name] = case
        assert self._cases.get(name) == case, (
            f"{name!r} differs from {self._path.name}; if it is right so, run pytest --update-snapshots"
        )

    def save(self):
        """Write the file, sorted by name, after an update."""
        if self._is_updating:
            sections = [f"## {name}\n{case}\n" for name, case in sorted(self._cases.items())]
            self._path.write_text("\n".join(sections), encoding="utf-8")


def _parse(text):
    cases = {}
    for section in f"\n{text}".split("\n## ")[1:]:
        name, _, case = section.partition("\n")
        cases[name] = case.rstrip("\n")
    return cases
