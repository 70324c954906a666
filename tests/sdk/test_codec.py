import collections
import dataclasses
import datetime
import decimal
import enum
import fractions
import io
import json
import math
import pathlib
import subprocess
import sys
import threading
import uuid
from pathlib import Path
from typing import NamedTuple

import pytest

from multinode import codec, errors

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

SOURCES = Path(__file__).parents[2] / "src"


class Plain:
    def __init__(self, **attributes):
        self.__dict__.update(attributes)

    def __eq__(self, other):
        return type(self) is type(other) and self.__dict__ == other.__dict__

    def __hash__(self):
        return hash(tuple(self.__dict__))


class Slotted:
    __slots__ = ("a", "b")

    def __init__(self, a, b):
        self.a, self.b = a, b

    def __eq__(self, other):
        return (self.a, self.b) == (other.a, other.b)

    __hash__ = None


@dataclasses.dataclass(frozen=True)
class Point:
    x: int
    y: object = None


class Pair(NamedTuple):
    left: int
    right: int = 0


class Colour(enum.Enum):
    RED = 1
    BLUE = "b"


class Level(enum.IntEnum):
    LOW = 1


class Failure(Exception):
    def __init__(self, message, *, code=0):
        super().__init__(message)
        self.code = code


class Names(list):
    pass


class Sizes(dict):
    pass


UTC = datetime.timezone.utc

VALUES = {
    "integer keys": {1: 2},
    "keys of all kinds": {"b": 1, 1: 2, None: 3, 1.5: 4, (1, "a"): [5], Colour.RED: 6},
    "keys that look like tags": {"py/object": "x", "py/tuple": [1], "py/zz": 1, "json://1": 2},
    "a tag deep inside": {"a": [{"b": {"py/id": 1}}]},
    "tuples": (1, (2, [3]), ()),
    "sets": {1, 2, (3, 4)},
    "frozenset": frozenset([1, 2]),
    "bytes": b"\x00\xff",
    "bytearray": [bytearray(b"ab"), bytearray()],
    "aware datetime": datetime.datetime(2020, 1, 1, tzinfo=UTC),
    "datetime": datetime.datetime(2020, 1, 1, 1, 2, 3, 4),  # noqa: DTZ001 - users have them
    "second hour of a clock that is set back": datetime.time(2, 30, fold=1),
    "date": datetime.date(2020, 1, 2),
    "time": datetime.time(1, 2),
    "timedelta": datetime.timedelta(1, 2, 3),
    "decimal": decimal.Decimal("1.10"),
    "uuid": uuid.UUID(int=7),
    "fraction": fractions.Fraction(1, 3),
    "path": pathlib.PurePosixPath("/a/b"),
    "range": range(3),
    "complex": 1 + 2j,
    "enum": [Colour.BLUE, Level.LOW],
    "dataclass": Point(1, Point(2)),
    "object": Plain(a=1, b=Plain(x=[2])),
    "slots": Slotted(1, [2]),
    "named tuple": Pair(1, 2),
    "defaultdict": collections.defaultdict(list, {1: [2], "a": [], "default_factory": [3]}),
    "ordered dict": collections.OrderedDict([("b", 1), (2, 3), ("a", 4)]),
    "deque": collections.deque([1, 2], 3),
    "counter": collections.Counter("aab"),
    "list subclass": Names([1, 2]),
    "dict subclass": [Sizes(a=1), Sizes({2: 1, "py/id": 3, "b": 4})],
    "lone surrogates": ["\ud800", {"\udfff": 1}],
    "a huge integer": -(10**4000),
    "kinds of numbers": [True, 1, 1.0, 0, -0.0, False],
    "infinities": [math.inf, -math.inf],
    "classes": [int, Point],
    "a function of a module": len,
    "empty": [(), set(), {}, [], "", b"", None],
}


@pytest.mark.parametrize("name", VALUES)
def test_what_goes_in_comes_out(name):
    value = VALUES[name]

    text = codec.encode_output(value)
    again = codec.decode(text)

    assert text.isascii()
    assert again == value
    assert type(again) is type(value)
    assert repr(again) == repr(value) or "object at" in repr(value)


