"""A rate that is kept: so many at once, and so many a second. Pure: whoever takes is told how long to wait first."""

from __future__ import annotations


class TokenBucket:
    """``burst`` tokens, of which ``rate`` come back each second. Times are monotonic seconds."""

    def __init__(self, burst: float, rate: float) -> None:
        self._burst, self._rate = burst, rate
        self._tokens, self._at = burst, 0.0

    def take(self, now: float) -> float:
        """Takes a token, of which there may be none yet; returns the seconds until there is. Who comes later waits longer."""
        if now > self._at:
            self._tokens = min(self._burst, self._tokens + (now - self._at) * self._rate)
            self._at = now
        self._tokens -= 1
        return max(0.0, -self._tokens / self._rate)
