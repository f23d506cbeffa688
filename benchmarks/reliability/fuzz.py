"""Random inputs for everything that reads what others wrote: read, rejected by a named error, or a defect."""

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, given, settings

from .parsers import NAMED, PARSERS, Reader

LONGEST = 2000
"""Characters that a message has at most."""
SLOWEST = 5.0
"""Seconds of CPU time that an input may take."""


def fuzz(folder: Path, number: int) -> Iterator[dict[str, Any]]:
    """Give each parser `number` inputs, fewer to the costly ones; one row for each."""
    for place, (name, parser) in enumerate(PARSERS.items()):
        home = folder / str(place)
        home.mkdir(parents=True)
        counts, faults = run(parser.make(home), max(20, number // parser.cost))
        yield {
            "attack": "odd input", "target": name, "tries": counts.total(), "unharmed": counts["read"],
            "rejected": counts["rejected"], "wrong": counts["wrong"], "note": "; ".join(faults[:3]),
        }  # fmt: skip


def run(reader: Reader, tries: int) -> tuple[Counter[str], list[str]]:
    """Give a reader inputs, the same ones every time; return what became of them and the faults."""
    counts: Counter[str] = Counter()
    faults: dict[str, None] = {}
    health = tuple(HealthCheck)

    @settings(max_examples=tries, deadline=None, database=None, derandomize=True, suppress_health_check=health)
    @given(reader.inputs)
    def once(value: Any) -> None:
        start = time.process_time()
        outcome, fault = attempt(reader, value)
        if time.process_time() - start > SLOWEST:
            outcome, fault = "wrong", f"more than {SLOWEST:g} s"
        counts[outcome] += 1
        if fault:
            faults[fault[:160]] = None

    once()
    return counts, list(faults)


def attempt(reader: Reader, value: Any) -> tuple[str, str]:
    """Return what became of an input, ``"read"``, ``"rejected"`` or ``"wrong"``, and the fault if there is one."""
    try:
        reader.read(value)
    except NAMED as error:
        return ("rejected", "") if len(str(error)) <= LONGEST else ("wrong", f"a message of {len(str(error))} letters")
    except Exception as error:  # whatever else it is, a user would meet it as a traceback
        return "wrong", f"{type(error).__name__}: {error}"
    return "read", ""
