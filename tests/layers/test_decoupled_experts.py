"""DeMo's blocks against loops over torch's own modules."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from nextreid.layers import AttentionTriggeredExperts, HierarchicalDecoupling, StackedBatchNorm, TokenReduction

B, M, N, D = 5, 3, 4, 8
PRESENT = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [0, 1, 1], [0, 0, 0]]).bool()
SUBSETS = [(0,), (1,), (2,), (0, 1), (0, 2), (1, 2), (0, 1, 2)]


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def shake(module):
    """No parameter at a value that hides a mistake."""
    with torch.no_grad():
        for value in [*module.parameters(), *module.buffers()]:
            if value.is_floating_point():
                value.add_(torch.rand_like(value) * 0.5)
    return module.double()


@pytest.mark.parametrize("activation", [True, False])
def test_token_reduction(activation):
    block = shake(TokenReduction(D, M, activation))
    cls, tokens = torch.randn(B, M, D).double(), torch.randn(B, M, N, D).double()
    found = block(cls, tokens)
    for m in range(M):
        joined = torch.cat([cls[:, m], tokens[:, m].mean(1)], 1)
        normed = nn.functional.layer_norm(joined, (2 * D,), block.norm_weight[m], block.norm_bias[m])
        expected = normed @ block.weight[m].T + block.bias[m]
        assert_close(found[:, m], expected * torch.sigmoid(1.702 * expected) if activation else expected)


def attention_of(block, s):
    theirs = nn.MultiheadAttention(D, block.num_heads, batch_first=True).double()
    with torch.no_grad():
        theirs.in_proj_weight.copy_(torch.cat([block.q_weight[s], block.k_weight[s], block.v_weight[s]]))
        noise = torch.randn(D).double()  # a bias of keys changes nothing
        theirs.in_proj_bias.copy_(torch.cat([block.q_bias[s], noise, block.v_bias[s]]))
        theirs.out_proj.weight.copy_(block.proj_weight[s])
        theirs.out_proj.bias.copy_(block.proj_bias[s])
    return theirs


@pytest.mark.parametrize("present", [None, PRESENT])
def test_decoupling_is_one_attention_for_each_subset(present):
    block = shake(HierarchicalDecoupling(D, M, num_heads=2, drop=0.0))
    tokens = torch.randn(B, M, N, D).double()
    found = block(tokens, present)
    assert found.shape == (B, len(SUBSETS), D)
    for s, subset in enumerate(SUBSETS):
        theirs = attention_of(block, s)
        for row in range(B):
            kept = [m for m in subset if present is None or present[row, m]]
            if not kept:
                assert not found[row, s].any()
                continue
            keys = tokens[row, kept].flatten(0, 1)[None]
            assert_close(found[row, s], theirs(block.query[s][None, None], keys, keys)[0][0, 0])


def test_dropped_weights_drop_their_values_whole():
    """The bias belongs to each value: with every weight dropped, only the projection's bias is left."""
    block = shake(HierarchicalDecoupling(D, M, num_heads=2, drop=1.0))
    assert_close(block(torch.randn(B, M, N, D).double()), block.proj_bias.expand(B, -1, -1))


def test_other_numbers_of_modalities():
    assert HierarchicalDecoupling(D, 1)(torch.randn(B, 1, N, D)).shape == (B, 1, D)
    assert HierarchicalDecoupling(D, 4)(torch.randn(B, 4, N, D)).shape == (B, 15, D)
    with pytest.raises(ValueError, match="1 to 6 modalities, got 7"):
        HierarchicalDecoupling(D, 7)
    for block in (HierarchicalDecoupling, AttentionTriggeredExperts):
        with pytest.raises(ValueError, match="num_heads=3, dim=8"):
            block(D, num_heads=3)


def norm_of(block, index=()):
    """torch's batch norm with a part of ours."""
    theirs = nn.BatchNorm1d(block.weight[index].numel()).double().train(block.training)
    with torch.no_grad():
        for name in ("weight", "bias", "running_mean", "running_var"):
            getattr(theirs, name).copy_(getattr(block, name)[index].flatten())
    return theirs


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_over_the_rows_that_are_there(training):
    block = shake(StackedBatchNorm(7, 2, 3)).train(training)
    x, present = torch.randn(B, 7, 2, 3).double(), torch.rand(B, 7) > 0.4
    present[:2] = True
    theirs = {(s, h): norm_of(block, (s, h)) for s in range(7) for h in range(2)}
    before = {key: norm_of(block, key) for key in theirs}
    found, whole = block(x, present[..., None, None]), None
    for (s, h), norm in theirs.items():
        rows = present[:, s]
        assert_close(found[rows, s, h], norm(x[rows, s, h]))
        assert_close(block.running_mean[s, h], norm.running_mean)
        assert_close(block.running_var[s, h], norm.running_var)
    assert block.num_batches_tracked == int(training)
    if not training:
        whole = block(x)
        for (s, h), norm in before.items():
            assert_close(whole[:, s, h], norm(x[:, s, h]))


def test_batch_norm_of_all_rows_and_of_none():
    block = shake(StackedBatchNorm(7, 3))
    x = torch.randn(B, 7, 3).double()
    theirs = norm_of(block, ...)
    assert_close(block(x), theirs(x.flatten(1)).view_as(x))
    assert_close(block.running_var.flatten(), theirs.running_var)
    absent = torch.ones(B, 7, 1, dtype=torch.bool)
    absent[:, 2] = False
    before = block.running_mean.clone()
    assert block(x, absent).isfinite().all()
    assert torch.equal(block.running_mean[2], before[2]) and not torch.equal(block.running_mean[1], before[1])
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        block(x[:1])


@pytest.mark.parametrize("training", [True, False])
def test_gated_experts(training):
    block = shake(AttentionTriggeredExperts(D, 7, num_heads=2)).train(training)
    features = torch.randn(B, 7, D).double()
    norms = {(s, h): norm_of(block.norm, (s, h)) for s in range(7) for h in range(2)}
    reduce_norm = norm_of(block.reduce_norm, ...)
    found, gates = block(features)

    def act(x):
        return x * torch.sigmoid(1.702 * x)

    query = block.q(reduce_norm(act(block.reduce(features.flatten(1)))))
    for h in range(2):
        part = slice(4 * h, 4 * h + 4)
        logits = torch.stack([(query[:, part] * block.k(features[:, s])[:, part]).sum(1) / 4**0.5 for s in range(7)], 1)
        assert_close(gates[:, h], logits.softmax(1))
        for s in range(7):
            expert = norms[s, h](act(features[:, s, part] @ block.weight[s, h].T + block.bias[s, h]))
            assert_close(found[:, s, part], expert * logits.softmax(1)[:, s, None])


def test_absent_features_get_no_gate():
    block = shake(AttentionTriggeredExperts(D, 7, num_heads=2)).eval()
    present = torch.rand(B, 7) > 0.5
    present[0], present[1] = False, True
    features = torch.randn(B, 7, D).double() * present[..., None]
    found, gates = block(features, present)
    assert torch.equal((gates > 0).all(1), present) and torch.equal(found.abs().sum(-1) > 0, present)
    assert_close(gates[1:].sum(-1), torch.ones_like(gates[1:, :, 0]) * present[1:].any(-1, keepdim=True))
    assert_close(found[1], block(features)[0][1])
