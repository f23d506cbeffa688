"""Many calls to few servers: what is stored is not asked again, what is answered is stored, money is kept to."""

import asyncio
import hashlib
import logging
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from .client import Client, Reply, Server
from .probe import probe
from .store import Store, call_key
from .throttle import CallFailed, Gate, Limits

_logger = logging.getLogger(__name__)

_MOST_FAILURES = 20  # calls in a row that fail before a run gives up
_LAST_MOMENTS = 20.0  # seconds that calls in flight get to come home after Ctrl-C


@dataclass(frozen=True)
class Job:
    """One question to one model.

    Attributes:
        server: Whom to ask.
        parts: JSON values on which the answer depends besides the prompt; stored with it.
        prompt: The instructions.
        image: Makes the data address when the call goes out; None for text alone.
        json_schema: What the answer should look like.
        options: Sampling: max_tokens, temperature, seed.
        judge: Looks at a stored row; returns a hint to ask once more with, None if the answer will do.
    """

    server: Server
    parts: Mapping[str, Any]
    prompt: str
    image: Callable[[], str] | None = None
    json_schema: Mapping[str, Any] | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    judge: Callable[[Mapping[str, Any]], str | None] = lambda row: None

    def row_head(self, hint: str = "") -> dict[str, Any]:
        """Return the parts of the stored row that are known before the call."""
        prompt = hashlib.sha256((self.prompt + hint).encode()).hexdigest()[:16]
        parts = {**self.parts, "prompt": prompt, "model": self.server.model, "sampling": dict(self.options)}
        return {"key": call_key(**parts), **parts, "repair": bool(hint)}

    def stored(self, store: Store) -> list[dict[str, Any]]:
        """Return the rows that answer this job: none, one, or two where it was asked once more."""
        first = store.get(self.row_head()["key"])
        if first is None:
            return []
        hint = self.judge(first)
        second = store.get(self.row_head(hint)["key"]) if hint else None
        return [first] if second is None else [first, second]

    def is_done(self, store: Store) -> bool:
        """Whether nothing is left to ask."""
        rows = self.stored(store)
        return len(rows) == 2 or (len(rows) == 1 and not self.judge(rows[0]))


@dataclass
class Progress:
    """How far a run is.

    Attributes:
        jobs: Jobs of this run that were not yet in the store.
        done: Of these, answered.
        failed: Of these, given up; the next run asks them again.
        calls: Calls that were answered, repairs included.
        retries: Attempts that failed and were repeated.
        prompt_tokens: Of the calls.
        completion_tokens: Likewise.
        cost: Money for the calls, as far as prices are known.
        spent: Money for everything in the store.
        seconds: Since the start.
        failures: The first few messages.
        stopped: Why the run ended early: ``"budget"``, ``"max-calls"`` or ``""``.
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
    def eta(self) -> float | None:
        """Seconds to go at the pace so far, None before the first answer."""
        return self.seconds / self.done * (self.jobs - self.done - self.failed) if self.done else None

    @property
    def projected_cost(self) -> float | None:
        """Money the whole run will have cost, from the calls measured so far; None before 20 of them."""
        return self.cost / self.done * self.jobs if self.done >= 20 else None


class _Purse:
    """Sees to it that neither money nor calls are overrun, calls in flight included."""

    def __init__(self, spent: float, budget: float | None, max_calls: int | None) -> None:
        self.spent, self.calls = spent, 0
        self._budget, self._max_calls = budget, max_calls
        self._reserved = 0.0
        self._in_flight = 0
        self._changed = asyncio.Condition()

    async def reserve(self, bound: float) -> str:
        """Set money aside for one call, waiting for calls in flight where these may leave enough.

        Returns:
            ``""``, or why no call may go out any more.
        """
        async with self._changed:
            most = self._max_calls
            if most is not None and self.calls + self._in_flight >= most:
                await self._changed.wait_for(lambda: self.calls + self._in_flight < most or not self._in_flight)
                if self.calls >= most:
                    return "max-calls"
            if self._budget is not None:
                budget = self._budget
                await self._changed.wait_for(
                    lambda: self.spent + self._reserved + bound <= budget or not self._in_flight
                )
                if self.spent + self._reserved + bound > budget:
                    return "budget"
            self._reserved += bound
            self._in_flight += 1
            return ""

    async def settle(self, bound: float, cost: float | None) -> None:
        """Take the call's money out; None: there was no answer to pay for."""
        async with self._changed:
            self._reserved = max(0.0, self._reserved - bound)
            self._in_flight -= 1
            if cost is not None:
                self.spent += cost
                self.calls += 1
            self._changed.notify_all()


