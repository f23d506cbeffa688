"""NEXTHead: the head of NEXT for the tokens of any backbone: settings, shapes, modalities, captions, errors."""

import json

import pytest
import torch

import nextreid
from nextreid.layers import NEXTHead

B, M, N, D = 3, 3, 6, 16
PRESENT = torch.tensor([[True, True, True], [True, False, True], [False, True, False]])
SMALL = {"dim": D, "num_heads": 4, "mlp_ratio": 2.0, "ffn_ratio": 2.0}


def make(modalities=M, **settings):
    torch.manual_seed(0)
    head = NEXTHead(**{**SMALL, "num_modalities": modalities, **settings}).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return head


def inputs(modalities=M, width=D, positions=N):
    generator = torch.Generator().manual_seed(1)
    shapes = ((B, modalities, width), (B, modalities, positions, width), (B, modalities, D))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("captions", [True, False])
def test_is_the_head_of_next(captions):
    settings = {"num_heads": 4, "mlp_ratio": 2.0, "ffn_ratio": 2.0, "mmfa_residual": True}
    model = nextreid.create_model("next_tiny", text_tower=None, head={"text_modulation": True}).eval()
    head = NEXTHead(model.embed_dim, num_tokens=32, **settings).eval()
    head.load_state_dict(model.head.state_dict())
    images, text = torch.randn(B, M, 3, *model.img_size), torch.randn(B, M, model.embed_dim) if captions else None
    encoded = model.encode_images(images, PRESENT)
    assert torch.equal(head(encoded["cls"], encoded["tokens"], text, PRESENT), model(images, text, PRESENT))
    theirs = model.forward_features(images, text, PRESENT)
    ours = head(encoded["cls"], encoded["tokens"], text, PRESENT, return_parts=True)
    assert list(ours) == list(theirs)
    assert all(torch.equal(a, b) for a, b in zip(ours.values(), theirs.values(), strict=True))


def test_builds_by_name_from_json():
    args = json.loads(json.dumps({**SMALL, "in_dim": 24, "num_modalities": 2, "sampling": "topk"}))
    head = nextreid.create_layer("NEXTHead", **args)
    assert isinstance(head, NEXTHead)
    assert head(torch.randn(B, 2, 24), torch.randn(B, 2, N, 24)).shape == (B, head.num_features)


def test_settings_reach_the_blocks():
    routed = {"sampling": "fixed", "sampling_threshold": 0.2, "semantic_routing": "shared", "modulation_scope": "map"}
    mixed = {"structure_routing": "specific", "structure_granularity": "sample", "structure_output": "each"}
    head = make(
        2, num_tokens=N, drop=0.3, sampling_keep_ratio=0.7, ffn_ratio=3.0, mmfa_residual=True, **routed, **mixed
    )
    semantic, structure, last = head.semantic_experts, head.structure_experts, head.mmfa.structure
    assert (semantic.sampling, semantic.threshold, semantic.keep_ratio) == ("fixed", 0.2, 0.7)
    assert semantic.threshold_router is None and len(semantic.score_router.fc1_weight) == 1
    assert semantic.modulation.fc1_weight.shape[-1] == 2 * N
    assert semantic.experts.drop == structure.experts.drop == 0.3
    assert semantic.experts.fc1_weight.shape == structure.experts.fc1_weight.shape == (3, 2 * D, D)
    assert (len(structure.routers), structure.granularity, structure.output) == (2, "sample", "each")
    assert (last.ffn[0].out_features, last.residual, last.attention.num_heads) == (3 * D, True, 4)


@pytest.mark.parametrize(
    ("settings", "groups"),
    [
        ({}, 4),
        ({"num_semantic_experts": 2, "num_structure_experts": 5}, 3),
        ({"structure_output": "each", "num_structure_experts": 2}, 5),
        ({"num_structure_experts": 0}, 3),
        ({"num_semantic_experts": 0}, 1),
        ({"num_semantic_experts": 0, "num_structure_experts": 0}, 1),
        ({"num_semantic_experts": 0, "num_structure_experts": 0, "aggregation": "concat"}, 1),
        ({"aggregation": "mean"}, 4),
        ({"sampling": "random", "num_tokens": N}, 4),
        ({"modulation_scope": "map", "num_tokens": N}, 4),
    ],
    ids=str,
)
@pytest.mark.parametrize("modalities", [1, 2, 5])
def test_settings_and_modalities_give_the_width_that_is_declared(settings, groups, modalities):
    head = make(modalities, **settings)
    cls, tokens, text = (x.requires_grad_() for x in inputs(modalities))
    embedding = head(cls, tokens, text)
    assert embedding.shape == (B, groups * modalities * D) == (B, head.num_features)
    assert head.num_groups == groups
    embedding.square().sum().backward()
    assert [name for name, p in head.named_parameters() if p.grad is None] == []


