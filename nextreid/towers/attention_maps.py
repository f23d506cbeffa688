"""The blocks of a plain vision transformer, run so that their attention maps are at hand."""

from functools import partial

import torch
from timm.layers import Attention
from timm.models.vision_transformer import Block
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from .image import ImageTower, ImageTowers


def run_blocks_with_maps(towers: ImageTowers, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
    """Run all blocks of each modality's tower, as `ImageTowers.run_blocks` does, and keep the attention maps.

    Args:
        towers: Plain vision transformers, see `ImageTower.is_plain`.
        tokens: ``(B, M, T, W)``, such as `ImageTowers.stem` gives.

    Returns:
        Tokens ``(B, M, T, W)``, and for each block, first to last, the softmax of its h heads ``(B, M, h, T, T)``:
        rows are queries, dropout is not in them, and they carry no gradient.

    Raises:
        ValueError: If a tower's blocks are not timm's plain ones.
    """
    count = tokens.shape[1]
    if len(towers) == 1:
        out, maps = _run(towers.towers()[0], tokens.flatten(0, 1))
        return out.unflatten(0, (-1, count)), [part.unflatten(0, (-1, count)) for part in maps]
    apart = [_run(tower, tokens[:, m]) for m, tower in enumerate(towers.towers())]
    by_block = zip(*(maps for _, maps in apart), strict=True)
    return torch.stack([out for out, _ in apart], 1), [torch.stack(parts, 1) for parts in by_block]


def _run(tower: ImageTower, tokens: Tensor) -> tuple[Tensor, list[Tensor]]:
    maps = []
    for block in tower.trunk.blocks:
        if type(block) is not Block or type(block.attn) is not Attention:
            raise ValueError(
                f"the attention maps of {tower.name!r} cannot be read, which this method needs; name a plain vision "
                "transformer, such as vit_base_patch16_224"
            )
        run = partial(checkpoint, _block, use_reentrant=False) if tower.trunk.grad_checkpointing else _block
        tokens, found = run(block, tokens)
        maps.append(found)
    return tokens, maps


def _block(block: Block, x: Tensor) -> tuple[Tensor, Tensor]:
    """What timm's block computes, with the attention written out."""
    attention = block.attn
    y = block.norm1(x)
    qkv = attention.qkv(y).unflatten(-1, (3, attention.num_heads, -1))
    q, k, v = qkv.permute(2, 0, 3, 1, 4).unbind(0)  # (b, h, T, e) each
    q, k = attention.q_norm(q), attention.k_norm(k)
    weights = (q * attention.scale @ k.mT).softmax(-1)  # (b, h, T, T)
    out = attention.norm((attention.attn_drop(weights) @ v).transpose(1, 2).flatten(2))
    if attention.gate is not None:
        out = out * attention.gate(y).sigmoid()
    x = x + block.drop_path1(block.ls1(attention.proj_drop(attention.proj(out))))
    return x + block.drop_path2(block.ls2(block.mlp(block.norm2(x)))), weights.detach()
