"""The bounds that SDK, worker and control plane all keep, each in one place.

Sources: the founding page (`docs/reference/sdk.md` repeats it) for cpu, memory, timeout, max_concurrency,
max_retries and the 250,000 characters; the rest are our own choices, explained where they are used.
"""

from __future__ import annotations

MAX_CHARACTERS = 250_000
"""Longest encoded input, result or yielded value, in characters (not bytes)."""

MAX_CPU = 16.0
MAX_MEMORY_MIB = 64 * 1024
MAX_TIMEOUT_S = 24 * 3600.0
MAX_CONCURRENCY = 100
MAX_RETRIES = 50
MAX_RETRY_DELAY_S = 3600.0
MAX_START_TIMEOUT_S = 24 * 3600.0
MAX_QUEUE_TIMEOUT_S = 30 * 24 * 3600.0
MAX_IDLE_TIMEOUT_S = 3600.0
MAX_DELAY_S = 30 * 24 * 3600.0
"""Longest ``with_options(delay=…)``."""

MAX_BUNDLE_BYTES = 100 * 1024 * 1024
MAX_UNPACKED_BYTES = 1024 * 1024 * 1024
"""Of a bundle's files together, and what else its archive holds."""
MAX_BUNDLE_FILES = 100_000
MAX_ERROR_CHARACTERS = 16_000
"""Longest traceback and longest error message that are kept; the middle is left out."""

MAX_PROJECT_NAME = 63
MAX_FUNCTION_NAME = 255
PAGE_SIZE = 50
IDEMPOTENCY_WINDOW_S = 24 * 3600.0

WAIT_S = 25.0
"""How long one waiting request is held open; proxies cut idle connections, often after 30 or 60 s."""

MAX_UNSENT_VALUES = 1_000
MAX_UNSENT_BYTES = 4 * 1024 * 1024
"""Yielded values that a worker holds unsent; past either, the generator waits."""

MAX_START_BATCH = 1_000
"""Invocations that one request may start."""


def shorten(text: str, limit: int = MAX_ERROR_CHARACTERS) -> str:
    """``text`` with its middle left out where it is longer than ``limit`` characters."""
    if len(text) <= limit:
        return text
    note = f"\n… {len(text) - limit} characters left out …\n"
    head = (limit - len(note)) // 2
    tail = limit - len(note) - head
    return text[:head] + note + text[-tail:]