def test_the_order_of_keys_is_kept():
    value = {2: "a", "z": "b", 1: "c", "a": "d"}

    assert list(codec.decode(codec.encode_output(value))) == [2, "z", 1, "a"]


def test_nan_comes_out_as_nan():
    assert math.isnan(codec.decode(codec.encode_output([math.nan]))[0])


def test_an_exception_comes_out_with_its_arguments_and_attributes():
    again = codec.decode(codec.encode_output(Failure("bad bound", code=3)))

    assert (type(again), again.args, again.code) == (Failure, ("bad bound",), 3)


def test_an_object_that_occurs_twice_is_one_object_again():
    shared, thing = [1], Plain(a=1)
    value = [shared, {"a": shared, 1: (shared,), (2,): thing}, thing, Plain(list=shared)]

    again = codec.decode(codec.encode_output(value))

    assert again[0] is again[1]["a"] is again[1][1][0] is again[3].list
    assert again[2] is again[1][2,]


def test_cycles_come_back():
    items, mapping, thing = [], {}, Plain()
    items.append(items)
    mapping[1] = mapping
    thing.own = thing

    again = codec.decode(codec.encode_output([items, mapping, thing]))

    assert again[0][0] is again[0]
    assert again[1][1] is again[1]
    assert again[2].own is again[2]


def test_numpy_arrays_and_scalars_come_back():
    numpy = pytest.importorskip("numpy")
    arrays = [numpy.arange(6).reshape(2, 3), numpy.array([1.5, math.nan]), numpy.float32(0.1)]

    again = codec.decode(codec.encode_output(arrays))

    for before, after in zip(arrays, again):  # noqa: B905 - Python 3.8
        assert type(after) is type(before)
        assert after.dtype == before.dtype
        numpy.testing.assert_array_equal(after, before)


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters())
    | st.binary(max_size=8)
    | st.decimals(allow_nan=False)
    | st.uuids()
    | st.datetimes()
    | st.sampled_from(["py/object", "py/id", "json://1", Colour.RED, Level.LOW])
)
keys = scalars | st.tuples(scalars, scalars)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(keys, inner, max_size=4)
        | st.sets(keys, max_size=4)
        | st.frozensets(keys, max_size=3)
        | st.builds(Point, st.integers(), inner)
        | st.builds(lambda item: [item, {"again": item}], inner)
    ),
    max_leaves=15,
)


@hypothesis.given(values)
@hypothesis.settings(deadline=None, max_examples=150)
def test_any_value_comes_out_as_it_went_in(value):
    assert repr_of(codec.decode(codec.encode_output(value))) == repr_of(value)


def repr_of(value):
    """``repr`` that does not depend on the order of a set, and tells 1 from True and -0.0 from 0.0."""
    if isinstance(value, (set, frozenset)):
        return type(value).__name__ + repr(sorted(map(repr_of, value)))
    if isinstance(value, dict):
        return repr([(repr_of(key), repr_of(item)) for key, item in value.items()])
    if isinstance(value, (list, tuple)):
        return type(value).__name__ + repr(list(map(repr_of, value)))
    if isinstance(value, Point):
        return f"Point({value.x}, {repr_of(value.y)})"
    return repr(value)


plain_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(), inner, max_size=3)
    ),
    max_leaves=10,
)


@hypothesis.given(plain_values)
@hypothesis.settings(deadline=None)
def test_plain_texts_are_decoded_as_jsonpickle_decodes_them(value):
    import jsonpickle

    text = codec.encode_output(value)

    assert repr(codec.decode(text)) == repr(jsonpickle.decode(text, keys=True))


def test_input_is_a_tuple_of_arguments_and_a_dict_of_keywords():
    text = codec.encode_input([1, "a"], {"b": None})

    assert text == '[{"py/tuple":[1,"a"]},{"b":null}]'
    assert codec.decode(text) == [(1, "a"), {"b": None}]


