"""The folder of a training run: what it holds, whose run it is, what came of it."""

import hashlib
import json
import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nextreid.data import ReIDDataset
from nextreid.models import ReIDModel
from nextreid.version import __version__

from .checkpoint import write_json
from .recipe import Recipe

RECIPE, METRICS, STATE, LAST, BEST = "recipe.json", "metrics.jsonl", "state.safetensors", "last", "best"
_FREE = ("recipe.workers",)  # what a resumed run may change, because the result does not depend on it


@dataclass(frozen=True)
class TrainReport:
    """What a run came to.

    Attributes:
        folder: The run folder.
        history: One row for each epoch: losses, rates, seconds and, where there was one, the evaluation.
    """

    folder: Path
    history: tuple[dict[str, Any], ...]

    @property
    def last(self) -> dict[str, Any] | None:
        """Row of the last epoch, whose weights are in ``last/``: the number to report."""
        return self.history[-1] if self.history else None

    @property
    def best(self) -> dict[str, Any] | None:
        """Row of the highest mAP, whose weights are in ``best/``; None if there was no evaluation.

        It is chosen by the very numbers that it reports, so it flatters; `last` does not.
        """
        return best_row(self.history)

    def to_dict(self) -> dict[str, Any]:
        """Return the folder and both rows for JSON."""
        return {"folder": str(self.folder), "epochs": len(self.history), "last": self.last, "best": self.best}


def describe(model: ReIDModel, dataset: ReIDDataset, recipe: Recipe) -> dict[str, Any]:
    """Return what ``recipe.json`` keeps: the recipe, the model, the data set and the versions of the software."""
    learned = [(sample.key, int(sample.pid)) for sample in dataset.train]
    return {
        "recipe": recipe.to_dict(),
        "model": {
            **model.model_args,
            "architecture": model.pretrained_cfg.architecture,
            "num_classes": model.num_classes,
        },
        "dataset": {
            "name": dataset.name,
            "modalities": list(dataset.modalities),
            "protocol": dataset.protocol,
            "train": len(dataset.train),
            "query": len(dataset.query),
            "gallery": len(dataset.gallery),
            "train_digest": hashlib.blake2b(json.dumps(learned).encode(), digest_size=8).hexdigest(),
        },
        "versions": {"nextreid": __version__, "torch": torch.__version__, "python": platform.python_version()},
    }


def open_run(folder: Path, described: dict[str, Any], resume: bool) -> None:
    """Make the run folder, or check that the run in it is the one described.

    Raises:
        FileExistsError: The folder has a run already and `resume` is False.
        ValueError: The run in the folder was made with something else; the message names the fields.
    """
    path = folder / RECIPE
    if not resume and any((folder / name).exists() for name in (RECIPE, STATE, LAST, BEST)):
        raise FileExistsError(f"{folder} has a run already; continue it (resume=True, --resume) or take another folder")
    if path.exists():
        before = _flatten(json.loads(path.read_text(encoding="utf-8")))
        now = _flatten(json.loads(json.dumps(described)))
        changed = [
            f"{name}: {before.get(name)!r} -> {now.get(name)!r}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name) and name not in _FREE and not name.startswith("versions.")
        ]
        if changed:
            raise ValueError(
                f"cannot resume {folder}, it was made with something else: {'; '.join(changed)}. "
                "Give the same again or take another folder"
            )
    folder.mkdir(parents=True, exist_ok=True)
    for name in (LAST, BEST):
        for leftover in folder.glob(f".{name}.*"):  # of a run that was killed while it wrote
            shutil.rmtree(leftover, ignore_errors=True)
    if not path.exists():
        write_json(path, described)


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix.removesuffix("."): value}
    return {name: leaf for key, inner in value.items() for name, leaf in _flatten(inner, f"{prefix}{key}.").items()}


def best_row(history: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the evaluated row of the highest mAP, the earliest of equals."""
    evaluated = [row for row in history if "evaluation" in row]
    return max(evaluated, key=lambda row: row["evaluation"]["mAP"], default=None)
