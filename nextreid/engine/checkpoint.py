"""The folder of a training run: what it holds, whose run it is, and the state that it continues from."""

import contextlib
import hashlib
import inspect
import json
import logging
import os
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import wraps
from importlib.metadata import version
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from nextreid._disk import lock, sweep
from nextreid._files import (
    check_out_folder,
    read_header,
    read_json,
    read_tensors,
    tensors_digest,
    user_path,
    write_json,
    write_tensors,
)
from nextreid._schema import mapping, optional, plain_texts, table, text
from nextreid.data import ReIDDataset
from nextreid.models import ReIDModel, load_strictly
from nextreid.models._config import training_record
from nextreid.version import __version__

from .distributed import on_main, world_size
from .recipe import Recipe

_logger = logging.getLogger(__name__)
_Given = ParamSpec("_Given")
_Result = TypeVar("_Result")

RECIPE, METRICS, STATE, LAST, BEST = "recipe.json", "metrics.jsonl", "state.safetensors", "last", "best"
TEXT_TOWER = "text_tower.safetensors"
# What a resumed run may change: its result does not depend on it, or is read from the state of the run.
_FREE = ("recipe.workers", "recipe.store", "recipe.log", "start.", "dataset.notes", "dataset.source.")
_RUN = table(
    {
        **dict.fromkeys(("recipe", "model", "dataset", "versions", "hardware"), mapping(plain_texts)),
        "start": table(
            {"weights": plain_texts, "digest": text(128), "trained_on": optional(training_record)},
            "field",
            required=("trained_on",),
        ),
    },
    "part",
    required=("recipe", "model", "start", "dataset"),
)
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

    def results(self) -> dict[str, dict[str, Any]]:
        """Return the evaluations by name, as far as there are any: ``last``, ``last_without_text`` and ``best``."""
        last, best = self.last or {}, self.best or {}
        fields = {"last": (last, "evaluation"), "last_without_text": (last, "evaluation_without_text")}
        fields["best"] = (best, "evaluation")
        return {name: {"epoch": row["epoch"], **row[field]} for name, (row, field) in fields.items() if field in row}

    def to_dict(self) -> dict[str, Any]:
        """Return the folder and both rows for JSON."""
        return {"folder": str(self.folder), "epochs": len(self.history), "last": self.last, "best": self.best}


def lock_run(train: Callable[_Given, _Result]) -> Callable[_Given, _Result]:
    """Let a function whose argument ``out`` is a run folder be the only training in it while it runs.

    BlockingIOError if another process trains there. The lock dies with its process and never has to be removed by hand.
    """
    signature = inspect.signature(train)

    @wraps(train)
    def locked(*args: _Given.args, **kwargs: _Given.kwargs) -> _Result:
        folder = user_path(signature.bind(*args, **kwargs).arguments["out"])
        made = not folder.exists()
        try:
            with contextlib.ExitStack() as stack:
                on_main(lambda: stack.enter_context(lock(folder / ".run.lock", f"the run folder {folder}")))
                return train(*args, **kwargs)
        finally:
            if made:
                with contextlib.suppress(OSError):  # it is no longer empty, or another process was faster
                    folder.rmdir()

    return locked


