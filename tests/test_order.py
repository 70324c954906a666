from pathlib import Path

from tests.order import SECONDS, ordered

TESTS = Path(__file__).parent


def test_each_process_begins_with_long_files_and_none_is_torn_apart():
    longest = sorted(SECONDS, key=SECONDS.__getitem__)[-6:]
    files = [(f"{number}", f"{number}") for number in range(300)]
    files += [(file, f"{file}::{number}") for file in longest for number in range(20)]
    found = ordered(files, 3)
    assert sorted(found) == sorted(item for _, item in files)
    starts = [found[: 420 // 3], found[420 // 3 : 840 // 3], found[840 // 3 :]]
    long = [[item.partition("::")[0] for item in start if "::" in item] for start in starts]
    assert [len(set(each)) for each in long] == [2, 2, 2]
    assert all("::" in item for start in starts for item in start[:40])


def test_more_tests_of_long_files_than_a_process_has_are_not_lost():
    file = max(SECONDS, key=SECONDS.__getitem__)
    files = [(file, number) for number in range(50)] + [("short", number) for number in (50, 51)]
    assert sorted(ordered(files, 3)) == list(range(52))


def test_the_files_are_there():
    assert [file for file in SECONDS if not (TESTS / file).exists()] == []
