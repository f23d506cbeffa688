"""Parameter groups, the optimizer and the learning rate of an epoch."""

import math

import torch
from torch import nn

from nextreid.models import ReIDModel

from .recipe import Recipe

_TOWER = "image_tower."


def parameter_groups(model: ReIDModel, recipe: Recipe) -> list[dict]:
    """Split the trainable parameters into the image tower and the new layers.

    Args:
        model: Parameters whose name starts with ``image_tower.`` are the pretrained tower's; frozen ones
            (``requires_grad`` False, such as the text tower's) are left out.
        recipe: With ``decay_all`` False, one-dimensional parameters and those that ``model.no_weight_decay()`` names
            are in groups of their own without weight decay.

    Returns:
        Groups for a torch optimizer, two to four, in a fixed order; each has a ``name``, its full rate ``base_lr`` and
        ``param_names`` in the order of ``params``.

    Raises:
        ValueError: No parameter is left to train.
    """
    spared = model.no_weight_decay()
    named: dict[tuple[str, bool], list[tuple[str, nn.Parameter]]] = {}
    rates = {"image_tower": recipe.lr_image_tower, "new": recipe.lr_new}
    for name, parameter in model.named_parameters():
        part = "image_tower" if name.startswith(_TOWER) else "new"
        if parameter.requires_grad:
            decays = recipe.decay_all or (parameter.ndim > 1 and name not in spared)
            named.setdefault((part, decays), []).append((name, parameter))
    if not named:
        raise ValueError("no parameter to train: requires_grad is False for all of them")
    return [
        {
            "name": part if decays else f"{part}.no_decay",
            "params": [parameter for _, parameter in members],
            "param_names": [name for name, _ in members],
            "weight_decay": recipe.weight_decay if decays else 0.0,
            "lr": rates[part],
            "base_lr": rates[part],
        }
        for (part, decays), members in sorted(named.items(), key=lambda item: (item[0][0], not item[0][1]))
    ]


def build_optimizer(model: ReIDModel, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimizer over `parameter_groups`; one fused call updates all tensors of a group."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
    groups = parameter_groups(model, recipe)
    fused = all(parameter.device.type in ("cpu", "cuda") for group in groups for parameter in group["params"])
    return kind(groups, lr=recipe.lr_new, betas=(recipe.beta1, recipe.beta2), fused=fused)


def lr_factor(recipe: Recipe, epoch: int) -> float:
    """Return what every group's rate is multiplied with in an epoch.

    The shape is the peers' (timm's cosine without a warm-up prefix): linear from ``warmup_start`` towards 1 while
    ``epoch < warmup_epochs``, then the cosine over all epochs, which reaches ``floor`` in the last one.

    Args:
        recipe: Its ``schedule``, ``epochs``, ``warmup_epochs``, ``warmup_start`` and ``floor`` count.
        epoch: From 1 to ``recipe.epochs``.
    """
    if epoch < recipe.warmup_epochs:
        return recipe.warmup_start + (1 - recipe.warmup_start) * epoch / recipe.warmup_epochs
    if recipe.schedule == "constant":
        return 1.0
    return recipe.floor + (1 - recipe.floor) * 0.5 * (1 + math.cos(math.pi * epoch / recipe.epochs))


def set_lr(optimizer: torch.optim.Optimizer, factor: float) -> dict[str, float]:
    """Set every group to its full rate times `factor`; return the rates by group name."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return {group["name"]: group["lr"] for group in optimizer.param_groups}
