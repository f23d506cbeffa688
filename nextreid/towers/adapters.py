"""Adapters beside the blocks of an image tower, which may stay frozen under them."""

from collections.abc import Iterable

import torch
from open_clip.transformer import QuickGELU
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .._names import unknown
from .image import ImageTower

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "quick_gelu": QuickGELU}


class SideAdapter(nn.Module):
    """A bottleneck of two layers, ``scale * up(dropout(act(down(x))))`` (ICPL-ReID, MambaPro, after AdaptFormer).

    Args:
        width: Width W of the tokens.
        hidden: Width between the layers; None for W.
        act: ``"relu"``, ``"gelu"`` or ``"quick_gelu"``.
        drop: Dropout behind the activation.
        scale: Factor of what comes out.
        zero_init: Whether it starts at zero, so that what it stands beside starts unchanged. Otherwise both matrices
            start at a truncated normal of 0.02.

    Raises:
        ValueError: If the activation is unknown.

    Example:
        >>> SideAdapter(768, scale=0.5)(torch.randn(2, 129, 768)).shape
        torch.Size([2, 129, 768])
    """

    def __init__(
        self,
        width: int,
        hidden: int | None = None,
        act: str = "relu",
        drop: float = 0.0,
        scale: float = 1.0,
        zero_init: bool = True,
    ) -> None:
        super().__init__()
        if act not in ACTIVATIONS:
            raise ValueError(unknown("activation", act, sorted(ACTIVATIONS)))
        hidden = hidden or width
        self.down, self.up = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.act, self.drop, self.scale = ACTIVATIONS[act](), nn.Dropout(drop), scale
        if zero_init:
            nn.init.kaiming_uniform_(self.down.weight)
            nn.init.zeros_(self.up.weight)
        else:
            nn.init.trunc_normal_(self.down.weight, std=0.02)
            nn.init.trunc_normal_(self.up.weight, std=0.02)
        nn.init.zeros_(self.down.bias)
        nn.init.zeros_(self.up.bias)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens ``(..., W)`` to what is added to them."""
        return self.scale * self.up(self.drop(self.act(self.down(tokens))))


def run_block(tower: ImageTower, block: Block, tokens: Tensor, adapter: nn.Module | None = None) -> Tensor:
    """Run one block of a tower with an adapter beside its MLP.

    ``x = x + attention(norm1(x))``, then ``x = x + mlp(norm2(x)) + adapter(x)``: the adapter reads the tokens behind
    the attention, not normalised. Recomputed in the backward pass where that is set for the tower.

    Args:
        tower: The tower, a plain vision transformer.
        block: One of ``tower.trunk.blocks``.
        tokens: ``(B, T, W)``.
        adapter: Maps ``(B, T, W)`` to what is added; None runs the block alone.
    """
    if tower.trunk.grad_checkpointing and torch.is_grad_enabled():
        return checkpoint(_run, block, tokens, adapter, use_reentrant=False)
    return _run(block, tokens, adapter)


def _run(block: Block, tokens: Tensor, adapter: nn.Module | None) -> Tensor:
    if adapter is None:
        return block(tokens)
    tokens = tokens + block.drop_path1(block.ls1(block.attn(block.norm1(tokens))))
    return tokens + block.drop_path2(block.ls2(block.mlp(block.norm2(tokens)))) + adapter(tokens)


def freeze_but(tower: ImageTower, names: Iterable[str] = ()) -> None:
    """Let only some parameters of a tower learn.

    Args:
        tower: The tower.
        names: Beginnings of the names that learn, such as ``"proj."`` and ``"trunk.norm."``.
    """
    learning = tuple(names)
    for name, parameter in tower.named_parameters():
        parameter.requires_grad_(name.startswith(learning))
