from multinode import Multinode

from submodule.file_1 import square

mn = Multinode()


@mn.function(max_concurrency=4)
def count_primes(start, stop):
    """Returns how many primes there are from start to stop - 1."""
    return sum(1 for n in range(max(start, 2), stop) if is_prime(n))


@mn.function()
def count_all_primes(limit, num_parts=4):
    """Splits the work into invocations of count_primes, and yields the count so far."""
    step = -(-limit // num_parts)
    parts = [(start, min(start + step, limit)) for start in range(0, limit, step)]
    total = 0
    for count in count_primes.starmap(parts):
        total += count
        yield total


def is_prime(n):
    i = 2
    while square(i) <= n:
        if n % i == 0:
            return False
        i += 1
    return True