def test_without_class_tokens_the_mean_of_the_patches_takes_their_place():
    head = make().eval()
    _, tokens, text = inputs()
    assert torch.equal(head(None, tokens, text, PRESENT), head(tokens.mean(2), tokens, text, PRESENT))


def test_another_width_is_projected():
    head, plain = make(in_dim=40).eval(), make().eval()
    plain.load_state_dict({key: value for key, value in head.state_dict().items() if not key.startswith("proj.")})
    cls, tokens, text = inputs(width=40)
    weight = head.proj.weight.T
    torch.testing.assert_close(head(cls, tokens, text), plain(cls @ weight, tokens @ weight, text))
    assert head.proj.weight.shape == (D, 40) and head.proj.bias is None


@pytest.mark.parametrize("settings", [{}, {"in_dim": D}, {"aggregation": "mean"}, {"sampling": "all"}], ids=str)
@pytest.mark.parametrize("pooled", [True, False], ids=["class tokens", "none"])
def test_an_absent_modality_may_hold_anything(settings, pooled):
    head = make(**settings).eval()
    cls, tokens, text = inputs()
    cls = cls if pooled else None
    expected = head(cls, tokens, text, PRESENT)
    for x in (cls, tokens):
        if x is not None:
            x[~PRESENT] = torch.nan
    embedding = head(cls, tokens, text, PRESENT)
    assert torch.equal(embedding, expected)
    parts = embedding.view(B, 4, M, D).abs().sum((1, 3))
    assert torch.equal(parts > 0, PRESENT)
    embedding.square().sum().backward()
    assert all(p.grad.isfinite().all() for p in head.parameters() if p.grad is not None)


def test_captions_for_each_expert_or_for_all():
    head = make().eval()
    cls, tokens, text = inputs()
    expected = head(cls, tokens, text)
    assert torch.equal(head(cls, tokens, text[:, None].expand(-1, 3, -1, -1)), expected)
    assert not torch.equal(head(cls, tokens), expected)
    each = torch.stack([text, -text, text], dim=1)
    beta = head(cls, tokens, each, return_parts=True)["beta"]
    torch.testing.assert_close(beta[:, 1], -beta[:, 0])
    plain = make(text_modulation=False).eval()
    assert not plain.uses_text and head.uses_text
    assert torch.equal(plain(cls, tokens, text), plain(cls, tokens))


def test_parts_on_request():
    head = make().eval()
    cls, tokens, text = inputs()
    parts = head(cls, tokens, text, PRESENT, return_parts=True)
    assert set(parts) == {"cls", "tokens", "mask", "gamma", "beta", "sigma", "weights", "groups"}
    assert torch.equal(parts["groups"].flatten(1), head(cls, tokens, text, PRESENT))
    assert torch.equal(parts["tokens"], tokens * PRESENT[..., None, None])


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"aggregation": "sum"}, "attention, mean, concat"),
        ({"aggregation": "concat"}, "num_semantic_experts=0"),
        ({"masked_tokens": "keep"}, "zero, drop"),
        ({"num_modalities": 0}, "num_modalities must be at least 1"),
        ({"num_heads": 5}, "num_heads=5"),
        ({"modulation_scope": "map"}, "needs num_tokens"),
    ],
    ids=str,
)
def test_bad_settings_are_named(settings, named):
    with pytest.raises(ValueError, match=named):
        NEXTHead(**{**SMALL, **settings})


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda c, t, x: (c, t[:, 0], x, None), r"expected \(B, M, N, D\) with M = 3 modalities of width 16"),
        (lambda c, t, x: (c, t[:, :2], x, None), "num_modalities="),
        (lambda c, t, x: (c, t[..., :8], x, None), "in_dim="),
        (lambda c, t, x: (c, t[:, :, :4], x, None), "num_tokens=6"),
        (lambda c, t, x: (c[:, :2], t, x, None), "class tokens have shape"),
        (lambda c, t, x: (c[..., None], t, x, None), "or None for the mean"),
        (lambda c, t, x: (c, t, x[..., :4], None), "caption features have shape"),
        (lambda c, t, x: (c, t, x[:2], None), "captions for 2 samples"),
        (lambda c, t, x: (c, t, x, PRESENT.float()), "present is torch.float32"),
        (lambda c, t, x: (c, t, x, PRESENT[:, :2]), r"expected bool \(B, M\) = \(3, 3\)"),
    ],
)
def test_bad_inputs_are_named(change, named):
    with pytest.raises(ValueError, match=named):
        make(num_tokens=N)(*change(*inputs()))


