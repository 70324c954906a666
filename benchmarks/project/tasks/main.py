"""What the benchmarks run."""

import time

from multinode import Multinode

mn = Multinode()


@mn.function(max_concurrency=32)
def add(a, b):
    return a + b


@mn.function(max_concurrency=2, max_invocations_per_worker=0)
def add_warm(a, b):
    return a + b


@mn.function()
def yield_stamps(count):
    """Each value is the time at which it was yielded; the pauses keep them apart."""
    for _ in range(count):
        time.sleep(0.02)
        yield time.time()


@mn.function()
def print_stamps(count):
    for _ in range(count):
        time.sleep(0.02)
        print(time.time())


@mn.function(max_concurrency=4)
def wait_for_cancel(path):
    """Writes the time of the exception that ends it into a file; the first value says that it waits."""
    try:
        yield "waiting"
        time.sleep(60)
    except BaseException:
        with open(path, "w") as file:
            file.write(str(time.time()))
        raise


@mn.function(max_concurrency=2)
def sleep(seconds):
    time.sleep(seconds)


@mn.function(max_concurrency=32)
def stamp():
    """When its code began."""
    return time.time()
