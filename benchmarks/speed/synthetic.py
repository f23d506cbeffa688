"""Samples a second of the procedural set, with captions, in one process and in two."""

import time
from collections.abc import Iterator
from typing import Any

from nextreid.synthetic import synthetic_persons

SIZES: dict[str, dict[str, Any]] = {"tiny": {}, "small": {}, "full": {"num_train": 16, "num_test": 8}}


def run() -> Iterator[dict[str, Any]]:
    """One row for each profile and number of processes."""
    for profile, overrides in SIZES.items():
        for workers in (0, 2):
            start = time.perf_counter()
            built = synthetic_persons(profile, workers=workers, **overrides).dataset
            seconds = time.perf_counter() - start
            count = len(built.train) + len(built.query)
            yield {
                "profile": profile,
                "processes": max(1, workers),
                "samples": count,
                "seconds": round(seconds, 2),
                "samples_per_s": round(count / seconds, 1),
                "images_per_s": round(3 * count / seconds, 1),
                "goal": "small: 100 samples/s on two cores" if profile == "small" and workers else "",
            }
