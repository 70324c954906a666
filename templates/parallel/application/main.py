"""Runs many invocations at once, and takes their results as they come. Run it after `multinode deploy`."""

from multinode import get_deployed_function

count_primes = get_deployed_function(project_name="{{project}}", function_name="count_primes")

parts = [(start, start + 50_000) for start in range(0, 200_000, 50_000)]
for (start, stop), count in zip(parts, count_primes.starmap(parts)):
    print(f"{start} to {stop}: {count} primes")
