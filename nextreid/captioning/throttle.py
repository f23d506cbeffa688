"""Calls to one server within its limits: token buckets, retries with backoff, a circuit breaker."""

import asyncio
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import NamedTuple, TypeVar

_logger = logging.getLogger(__name__)
_T = TypeVar("_T")
_LONGEST_WAIT = 1e8  # seconds


class Timing(NamedTuple):
    """A clock in seconds, and what waits some seconds."""

    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep


REAL_TIME = Timing()


class CallFailed(ConnectionError):
    """One attempt failed.

    Attributes:
        status: HTTP status, None if there was no response.
        retry: Whether the same call may succeed later.
        retry_after: Seconds the server asks to wait, None if it does not.
    """

    def __init__(
        self, message: str, *, status: int | None = None, retry: bool = False, retry_after: float | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.retry, self.retry_after = status, retry, retry_after


class ServerUnavailable(ConnectionError):
    """The server has stopped answering, or asks for a longer wait than a run waits; a later run continues."""


def retry_after(value: str | None, now: datetime | None = None) -> float | None:
    """Read a ``Retry-After`` header, a number or an HTTP date: seconds, at least 0.

    None if it is neither, or asks for more than three years, which no server means.
    """
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
            # a date without a zone is in UTC
            seconds = ((date if date.tzinfo else date.replace(tzinfo=UTC)) - (now or datetime.now(UTC))).total_seconds()
        except (ValueError, TypeError, IndexError, OverflowError):
            return None
    return max(0.0, seconds) if seconds < _LONGEST_WAIT else None


class TokenBucket:
    """Lets amounts through at a rate (a minute; None: no limit), in the order they came.

    It stores the moment at which the bucket will be full again, which is equivalent to its level. After a pause,
    `burst` seconds' worth of the rate pass at once. A larger amount passes too, and those behind it wait for it.
    """

    def __init__(self, per_minute: float | None, *, burst: float = 1.0, timing: Timing = REAL_TIME) -> None:
        self._each = 60 / per_minute if per_minute else 0.0
        self._burst = burst
        self._clock, self._sleep = timing
        self._full = self._clock() - burst

    async def take(self, amount: float) -> None:
        """Wait until `amount` may pass."""
        now = self._clock()
        start = max(self._full, now - self._burst)
        self._full = start + amount * self._each
        if start > now:
            await self._sleep(start - now)

    def settle(self, amount: float) -> None:
        """Correct by what a call needed beyond what it took (negative: it needed less)."""
        self._full += amount * self._each

    def pause(self, seconds: float) -> None:
        """Let nothing pass for some seconds."""
        self._full = max(self._full, self._clock() + seconds)


class Breaker:
    """Circuit breaker: stops sending to a server that fails again and again.

    After `threshold` failures in a row it opens: all calls wait for `cooldown` seconds, then one is let through as a
    trial. If it succeeds, all go on; if not, the next wait begins, and after `openings` of them in a row the server is
    given up.
    """

    def __init__(
        self, threshold: int = 10, cooldown: float = 15.0, openings: int = 4, *, timing: Timing = REAL_TIME
    ) -> None:
        self.threshold, self.cooldown, self.openings = threshold, cooldown, openings
        self._clock, self._sleep = timing
        self._failures, self._opened, self._until, self._trying = 0, 0, 0.0, False

    @property
    def is_open(self) -> bool:
        """Whether calls are being held back."""
        return self._opened > 0

    async def enter(self) -> bool:
        """Wait until a call may go out; return whether it is the trial, for `leave`.

        Raises:
            ServerUnavailable: After `openings` waits in a row in which every trial failed.
        """
        while self.is_open:
            if self._opened > self.openings:
                raise ServerUnavailable(f"no answer after {self._opened - 1} waits of {self.cooldown:g} s")
            left = self._until - self._clock()
            if left <= 0 and not self._trying:
                self._trying = True
                return True
            # while a trial is out, look again from time to time
            await self._sleep(max(left, self.cooldown / 20))
        return False

    def leave(self, trial: bool, failed: bool | None) -> None:
        """Report how a call went; `failed` is None if it was cancelled and reveals nothing about the server."""
        if trial:
            self._trying = False
        if failed is False:
            self._failures = self._opened = 0
        if not failed:
            return
        self._failures += 1
        if trial or (not self.is_open and self._failures >= self.threshold):
            self._opened += 1
            self._until = self._clock() + self.cooldown
            _logger.warning("%d calls in a row failed: waiting %g s", self._failures, self.cooldown)


@dataclass(frozen=True, slots=True)
class RateLimits:
    """Limits of the calls to one server.

    Attributes:
        concurrency: Calls in flight.
        requests_per_minute: None for no limit.
        tokens_per_minute: Prompt and answer together; None for no limit.
        timeout: Seconds one attempt may take from sending to the last byte.
        attempts: How often one call is tried before it counts as failed.
        backoff: Seconds; the n-th retry waits a uniformly random time up to ``backoff * 2 ** n``.
        longest_wait: Seconds; the upper bound of that, and the longest Retry-After that a run accepts.

    Raises:
        ValueError: If a number is out of range; the message names it.
    """

    concurrency: int = 8
    requests_per_minute: float | None = None
    tokens_per_minute: float | None = None
    timeout: float = 120.0
    attempts: int = 8
    backoff: float = 1.0
    longest_wait: float = 300.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name in ("concurrency", "attempts"):
                if not isinstance(value, int) or value < 1:
                    raise ValueError(f"{name} must be a whole number, at least 1, got {value!r}")
            elif value is not None and not 0 < value < float("inf"):
                raise ValueError(f"{name} must be a positive number, got {value!r}")


class Throttle:
    """Sends calls to one server within its limits, and retries them; `rng` draws the jitter of the waits."""

    def __init__(self, limits: RateLimits, *, timing: Timing = REAL_TIME, rng: random.Random | None = None) -> None:
        self.limits = limits
        self.breaker = Breaker(timing=timing)
        self.retries = 0
        self._sleep = timing.sleep
        self._rng = rng or random.Random()
        self._requests = TokenBucket(limits.requests_per_minute, timing=timing)
        self._tokens = TokenBucket(limits.tokens_per_minute, timing=timing)
        self._slots = asyncio.Semaphore(limits.concurrency)

    async def call(self, attempt: Callable[[], Awaitable[_T]], tokens: float = 0.0) -> _T:
        """Run `attempt`, again while its `CallFailed` may be temporary; `tokens` is how many it will probably need.

        A failure without a response, a 5xx or a timeout counts for the breaker; 429 does not, because it proves that
        the server is up. Retry-After delays every call to the server, not only this one.

        Raises:
            CallFailed: The last failure, once the attempts are used up or a retry is useless.
            ServerUnavailable: The server is down, or asks for a longer wait than `RateLimits.longest_wait`.
        """
        async with self._slots:
            for number in range(self.limits.attempts):
                await self._requests.take(1)
                await self._tokens.take(tokens)
                trial = await self.breaker.enter()
                failed: bool | None = None
                try:
                    async with asyncio.timeout(self.limits.timeout):
                        result = await attempt()
                    failed = False
                    return result
                except TimeoutError:
                    failed = True
                    failure = CallFailed(f"no answer within {self.limits.timeout:g} s", retry=True)
                except CallFailed as error:
                    failure = error
                    failed = error.retry and error.status != 429
                finally:
                    self.breaker.leave(trial, failed)
                if not failure.retry or number + 1 == self.limits.attempts:
                    raise failure
                self.retries += 1
                _logger.info("attempt %d failed (%s), trying again", number + 1, failure)
                await self._wait(number, failure.retry_after)
        raise AssertionError("unreachable: a call has at least one attempt")

    def settle(self, tokens: float) -> None:
        """Correct the rate by the tokens a call needed beyond its estimate."""
        self._tokens.settle(tokens)

    async def _wait(self, number: int, asked: float | None) -> None:
        longest = self.limits.longest_wait
        if asked is not None:
            if asked > longest:
                raise ServerUnavailable(f"the server asks to wait {asked:.0f} s, a run waits at most {longest:g} s")
            self._requests.pause(asked)
            await self._sleep(asked)
            longest = self.limits.backoff  # jitter, so that not all come back at once
        await self._sleep(self._rng.uniform(0, min(longest, self.limits.backoff * 2**number)))
