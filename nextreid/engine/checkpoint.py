"""The folder of a training run: what it holds, whose run it is, and the state that it continues from."""

import hashlib
import importlib.metadata
import json
import logging
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nextreid._files import read_tensors, write_json, write_tensors
from nextreid.data import ReIDDataset
from nextreid.models import ReIDModel, load_strictly
from nextreid.version import __version__

from .distributed import world_size
from .recipe import Recipe

_logger = logging.getLogger(__name__)

RECIPE, METRICS, STATE, LAST, BEST = "recipe.json", "metrics.jsonl", "state.safetensors", "last", "best"
TEXT_TOWER = "text_tower.safetensors"
_PACKAGES = {"timm": "timm", "open_clip": "open_clip_torch", "numpy": "numpy"}
# What a resumed run may change: its result does not depend on it, or is read from the state of the run.
_FREE = ("recipe.workers", "recipe.store", "start.", "dataset.notes", "dataset.source.")
_REPORTED = ("versions.", "hardware.")  # ... or should not, but for rounding: a change is logged


@dataclass(frozen=True)
class TrainReport:
    """The result of a run.

    Attributes:
        folder: The run folder.
        history: One row for each epoch: losses, learning rates, seconds and, where there was one, the evaluation.
    """

    folder: Path
    history: tuple[dict[str, Any], ...] = field(repr=False)

    @property
    def last(self) -> dict[str, Any] | None:
        """Row of the last epoch, whose weights are in ``last/``: the one to report."""
        return self.history[-1] if self.history else None

    @property
    def best(self) -> dict[str, Any] | None:
        """Row of the highest mAP, whose weights are in ``best/``; None if there was no evaluation.

        It is chosen by its own metrics and is therefore optimistic; `last` is not.
        """
        return best_row(self.history)

    def to_dict(self) -> dict[str, Any]:
        """Return the folder and both rows for JSON."""
        return {"folder": str(self.folder), "epochs": len(self.history), "last": self.last, "best": self.best}


def describe(
    model: ReIDModel, dataset: ReIDDataset, recipe: Recipe, source: Mapping[str, Any], device: torch.device
) -> dict[str, Any]:
    """Return what ``recipe.json`` keeps: the recipe, the model and its start, the dataset, software and hardware."""
    cfg, arguments = model.pretrained_cfg, getattr(model, "model_args", {})
    return {
        "recipe": recipe.to_dict(),
        "model": {**arguments, "architecture": cfg.architecture, "num_classes": model.num_classes},
        "start": {
            "weights": cfg.file or cfg.hf_hub_id or cfg.clip,
            "digest": _weights_digest(model),
            "trained_on": cfg.trained_on,
        },
        "dataset": {
            "name": dataset.name,
            "modalities": list(dataset.modalities),
            "protocol": dataset.protocol,
            "train": len(dataset.train),
            "query": len(dataset.query),
            "gallery": len(dataset.gallery),
            "digest": dataset.digest(),
            "notes": list(dataset.notes),
            "source": {name: value if value is None else str(value) for name, value in source.items()},
        },
        "versions": {
            "nextreid": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{name: importlib.metadata.version(package) for name, package in _PACKAGES.items()},
        },
        "hardware": {
            "machine": platform.machine(),
            "system": platform.system(),
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "processes": world_size(),
            "device": device.type,
            "gpus": [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())],
        },
    }


def _weights_digest(model: ReIDModel) -> str:
    """Return a fingerprint of the weights: equal starts have equal ones."""
    state = hashlib.blake2b(digest_size=8)
    for name, tensor in sorted(model.state_dict().items()):
        state.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        state.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return state.hexdigest()