@pytest.mark.parametrize("scope", ["position", "map"])
def test_contrast_says_where_to_look_and_never_how_much(scope):
    """Whatever lies in all patches alike changes nothing, and the mean score of a map stays what the image gave."""
    settings = {"modulation_contrast": True, "modulation_scope": scope, "num_tokens": N}
    head = make(**settings).eval()
    cls, tokens, text = inputs()
    bare, read = (head(cls, tokens, given, return_parts=True) for given in (None, text))
    assert not torch.allclose(bare["gamma"], read["gamma"])
    torch.testing.assert_close(bare["gamma"].mean(-1), read["gamma"].mean(-1))
    assert torch.equal(read["mask"], (read["gamma"] > read["sigma"]).double())
    modulation = head.semantic_experts.modulation
    captioned = torch.ones(B, 3, M, dtype=torch.bool)
    beta = read["beta"]
    shift = modulation.shift(beta, captioned)
    torch.testing.assert_close(modulation.shift(0.5 * beta + 0.3, captioned), shift, rtol=1e-4, atol=1e-6)
    if scope == "position":  # over the map each place has weights of its own
        assert modulation.shift(torch.full_like(beta, 0.3), captioned).abs().max() < 1e-6  # patches alike: no choice
    absent = head(cls, tokens, torch.zeros_like(text), return_parts=True)
    torch.testing.assert_close(absent["gamma"], bare["gamma"])


def test_a_mask_from_outside_takes_the_place_of_the_sampling():
    head = make().eval()
    cls, tokens, text = inputs()
    chosen = torch.zeros(B, M, N, dtype=torch.float64)
    chosen[:, 1, 2] = 1
    parts = head(cls, tokens, text, PRESENT, return_parts=True, mask=chosen)
    assert torch.equal(parts["mask"], (chosen * PRESENT[..., None])[:, None].expand(-1, 3, -1, -1))
    everywhere = make(num_semantic_experts=1).eval()
    own = everywhere(cls, tokens, text, return_parts=True)
    torch.testing.assert_close(everywhere(cls, tokens, text, mask=own["mask"][:, 0]), own["groups"].flatten(1))
    with pytest.raises(ValueError, match=r"mask has shape .*\(B, M, N\)"):
        head(cls, tokens, text, mask=chosen[:, :1])


def test_each_backbone_feature_can_be_an_expert_of_its_own():
    """Appendix B.1's reading of row B: set m is what the aggregation makes of modality m's tokens alone."""
    settings = {"num_semantic_experts": 0, "num_structure_experts": 0}
    joint, each = make(**settings).eval(), make(**settings, structure_output="each").eval()
    each.load_state_dict(joint.state_dict())
    cls, tokens, _ = inputs()
    assert (joint.num_groups, each.num_groups, each.num_features) == (1, M, M * M * D)
    groups = each(cls, tokens, return_parts=True)["groups"]
    for m in range(M):
        alone = joint.mmfa(cls, None, tokens[:, m : m + 1])[:, 0]
        torch.testing.assert_close(groups[:, m], alone)
    hidden = each(cls, tokens, None, PRESENT, return_parts=True)["groups"]
    assert hidden.isfinite().all() and (hidden.transpose(1, 2)[~PRESENT] == 0).all()
    torch.testing.assert_close(hidden[0], groups[0])
