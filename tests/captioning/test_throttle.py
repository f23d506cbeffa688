"""Token bucket, breaker, throttle and Retry-After, on a simulated clock: no test waits."""

import asyncio
import itertools
import math
import random
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nextreid.captioning.throttle import (
    Breaker,
    CallFailed,
    RateLimits,
    ServerUnavailable,
    Throttle,
    Timing,
    TokenBucket,
    retry_after,
)


class Clock:
    """Time that passes only while somebody sleeps."""

    def __init__(self):
        self.now = 100.0
        self.slept = []

    def __call__(self):
        return self.now

    async def sleep(self, seconds):
        assert seconds >= 0
        self.slept.append(seconds)
        self.now += seconds
        await asyncio.sleep(0)


def throttled(clock, **limits):
    return Throttle(RateLimits(**limits), timing=Timing(clock, clock.sleep), rng=random.Random(0))


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (None, None), ("2", 2), ("0.5", 0.5), ("-3", 0), ("nan", None), ("inf", None), ("soon", None), ("", None),
        ("Wed, 21 Oct 2026 07:28:30 GMT", 30), ("Wed, 21 Oct 2026 07:28:30", 30), ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
    ],
)  # fmt: skip
def test_retry_after(value, seconds):
    assert retry_after(value, datetime(2026, 10, 21, 7, 28, tzinfo=UTC)) == seconds


@given(
    st.lists(st.tuples(st.floats(0, 5), st.floats(0.1, 30)), min_size=1, max_size=30),
    st.floats(10, 600),
    st.floats(0, 3),
)
def test_token_bucket_never_lets_more_through_than_the_rate(calls, per_minute, burst):
    """In any window of T seconds: at most rate x (T + burst), besides the one call that ends it."""
    clock = Clock()

    async def run():
        bucket, passed = TokenBucket(per_minute, burst=burst, timing=Timing(clock, clock.sleep)), []
        for pause, amount in calls:
            clock.now += pause
            await bucket.take(amount)
            passed.append((clock.now, amount))
        return passed

    passed = asyncio.run(run())
    for first in range(len(passed)):
        for last in range(first, len(passed)):
            before = sum(amount for _, amount in passed[first:last])
            span = passed[last][0] - passed[first][0]
            assert before <= per_minute / 60 * (span + burst) + 1e-6


def test_token_bucket_keeps_the_rate_and_settles():
    clock = Clock()

    async def run():
        bucket = TokenBucket(60, burst=0, timing=Timing(clock, clock.sleep))
        for _ in range(5):
            await bucket.take(1)
        assert clock.now == pytest.approx(104)
        bucket.settle(10)
        await bucket.take(1)
        assert clock.now == pytest.approx(115)
        bucket.pause(30)
        await bucket.take(1)
        assert clock.now == pytest.approx(145)
        await TokenBucket(None, timing=Timing(clock, clock.sleep)).take(1e9)
        assert clock.now == pytest.approx(145)

    asyncio.run(run())


def test_throttle_tries_again_with_full_jitter():
    clock, tried = Clock(), []

    async def attempt():
        tried.append(clock.now)
        if len(tried) < 6:
            raise CallFailed("reset", retry=True)
        return "answer"

    assert asyncio.run(throttled(clock, backoff=1.0, longest_wait=4).call(attempt)) == "answer"
    waits = [b - a for a, b in itertools.pairwise(tried)]
    assert all(wait <= top for wait, top in zip(waits, (1, 2, 4, 4, 4), strict=True))
    assert len({round(wait, 6) for wait in waits}) == 5 and max(waits) > 1


@pytest.mark.parametrize(("attempts", "retry", "tries"), [(3, True, 3), (3, False, 1), (1, True, 1)])
def test_throttle_gives_up(attempts, retry, tries):
    clock, tried = Clock(), []

    async def attempt():
        tried.append(1)
        raise CallFailed("no", status=500, retry=retry)

    with pytest.raises(CallFailed, match="no"):
        asyncio.run(throttled(clock, attempts=attempts).call(attempt))
    assert len(tried) == tries


