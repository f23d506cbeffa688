"""8-bit layers against their equation in float64."""

import copy
import pickle

import pytest
import torch
from timm.layers import Mlp
from torch import nn

from nextreid.layers.int8 import Int8Conv2d, Int8Linear, PiecewiseMlp, int8_layer

LAYERS = {
    "linear": (lambda: nn.Linear(64, 80), (3, 125, 64)),
    "linear without bias": (lambda: nn.Linear(64, 80, bias=False), (3, 64)),
    "convolution": (lambda: nn.Conv2d(128, 40, 3, 2, 1), (3, 128, 9, 7)),
    "pointwise": (lambda: nn.Conv2d(128, 40, 1, bias=False), (3, 128, 4, 2)),
}
pytestmark = pytest.mark.skipif(not torch.backends.mkldnn.is_available(), reason="torch without oneDNN")


@pytest.fixture(params=LAYERS)
def case(request):
    torch.manual_seed(0)
    make, shape = LAYERS[request.param]
    return make(), torch.randn(shape) * torch.logspace(-2, 2, 3).view(-1, *[1] * (len(shape) - 1))


def test_rounded_by_row_and_token(case):
    layer, x = case
    small = int8_layer(layer)
    assert isinstance(small, Int8Linear if isinstance(layer, nn.Linear) else Int8Conv2d)
    weight = layer.weight.detach()
    row = (127 / weight.flatten(1).abs().amax(1)).view(-1, *[1] * (weight.dim() - 1))
    token = 127 / x.abs().amax((-1,) if isinstance(layer, nn.Linear) else tuple(range(1, x.dim())), keepdim=True)
    exact = copy.deepcopy(layer).double()
    exact.weight.data = (weight * row).round().double() / row.double()
    expected = exact((x * token).round().double() / token.double())
    with torch.no_grad():
        torch.testing.assert_close(small(x).double(), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
        assert (small(x) - layer(x)).norm() < 0.02 * layer(x).norm()
        torch.testing.assert_close(small.weight, exact.weight.float())


def test_no_vector_depends_on_its_batch(case):
    layer, x = case
    small = int8_layer(layer)
    with torch.no_grad():
        assert torch.equal(torch.cat([small(row[None]) for row in x]), small(x))


def test_copies_and_pickles_compute_the_same(case):
    layer, x = case
    small = int8_layer(layer)
    with torch.no_grad():
        expected = small(x)  # packs the weights
        for other in (copy.deepcopy(small), pickle.loads(pickle.dumps(small))):
            assert torch.equal(other(x), expected)


def test_odd_inputs():
    layer = nn.Linear(64, 80)
    small = int8_layer(layer)
    assert small(torch.ones(2, 64, requires_grad=True)).shape == (2, 80)
    with torch.no_grad():
        for bad in (torch.nan, torch.inf):
            assert not small(torch.full((1, 64), bad)).isfinite().any()
        torch.testing.assert_close(small(torch.zeros(2, 64)), layer(torch.zeros(2, 64)))
        assert (
            small(torch.zeros(0, 64)).shape == (0, 80) and small(torch.ones(2, 64).bfloat16()).dtype == torch.bfloat16
        )


def test_pieces_of_tokens_are_the_whole():
    torch.manual_seed(0)
    mlp = Mlp(64, 128, 80)
    assert not PiecewiseMlp.fits(mlp)
    mlp.fc1, mlp.fc2 = int8_layer(mlp.fc1), int8_layer(mlp.fc2)
    assert PiecewiseMlp.fits(mlp)
    x = torch.randn(3, 129, 64)
    with torch.no_grad():
        whole, empty = mlp(x), mlp(x[:0])
        mlp.__class__ = PiecewiseMlp
        assert torch.equal(mlp(x), whole) and mlp(x[:0]).shape == empty.shape == (0, 129, 80)


@pytest.mark.parametrize(
    "layer", [nn.Linear(8, 8), nn.Conv2d(3, 768, 16, 16), nn.Conv2d(256, 256, 3, groups=256), nn.LayerNorm(4096)]
)
def test_what_gains_nothing_stays(layer):
    assert int8_layer(layer) is None
