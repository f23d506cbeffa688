"""Weights of timm's networks, in timm's names or in its order, into our towers."""

from collections.abc import Mapping, Sequence

import timm
import torch
from torch import Tensor, nn

from .clip_weights import ClipMapping, grouped_names, resample_positions
from .image import ImageTower

_COUNTER = "num_batches_tracked"


def load_timm_weights(
    state_dict: Mapping[str, Tensor], towers: Sequence[ImageTower], by_order: bool = False
) -> ClipMapping:
    """Copy a network's weights into image towers, strictly: all but a classifier fits, or nothing is changed.

    The projection to width D stays as it is. A table of positions is resampled from a square grid to the towers'.

    Args:
        state_dict: Weights in timm's names; or, with `by_order`, of the same network in other names.
        towers: Towers to fill.
        by_order: Take the tensors in the order of the file, each for the one at its place in timm's network: shapes
            and the last words of the names (``weight``, ``bias``, ``running_mean``, ...) must agree. A batch norm's
            counters are passed over, and a classifier at the end may be missing.

    Returns:
        What was mapped.

    Raises:
        ValueError: If names, shapes or the order do not fit; the message lists them.
    """
    tower, naming = towers[0], "timm"
    settings = {name: value for name, value in tower.layout.settings.items() if name != "global_pool"}
    with torch.device("meta"):  # with its classifier, and with the stages that a tower leaves out
        whole = timm.create_model(tower.name, **settings)
    if by_order:
        naming, state_dict = "other", _in_order(state_dict, whole, tower.name)
    own = tower.trunk.state_dict()
    used = {f"trunk.{key}": state_dict[key] for key in own if key in state_dict}
    grids = resample_positions(used, tower)
    # A network that pools before its norm has no weights for the norm behind our tokens.
    missing = [k for k in own if k not in state_dict and not k.endswith(_COUNTER) and not k.startswith("norm.")]
    strange = [key for key in state_dict if key not in whole.state_dict()]
    shapes = [
        f"{key} is {tuple(used[f'trunk.{key}'].shape)}, the tower has {tuple(own[key].shape)}"
        for key in own
        if f"trunk.{key}" in used and used[f"trunk.{key}"].shape != own[key].shape
    ]
    problems = {
        f"{len(missing)} missing: {grouped_names(missing)}": missing,
        f"{len(strange)} that it has no place for: {grouped_names(strange)}": strange,
        f"shapes of {len(shapes)} differ: {', '.join(shapes[:4])}": shapes,
    }
    if found := [text for text, names in problems.items() if names]:
        raise ValueError(f"these weights do not fit timm's {tower.name}: {'; '.join(found)}")
    for each in towers:
        each.load_state_dict(used, strict=False)  # the projection, cameras and counters stay
    left_out = tuple(sorted(key for key in state_dict if key not in own))
    return ClipMapping(naming, len(used), 0, left_out, grids)


def _in_order(state: Mapping[str, Tensor], whole: nn.Module, name: str) -> dict[str, Tensor]:
    """Name the tensors of a file as timm does, by their places."""
    ours, theirs = (
        {key: value for key, value in tensors.items() if not key.endswith(_COUNTER)}
        for tensors in (whole.state_dict(), state)
    )
    for place, ((key, value), (other, tensor)) in enumerate(zip(ours.items(), theirs.items(), strict=False), start=1):
        if value.shape != tensor.shape or key.rpartition(".")[2] != other.rpartition(".")[2]:
            raise ValueError(
                f"the order is not that of timm's {name}: tensor {place} is {other} {tuple(tensor.shape)}, there it is "
                f"{key} {tuple(value.shape)}"
            )
    if len(theirs) > len(ours):
        rest = grouped_names(list(theirs)[len(ours) :])
        raise ValueError(f"the file has {len(theirs)} tensors, timm's {name} {len(ours)}: {rest} are left over")
    return dict(zip(ours, theirs.values(), strict=False))  # a classifier at the end may be missing
