from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.control_plane.bench import Bench, make_bench


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    made = make_bench(tmp_path)
    yield made
    made.close()
