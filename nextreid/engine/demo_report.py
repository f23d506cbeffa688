"""What the demo on drawn persons and the one on a user's own images write alike."""

import platform
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from nextreid.data import ReIDDataset
from nextreid.retrieval import rank
from nextreid.version import __version__
from nextreid.viz import Table

from .evaluation import EvaluationReport, identities

METRICS, REPORT, RANKS, MASKS = "metrics.json", "report.html", "rank_list.png", "masks.png"
MODELS = ("baseline_tiny", "next_tiny")


def chance_map(dataset: ReIDDataset, seed: int) -> float:
    """Return the mAP of a random order."""
    generator = torch.Generator().manual_seed(seed)
    query, gallery = (torch.randn(len(split), 8, generator=generator) for split in (dataset.query, dataset.gallery))
    ids = (identities(dataset.query), identities(dataset.gallery))
    query_keys, gallery_keys = ([sample.key for sample in split] for split in (dataset.query, dataset.gallery))
    result = rank(query, gallery, *ids, dataset.protocol, query_keys=query_keys, gallery_keys=gallery_keys)
    return float(np.nanmean(result.ap))


def result_row(name: str, stage: str, report: EvaluationReport) -> dict[str, Any]:
    """Return what `results_table` and ``metrics.json`` take of a report: all but its seconds, which no run repeats."""
    values = {key: value for key, value in report.to_dict().items() if key != "seconds"}
    return {"model": name, "stage": stage, **values}


def results_table(rows: Sequence[dict[str, Any]], modalities: Sequence[str]) -> Table:
    """One line for each model and text setting, one column for each condition: mAP / rank-1 in percent."""
    columns = ["model", "captions at test", "all modalities", *(f"without {m}" for m in modalities)]
    lines: dict[tuple[str, str, bool], dict[tuple[str, ...], str]] = {}
    for row in rows:
        cell = f"{100 * row['mAP']:.1f} / {100 * row['rank-1']:.1f}"
        lines.setdefault((row["model"], row["stage"], row["text"]), {})[tuple(row["missing"])] = cell
    table = []
    for (model, stage, text), cells in lines.items():
        title = model if stage == "trained" else f"{model}, {stage}"
        table.append([title, "yes" if text else "no", *(cells.get(c, "") for c in ((), *((m,) for m in modalities)))])
    return Table("Results, mAP / rank-1 in percent", columns, table)


def versions() -> dict[str, str]:
    """Return the versions that a demo records."""
    return {"nextreid": __version__, "torch": torch.__version__, "python": platform.python_version()}