def test_equal_sets_give_equal_texts_in_every_process():
    code = "from multinode import codec; print(codec.encode_input([{'a', 'b', 'c', 'd'}], {}))"
    texts = {
        subprocess.run(
            [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(SOURCES)!r}); {code}"],
            capture_output=True,
            check=True,
            env={"PYTHONHASHSEED": str(seed)},
        ).stdout
        for seed in (1, 2, 3)
    }

    assert len(texts) == 1


class WithCallback:
    def __init__(self):
        self.callback = lambda: None


class Unstable:
    """Comes back different from what it was."""

    def __init__(self):
        self.number = 1

    def __getstate__(self):
        return {"number": self.number}

    def __setstate__(self, state):
        self.number = state["number"] + 1


class Raising:
    def __reduce_ex__(self, protocol):
        message = "no way"
        raise RuntimeError(message)


def generate():
    yield 1


REFUSED = {
    "lambda": (lambda: {"a": [lambda: 1]}, "['a'][0]", "<lambda>"),
    "function in a dict": (lambda: {"f": generate.__get__(1)}, "['f']", "generate"),
    "nested function": (lambda: [nested()], "[0]", "nested.<locals>.inner"),
    "generator": (lambda: (generate(),), "[0]", "generator"),
    "open file": (lambda: {"out": io.StringIO()}, "['out']", "file"),
    "lock": (threading.Lock, "", "lock"),
    "module": (lambda: [json], "[0]", "module"),
    "attribute": (WithCallback, "", "'callback', a function, would not come back"),
    "nested class": (lambda: [local_class()], "", "Local"),
    "ellipsis": (lambda: [...], "", "ellipsis"),
    "memoryview": (lambda: memoryview(b"a"), "", "memoryview"),
    "an integer that not every Python reads": (lambda: [10**5000], "[0]", "digits"),
    "an object that changes on the way": (Unstable, ".number", "would come back as 2"),
    "an object that raises": (Raising, "", "no way"),
    "default factory": (lambda: collections.defaultdict(lambda: 1), "", "function"),
}


def nested():
    def inner():
        pass

    return inner


def local_class():
    class Local:
        pass

    return Local()


@pytest.mark.parametrize("name", REFUSED)
def test_what_would_not_come_back_is_refused_with_place_and_reason(name):
    make, place, reason = REFUSED[name]

    with pytest.raises(errors.EncodingError) as caught:
        codec.encode_input([0], {"x": make()})

    assert f"rgument 'x'{place}" in caught.value.message or not place
    assert reason in caught.value.message


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_as_a_result_too(name):
    with pytest.raises(errors.EncodingError):
        codec.encode_output(REFUSED[name][0]())


def test_an_endless_generator_is_refused_and_not_consumed():
    def count():
        number = 0
        while True:
            number += 1
            yield number

    numbers = count()
    with pytest.raises(errors.EncodingError):
        codec.encode_output([numbers])
    assert next(numbers) == 1


def test_too_deep_a_nesting_is_refused():
    value = []
    for _ in range(100_000):
        value = [value]

    with pytest.raises(errors.EncodingError, match="too deeply"):
        codec.encode_output(value)


def test_250_000_characters_are_the_limit():
    assert len(codec.encode_output("x" * 249_998)) == 250_000
    with pytest.raises(
        errors.FunctionOutputSizeLimitExceeded, match="250,001 characters"
    ) as caught:
        codec.encode_output("x" * 249_999)
    assert "250,000" in caught.value.message
    assert "storage" in caught.value.hint


@pytest.mark.parametrize("value", ["x" * 250_000, [Point(n) for n in range(20_000)]])
def test_arguments_that_are_too_long_are_refused(value):
    with pytest.raises(errors.FunctionInputSizeLimitExceeded, match="characters"):
        codec.encode_input([value], {})


