"""Import time of nextreid over that of torch and timm, whole processes in turn."""

import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

ROUNDS = 7


def run() -> Iterator[dict[str, Any]]:
    """One row: medians over rounds in which the two commands take turns."""
    codes = {"base": "import torch, timm", "with": "import torch, timm, nextreid"}
    seconds: dict[str, list[float]] = {name: [] for name in codes}
    for _ in range(ROUNDS + 1):
        for name, code in codes.items():
            start = time.perf_counter()
            subprocess.run([sys.executable, "-c", code], check=True)
            seconds[name].append(time.perf_counter() - start)
    base, full = (statistics.median(seconds[name][1:]) for name in codes)  # the first round fills the file cache
    extra = [b - a for a, b in zip(seconds["base"][1:], seconds["with"][1:], strict=True)]
    yield {
        "torch_timm_s": round(base, 2),
        "with_nextreid_s": round(full, 2),
        "extra_s_median": round(statistics.median(extra), 2),
        "extra_s_max": round(max(extra), 2),
        "ratio": round(full / base, 3),
        "goal": "extra < 2 s",
    }