def cpu_name() -> str:
    """Name of the processor, as well as the system tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []  # not Linux
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor()


def open_run(folder: Path, described: dict[str, Any], resume: bool) -> dict[str, Any]:
    """Make the run folder, or check that the run in it is the one described; return the description in the folder.

    Raises:
        FileExistsError: The folder has a run already and `resume` is False.
        ValueError: The run in the folder was made with something else; the message names the fields.
    """
    path = folder / RECIPE
    if not resume and any((folder / name).exists() for name in (RECIPE, STATE, LAST, BEST)):
        raise FileExistsError(f"{folder} has a run already; continue it (resume=True, --resume) or take another folder")
    if path.exists():
        kept = json.loads(path.read_text(encoding="utf-8"))
        # a run of a version that had fewer fields was made with what are their defaults now
        before = _flatten({**kept, "recipe": Recipe.from_dict(kept["recipe"]).to_dict()})
        now = _flatten(json.loads(json.dumps(described)))
        changed = [
            f"{name}: {before.get(name)!r} -> {now.get(name)!r}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name) and not name.startswith(_FREE)
        ]
        reported = [change for change in changed if change.startswith(_REPORTED)]
        if reported:
            _logger.warning("%s continues under other conditions, so the last digits may differ: %s", folder, reported)
        changed = [change for change in changed if change not in reported]
        if changed:
            raise ValueError(
                f"cannot resume {folder}, it was made with something else: {'; '.join(changed)}. "
                "Give the same again or take another folder"
            )
    folder.mkdir(parents=True, exist_ok=True)
    for name in (RECIPE, METRICS, STATE, LAST, BEST, TEXT_TOWER):
        for leftover in folder.glob(f".{name}.*"):  # of a run that was killed while it wrote
            shutil.rmtree(leftover) if leftover.is_dir() else leftover.unlink()
    if path.exists():
        return kept
    write_json(path, described)
    return described


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix.removesuffix("."): value}
    return {name: leaf for key, inner in value.items() for name, leaf in _flatten(inner, f"{prefix}{key}.").items()}


def best_row(history: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the evaluated row of the highest mAP, the earliest of equals."""
    evaluated = [row for row in history if "evaluation" in row]
    return max(evaluated, key=lambda row: row["evaluation"]["mAP"], default=None)


def save_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, history: Sequence[Mapping[str, Any]]
) -> None:
    """Write what `load_state` needs to continue after the last epoch of `history`.

    The text tower, which no training changes, is in a file beside it that is written once.

    Args:
        path: The safetensors file.
        model: Its whole ``state_dict`` is kept.
        optimizer: Made by `build_optimizer`: its moments are kept under the parameters' names.
        history: One row for each epoch so far.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in _named(optimizer):
        for moment, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{name}.{moment}"] = value
    frozen = {name: tensors.pop(name) for name in list(tensors) if name.startswith("model.text_tower.")}
    beside = path.with_name(TEXT_TOWER)
    # One that lies there without a state is of an attempt that died before its first, perhaps with other weights.
    if frozen and not (path.exists() and beside.exists()):
        write_tensors(beside, frozen, {})
    write_tensors(path, tensors, {"epoch": len(history), "history": list(history)})


def load_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Put model and optimizer where `save_state` found them; return the history.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: The file is damaged, or belongs to another model or optimizer; the message names what differs.
    """
    tensors, metadata = read_tensors(path)
    beside = path.with_name(TEXT_TOWER)
    if beside.exists():
        tensors |= read_tensors(beside)[0]
    weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    load_strictly(model, weights, str(path))
    moments: dict[int, dict[str, Tensor]] = {}
    for index, (name, _) in enumerate(_named(optimizer)):
        prefix = f"optimizer.{name}."
        named = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
        # A parameter's name may begin another's ("a.b" and "a.b.c"); a moment's name has no dot.
        moments[index] = {moment: tensor for moment, tensor in named.items() if "." not in moment}
    kept = sum(map(len, moments.values()))
    if kept != len(tensors) - len(weights):
        raise ValueError(f"{path} belongs to another optimizer: its moments are for other parameters")
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": {i: m for i, m in moments.items() if m}, "param_groups": groups})
    return metadata["history"]


def _named(optimizer: torch.optim.Optimizer) -> list[tuple[str, nn.Parameter]]:
    return [
        pair for group in optimizer.param_groups for pair in zip(group["param_names"], group["params"], strict=True)
    ]
