"""Parameter groups, the optimizer and the learning rate of an epoch."""

import math
from typing import Any

import torch

from nextreid.models import ReIDModel

from .recipe import Recipe


def parameter_groups(model: ReIDModel, recipe: Recipe) -> list[dict]:
    """Group the trainable parameters by the roles of ``model.param_groups()``, for a torch optimizer, in a fixed order.

    The role ``"tower"`` learns at ``lr_tower``, every other at ``lr_new``. With ``decay_all`` False, one-dimensional
    parameters and those that ``model.no_weight_decay()`` names are in groups of their own without weight decay; biases
    are in groups of their own where they learn at another rate. A group has a ``name``, its full learning rate
    ``base_lr``, and ``param_names`` in the order of ``params``.
    """
    spared = model.no_weight_decay()
    groups = []
    for role, parameters in sorted(model.param_groups().items()):
        full = recipe.lr_tower if role == "tower" else recipe.lr_new
        factor = 1.0 if role == "tower" and full != recipe.lr_new else recipe.bias_lr
        for decays, bias in ((True, False), (True, True), (False, False), (False, True)):
            members = {
                name: parameter
                for name, parameter in parameters.items()
                if decays == (recipe.decay_all or (parameter.ndim > 1 and name not in spared))
                and bias == (factor != 1 and name.endswith("bias"))
            }
            lr = full * factor if bias else full
            name = role + (".bias" if bias else "") + ("" if decays else ".no_decay")
            group: dict[str, Any] = {"name": name, "lr": lr, "base_lr": lr}
            group |= {"params": list(members.values()), "param_names": list(members)}
            group["weight_decay"] = recipe.weight_decay if decays else 0.0
            groups += [group] if members else []
    if not groups:
        raise ValueError("no parameter to train: requires_grad is False for all of them")
    return groups


def build_optimizer(model: ReIDModel, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the recipe's optimizer over `parameter_groups`; one fused call updates all tensors of a group."""
    groups = parameter_groups(model, recipe)
    fused = all(parameter.device.type in ("cpu", "cuda") for group in groups for parameter in group["params"])
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.lr_new, momentum=recipe.beta1, fused=fused)
    optimizer = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[recipe.optimizer]
    return optimizer(groups, lr=recipe.lr_new, betas=(recipe.beta1, recipe.beta2), fused=fused)


def lr_factor(recipe: Recipe, epoch: int, share: float = 1.0) -> float:
    """Return the factor of a group's learning rate in an epoch.

    The shape is that of related methods (timm's cosine without a warm-up prefix): linear from ``warmup_start`` towards
    1 while ``epoch < warmup_epochs``, then the cosine over all epochs, which reaches ``floor`` in the last one, or a
    tenth less from each milestone on. Epochs count from 1.

    Args:
        recipe: The schedule.
        epoch: Number of the epoch.
        share: The group's full learning rate, as a part of what ``warmup_start`` and ``floor`` are factors of.
    """
    start, floor = recipe.warmup_start / share, recipe.floor / share
    if epoch < recipe.warmup_epochs:
        return start + (1 - start) * epoch / recipe.warmup_epochs
    if recipe.schedule == "constant":
        return 1.0
    if recipe.schedule == "step":
        return 0.1 ** sum(epoch >= milestone for milestone in recipe.milestones)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * epoch / recipe.epochs))


def lr_noise(limit: float, epoch: int) -> float:
    """Draw the relative change of the learning rates in an epoch: normal, redrawn until it is smaller than `limit`.

    The draws are those of related methods: torch's generator of the CPU, seeded by 42 + epoch, whatever the run's seed.
    """
    generator = torch.Generator().manual_seed(42 + epoch)
    while limit:
        if abs(noise := float(torch.randn(1, generator=generator))) < limit:
            return noise
    return 0.0


def set_lr(optimizer: torch.optim.Optimizer, recipe: Recipe, epoch: int) -> dict[str, float]:
    """Set every group to its learning rate in an epoch, noise included; return them by the groups' names."""
    noise = 1 + lr_noise(recipe.lr_noise, epoch)
    for group in optimizer.param_groups:
        share = group["base_lr"] / recipe.lr_new if recipe.schedule_of == "new" else 1.0
        group["lr"] = group["base_lr"] * lr_factor(recipe, epoch, share) * noise
    return {group["name"]: group["lr"] for group in optimizer.param_groups}
