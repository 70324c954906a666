"""Fargate's sizes: every legal ask gets a legal size, and none that is cheaper holds it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from multinode.errors import InvalidRequest
from multinode.limits import MAX_CPU, MAX_MEMORY_MIB
from multinode.wire import WorkerSize
from multinode_control_plane.runners.fargate_sizes import SIZES, cpu_units, size_for

CPUS = st.one_of(
    st.floats(0, MAX_CPU, exclude_min=True), st.sampled_from([size.cpu for size in SIZES])
)
MEMORIES = st.one_of(
    st.integers(1, MAX_MEMORY_MIB),
    st.sampled_from([size.memory_mib for size in SIZES if size.memory_mib <= MAX_MEMORY_MIB]),
)
PRICES = st.floats(0.0001, 10)


@given(cpu=CPUS, memory_mib=MEMORIES, per_cpu=PRICES, per_mib=PRICES)
def test_what_may_be_asked_for_gets_the_cheapest_size_that_holds_it(
    cpu, memory_mib, per_cpu, per_mib
) -> None:
    def price(size: WorkerSize) -> float:
        return size.cpu * per_cpu + size.memory_mib * per_mib

    found = size_for(cpu, memory_mib)
    holding = [size for size in SIZES if size.cpu >= cpu and size.memory_mib >= memory_mib]
    assert found in holding
    assert price(found) == min(map(price, holding))


def test_the_table_is_that_of_aws() -> None:
    """Written out by hand, from the page that the module names."""
    gib = {0.25: [0.5, 1, 2], 0.5: [1, 2, 3, 4], 1: [2, 3, 4, 5, 6, 7, 8]}
    gib |= {2: list(range(4, 17)), 4: list(range(8, 31))}
    gib |= {8: [16, 20, 24, 28, 32, 36, 40, 44, 48, 52, 56, 60]}
    gib |= {16: [32, 40, 48, 56, 64, 72, 80, 88, 96, 104, 112, 120]}
    told = {(cpu, int(each * 1024)) for cpu, all_of_it in gib.items() for each in all_of_it}
    assert {(size.cpu, size.memory_mib) for size in SIZES} == told
    assert len(SIZES) == len(told)


@pytest.mark.parametrize(
    ("cpu", "memory_mib", "units", "granted_mib"),
    [
        (0.1, 256, 256, 512),
        (0.25, 512, 256, 512),
        (0.25, 513, 256, 1024),
        (0.1, 1025, 256, 2048),
        (0.1, 3000, 512, 3072),
        (0.26, 256, 512, 1024),
        (1, 2048, 1024, 2048),
        (4, 30721, 8192, 32768),
        (8.5, 1000, 16384, 32768),
        (16, 65536, 16384, 65536),
        (0.1, 61441, 16384, 65536),
    ],
)
def test_an_ask_and_its_size(cpu, memory_mib, units, granted_mib) -> None:
    found = size_for(cpu, memory_mib)
    assert (cpu_units(found), found.memory_mib) == (units, granted_mib)


@pytest.mark.parametrize(("cpu", "memory_mib"), [(16.1, 256), (1, 122881)])
def test_what_no_size_holds_is_refused(cpu, memory_mib) -> None:
    with pytest.raises(InvalidRequest, match=r"the largest has 16 and 122880"):
        size_for(cpu, memory_mib)
