"""Work that takes longer than a page may: done once, one at a time, its results kept up to a bound."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, TypeAlias

from starlette.exceptions import HTTPException

Progress: TypeAlias = Callable[[int, int], object]
_WAITING = 8  # jobs that are not done; more are rejected


class Job:
    """One piece of work; `what` says to people what it is."""

    def __init__(self, what: str) -> None:
        self.what, self.done, self.total, self.bytes = what, 0, 0, 0
        self.result: Any = None
        self.error: Exception | None = None
        self.finished = threading.Event()
        self._start = time.monotonic()

    @property
    def seconds(self) -> int:
        """Since it was asked for."""
        return int(time.monotonic() - self._start)

    def progress(self, done: int, total: int) -> None:
        """Record how much is done and how much there is."""
        self.done, self.total = done, total


class StillRunning(Exception):
    """A page needs a job that is not done yet."""

    def __init__(self, job: Job) -> None:
        super().__init__(job.what)
        self.job = job


class Jobs:
    """Results by key; what is not there is made in the background, in the order of asking.

    Args:
        bytes: Of all results that are kept; the ones unused for longest go first, the newest stays.
        count: Of results, likewise.
        patience: Seconds to wait for a job before `StillRunning` is raised.
    """

    def __init__(self, bytes: int = 2**30, count: int = 64, patience: float = 0.7) -> None:
        self._most, self._count, self._patience = bytes, count, patience
        self._jobs: OrderedDict[Hashable, Job] = OrderedDict()
        self._guard, self._turn = threading.Lock(), threading.Lock()

    def get(
        self,
        key: Hashable,
        what: str,
        work: Callable[[Progress], Any],
        size: Callable[[Any], int] = lambda result: 0,
    ) -> Any:
        """Return the result of a key, made by `work` if there is none.

        Args:
            key: What it is a result of.
            what: Sentence for people, such as ``"next_tiny ranks rgbnt201"``.
            work: Called with a function to report progress to.
            size: Bytes of a result.

        Raises:
            StillRunning: It is being made.
            HTTPException: Too many are.
            Exception: What `work` raised; it is tried again at the next call.
        """
        with self._guard:
            job = self._jobs.get(key)
            if job is None:
                if sum(not other.finished.is_set() for other in self._jobs.values()) >= _WAITING:
                    raise HTTPException(503, f"{_WAITING} other pages are being computed; try again when they are done")
                self._jobs[key] = job = Job(what)
                # a daemon: the program ends without waiting for it
                threading.Thread(target=self._run, args=(job, work, size), daemon=True).start()
            self._jobs.move_to_end(key)
        if not job.finished.wait(self._patience):
            raise StillRunning(job)
        if job.error is not None:
            with self._guard:
                if self._jobs.get(key) is job:
                    del self._jobs[key]
            raise job.error
        return job.result

    def _run(self, job: Job, work: Callable[[Progress], Any], size: Callable[[Any], int]) -> None:
        with self._turn:
            try:
                job.result = work(job.progress)
                job.bytes = size(job.result)
            except Exception as error:
                job.error = error
            job.finished.set()
        with self._guard:
            done = [key for key, other in self._jobs.items() if other.finished.is_set()]
            kept = sum(self._jobs[key].bytes for key in done)
            for number, key in enumerate(done[:-1]):
                if kept <= self._most and len(done) - number <= self._count:
                    break
                kept -= self._jobs.pop(key).bytes
