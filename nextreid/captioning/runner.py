"""Many calls to few servers: stored answers are not asked for again, every answer is stored, the budget is kept."""

import asyncio
import hashlib
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass, field
from typing import Any

from .classifier import Classifier, ClassifierClient
from .client import Client, Reply, Server
from .decisions import Api, Question
from .probe import probe
from .store import Store, call_key
from .throttle import CallFailed, RateLimits, Throttle

_MOST_FAILURES = 20  # calls in a row that fail before a run gives up
_GRACE = 20.0  # seconds for calls in flight to finish after Ctrl-C
_ANSWER_TOKENS = 400  # of a typical answer, for the token rate


@dataclass(frozen=True)
class Source:
    """What is known of a model without its server or file: enough to find its answers in a store.

    Attributes:
        model: Its name.
        api: How it is asked.
        digest: Of a classifier, see `Classifier`.
        modalities: Those that a classifier is asked about; empty: all.
    """

    model: str
    api: Api = "chat"
    digest: str = ""
    modalities: tuple[str, ...] = ()


@dataclass(frozen=True)
class Job:
    """One question to one model.

    Attributes:
        server: The model and its server, or a classifier; a `Source` where nothing is asked.
        parts: JSON values on which the answer depends besides the prompt; stored with it.
        prompt: The instructions.
        image: Makes the data URL (for a classifier, the image) when the call goes out; None for text alone.
        questions: Typed questions, for a server that is asked by them.
        json_schema: Schema of the answer.
        options: Sampling: max_tokens, temperature, seed.
        judge: Checks a stored row; returns a hint to ask once more with, None if the answer is usable.
    """

    server: Server | Classifier | Source
    parts: Mapping[str, Any]
    prompt: str
    image: Callable[[], Any] | None = None
    questions: tuple[Question, ...] = ()
    json_schema: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    judge: Callable[[Mapping[str, Any]], str | None] = lambda row: None

    @property
    def text(self) -> str:
        """Everything that is asked: the instructions, and the questions as JSON."""
        return self.prompt + (json.dumps(self.questions) if self.questions else "")

    def row_head(self, hint: str = "") -> dict[str, Any]:
        """Return the parts of the stored row that are known before the call."""
        prompt = hashlib.sha256((self.text + hint).encode()).hexdigest()[:16]
        parts = {**self.parts, "prompt": prompt, "model": self.server.model, "sampling": dict(self.options)}
        return {"key": call_key(**parts), **parts, "repair": bool(hint)}

    def attempt(self, client: Client | ClassifierClient, image: Any, hint: str) -> Awaitable[Reply]:
        """Make one attempt at the call."""
        if isinstance(client, ClassifierClient) or self.server.api != "chat":
            return client.decide(self.prompt, self.questions, image)
        return client.ask(self.prompt + hint, image, json_schema=self.json_schema, **self.options)

    def stored(self, store: Store) -> list[dict[str, Any]]:
        """Return the rows that answer this job: none, one, or two if it was asked once more."""
        first = store.get(self.row_head()["key"])
        hint = self.judge(first) if first else None
        second = store.get(self.row_head(hint)["key"]) if hint else None
        return [row for row in (first, second) if row]

    def is_done(self, store: Store) -> bool:
        """Tell whether nothing is left to ask."""
        rows = self.stored(store)
        return len(rows) == 2 or bool(rows and not self.judge(rows[0]))


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        jobs: Jobs of this run that were not yet in the store.
        done, failed: Those that have been answered, and those that were given up; the next run asks these again.
        calls, retries: Calls that were answered, repairs included, and attempts that failed and were repeated.
        prompt_tokens, completion_tokens, cost: Of the calls; the cost as far as prices are known.
        spent: Cost of everything in the store.
        seconds: Seconds since the start.
        failures: The first few messages.
        stopped: Why the run ended early: ``"budget"``, ``"max-calls"``, ``"interrupted"`` or ``""``.
    """

    jobs: int
    done: int = 0
    failed: int = 0
    calls: int = 0
    retries: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cost: float = 0.0
    spent: float = 0.0
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list)
    stopped: str = ""

    @property
    def projected_cost(self) -> float | None:
        """Projected cost of the whole run, from the calls so far; None before 20 of them."""
        return self.cost / self.done * self.jobs if self.done >= 20 else None


class _Budget:
    """Keeps the cost and the number of calls within their limits, calls in flight included."""

    def __init__(self, spent: float, limit: float | None, max_calls: int | None) -> None:
        self.spent, self._calls = spent, 0
        self._limit, self._max_calls = (float("inf") if most is None else most for most in (limit, max_calls))
        self._in_flight: list[float] = []  # what each call may cost at most
        self._changed = asyncio.Condition()

    async def reserve(self, bound: float) -> str:
        """Reserve the cost of one call, waiting for calls in flight if these may leave enough.

        Returns ``""``, or why no further call may go out.
        """
        async with self._changed:
            await self._changed.wait_for(lambda: not self._in_flight or not self._exceeded(bound))
            if not (reason := self._exceeded(bound)):
                self._in_flight.append(bound)
            return reason

    def _exceeded(self, bound: float) -> str:
        if self._calls + len(self._in_flight) >= self._max_calls:
            return "max-calls"
        return "budget" if self.spent + sum(self._in_flight) + bound > self._limit else ""

    async def settle(self, bound: float, cost: float | None) -> None:
        """Replace a reservation by the cost of the call; None: there was no answer to pay for."""
        async with self._changed:
            self._in_flight.remove(bound)
            if cost is not None:
                self.spent += cost
                self._calls += 1
            self._changed.notify_all()


class _Run:
    def __init__(
        self, jobs: Sequence[Job], store: Store, limits: RateLimits, budget: _Budget, report: Callable[[Progress], None]
    ) -> None:
        self.store, self.limits, self.budget, self.report = store, limits, budget, report
        self.progress = Progress(jobs=len(jobs), spent=store.spent)
        self.error: BaseException | None = None
        self.failed_in_a_row = 0
        self.most_prompt_tokens: dict[tuple[str, str], int] = {}
        self.queues: dict[Server | Classifier, list[Job]] = {}
        self.started = time.monotonic()
        for job in reversed(jobs):  # list.pop takes the last element first
            if isinstance(job.server, Source):
                raise TypeError(f"{job.server.model!r} has no server to be asked")
            self.queues.setdefault(job.server, []).append(job)
        # a network on this machine has no limits but how many run at once
        here = RateLimits(limits.concurrency)
        self.throttles = {s: Throttle(limits if isinstance(s, Server) else here) for s in self.queues}

    async def run(self, probing: bool) -> None:
        async with AsyncExitStack() as stack:
            clients: dict[Server | Classifier, Client | ClassifierClient] = {}
            for server in self.queues:
                clients[server] = await stack.enter_async_context(server.client())
            for server, client in clients.items():
                if probing and isinstance(client, Client) and any(job.image for job in self.queues[server]):
                    await probe(client, timeout=self.limits.timeout)
            workers = [
                asyncio.create_task(self.work(clients[server], queue))
                for server, queue in self.queues.items()
                for _ in range(min(self.limits.concurrency, len(queue)))
            ]
            try:
                await asyncio.wait(workers)
            except asyncio.CancelledError:
                # calls in flight are paid for: let them finish
                self.progress.stopped = "interrupted"
                await asyncio.wait(workers, timeout=_GRACE)
                raise
            finally:
                for worker in workers:
                    worker.cancel()
            for worker in workers:
                worker.result()
        if self.error is not None:
            raise self.error

    async def work(self, client: Client | ClassifierClient, queue: list[Job]) -> None:
        """Answer jobs until none is left, an error occurs, or the budget is used up."""
        while queue and self.error is None and not self.progress.stopped:
            job = queue.pop()
            try:
                finished = await self.answer(client, job)  # not in the sum: other workers add meanwhile
                self.progress.done += finished
                self.failed_in_a_row = 0
            except CallFailed as error:
                self.note_failure(client.server, error)
            except (OSError, ValueError) as error:
                self.error = self.error or error
            self.progress.seconds = time.monotonic() - self.started
            self.progress.retries = sum(throttle.retries for throttle in self.throttles.values())
            self.report(self.progress)

    def note_failure(self, server: Server | Classifier, error: CallFailed) -> None:
        self.progress.failed += 1
        self.failed_in_a_row += 1
        if len(self.progress.failures) < 5:
            self.progress.failures.append(str(error))
        if error.status in (401, 402, 403):
            key = f" (key in {server.key.origin})" if server.key else ""
            self.error = self.error or PermissionError(f"{error}{key}")
        elif self.failed_in_a_row >= _MOST_FAILURES:
            self.error = self.error or ConnectionError(f"{_MOST_FAILURES} calls in a row failed, the last: {error}")

    async def answer(self, client: Client | ClassifierClient, job: Job) -> bool:
        """Bring the job's answer into the store; return False if the budget is used up."""
        head = job.row_head()
        row = self.store.get(head["key"]) or await self.call(client, job, head, "")
        if row and (hint := job.judge(row)):
            row = await self.call(client, job, job.row_head(hint), hint)
        return row is not None

    async def call(
        self, client: Client | ClassifierClient, job: Job, head: dict[str, Any], hint: str
    ) -> Mapping[str, Any] | None:
        """Make one call and store its answer; None if the budget is used up."""
        server, progress, throttle = client.server, self.progress, self.throttles[client.server]
        group = (server.model, str(head.get("modality")))
        expected = self.most_prompt_tokens.get(group, len(job.text) // 3 + (1500 if job.image else 0))
        bound = server.cost(expected, job.options.get("max_tokens", 1500)) or 0.0
        if why := await self.budget.reserve(bound):
            progress.stopped = progress.stopped or why
            return None
        cost: float | None = None
        try:
            image = await asyncio.to_thread(job.image) if job.image else None
            reply = await throttle.call(
                lambda: job.attempt(client, image, hint),
                tokens=expected + _ANSWER_TOKENS,
            )
            counted = reply.prompt_tokens or reply.completion_tokens
            # a server that does not count is assumed to have used as much as it may
            cost = (server.cost(reply.prompt_tokens, reply.completion_tokens) or 0.0) if counted else bound
            row = head | {"host": server.host, **asdict(reply), "cost": cost if server.price else None}
            self.store.append(row)
        finally:
            await self.budget.settle(bound, cost)
        if reply.prompt_tokens:
            throttle.settle(reply.prompt_tokens + reply.completion_tokens - expected - _ANSWER_TOKENS)
            self.most_prompt_tokens[group] = max(self.most_prompt_tokens.get(group, 0), reply.prompt_tokens)
        progress.calls += 1
        progress.prompt_tokens += reply.prompt_tokens
        progress.completion_tokens += reply.completion_tokens
        progress.cost += cost
        progress.spent = self.budget.spent
        return row


async def ask(
    jobs: Sequence[Job],
    store: Store,
    *,
    limits: RateLimits | None = None,
    budget: float | None = None,
    max_calls: int | None = None,
    probing: bool = True,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Answer the jobs that are not yet in the store.

    Args:
        jobs: Jobs whose answers should be in the store afterwards.
        store: Opened to write.
        limits: Of each server.
        budget: Most that everything in the store together may cost; needs the servers' prices. It is never exceeded
            as long as an image takes no more prompt tokens than the most expensive one before it: a call goes out only
            if its highest possible price is still left.
        max_calls: Most calls that may be answered in this run.
        probing: Whether to check first that each model answers and can see.
        report: Called after every job.

    Returns:
        The outcome.

    Raises:
        ValueError: If the budget or the number of calls is no amount, there is a budget but no price, or a model cannot
            be used.
        ConnectionError: If a server is not there or stops answering.
        PermissionError: If a server does not accept the key.
        OSError: If the disk is full. Whatever was answered before is in the store.
    """
    for name, most in (("budget", budget), ("max_calls", max_calls)):
        if most is not None and not 0 <= most < float("inf"):
            raise ValueError(f"{name} must be a number from 0 on, got {most!r}")
    asked = [job.server for job in jobs if isinstance(job.server, Server)]
    if budget is not None and (free := sorted({server.model for server in asked if server.price is None})):
        raise ValueError(f"a budget needs prices; there is none for {', '.join(free)} (add --price IN,OUT)")
    missing = [job for job in jobs if not job.is_done(store)]
    run = _Run(missing, store, limits or RateLimits(), _Budget(store.spent, budget, max_calls), report)
    if missing:
        await run.run(probing)
        report(run.progress)
    return run.progress
