"""Adapters beside a tower's blocks."""

import pytest
import torch

from nextreid.towers import ImageTower
from nextreid.towers.adapters import SideAdapter, freeze_but, run_block


@pytest.fixture(scope="module")
def tower():
    torch.manual_seed(0)
    settings = {"patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 2}
    return ImageTower("vit_tiny_patch16_224", (16, 16), 12, tower_args=settings).double().eval()


def test_an_adapter_is_its_equation():
    torch.manual_seed(1)
    adapter, x = SideAdapter(6, 4, "quick_gelu", scale=0.5, zero_init=False).double(), torch.randn(2, 3, 6).double()
    hidden = x @ adapter.down.weight.T + adapter.down.bias
    expected = 0.5 * ((hidden / (1 + (-1.702 * hidden).exp())) @ adapter.up.weight.T + adapter.up.bias)
    torch.testing.assert_close(adapter(x), expected)
    assert SideAdapter(6)(x.float()).abs().sum() == 0
    with pytest.raises(ValueError, match="unknown activation 'tanh'"):
        SideAdapter(6, act="tanh")


def test_it_stands_beside_the_mlp(tower):
    torch.manual_seed(2)
    block, x = tower.trunk.blocks[0], torch.randn(2, 5, 24, dtype=torch.float64)
    adapter = SideAdapter(24, 8, zero_init=False).double()
    behind = x + block.attn(block.norm1(x))
    torch.testing.assert_close(run_block(tower, block, x, adapter), block(x) + adapter(behind))
    torch.testing.assert_close(run_block(tower, block, x, SideAdapter(24).double()), block(x))


def test_checkpointing_recomputes_and_changes_nothing(tower):
    torch.manual_seed(3)
    block, adapter = tower.trunk.blocks[0], SideAdapter(24, zero_init=False).double()
    x = torch.randn(2, 5, 24, dtype=torch.float64, requires_grad=True)
    run_block(tower, block, x, adapter).sum().backward()
    plain, x.grad = x.grad, None
    calls = []
    handle = adapter.register_forward_pre_hook(lambda *_: calls.append(1))
    tower.trunk.set_grad_checkpointing(True)
    run_block(tower, block, x, adapter).sum().backward()
    tower.trunk.set_grad_checkpointing(False)
    handle.remove()
    assert len(calls) == 2 and torch.equal(x.grad, plain)


def test_a_frozen_tower_learns_what_is_named(tower):
    freeze_but(tower, ("proj.", "trunk.norm."))
    learning = {name for name, p in tower.named_parameters() if p.requires_grad}
    assert learning == {"proj.weight", "trunk.norm.weight", "trunk.norm.bias"}