class _Asking:
    def __init__(
        self, jobs: Sequence[Job], store: Store, limits: Limits, purse: _Purse, progress: Progress,
        report: Callable[[Progress], None],
    ) -> None:  # fmt: skip
        self.store, self.limits, self.purse, self.progress, self.report = store, limits, purse, progress, report
        self.error: BaseException | None = None
        self.failed_in_a_row = 0
        self.most_prompt_tokens: dict[tuple[str, str], int] = {}
        self.queues: dict[Server, list[Job]] = {}
        self.started = time.monotonic()
        for job in reversed(jobs):  # a list gives back its last element first
            self.queues.setdefault(job.server, []).append(job)

    async def run(self, probing: bool) -> None:
        clients = {server: Client(server) for server in self.queues}
        gates = {server: Gate(self.limits) for server in self.queues}
        try:
            if probing:
                for server, client in clients.items():
                    if any(job.image for job in self.queues[server]):
                        await probe(client, timeout=self.limits.timeout)
            workers = [
                asyncio.create_task(self.work(clients[server], gates[server], queue))
                for server, queue in self.queues.items()
                for _ in range(min(self.limits.concurrency, len(queue)))
            ]
            try:
                await asyncio.wait(workers)
            except asyncio.CancelledError:
                # what is in flight is paid for: let it come home
                self.progress.stopped = "interrupted"
                await asyncio.wait(workers, timeout=_LAST_MOMENTS)
                raise
            finally:
                for worker in workers:
                    worker.cancel()
            for worker in workers:
                worker.result()
        finally:
            self.progress.retries = sum(gate.retries for gate in gates.values())
            for client in clients.values():
                await client.__aexit__()
        if self.error is not None:
            raise self.error

    async def work(self, client: Client, gate: Gate, queue: list[Job]) -> None:
        """Take jobs until none is left, something is wrong, or the means are used up."""
        while queue and self.error is None and not self.progress.stopped:
            job = queue.pop()
            try:
                finished = await self.answer(client, gate, job)
                self.progress.done += finished
                self.failed_in_a_row = 0
            except CallFailed as error:
                self.note_failure(client.server, error)
            except (OSError, ValueError) as error:
                self.error = self.error or error
            self.progress.seconds = time.monotonic() - self.started
            self.progress.retries = gate.retries
            self.report(self.progress)

    def note_failure(self, server: Server, error: CallFailed) -> None:
        self.progress.failed += 1
        self.failed_in_a_row += 1
        if len(self.progress.failures) < 5:
            self.progress.failures.append(str(error))
        if error.status in (401, 402, 403):
            key = f" (key in {server.key.origin})" if server.key else ""
            self.error = self.error or PermissionError(f"{error}{key}")
        elif self.failed_in_a_row >= _MOST_FAILURES:
            self.error = self.error or ConnectionError(f"{_MOST_FAILURES} calls in a row failed, the last: {error}")

    async def answer(self, client: Client, gate: Gate, job: Job) -> bool:
        """Have the job's answer in the store; return False where the means are used up."""
        first = job.row_head()
        row = self.store.get(first["key"]) or await self.call(client, gate, job, first, "")
        hint = job.judge(row) if row else None
        if hint:
            row = await self.call(client, gate, job, job.row_head(hint), hint)
        return row is not None

    async def call(
        self, client: Client, gate: Gate, job: Job, head: dict[str, Any], hint: str
    ) -> Mapping[str, Any] | None:
        """Make one call and store its answer; None where the means are used up."""
        server = job.server
        kind = (server.model, str(head.get("modality")))
        expected = self.most_prompt_tokens.get(kind, len(job.prompt) // 3 + (1500 if job.image else 0))
        bound = server.cost(expected, job.options.get("max_tokens", 1500)) or 0.0
        if why := await self.purse.reserve(bound):
            self.progress.stopped = self.progress.stopped or why
            return None
        cost: float | None = None
        try:
            image = await asyncio.to_thread(job.image) if job.image else None

            def attempt() -> Awaitable[Reply]:
                return client.ask(job.prompt + hint, image, json_schema=job.json_schema, **job.options)

            reply = await gate.call(attempt, tokens=expected + 400)
            cost = server.cost(reply.prompt_tokens, reply.completion_tokens) or 0.0
            row = head | {
                "host": server.host,
                "reported": reply.model,
                "request": reply.request,
                "date": reply.date,
                "text": reply.text,
                "finish": reply.finish,
                "refusal": reply.refusal,
                "prompt_tokens": reply.prompt_tokens,
                "completion_tokens": reply.completion_tokens,
                "left_out": list(reply.left_out),
                "cost": cost if server.price else None,
            }
            self.store.append(row)
        finally:
            await self.purse.settle(bound, cost)
        if reply.prompt_tokens:
            gate.settle(reply.prompt_tokens + reply.completion_tokens - expected - 400)
            self.most_prompt_tokens[kind] = max(self.most_prompt_tokens.get(kind, 0), reply.prompt_tokens)
        progress = self.progress
        progress.calls += 1
        progress.prompt_tokens += reply.prompt_tokens
        progress.completion_tokens += reply.completion_tokens
        progress.cost += cost
        progress.spent = self.purse.spent
        return row


async def ask(
    jobs: Sequence[Job],
    store: Store,
    *,
    limits: Limits | None = None,
    budget: float | None = None,
    max_calls: int | None = None,
    probing: bool = True,
    report: Callable[[Progress], None] = lambda progress: None,
) -> Progress:
    """Ask what is not yet in the store.

    Args:
        jobs: What should be in the store afterwards.
        store: Opened to write.
        limits: For each server.
        budget: Money that everything in the store together may cost; needs the servers' prices. It is never passed
            as long as an image takes no more prompt tokens than the dearest one before it: a call goes out only if
            its greatest possible price is still there.
        max_calls: Calls that may be answered in this run.
        probing: Whether to see first that each model answers and can see.
        report: Called after every job.

    Returns:
        What happened.

    Raises:
        ValueError: If there is a budget but no price, or a model cannot be used.
        ConnectionError: If a server is not there or went away.
        PermissionError: If a server does not take the key.
        OSError: If the disk is full. Whatever was answered before is in the store.
    """
    if budget is not None and (free := sorted({job.server.model for job in jobs if job.server.price is None})):
        raise ValueError(f"a budget needs prices; there is none for {', '.join(free)} (say --price IN,OUT)")
    missing = [job for job in jobs if not job.is_done(store)]
    progress = Progress(jobs=len(missing), spent=store.spent)
    if missing:
        purse = _Purse(store.spent, budget, max_calls)
        await _Asking(missing, store, limits or Limits(), purse, progress, report).run(probing)
        report(progress)
    return progress
