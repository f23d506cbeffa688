"""CPU seconds of whole commands that should answer at once: help, lists, and the bare import."""

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

ROUNDS = 5
GOALS: dict[str, float | None] = {
    "-c pass": None,
    "-c 'import nextreid'": None,
    "-m nextreid --version": 0.3,
    "-m nextreid --help": 0.3,
    "-m nextreid train --help": 0.3,
    "-m nextreid captions run --help": 0.3,
    "-m nextreid models": 1.0,
    "-m nextreid models --pretrained": 1.0,
    "-m nextreid data list": 1.0,
    "-c 'import torch'": None,
    "-m nextreid data card rgbnt201": None,
}
"""Commands, as the interpreter's arguments, with their goals."""


def run() -> Iterator[dict[str, Any]]:
    """Yield the least CPU seconds of each command over rounds in which they take turns; the first does not count."""
    best = dict.fromkeys(GOALS, float("inf"))
    for number in range(ROUNDS + 1):
        for words in GOALS:
            seconds = _cpu_seconds(words)
            if number:
                best[words] = min(best[words], seconds)
    for words, goal in GOALS.items():
        met = "" if goal is None else best[words] <= goal
        yield {"command": words, "seconds": round(best[words], 3), "goal": f"<= {goal}" if goal else "", "met": met}


def _cpu_seconds(words: str) -> float:
    before = os.times()
    subprocess.run(f"{sys.executable} {words}", shell=True, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system
