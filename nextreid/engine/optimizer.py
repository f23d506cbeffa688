"""Parameter groups, the optimizer and the learning rate of an epoch."""

import math

import torch

from nextreid.models import ReIDModel

from .recipe import Recipe


def parameter_groups(model: ReIDModel, recipe: Recipe) -> list[dict]:
    """Group the trainable parameters by their role in the model.

    Args:
        model: Its ``param_groups()`` names the roles; ``"tower"`` learns at ``lr_tower``, every other at ``lr_new``.
        recipe: With ``decay_all`` False, one-dimensional parameters and those that ``model.no_weight_decay()`` names
            are in groups of their own without weight decay.

    Returns:
        Groups for a torch optimizer in a fixed order, one or two for each role; each has a ``name``, its full learning
        rate ``base_lr``, and ``param_names`` in the order of ``params``.

    Raises:
        ValueError: No parameter is left to train.
    """
    spared = model.no_weight_decay()
    groups = []
    for role, parameters in sorted(model.param_groups().items()):
        for decays in (True, False):
            members = {
                name: parameter
                for name, parameter in parameters.items()
                if decays == (recipe.decay_all or (parameter.ndim > 1 and name not in spared))
            }
            lr = recipe.lr_tower if role == "tower" else recipe.lr_new
            if members:
                groups.append(
                    {
                        "name": role if decays else f"{role}.no_decay",
                        "params": list(members.values()),
                        "param_names": list(members),
                        "weight_decay": recipe.weight_decay if decays else 0.0,
                        "lr": lr,
                        "base_lr": lr,
                    }
                )
    if not groups:
        raise ValueError("no parameter to train: requires_grad is False for all of them")
    return groups


def build_optimizer(model: ReIDModel, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimizer over `parameter_groups`; one fused call updates all tensors of a group."""
    optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
    groups = parameter_groups(model, recipe)
    fused = all(parameter.device.type in ("cpu", "cuda") for group in groups for parameter in group["params"])
    return optimizer(groups, lr=recipe.lr_new, betas=(recipe.beta1, recipe.beta2), fused=fused)


def lr_factor(recipe: Recipe, epoch: int) -> float:
    """Return the factor of every group's learning rate in an epoch.

    The shape is that of related methods (timm's cosine without a warm-up prefix): linear from ``warmup_start`` towards
    1 while ``epoch < warmup_epochs``, then the cosine over all epochs, which reaches ``floor`` in the last one.

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
    """Set every group to its full learning rate times `factor`; return them by the groups' names."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return {group["name"]: group["lr"] for group in optimizer.param_groups}