def describe(
    model: ReIDModel, dataset: ReIDDataset, recipe: Recipe, source: Mapping[str, Any], device: torch.device
) -> dict[str, Any]:
    """Return what ``recipe.json`` keeps: the recipe, the model and its start, the dataset, software and hardware."""
    cfg, arguments = model.pretrained_cfg, getattr(model, "model_args", {})
    return {
        "recipe": recipe.to_dict(),
        "model": {**arguments, "architecture": cfg.architecture, "num_classes": model.num_classes},
        "start": {
            "weights": model.loaded_weights,
            "digest": tensors_digest(model.state_dict()),
            "trained_on": cfg.trained_on,
        },
        "dataset": {
            "name": dataset.name,
            "modalities": list(dataset.modalities),
            "protocol": dataset.protocol,
            **{split: len(samples) for split, samples in dataset.splits().items()},
            "digest": dataset.digest(),
            "notes": list(dataset.notes),
            "source": {name: value if value is None else str(value) for name, value in source.items()},
        },
        "versions": {
            "nextreid": __version__,
            "python": platform.python_version(),
            "torch": torch.__version__,
            "timm": version("timm"),
            "open_clip": version("open_clip_torch"),
            "numpy": version("numpy"),
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


def cpu_name() -> str:
    """Name of the processor, as well as the system tells it."""
    info = Path("/proc/cpuinfo")  # of Linux
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor())


def check_run(folder: Path, resume: bool) -> None:
    """Raise OSError if no run can be written there, or there is one already and `resume` is False."""
    if not resume and any((folder / name).exists() for name in (RECIPE, STATE, LAST, BEST)):
        raise FileExistsError(f"{folder} has a run already; continue it (resume=True, --resume) or take another folder")
    check_out_folder(folder, (RECIPE, STATE, TEXT_TOWER))


def open_run(folder: Path, described: dict[str, Any], resume: bool) -> dict[str, Any]:
    """Make the run folder, or check that the run in it is the one described; return the description in the folder.

    More epochs are the same run where the schedule does not depend on their number.

    OSError as `check_run`; ValueError names the fields in which it is another run.
    """
    path = folder / RECIPE
    check_run(folder, resume)
    if path.exists():
        kept = read_description(path)
        # a run of a version that had fewer fields was made with what are their defaults now
        before = _flatten({**kept, "recipe": Recipe.from_dict(kept["recipe"]).to_dict()})
        now = _flatten(json.loads(json.dumps(described)))
        if now["recipe.schedule"] == "constant" and now["recipe.epochs"] > before["recipe.epochs"]:
            before["recipe.epochs"] = kept["recipe"]["epochs"] = now["recipe.epochs"]
        changed = [
            f"{name}: {before.get(name)!r} -> {now.get(name)!r}"
            for name in sorted(before.keys() | now.keys())
            if before.get(name) != now.get(name) and not name.startswith(_FREE)
        ]
        if reported := [change for change in changed if change.startswith(_REPORTED)]:
            _logger.warning("%s continues under other conditions, so the last digits may differ: %s", folder, reported)
        if changed := [change for change in changed if change not in reported]:
            raise ValueError(
                f"cannot resume {folder}, it was made with something else: {'; '.join(changed)}. "
                "Give the same again or take another folder. To train on from its weights, start a new run of the "
                f"model local-dir:{folder / LAST} in another folder (--model, --out). More epochs of the same run need "
                "schedule='constant': any other depends on their number"
            )
        described = kept
    sweep(folder)
    write_json(path, {**described, "sha256": _digest(described)})
    return described


def read_description(path: Path) -> dict[str, Any]:
    """Return what `describe` gave from the ``recipe.json`` of a run.

    FileNotFoundError if there is none; ValueError if it is damaged, was edited, or has another form.
    """
    kept = read_json(path)
    digest = kept.pop("sha256", None) if isinstance(kept, dict) else None
    _RUN(f"{path}: ", kept)
    Recipe.from_dict(kept["recipe"])  # names the field that is wrong, which the digest cannot
    if digest != _digest(kept):
        raise ValueError(f"{path} is damaged, or was edited: its digest is not that of its content")
    return kept


def _digest(described: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(described).encode()).hexdigest()


def _flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix.removesuffix("."): value}
    return {name: leaf for key, inner in value.items() for name, leaf in _flatten(inner, f"{prefix}{key}.").items()}


def best_row(history: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """Return the evaluated row of the highest mAP, the earliest of equals."""
    evaluated = [row for row in history if "evaluation" in row and row["evaluation"]["mAP"] is not None]
    return max(evaluated, key=lambda row: row["evaluation"]["mAP"], default=None)


def save_state(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, history: Sequence[Mapping[str, Any]]
) -> None:
    """Write what `load_state` needs to continue after the last epoch of `history`.

    The whole ``state_dict`` is kept, and the moments of `build_optimizer`'s optimizer under the parameters' names. The
    text tower, which no training changes, is in a file beside it that is written once; the state has its digest.
    """
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    for name, parameter in _named(optimizer):
        for moment, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{name}.{moment}"] = value
    frozen = {name: tensors.pop(name) for name in list(tensors) if name.startswith("model.text_tower.")}
    beside = path.with_name(TEXT_TOWER)
    metadata = {"epoch": len(history), "history": list(history)}
    if frozen:
        # One that lies there without a state is of an attempt that died before its first, perhaps with other weights.
        metadata["text_tower"] = _tower_of(path) or write_tensors(beside, frozen, {})
    write_tensors(path, tensors, metadata)


def _tower_of(path: Path) -> str | None:
    """Digest of the text tower beside a state, if it is the state's own."""
    with contextlib.suppress(OSError, ValueError):
        digest = read_header(path.with_name(TEXT_TOWER)).digest
        return digest if read_header(path).metadata.get("text_tower") == digest else None
    return None


def load_state(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer) -> list[dict[str, Any]]:
    """Put model and optimizer where `save_state` found them; return the history.

    ValueError if a file is damaged, or belongs to another model or optimizer; the message names what differs.
    """
    tensors, metadata = read_tensors(path)
    if "text_tower" in metadata:
        beside = path.with_name(TEXT_TOWER)
        tensors |= read_tensors(beside)[0]
        if _tower_of(path) is None:
            raise ValueError(f"{beside} belongs to another run: it is not the text tower that {path} was written with")
    weights = {name.removeprefix("model."): t for name, t in tensors.items() if name.startswith("model.")}
    load_strictly(model, weights, str(path))
    places = {f"optimizer.{name}": index for index, (name, _) in enumerate(_named(optimizer))}
    moments: dict[int, dict[str, Tensor]] = {}
    for key in tensors.keys() - {f"model.{name}" for name in weights}:
        name, _, moment = key.rpartition(".")
        if name not in places:
            raise ValueError(f"{path} belongs to another optimizer: its moments are for other parameters")
        moments.setdefault(places[name], {})[moment] = tensors[key]
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": moments, "param_groups": groups})
    return metadata["history"]


def _named(optimizer: torch.optim.Optimizer) -> list[tuple[str, nn.Parameter]]:
    return [
        pair for group in optimizer.param_groups for pair in zip(group["param_names"], group["params"], strict=True)
    ]