@pytest.mark.parametrize(
    "text",
    [
        '{"py/object": "no_such_module.Thing", "a": 1}',
        '[{"py/type": "tests.NoSuchThing"}]',
        '{"json://{\\"py/object\\": \\"no_such_module.Key\\"}": 1}',
        '{"py/reduce": [{"py/function": "no_such_module.make"}, {"py/tuple": []}]}',
    ],
)
def test_a_class_that_is_missing_is_named_with_both_codebases(text):
    with pytest.raises(errors.DecodingError, match=r"no_such_module\.|NoSuchThing") as caught:
        codec.decode(text)
    assert "caller's" in caught.value.hint
    assert "tasks/" in caught.value.hint


@pytest.mark.parametrize("text", ["", "{", "nonsense", '{"py/object": "datetime.date", "a": 1}'])
def test_what_is_no_text_of_ours_is_a_decoding_error(text):
    with pytest.raises(errors.DecodingError):
        codec.decode(text)


def run_program(folder, name, text):
    (folder / name).write_text(f"import sys; sys.path.append({str(SOURCES)!r})\n{text}")
    return subprocess.run(
        [sys.executable, str(folder / name)], capture_output=True, text=True, check=False
    )


CLASS = "class Point:\n    def __init__(self, x): self.x = x\n"


def test_a_class_of_main_py_is_found_by_a_program_whose_own_file_is_main_py(tmp_path):
    program = f"""{CLASS}
print("started")
from multinode import codec
text = codec.encode_output(Point(3))
print(text, codec.decode(text).x)
"""
    run = run_program(tmp_path, "main.py", program)

    assert run.stdout == 'started\n{"py/object":"main.Point","x":3} 3\n', run.stderr


def test_a_class_of_the_programs_own_file_is_named_by_the_file(tmp_path):
    program = (
        f"{CLASS}\nfrom multinode import codec\nprint(codec.encode_input([{{Point: 1}}], {{}}))"
    )

    run = run_program(tmp_path, "app.py", program)

    assert "app.Point" in run.stdout, run.stderr


def test_a_class_of_an_interactive_session_is_refused():
    program = (
        f"import sys; sys.path.append({str(SOURCES)!r})\n{CLASS}\nfrom multinode import codec\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", f"{program}codec.encode_output(Point(1))"],
        capture_output=True,
        text=True,
        check=False,
    )

    assert "'Point' is defined in an interactive session" in run.stderr
    assert "module of its own" in run.stderr or "in a module" in run.stderr


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ((1, {2}, [3]), [1, [2], [3]]),
        ({1: 2, "a": 3, None: 4, (1, 2): 5}, {"1": 2, "a": 3, "null": 4, "[1,2]": 5}),
        ([math.nan, math.inf, -math.inf, 1.5], ["NaN", "Infinity", "-Infinity", 1.5]),
        ({"py/object": "x"}, {"py/object": "x"}),
        (None, None),
    ],
)
def test_plain_shows_values_as_data_that_any_json_takes(value, shown):
    found = codec.plain(codec.encode_output(value))

    assert found == shown
    json.dumps(found, allow_nan=False)


def test_plain_decodes_no_class():
    text = codec.encode_output(Point(1, (2,)))

    found = codec.plain(text)

    assert found["py/object"].endswith("Point")
    assert (found["x"], found["y"]) == (1, [2])
    assert codec.plain('{"py/object": "no_such.Thing"}') == {"py/object": "no_such.Thing"}


# --- plain JSON ---


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=10,
)


@hypothesis.given(st.lists(JSON), st.dictionaries(st.text(), JSON))
def test_plain_arguments_are_encoded_as_any_or_refused(args, kwargs):
    """Never differently: an idempotency key holds for both ways."""
    try:
        text = codec.encode_plain_input(args, kwargs)
    except errors.EncodingError:
        assert '"py/' in json.dumps([args, kwargs]) or '"json://' in json.dumps([args, kwargs])
    else:
        assert text == codec.encode_input(args, kwargs)
        assert codec.decode(text) == [tuple(args), kwargs]


@pytest.mark.parametrize("key", ["py/object", "py/tuple", "json://1", "py/"])
def test_plain_arguments_with_keys_of_jsonpickle_are_refused(key):
    with pytest.raises(errors.EncodingError, match="begins with 'py/'"):
        codec.encode_plain_input([{"a": [{key: "os.system"}]}], {})
