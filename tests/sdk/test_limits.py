import pytest

from multinode import limits


@pytest.mark.parametrize("length", [0, 1, 16_000])
def test_a_short_text_stays_as_it_is(length):
    assert limits.shorten("x" * length) == "x" * length


@pytest.mark.parametrize("length", [16_001, 100_000])
def test_a_long_text_loses_its_middle_and_says_so(length):
    text = "a" * (length // 2) + "b" * (length - length // 2)

    short = limits.shorten(text)

    assert len(short) == 16_000
    assert short.startswith("aaa")
    assert short.endswith("bbb")
    assert "characters left out" in short
