"""Wall time of ``nextreid demo --train`` and what it measured."""

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nextreid.engine.demo import run_demo


def run() -> Iterator[dict[str, Any]]:
    """One row: seconds of the whole demo and the mAP of the two models with all modalities."""
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        metrics = run_demo(Path(folder) / "demo", seed=0, train=True)
        seconds = time.perf_counter() - start
    rows = {(r["model"], r["text"]): r for r in metrics["results"] if r["stage"] == "trained" and not r["missing"]}
    yield {
        "seconds": round(seconds, 1),
        "goal": "< 300 s on two cores",
        "mAP_baseline_tiny": round(rows["baseline_tiny", False]["mAP"], 4),
        "mAP_next_tiny_captions": round(rows["next_tiny", True]["mAP"], 4),
        "mAP_next_tiny_no_captions": round(rows["next_tiny", False]["mAP"], 4),
    }
