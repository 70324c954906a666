import copy
import pickle

import pytest

from multinode.records import Record


class Point(Record):
    """With a default."""

    x: int
    y: int = 2


class Named(Point):
    """With the fields of its base first."""

    name: str = ""


class Login(Record):
    url: str
    key: str


def test_fields_are_given_by_place_or_by_name():
    assert (Point(1).x, Point(1).y, Point(x=3, y=4).y) == (1, 2, 4)
    assert Named.fields == ("x", "y", "name")
    assert Named(1, 2, "a") == Named(name="a", y=2, x=1)


@pytest.mark.parametrize(
    ("args", "kwargs"), [((), {}), ((), {"y": 1}), ((1, 2, 3), {}), ((1,), {"z": 1})]
)
def test_what_is_missing_unknown_or_too_much_is_a_type_error(args, kwargs):
    with pytest.raises(TypeError, match="Point"):
        Point(*args, **kwargs)


def test_a_record_is_frozen():
    point = Point(1)

    with pytest.raises(AttributeError, match="frozen"):
        point.x = 2
    with pytest.raises(AttributeError, match="frozen"):
        del point.x
    assert point.replace(x=2) == Point(2)
    assert point == Point(1)


def test_records_are_equal_by_class_and_fields():
    assert Point(1) == Point(1, 2)
    assert len({Point(1), Point(1, 2), Point(2)}) == 2
    assert Point(1) != Named(1)


def test_a_record_survives_copy_and_pickle():
    assert copy.deepcopy(Named(1, name="a")) == pickle.loads(pickle.dumps(Named(1, name="a")))


def test_repr_shows_the_fields_in_their_order_and_no_secret():
    assert repr(Point(y=1, x=0)) == "Point(x=0, y=1)"
    assert repr(Login("http://a", "secret")) == "Login(url='http://a')"