def test_retry_after_holds_back_every_call():
    clock, started = Clock(), []

    async def run():
        throttle = throttled(clock, concurrency=1)

        async def first():
            started.append(clock.now)
            if len(started) == 1:
                raise CallFailed("slow down", status=429, retry=True, retry_after=40)

        async def second():
            started.append(clock.now)

        await asyncio.gather(throttle.call(first), throttle.call(second))

    asyncio.run(run())
    assert started[1] - started[0] >= 40 and started[2] >= started[1]
    with pytest.raises(ServerUnavailable, match="7200 s"):
        asyncio.run(_failing(throttled(clock), CallFailed("wait", status=429, retry=True, retry_after=7200)))


def test_retry_after_holds_back_calls_that_were_not_asked_to_wait():
    """Two slots, on the real clock: the other call comes a moment later and waits as well."""

    async def run():
        loop, started = asyncio.get_running_loop(), []
        throttle = Throttle(RateLimits(concurrency=2, backoff=0.001))

        async def first():
            started.append(loop.time())
            if len(started) == 1:
                raise CallFailed("slow down", status=429, retry=True, retry_after=0.2)

        async def second():
            await asyncio.sleep(0.02)
            await throttle.call(later)

        async def later():
            started.append(loop.time())

        await asyncio.gather(throttle.call(first), second())
        assert all(moment - started[0] > 0.19 for moment in started[1:]) and len(started) == 3

    asyncio.run(run())


def test_429_does_not_open_the_breaker():
    clock = Clock()
    throttle = throttled(clock, attempts=30)
    with pytest.raises(CallFailed, match="slow"):
        asyncio.run(_failing(throttle, CallFailed("slow down", status=429, retry=True, retry_after=0)))
    assert not throttle.breaker.is_open and throttle.retries == 29


async def _failing(throttle, error):
    async def attempt():
        raise error

    return await throttle.call(attempt)


def test_throttle_keeps_to_the_concurrency_and_the_timeout():
    async def run():
        throttle, inside, most = Throttle(RateLimits(concurrency=3)), 0, 0

        async def attempt():
            nonlocal inside, most
            inside += 1
            most = max(most, inside)
            for _ in range(5):
                await asyncio.sleep(0)
            inside -= 1

        await asyncio.gather(*(throttle.call(attempt) for _ in range(12)))
        assert most == 3
        hasty = Throttle(RateLimits(timeout=0.02, attempts=1))
        with pytest.raises(CallFailed, match=r"within 0\.02 s"):
            await hasty.call(asyncio.Event().wait)

    asyncio.run(run())


def test_breaker_opens_tries_one_and_closes():
    clock = Clock()

    async def run():
        breaker = Breaker(3, 10, timing=Timing(clock, clock.sleep))
        for _ in range(2):
            breaker.leave(await breaker.enter(), True)
        breaker.leave(await breaker.enter(), False)  # a success in between restarts the count
        for _ in range(3):
            assert not breaker.is_open
            breaker.leave(await breaker.enter(), True)
        assert breaker.is_open
        late = [clock.now]
        assert await breaker.enter() is True
        assert clock.now - late[0] == pytest.approx(10)
        waiting = asyncio.create_task(breaker.enter())  # only one may try
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not waiting.done()
        breaker.leave(False, True)  # one that went out before says nothing about the try
        assert breaker.is_open and not waiting.done()
        breaker.leave(True, False)
        assert await waiting is False and not breaker.is_open

    asyncio.run(run())


def test_breaker_ends_it_after_some_waits():
    clock = Clock()

    async def run():
        breaker = Breaker(2, 10, openings=3, timing=Timing(clock, clock.sleep))
        for _ in range(2):
            breaker.leave(await breaker.enter(), True)
        for _ in range(3):
            breaker.leave(await breaker.enter(), True)
        with pytest.raises(ServerUnavailable, match="3 waits of 10 s"):
            await breaker.enter()
        assert clock.now == pytest.approx(130)
        given_up = Breaker(1, 10, timing=Timing(clock, clock.sleep))
        given_up.leave(await given_up.enter(), True)
        given_up.leave(await given_up.enter(), None)  # cancelled while trying: the next one may try
        assert await given_up.enter() is True

    asyncio.run(run())


@pytest.mark.parametrize(
    ("name", "value"),
    [("concurrency", 0), ("attempts", 1.5), ("timeout", 0), ("requests_per_minute", -1), ("longest_wait", math.inf)],
)
def test_limits_name_what_is_wrong(name, value):
    with pytest.raises(ValueError, match=name):
        RateLimits(**{name: value})
