"""Which processes lack a key, by what each has told."""

from __future__ import annotations

from tests.control_plane.bench import Bench

from multinode_control_plane.service import rings


def test_who_lives_and_has_not_told_of_the_key_lacks_it(bench: Bench) -> None:
    bench.do(rings.tell, "one", "ring on a", ["old"], {"one"})
    bench.do(rings.tell, "two", "ring on b", ["new", "old"], {"one", "two"})
    lacking = [
        bench.look(lambda connection, living=living: rings.lacking(connection, "new", living))
        for living in ({"two"}, {"one", "two"}, {"two", "three"}, set())
    ]
    assert lacking == [[], ["ring on a"], ["process three, which has not told"], []]
    bench.do(rings.tell, "one", "ring on a", ["new"], {"one", "two"})
    assert bench.look(lambda c: rings.lacking(c, "new", {"one", "two"})) == []


def test_those_that_are_gone_are_forgotten(bench: Bench) -> None:
    bench.do(rings.tell, "one", "ring on a", ["new"], {"one"})
    bench.do(rings.tell, "two", "ring on b", ["new"], {"two"})
    assert bench.look(lambda c: rings.lacking(c, "new", {"one"})) == [
        "process one, which has not told"
    ]
