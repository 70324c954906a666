"""In which order tests run where several do at a time: files that take long first, each of them as a whole.

xdist gives each process one stretch of the list, as many tests to each, and who has no more takes half of what another has left, from
its end. So each stretch begins with some of the long files, about as many seconds in each, and ends with short ones. A long
file is not torn apart, which would make its server, its engine or its image several times, and none is left for the end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TypeVar

Item = TypeVar("Item")

SECONDS: Mapping[str, int] = {
    "acceptance/test_oldest_python.py": 156,
    "acceptance/test_registry.py": 120,
    "acceptance/test_engine_disk.py": 156,
    "acceptance/test_product.py": 150,
    "acceptance/test_local_server.py": 60,
    "acceptance/test_server_image.py": 93,
    "acceptance/test_remote_engine.py": 88,
    "acceptance/test_messages.py": 70,
    "acceptance/test_docker.py": 63,
    "acceptance/test_move_store.py": 57,
    "acceptance/test_endings.py": 200,
    "acceptance/test_ecs_deploy.py": 60,
    "acceptance/test_ecs_on_postgresql.py": 40,
    "acceptance/test_ecr.py": 60,
    "acceptance/test_backup.py": 37,
    "acceptance/test_rest_examples.py": 17,
    "acceptance/test_proxy.py": 20,
    "acceptance/test_rotate_key.py": 20,
    "acceptance/test_costs.py": 15,
    "aws/test_fargate.py": 60,
    "cli/test_completion.py": 41,
    "contract/test_ecs.py": 60,
    "contract/test_runner.py": 300,
    "control_plane/test_model.py": 30,
    "control_plane/test_schemathesis.py": 58,
    "faults/test_kills.py": 80,
    "faults/test_engine_restarts.py": 150,
    "faults/test_state_changes.py": 120,
    "faults/test_rotation_kills.py": 90,
    "faults/test_rotation_of_several.py": 50,
    "faults/test_takeover.py": 80,
    "faults/test_kills_on_postgresql.py": 60,
    "faults/test_rolling_restart.py": 69,
    "faults/test_migrating.py": 50,
    "faults/test_server_commands.py": 65,
    "faults/test_full_disk.py": 41,
    "faults/test_database_away.py": 30,
    "faults/test_workers_killed.py": 21,
    "images/test_building.py": 128,
    "images/test_buildkit.py": 100,
    "images/test_pushing.py": 40,
    "images/test_deployed.py": 40,
    "images/test_platforms.py": 30,
    "soak/test_containers.py": 60,
}
"""Of files below ``tests``, about: they only have to be right among each other. What is not here is short."""


def ordered(files: Iterable[tuple[str, Item]], processes: int) -> list[Item]:
    """The tests of these files, for so many processes; ``files`` names the file of each test, below ``tests``."""
    long: defaultdict[str, list[Item]] = defaultdict(list)
    short: list[Item] = []
    for file, item in files:
        (long[file] if file in SECONDS else short).append(item)
    stretches: list[list[Item]] = [[] for _ in range(processes)]
    seconds = [0] * processes
    for file in sorted(long, key=lambda file: (-SECONDS[file], file)):
        least = seconds.index(min(seconds))
        stretches[least] += long[file]
        seconds[least] += SECONDS[file]
    left = sum(map(len, long.values())) + len(short)
    for number, stretch in enumerate(stretches):
        room = max(left // (processes - number) - len(stretch), 0)
        stretch += short[:room]
        del short[:room]
        left -= len(stretch)
    return [item for stretch in stretches for item in stretch] + short
