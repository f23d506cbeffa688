"""Signal's blocks against their words, one choice, one pair and one volume at a time, in float64."""

from itertools import combinations

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nextreid import create_layer
from nextreid.layers.modality_alignment import DeformableSampler, gram_volumes

B, M, N, D, KEEP = 3, 3, 8, 16, 2
PRESENT = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])
presence = pytest.mark.parametrize("present", [None, PRESENT])


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.fixture
def interaction():
    torch.manual_seed(0)
    return create_layer("SelectiveInteraction", dim=D, keep=KEEP, num_heads=4).double()


def there(present, b):
    return [m for m in range(M) if present is None or present[b, m]]


@presence
def test_patches_are_kept_by_their_own_and_by_other_class_tokens(interaction, present):
    cls, tokens = draw(B, M, D), draw(B, M, N, D, seed=1)
    found = interaction.select(cls, tokens, present)
    for b in range(B):
        expected = set()
        for m in there(present, b):
            expected |= {(m, n) for n in (tokens[b, m] @ cls[b, m]).argsort()[-KEEP:].tolist()}
            query = interaction.q_weight @ cls[b, m] + interaction.q_bias
            others = {
                (k, n): float(query @ (interaction.k_weight @ tokens[b, k, n]))
                for k in there(present, b)
                for n in range(N)
                if k != m
            }
            count = KEEP * (len(there(present, b)) - 1)
            expected |= set(sorted(others, key=others.get)[len(others) - count :])
        assert {tuple(place) for place in found[b].nonzero().tolist()} == expected


@presence
def test_interaction_is_attention_over_kept_patches_and_zeros(interaction, present):
    cls, tokens = draw(B, M, D), draw(B, M, N, D, seed=1)
    found, mask = interaction(cls, tokens, present), interaction.select(cls, tokens, present)
    ours = interaction.attention
    attention = nn.MultiheadAttention(D, 4, batch_first=True).double()
    with torch.no_grad():
        attention.in_proj_weight.copy_(torch.cat([ours.q.weight, ours.k_weight, ours.v_weight]))
        attention.in_proj_bias.copy_(torch.cat([ours.q.bias, draw(D), ours.v_bias]))  # a bias of keys cancels
        attention.out_proj.load_state_dict(ours.proj.state_dict())
    for b in range(B):
        rows = there(present, b)
        keys = (tokens[b] * mask[b, :, :, None])[rows].flatten(0, 1)
        x = interaction.norm1(cls[b, rows] + attention(cls[b, rows], keys, keys)[0])
        torch.testing.assert_close(found[b, rows], interaction.norm2(x + interaction.ffn(x)))
        assert not found[b, [m for m in range(M) if m not in rows]].any()


def test_volumes_are_those_of_gram_determinants():
    unit = F.normalize(draw(B, M, D), dim=-1)
    for i in range(B):
        for j in range(B):
            vectors = torch.stack([unit[i, 0], unit[j, 1], unit[j, 2]])
            expected = (vectors @ vectors.mT).det().sqrt()
            torch.testing.assert_close(gram_volumes(unit)[i, j], expected)


@pytest.mark.parametrize("present", [None, torch.tensor([[1, 1, 1], [1, 0, 1], [1, 1, 1]], dtype=torch.bool)])
def test_volume_loss_is_a_cross_entropy_of_complete_samples(present):
    layer, tokens = create_layer("ModalityAlignment", dim=D, grid_size=(4, 2)), draw(B, M, N, D).float()
    rows = [0, 1, 2] if present is None else [0, 2]
    volumes = gram_volumes(F.normalize(tokens[rows].mean(2), dim=-1)) / 0.07
    target = torch.arange(len(rows))
    both = [F.cross_entropy(-v, target, label_smoothing=0.1) for v in (volumes, volumes.mT)]
    torch.testing.assert_close(layer.volume_loss(tokens, present), sum(both) / 2)


@presence
def test_patch_loss_is_the_mean_over_pairs_that_exist(present):
    torch.manual_seed(0)
    layer, tokens = create_layer("ModalityAlignment", dim=D, grid_size=(4, 2)).double(), draw(B, M, N, D)
    sampled = [s(tokens[:, m].mT.unflatten(2, (4, 2))) for m, s in enumerate(layer.samplers)]
    errors = []
    for a, b in combinations(range(M), 2):
        rows = [i for i in range(B) if a in there(present, i) and b in there(present, i)]
        errors += [(sampled[a] - sampled[b])[rows].square().mean()] if rows else []
    torch.testing.assert_close(layer.patch_loss(tokens, present), sum(errors) / 3)


def test_sampler_reads_the_map_where_it_says():
    """Weights of zero leave the references; the value at a fractional place is bilinear."""
    sampler = DeformableSampler(1, (16, 8)).double()
    nn.init.zeros_(sampler.offset[-1].weight)
    rows, columns = torch.meshgrid(torch.arange(16.0), torch.arange(8.0), indexing="ij")
    maps = (10 * rows + columns).double()[None, None]
    found = sampler(maps)[0, 0]
    y = [min(max(2 * (i + 0.5) / 3 - 1, -1), 1) for i in range(4)]
    x = [min(max(2 * (i + 0.5) / 1 - 1, -1), 1) for i in range(2)]
    expected = [[10 * (v + 1) / 2 * 15 + (u + 1) / 2 * 7 for u in x] for v in y]
    torch.testing.assert_close(found, torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-6)
