"""Rows that carry what they were measured on."""

import csv
import datetime
import os
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import nextreid

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, Any]:
    """Hardware and versions of this run."""
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else ""
    return {
        "date": datetime.date.today().isoformat(),
        "nextreid": nextreid.__version__,
        "torch": torch.__version__,
        "timm": version("timm"),
        "open_clip": version("open_clip_torch"),
        "python": platform.python_version(),
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": gpu,
    }


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def record(name: str, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Append rows to ``results/NAME.csv``, each printed once it is measured; new columns are an error."""
    path = RESULTS / f"{name}.csv"
    path.parent.mkdir(exist_ok=True)
    about = machine()
    full = []
    for row in rows:
        full.append({**row, **about})
        print("  ".join(f"{key} {value}" for key, value in row.items() if key not in about), flush=True)
    fields = list(full[0])
    fresh = not path.exists()
    if not fresh:
        with path.open(newline="") as file:
            known = next(csv.reader(file))
        if known != fields:
            raise ValueError(f"{path} has the columns {known}, this run has {fields}; move the old file away")
    with path.open("a", newline="") as file:
        writer = csv.DictWriter(file, fields)
        if fresh:
            writer.writeheader()
        writer.writerows(full)
    return path


def best_in_turn(codes: Sequence[Callable[[], object]], rounds: int = 5) -> list[float]:
    """Least CPU seconds of each piece of code over rounds in which they take turns; one round before does not count."""
    best = [float("inf")] * len(codes)
    for number in range(rounds + 1):
        for i, code in enumerate(codes):
            start = time.process_time()
            code()
            if number:
                best[i] = min(best[i], time.process_time() - start)
    return best
