"""Random masks, the baseline of the learned ones: how many tokens, drawn when, blind to image and caption."""

import pytest
import torch

from nextreid.layers import SemanticSamplingExpert, SemanticSamplingExperts
from nextreid.layers.sampling import random_mask
from nextreid.models import create_model

D, M, N = 16, 3, 32


def expert(keep_ratio=0.5, **more):
    torch.manual_seed(0)
    return SemanticSamplingExpert(D, num_modalities=M, sampling="random", keep_ratio=keep_ratio, num_tokens=N, **more)


def inputs(batch=64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(batch, M, D, generator=generator), torch.randn(batch, M, N, D, generator=generator)


@pytest.mark.parametrize(("keep_ratio", "count"), [(0.4, 13), (0.5, 16), (1.0, 32), (0.01, 1)])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_as_many_tokens_as_asked_for(keep_ratio, count, training, dtype):
    layer = expert(keep_ratio).to(dtype).train(training)
    out = layer(*(tensor.to(dtype) for tensor in inputs(8)))
    assert out.mask.dtype == dtype and out.mask.shape == (8, 1, M, N)
    assert set(out.mask.unique().tolist()) <= {0.0, 1.0}
    assert (out.mask.float().sum(-1) == count).all()
    assert out.gamma is out.sigma is out.beta is None


def test_training_draws_for_every_sample_modality_and_step_and_every_position_alike():
    layer = expert(0.25).train()
    cls, tokens = inputs(600)
    torch.manual_seed(1)
    first, second = layer(cls, tokens).mask, layer(cls, tokens).mask
    torch.manual_seed(1)
    again = layer(cls, tokens).mask
    assert torch.equal(first, again) and not torch.equal(first, second)
    assert not torch.equal(first[0], first[1]) and not torch.equal(first[0, 0, 0], first[0, 0, 1])
    share = first.mean((0, 1, 2))  # 1,800 draws of 0.25: a standard deviation of 0.0102
    assert (share - 0.25).abs().max() < 0.05
    torch.manual_seed(1)
    assert torch.equal(layer(cls, tokens * -7).mask, first), "the mask must not look at the tokens"


def test_evaluation_has_one_pattern_that_belongs_to_the_weights():
    layer = expert(0.5).eval()
    cls, tokens = inputs(5)
    state = torch.get_rng_state()
    mask = layer(cls, tokens).mask
    assert torch.equal(torch.get_rng_state(), state), "evaluation must not draw"
    assert (mask == mask[:1]).all() and not torch.equal(mask[0, 0, 0], mask[0, 0, 1])
    torch.manual_seed(9)
    other = SemanticSamplingExpert(D, num_modalities=M, sampling="random", num_tokens=N).eval()
    assert not torch.equal(other(cls, tokens).mask, mask)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(cls, tokens).mask, mask)


def test_experts_differ_text_changes_nothing_and_absent_modalities_stay_out():
    torch.manual_seed(0)
    layers = SemanticSamplingExperts(D, 2, num_modalities=M, sampling="random", num_tokens=N).eval()
    cls, tokens = inputs(2)
    out = layers(cls, tokens, torch.randn(2, 2, M, D))
    assert not torch.equal(out.mask[:, 0], out.mask[:, 1])
    assert torch.equal(out.sets.form(), layers(cls, tokens).sets.form())
    present = torch.tensor([[True, False, True], [True, True, True]])
    hidden = layers(cls, tokens, present=present).mask
    assert (hidden[0, :, 1] == 0).all() and torch.equal(hidden[1], out.mask[1])
    assert {key.split(".")[0] for key in layers.state_dict()} == {"experts", "pattern"}


def test_mask_of_given_scores():
    score = torch.tensor([[3.0, 0.0, 2.0, 1.0], [0.0, 1.0, 2.0, 3.0]])
    assert random_mask(score, 0.5).tolist() == [[1, 0, 1, 0], [0, 0, 1, 1]]
    assert not random_mask(score.requires_grad_(), 0.5).requires_grad


def test_models_have_it_and_it_names_what_it_needs():
    model = create_model("next_tiny", head={"sampling": "random", "sampling_keep_ratio": 0.25})
    assert model.text_tower is None and not model.uses_text
    model.eval()
    images = torch.randn(2, 3, 3, 64, 32)
    features = model.forward_features(images)
    assert (features["mask"].mean(-1) == 0.25).all()
    assert torch.equal(model(images), model(images))
    with pytest.raises(ValueError, match="num_tokens"):
        SemanticSamplingExpert(D, sampling="random")
    with pytest.raises(ValueError, match="keep"):
        SemanticSamplingExpert(D, sampling="random", keep_ratio=0.0, num_tokens=N)
