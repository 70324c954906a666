import time
from datetime import timedelta

from multinode import Multinode
from multinode.errors import InvocationCancelledError, InvocationTimedOutError

from submodule.file_1 import square

mn = Multinode()


@mn.function(timeout=timedelta(minutes=30), max_retries=2)
def import_rows(num_rows):
    """Yields its progress, and cleans up when it is cancelled or its time is over."""
    progress = {"done": 0, "of": num_rows, "checksum": 0}
    try:
        for i in range(num_rows):
            progress["done"] += 1
            progress["checksum"] += square(i)
            yield progress
            time.sleep(0.5)
    except (InvocationCancelledError, InvocationTimedOutError):
        print(f"stopped after {progress['done']} rows; up to two minutes to clean up")
        raise


@mn.function()
def count_rows(text):
    """Returns the number of lines of text."""
    return len(text.splitlines())
