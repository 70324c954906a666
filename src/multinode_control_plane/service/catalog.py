"""Versions in memory. A version never changes, so what was read once stays true."""

from __future__ import annotations

from dataclasses import dataclass

import sqlalchemy as sa

from multinode import wire
from multinode.errors import FunctionNotFound
from multinode_control_plane.model import functions, versions
from multinode_control_plane.service import statements
from multinode_control_plane.service.hints import nearest_hint
from multinode_control_plane.service.statements import Row

KEPT = 512


@dataclass(frozen=True)
class Version:
    """A version's row with its functions, in the order in which ``main.py`` defines them."""

    row: Row
    functions: dict[str, wire.FunctionDescription]

    def function(self, name: str) -> wire.FunctionDescription:
        """The function as this version has it. Raises FunctionNotFound."""
        found = self.functions.get(name)
        if found is None:
            message = f"Version {self.row.number} of {self.row.project!r} has no function {name!r}."
            hint = nearest_hint(name, list(self.functions), f"It has: {', '.join(self.functions)}.")
            raise FunctionNotFound(message, hint)
        return found


_IN_ORDER = (
    sa.select(functions.c.description)
    .where(functions.c.version_id == sa.bindparam("version_id"))
    .order_by(functions.c.position)
)


class Catalog:
    """The versions that were asked for lately."""

    def __init__(self) -> None:
        self._known: dict[str, Version] = {}

    def version(self, connection: sa.Connection, version_id: str) -> Version:
        """The version, which must exist."""
        found = self._known.get(version_id)
        if found is None:
            found = read(connection, version_id)
            while len(self._known) >= KEPT:
                self._known.pop(next(iter(self._known)), None)
            self._known[version_id] = found
        return found


def read(connection: sa.Connection, version_id: str) -> Version:
    """The version from the store."""
    described = [
        wire.from_plain(wire.FunctionDescription, item)
        for item in connection.execute(_IN_ORDER, {"version_id": version_id}).scalars()
    ]
    row = statements.one(connection, versions, version_id=version_id)
    return Version(row, {item.name: item for item in described})
