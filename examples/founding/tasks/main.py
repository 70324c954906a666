"""The functions of the founding page: one that returns, one that yields, one that cleans up, one that is retried."""

import os
import time
from datetime import timedelta
from pathlib import Path

# Pay attention to the import path!
from submodule.file_1 import square

from multinode import Multinode
from multinode.errors import InvocationCancelledError, InvocationTimedOutError

mn = Multinode()


@mn.function()
def slowly_calculate_sum_of_squares(bound):
    total = 0
    for i in range(bound):
        total += square(i)
        print(f"{i + 1} of {bound} terms")
        time.sleep(1)
    return total


@mn.function()
def slowly_calculate_with_progress(bound):
    progress = {"num_terms_incorporated": 0, "sum_so_far": 0}
    for i in range(bound):
        progress["num_terms_incorporated"] += 1
        progress["sum_so_far"] += square(i)
        yield progress
        time.sleep(1)


@mn.function(timeout=timedelta(minutes=30))
def run_function_that_terminates_gracefully(seconds):
    try:
        time.sleep(seconds)
        return "finished"
    except InvocationCancelledError:
        print("Invocation is cancelled - gracefully terminating")
    except InvocationTimedOutError:
        print("Invocation timed out - gracefully terminating")
    finally:
        print("cleaned up")


@mn.function(max_retries=3, retry_on=ConnectionError)
def flaky(marker):
    """Fails the first time. Idempotent: what it leaves behind does no harm the second time."""
    path = Path(marker)
    if not path.exists():
        path.write_text("tried once")
        message = "the first attempt always fails"
        raise ConnectionError(message)
    path.unlink()
    return f"{os.environ['GREETING']}, the second attempt worked"
