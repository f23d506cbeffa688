"""The state spaces on patches: their equations in plain loops, and what they make of an absent modality."""

import pytest
import torch
import torch.nn.functional as F

from nextreid.layers import SS2D, MambaAggregation, SelectiveStateSpace, StackedBatchNorm
from nextreid.layers.state_space import SCANS

B, M, D, GRID = 3, 3, 4, (3, 2)
N = GRID[0] * GRID[1]
PRESENT = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])


def tokens(present=None):
    x = torch.randn(B, M, N, D, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    return x if present is None else x * present[..., None, None]


def drawn(layer, seed=0):
    """The layer in float64 with weights that are all at work."""
    generator = torch.Generator().manual_seed(seed)
    layer = layer.double()
    with torch.no_grad():
        for name, value in layer.state_dict().items():
            if value.is_floating_point():
                noise = torch.rand(value.shape, generator=generator, dtype=torch.float64)
                value.copy_(0.5 + noise if "var" in name else value + 0.4 * (noise - 0.5))
    return layer


def one_space(space, g, x):
    """A state space on one sequence ``(L, E)``, token by token."""
    low, enter, read = (x @ space.x_weight[g].T).split((space.rank, space.states, space.states), -1)
    delta = torch.log1p((low @ space.step_weight[g].T + space.step_bias[g]).exp())
    h, rows = torch.zeros(x.shape[1], space.states, dtype=x.dtype), []
    for t in range(len(x)):
        h = (delta[t, :, None] * -space.A_log[g].exp()).exp() * h + (delta[t] * x[t])[:, None] * enter[t]
        rows.append(h @ read[t] + space.D[g] * x[t])
    return F.layer_norm(torch.stack(rows), x.shape[1:], space.norm_weight[g], space.norm_bias[g])


def one_layer(layer, p):
    """A layer on the modalities' tokens ``(M, N, D)`` of one sample, in evaluation mode."""
    inner, gates = [], []
    for m in range(M):
        x, gate = (p[m] @ layer.in_weight[m].T).chunk(2, -1)
        grid = x.T.unflatten(1, GRID)[None]
        grid = F.conv2d(grid, layer.conv_weight[m], layer.conv_bias[m], padding=1, groups=grid.shape[1])
        grid = F.batch_norm(
            grid, *(t[m] for t in (layer.norm.running_mean, layer.norm.running_var, layer.norm.weight, layer.norm.bias))
        )
        inner.append(F.silu(grid)[0].flatten(1).T)
        gates.append(F.silu(gate))
    if layer.scan == "intra":
        y = torch.stack([one_space(layer.state_space, m, x) for m, x in enumerate(inner)])
    else:
        y = one_space(layer.state_space, 0, torch.cat(inner)).unflatten(0, (M, N))
    return p + (y * torch.stack(gates)) @ layer.out_proj.weight.T


@pytest.mark.parametrize("scan", SCANS)
@torch.no_grad()
def test_a_layer_is_its_equations(scan):
    layer, x = drawn(SS2D(D, M, scan, states=3)).eval(), tokens()
    torch.testing.assert_close(layer(x, GRID), torch.stack([one_layer(layer, p) for p in x]))


@torch.no_grad()
def test_the_aggregation_is_its_equations():
    layer, x = drawn(MambaAggregation(D, M, depth=2, states=2)).eval(), tokens()
    cls = x.flip(2)[:, :, 0]
    found = layer(cls, x, GRID)
    for block in layer.blocks:
        for scan in SCANS:
            x = torch.stack([one_layer(block[scan], p) for p in x])
    joined, reduction = torch.cat([cls, x.mean(2)], -1), layer.reduction
    for m in range(M):
        normed = F.layer_norm(joined[:, m], (2 * D,), reduction.norm_weight[m], reduction.norm_bias[m])
        torch.testing.assert_close(found[:, m], normed @ reduction.weight[m].T + reduction.bias[m])


@pytest.mark.parametrize("training", [False, True])
@torch.no_grad()
def test_an_absent_modality_has_no_part(training):
    """The patches of the others are as if its tokens stood in no sequence, its rows in no batch norm."""
    layer = drawn(SS2D(D, M, "inter", states=3)).train(training)
    state = {key: value.clone() for key, value in layer.state_dict().items()}
    x = tokens(PRESENT)
    mixed = layer(x, GRID, PRESENT)
    assert torch.equal(mixed.flatten(2).abs().sum(-1) > 0, PRESENT)
    if training:  # the statistics of those that are there, modality by modality
        inner = torch.einsum("bmnd,med->bmne", x, state["in_weight"]).chunk(2, -1)[0]
        for m in range(M):
            grid = inner[PRESENT[:, m], m].transpose(1, 2).unflatten(2, GRID)
            grid = F.conv2d(grid, state["conv_weight"][m], state["conv_bias"][m], padding=1, groups=grid.shape[1])
            norm = torch.nn.BatchNorm2d(2 * D).double()
            norm.running_mean.copy_(state["norm.running_mean"][m])
            norm.running_var.copy_(state["norm.running_var"][m])
            norm(grid)
            torch.testing.assert_close(layer.norm.running_mean[m], norm.running_mean)
            torch.testing.assert_close(layer.norm.running_var[m], norm.running_var)
        return
    alone = SS2D(D, 2, "inter", states=3).double().eval()
    alone.load_state_dict({k: v[[0, 2]] if len(v.shape) and v.shape[0] == M else v for k, v in state.items()})
    torch.testing.assert_close(mixed[1, [0, 2]], alone(x[1:2, [0, 2]], GRID)[0])


def test_batch_norm_of_maps_is_torchs():
    norm, reference = StackedBatchNorm(2, 3).double(), torch.nn.BatchNorm2d(6).double()
    x = torch.randn(4, 2, 3, 5, 2, dtype=torch.float64)
    everything = torch.ones(4, 2, 1, dtype=torch.bool)
    for rows in (None, everything):
        torch.testing.assert_close(norm(x, rows).flatten(1, 2), reference(x.flatten(1, 2)))
        torch.testing.assert_close(norm.running_var.flatten(), reference.running_var)
    assert norm.eval()(x).shape == x.shape


def test_steps_begin_where_they_should():
    x = torch.zeros(1, 2, 1, 64)
    for kind, low, high in (("mamba", 0.001, 0.1), ("uniform", 0.693, 0.694)):
        space = SelectiveStateSpace(64, 2, step_init=kind)
        steps = F.softplus(space.step_bias)
        assert steps.min() >= low and steps.max() <= high and space(x).isfinite().all()
    torch.testing.assert_close(-space.A_log.exp()[1, 5], -torch.arange(1.0, 17))


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"scan": "cross"}, "unknown scan 'cross'; allowed: intra, inter"),
        ({"step_init": "zero"}, "unknown step_init 'zero'; allowed: mamba, uniform"),
    ],
)
def test_settings_that_do_not_exist_are_rejected(setting, message):
    with pytest.raises(ValueError, match=message):
        SS2D(D, **setting)
