"""Progress on stderr: a bar where somebody watches, and in a pipe or a log file a line every half minute."""

import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tqdm import tqdm

_DELAY, _BETWEEN = 2, 30  # seconds until something is shown, and between two lines of a log


def progress_bar(items: Iterable[Any] | None, what: str, unit: str, *, shown: bool, total: int | None = None) -> tqdm:
    """Return a tqdm bar over `items` with the time left, shown after two seconds of work and gone at its end."""
    settings: dict[str, Any] = {"total": total, "unit": unit, "leave": False, "delay": _DELAY, "disable": not shown}
    if sys.stderr.isatty():
        return tqdm(items, what, **settings)
    form = "{desc}: {n_fmt} of {total_fmt}, {remaining} left{postfix}"
    return tqdm(items, what, **settings, file=_Lines(), mininterval=_DELAY, miniters=1, bar_format=form)


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
    """The file of a bar that cannot move: an update every half minute becomes a line, less the carriage returns."""

    def __init__(self) -> None:
        self._next = 0.0

    def write(self, text: str) -> None:
        now, line = time.monotonic(), text.strip()
        if line and now >= self._next:
            sys.stderr.write(f"{line}\n")
            self._next = now + _BETWEEN

    def flush(self) -> None:
        sys.stderr.flush()
