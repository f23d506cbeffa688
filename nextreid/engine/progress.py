"""Progress on stderr: a bar where somebody watches, and in a pipe or a log file a line now and then."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

_LEAST, _MOST = 2, 60  # seconds between two lines, twice as many after each


def progress_bar(items: Iterable[Any] | None, what: str, unit: str, *, shown: bool, total: int | None = None) -> tqdm:
    """Return a tqdm bar over `items` that shows itself once the work has taken two seconds, and is gone at its end."""
    settings: dict[str, Any] = {"total": total, "unit": unit, "leave": False, "delay": _LEAST, "disable": not shown}
    if sys.stderr.isatty():
        return tqdm(items, what, **settings)
    form = "{desc}: {n_fmt} of {total_fmt}, {remaining} left{postfix}"
    return tqdm(items, what, **settings, file=_Lines(), mininterval=_LEAST, miniters=1, bar_format=form)


@contextmanager
def progress_counter(what: str, unit: str, *, shown: bool) -> Iterator[Callable[[int, int], None]]:
    """Give a function that is called with how much is done and how much there is, and show that as a bar."""
    with progress_bar(None, what, unit, shown=shown) as bar:

        def count(done: int, total: int) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield count


def progress_line(text: str) -> None:
    """Write a line above the bars."""
    tqdm.write(text, file=sys.stderr)


def duration(seconds: float) -> str:
    """Return a duration as minutes and seconds, with hours where there are some."""
    return str(tqdm.format_interval(seconds))


class _Lines:
    """The file of a bar that cannot move: updates become lines, less the carriage returns, ever fewer of them."""

    def __init__(self) -> None:
        self._wait, self._next = float(_LEAST), 0.0

    def write(self, text: str) -> None:
        now, line = time.monotonic(), text.strip()
        if line and now >= self._next:
            sys.stderr.write(f"{line}\n")
            self._next, self._wait = now + self._wait, min(2 * self._wait, _MOST)

    def flush(self) -> None:
        sys.stderr.flush()
