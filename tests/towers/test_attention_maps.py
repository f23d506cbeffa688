"""Attention maps beside the tokens: the tokens are the tower's own, the maps are what its attention weighs with."""

import pytest
import torch

from nextreid.towers import ImageTowers, run_blocks_with_maps

TINY = {"patch_size": 8, "embed_dim": 32, "depth": 3, "num_heads": 2}


@pytest.mark.parametrize("shared", [True, False])
@pytest.mark.parametrize("more", [{}, {"qk_norm": True, "init_values": 0.5}])
def test_tokens_are_those_of_the_blocks_and_maps_explain_them(shared, more):
    torch.manual_seed(0)
    towers = ImageTowers("vit_tiny_patch16_224", (32, 16), ("a", "b"), None, shared, tower_args=TINY | more).eval()
    tokens = torch.randn(2, 2, 9, 32)
    seen = []
    for tower in towers.towers():
        tower.trunk.blocks[-1].attn.proj.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
        tower.trunk.blocks[-1].attn.qkv.register_forward_hook(lambda *args: seen.append(args[-1]))
    expected = towers.run_blocks(tokens)
    seen.clear()
    found, maps = run_blocks_with_maps(towers, tokens)
    torch.testing.assert_close(found, expected)
    assert len(maps) == 3 and all(part.shape == (2, 2, 2, 9, 9) and not part.requires_grad for part in maps)
    for number, (qkv, out) in enumerate(zip(seen[::2], seen[1::2], strict=True)):
        values = qkv.unflatten(-1, (3, 2, 16))[:, :, 2].transpose(1, 2)  # (b, h, T, e)
        last = maps[-1].flatten(0, 1) if shared else maps[-1][:, number]
        torch.testing.assert_close((last @ values).transpose(1, 2).flatten(2), out)


def test_recomputing_changes_no_gradient():
    towers = ImageTowers("vit_tiny_patch16_224", (32, 16), ("a",), None, tower_args=TINY)
    tokens, grads = torch.randn(2, 1, 9, 32), []
    for enable in (False, True):
        towers[0].trunk.set_grad_checkpointing(enable)
        towers.zero_grad()
        run_blocks_with_maps(towers, tokens)[0].square().mean().backward()
        grads.append([p.grad.clone() for p in towers[0].trunk.blocks.parameters()])
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b)


def test_blocks_of_another_kind_are_named():
    towers = ImageTowers("vit_small_patch16_dinov3", (32, 16), ("a",), None, tower_args={"depth": 1})
    with pytest.raises(ValueError, match="attention maps of 'vit_small_patch16_dinov3' cannot be read"):
        run_blocks_with_maps(towers, torch.randn(1, 1, 3, 384))
