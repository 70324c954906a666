import pytest

from multinode import wire
from multinode.records import Record


def classes():
    return [
        item
        for item in vars(wire).values()
        if isinstance(item, type) and issubclass(item, Record) and item is not Record
    ]


def sample(hint):
    """A value of a field's annotation, or of a class's name."""
    outer, _, inner = hint.partition("[")
    if outer == "Optional":
        return sample(inner[:-1])
    if outer == "List":
        return [sample(inner[:-1]), sample(inner[:-1])]
    if outer == "Dict":
        return {"key": sample(inner[:-1].partition(", ")[2])}
    scalars = {
        "str": "text \ud800 ü",
        "int": 3,
        "float": 1.5,
        "bool": True,
        "Any": {"a": [1, None]},
    }
    if hint in scalars:
        return scalars[hint]
    cls = getattr(wire, hint)
    return cls(**{name: sample(cls.__annotations__[name]) for name in cls.fields})


@pytest.mark.parametrize("cls", classes())
def test_every_class_comes_back_from_json(cls):
    value = sample(cls.__name__)

    assert wire.loads(cls, wire.dumps(value)) == value


@pytest.mark.parametrize("cls", classes())
def test_unknown_fields_are_ignored(cls):
    value = sample(cls.__name__)
    plain = {**wire.to_plain(value), "of_a_later_release": [1]}

    assert wire.from_plain(cls, plain) == value


def test_a_missing_field_with_a_default_has_it():
    assert wire.from_plain(wire.ErrorBody, {"code": "a", "message": "b"}).hint == ""


@pytest.mark.parametrize(
    ("cls", "plain"),
    [
        (wire.ErrorBody, {"code": "a"}),
        (wire.ErrorBody, {"code": 1, "message": "b"}),
        (wire.ErrorBody, []),
        (wire.StartAnswer, {"invocation_ids": "inv-1"}),
        (wire.StartAnswer, {"invocation_ids": [1]}),
        (wire.Value, {"number": True, "value": ""}),
        (wire.Claim, {"execution_id": "exe-1", "import_ms": "1"}),
        (wire.Claim, {"execution_id": "exe-1", "import_ms": float("nan")}),
        (wire.Claim, {"execution_id": "exe-1", "import_ms": float("inf")}),
        (wire.Claim, {"execution_id": "exe-1", "import_ms": 10**400}),
        (wire.Value, {"number": 2**63, "value": ""}),
    ],
)
def test_a_missing_field_or_a_wrong_type_is_a_value_error(cls, plain):
    with pytest.raises(ValueError, match=r"expected|missing"):
        wire.from_plain(cls, plain)


def test_a_whole_number_is_a_float_too():
    assert wire.from_plain(wire.Claim, {"execution_id": "exe-1", "import_ms": 2}).import_ms == 2.0


def test_statuses_that_are_final_are_statuses():
    assert set(wire.STATUSES) > wire.FINAL_STATUSES
