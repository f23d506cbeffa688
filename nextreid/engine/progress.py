"""Progress on stderr: a bar where somebody watches, and in a pipe or a log file a line now and then."""

import sys
from collections.abc import Iterable
from typing import Any

from tqdm import tqdm

_LEAST, _MOST = 2, 60  # seconds between two lines, twice as many after each


def progress_bar(items: Iterable[Any] | None, what: str, unit: str, *, shown: bool, total: int | None = None) -> tqdm:
    """Return a tqdm bar over `items` that shows itself once the work has taken two seconds, and is gone at its end."""
    settings: dict[str, Any] = {"total": total, "unit": unit, "leave": False, "delay": _LEAST, "disable": not shown}
    if sys.stderr.isatty():
        return tqdm(items, what, **settings)
    lines = _Lines()
    form = "{desc}: {n_fmt} of {total_fmt}, {remaining} left{postfix}"
    lines.bar = tqdm(items, what, **settings, file=lines, mininterval=_LEAST, miniters=1, bar_format=form)
    return lines.bar


def progress_line(text: str) -> None:
    """Write a line above the bars."""
    tqdm.write(text, file=sys.stderr)


def duration(seconds: float) -> str:
    """Return a duration as minutes and seconds, with hours where there are some."""
    return str(tqdm.format_interval(seconds))


class _Lines:
    """The file of a bar that cannot move: every update becomes a line, less the carriage returns."""

    bar: tqdm

    def write(self, text: str) -> None:
        if line := text.strip():
            sys.stderr.write(f"{line}\n")
            self.bar.mininterval = min(2 * self.bar.mininterval, _MOST)

    def flush(self) -> None:
        sys.stderr.flush()
