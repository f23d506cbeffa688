"""Laws that every layer keeps: masks, absent modalities, gradients, one row at a time, errors."""

import inspect

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from nextreid import create_layer, list_layers
from nextreid.layers import (
    MMFA,
    BNNeck,
    CrossAttention,
    Router,
    SemanticSamplingExpert,
    SemanticSamplingExperts,
    StructureExpert,
    StructureExperts,
    TextModulation,
    TokenSets,
    _registry,
    register_layer,
    straight_through_mask,
    topk_threshold,
)

D = 16
SAMPLINGS = ["dynamic", "fixed", "topk", "all"]


def tensors(batch=3, modalities=3, positions=6, seed=0):
    """Class tokens, patch tokens, and a caption feature for each of two experts."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((batch, modalities, D), (batch, modalities, positions, D), (batch, 2, modalities, D))
    return [torch.randn(shape, generator=generator) for shape in shapes]


def pipeline(modalities=3, **semantic):
    torch.manual_seed(0)
    return torch.nn.ModuleDict(
        {
            "tmse": SemanticSamplingExperts(D, 2, num_modalities=modalities, **semantic),
            "csse": StructureExperts(D, 2, num_modalities=modalities),
            "mmfa": MMFA(D, num_heads=4),
        }
    ).eval()


def run(layers, cls, tokens, text, present=None):
    if present is not None:
        cls, tokens = cls * present[..., None], tokens * present[..., None, None]
    semantic = layers["tmse"](cls, tokens, text, present)
    structure = layers["csse"](tokens, present)
    return layers["mmfa"](cls, semantic.sets, structure.sets, present)


def test_straight_through_mask_forward_and_gradient():
    score = torch.linspace(-3, 3, 13, requires_grad=True)
    threshold = torch.tensor(0.4, requires_grad=True)
    mask = straight_through_mask(score, threshold, temperature=0.7)
    assert torch.equal(mask, (score > 0.4).float())
    upstream = torch.randn(13)
    (mask * upstream).sum().backward()
    soft = torch.sigmoid((score.detach() - 0.4) / 0.7)
    slope = soft * (1 - soft) / 0.7
    torch.testing.assert_close(score.grad, upstream * slope)
    torch.testing.assert_close(threshold.grad, -(upstream * slope).sum())


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 40), st.floats(0.01, 1.0), st.integers(0, 1000))
def test_topk_keeps_the_share(count, keep_ratio, seed):
    score = torch.randn(4, count, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    mask = straight_through_mask(score, topk_threshold(score, keep_ratio))
    kept = min(count, max(1, -int(-(keep_ratio * count) // 1)))
    assert torch.equal(mask.sum(-1), torch.full((4,), float(kept), dtype=torch.float64))
    weakest_kept = score.masked_fill(mask == 0, torch.inf).amin(-1)
    strongest_left = score.masked_fill(mask == 1, -torch.inf).amax(-1)
    assert (strongest_left < weakest_kept).all()


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("modalities", [1, 2, 5])
@pytest.mark.parametrize("captions", [True, False])
def test_any_number_of_modalities_and_every_parameter_learns(sampling, modalities, captions):
    layers = pipeline(modalities, sampling=sampling)
    cls, tokens, text = tensors(modalities=modalities)
    out = run(layers, cls, tokens, text if captions else None)
    assert out.shape == (3, 2 + 1, modalities, D) and out.isfinite().all()
    out.square().sum().backward()
    dead = [name for name, p in layers.named_parameters() if p.grad is None]
    assert all(".modulation." in name for name in dead)
    assert not dead or not captions


def test_without_captions_the_routing_scores_stay_as_they_are():
    cls, tokens, text = tensors()
    layer = SemanticSamplingExperts(D, 2).eval()
    alpha = torch.stack([layer.score_router.score(layer.score_router(tokens[:, :, n])) for n in range(6)], dim=-1)
    plain = layer(cls, tokens).gamma
    torch.testing.assert_close(plain, alpha)
    assert torch.equal(layer(cls, tokens, torch.zeros_like(text)).gamma, plain)
    assert not torch.equal(layer(cls, tokens, text).gamma, plain)
    text[1] = 0
    assert torch.equal(layer(cls, tokens, text).gamma[1], plain[1])


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_an_absent_modality_contributes_nothing(sampling):
    layers = pipeline(sampling=sampling)
    cls, tokens, text = tensors()
    present = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])
    out = run(layers, cls, tokens, text, present)
    others = [x.clone() for x in (cls, tokens, text.transpose(1, 2))]
    for x in others:
        x[~present] = 7.0
    assert torch.equal(out, run(layers, *others[:2], others[2].transpose(1, 2), present))
    assert (out.abs().sum((1, 3)) > 0).equal(present)


def test_a_lone_modality_equals_a_model_of_one_modality():
    """Absence is the same as never having had the modality: no mask, softmax or mean counts it."""
    cls, tokens, _ = tensors()
    present = torch.tensor([[False, True, False]] * 3)
    mmfa = MMFA(D, num_heads=4)
    csse = StructureExperts(D, 2, granularity="sample").eval()
    zeroed = tokens * present[..., None, None]
    full = mmfa(cls, structure=csse(zeroed, present).sets, present=present)
    alone = mmfa(cls[:, 1:2], structure=csse(tokens[:, 1:2]).sets)
    torch.testing.assert_close(full[:, :, 1:2], alone)


@pytest.mark.parametrize("masked", ["zero", "drop"])
@pytest.mark.parametrize("drop", [0.0, 0.1])
def test_an_empty_mask_gives_no_nan(masked, drop):
    cls, tokens, text = (x.requires_grad_() for x in tensors())
    layer = SemanticSamplingExperts(D, 2, sampling="fixed", threshold=1e6, masked_tokens=masked, drop=drop)
    mmfa = MMFA(D, num_heads=4, structure=False)
    out = layer(cls, tokens, text)
    assert out.mask.sum() == 0
    result = mmfa(cls, out.sets)
    result.sum().backward()
    assert result.isfinite().all() and all(x.grad.isfinite().all() for x in (cls, tokens))
    with torch.no_grad():
        assert torch.equal(mmfa(cls, layer.eval()(cls, tokens, text).sets), result)


def test_attention_over_nothing_is_the_projection_of_zero():
    attention = CrossAttention(D, 4)
    query, tokens = torch.randn(2, 3, D), torch.randn(2, 1, 5, D)
    (out,) = attention(query, TokenSets(tokens, torch.tensor([[True] * 5, [False] * 5])))
    torch.testing.assert_close(out[1], attention.proj.bias.expand(3, D))
    torch.testing.assert_close(out[0], attention(query, tokens)[0, 0])


@pytest.mark.parametrize("sampling", SAMPLINGS)
def test_a_row_alone_equals_the_row_in_a_batch(sampling):
    layers = pipeline(sampling=sampling).double()
    cls, tokens, text = (x.double() for x in tensors(batch=4))
    present = torch.tensor([[True] * 3, [True, False, True], [True] * 3, [False, False, True]])
    text[2, :, 1] = 0
    whole = run(layers, cls, tokens, text, present)
    for i in range(4):
        row = slice(i, i + 1)
        alone = run(layers, cls[row], tokens[row], text[row], present[row])
        torch.testing.assert_close(alone, whole[row], rtol=1e-9, atol=1e-9)


def test_half_precision_stays_finite_and_close():
    layers = pipeline()
    cls, tokens, text = tensors()
    full = run(layers, cls, tokens, text)
    with torch.autocast("cpu", torch.bfloat16):
        half = run(layers, cls, tokens, text)
    assert half.isfinite().all()
    assert torch.nn.functional.cosine_similarity(full, half.float(), dim=-1).min() > 0.9


def test_registered_layers_build_by_name():
    assert set(list_layers()) >= {"MMFA", "SemanticSamplingExpert", "StructureExpert", "TextModulation"}
    assert list_layers("Structure*") == ["StructureExpert", "StructureExperts"]
    for name in list_layers():
        asked = inspect.signature(_registry._LAYERS[name]).parameters
        values = {"dim": 48, "num_classes": 2, "grid_size": (8, 4)}
        kwargs = {argument: value for argument, value in values.items() if argument in asked}
        assert type(create_layer(name, **kwargs)).__name__ == name
    with pytest.raises(KeyError, match=r"[Dd]id you mean 'MMFA'"):
        create_layer("MMFa", dim=D)
    with pytest.raises(ValueError, match="'MMFA' is registered already"):
        register_layer(type("MMFA", (torch.nn.Module,), {}))


@pytest.mark.parametrize("single", [SemanticSamplingExpert, StructureExpert])
def test_a_single_expert_has_no_number_of_experts(single):
    assert len(single(D).experts) == 1
    with pytest.raises(TypeError, match="num_experts"):
        single(D, num_experts=2)


def test_neck():
    neck = BNNeck(12, 5).eval()
    embedding = torch.randn(4, 12)
    assert neck(embedding).shape == (4, 5)
    torch.testing.assert_close(neck(embedding), neck.norm(embedding) @ neck.classifier.weight.T)
    assert not neck.norm.bias.requires_grad and neck.classifier.bias is None


@pytest.mark.parametrize(
    ("build", "named"),
    [
        (lambda: SemanticSamplingExpert(D, sampling="some"), "dynamic, fixed, topk, all"),
        (lambda: SemanticSamplingExpert(D, keep_ratio=0.0), "keep_ratio"),
        (lambda: SemanticSamplingExpert(D, masked_tokens="keep"), "zero, drop"),
        (lambda: SemanticSamplingExperts(D, 0), "num_experts"),
        (lambda: StructureExperts(D, 0), "num_experts"),
        (lambda: StructureExperts(D, routing="none"), "specific, shared"),
        (lambda: StructureExperts(D, granularity="image"), "token, sample"),
        (lambda: StructureExperts(D, output="mean"), "sum, each"),
        (lambda: Router(D, routing="none"), "specific, shared"),
        (lambda: TextModulation(scope="row"), "position, map"),
        (lambda: TextModulation(scope="map"), "num_tokens"),
        (lambda: MMFA(D, num_heads=3), "num_heads=3"),
        (lambda: MMFA(D, aggregation="max"), "attention, mean"),
        (lambda: BNNeck(10, 0), "at least one class"),
    ],
)
def test_bad_settings_are_named(build, named):
    with pytest.raises(ValueError, match=named):
        build()


def test_bad_shapes_are_named():
    cls, tokens, text = tensors()
    alpha = torch.zeros(3, 2, 3, 6)
    with pytest.raises(ValueError, match=r"expected \(B, E_t, M, D\) = \(3, 2"):
        SemanticSamplingExperts(D, 2)(cls, tokens, text[:, :1])
    with pytest.raises(ValueError, match="caption features"):
        TextModulation(num_experts=2)(alpha, tokens, text[..., :4])
    with pytest.raises(ValueError, match="scope='position'"):
        TextModulation(num_experts=2, scope="map", num_tokens=4)(alpha, tokens, text)
    with pytest.raises(ValueError, match="at least one branch"):
        MMFA(D)(cls)
    with pytest.raises(ValueError, match="semantic=False"):
        MMFA(D, semantic=False)(cls, tokens.flatten(1, 2)[:, None])
