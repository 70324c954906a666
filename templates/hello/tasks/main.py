import os
import time

from multinode import Multinode

# tasks/ comes first on the import path.
from submodule.file_1 import square

mn = Multinode()


@mn.function()
def slowly_calculate_sum_of_squares(bound):
    """Returns the sum of the squares below bound."""
    total = 0
    for i in range(bound):
        total += square(i)
        print(f"{i + 1} of {bound} done")
        time.sleep(1)
    return total


@mn.function(max_concurrency=2)
def count_up(bound):
    """Yields its progress: the newest value is the result that others see meanwhile."""
    for i in range(bound):
        yield {"done": i + 1, "of": bound, "sum_so_far": sum(square(k) for k in range(i + 1))}
        time.sleep(1)


@mn.function()
def greet(name="world"):
    """Returns a greeting, with a word from tasks/.env."""
    return f"{os.environ.get('GREETING', 'Hi')}, {name}!"
