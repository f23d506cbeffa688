"""The state that a run continues from."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nextreid._files import read_tensors, write_tensors
from nextreid.models import load_strictly

TEXT_TOWER = "text_tower.safetensors"


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
        for kind, value in optimizer.state[parameter].items():
            tensors[f"optimizer.{name}.{kind}"] = value
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
        kinds = {key.removeprefix(prefix): t for key, t in tensors.items() if key.startswith(prefix)}
        # A parameter's name may begin another's ("a.b" and "a.b.c"); a moment's name has no dot.
        moments[index] = {kind: tensor for kind, tensor in kinds.items() if "." not in kind}
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
