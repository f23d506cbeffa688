"""The head against its equations: outputs, parts and all gradients, in double precision."""

import pytest
import torch

from benchmarks.speed import reference
from nextreid.layers import NEXTHead
from nextreid.ops import use_backend

B, M, N, D = 3, 3, 10, 16
PRESENT = torch.tensor([[True, True, True], [True, False, True], [False, False, False]])
NONE = {"num_semantic_experts": 0, "num_structure_experts": 0}
SETTINGS = [
    {},
    {"num_semantic_experts": 1, "num_structure_experts": 1},
    {"num_semantic_experts": 8},
    {"num_structure_experts": 8},
    {"semantic_routing": "shared"},
    {"sampling": "fixed", "sampling_threshold": 0.05},
    {"sampling": "topk", "sampling_keep_ratio": 0.3},
    {"sampling": "all"},
    {"sampling": "random", "sampling_keep_ratio": 0.5},
    {"modulation_scope": "map"},
    {"text_modulation": False},
    {"masked_tokens": "drop"},
    {"masked_tokens": "drop", "sampling": "topk", "aggregation": "mean"},
    {"structure_routing": "specific"},
    {"structure_granularity": "sample"},
    {"structure_output": "each"},
    {"num_structure_experts": 0},
    {"num_semantic_experts": 0},
    NONE,
    {**NONE, "aggregation": "concat"},
    {"mmfa_residual": True},
    {"aggregation": "mean"},
]


def make(seed=0, **settings):
    torch.manual_seed(seed)
    settings = {"num_heads": 4, "num_tokens": N, "drop": 0.0, "mlp_ratio": 2.0, "ffn_ratio": 2.0, **settings}
    head = NEXTHead(D, M, **settings).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # biases and norms away from zero and one
    cls, tokens = torch.randn(B, M, D).double(), torch.randn(B, M, N, D).double()
    text = torch.randn(B, settings.get("num_semantic_experts", 3) or 1, M, D).double()
    text[0, :, 1] = 0.0  # an image without a caption
    text[1, 0] = 0.0
    return head, cls, tokens, text


def gradients(form, head, inputs, present):
    head.zero_grad(set_to_none=True)
    leaves = [x.clone().requires_grad_() for x in inputs]
    parts = form(*leaves, present)
    weigh = torch.randn(parts["groups"].shape, generator=torch.Generator().manual_seed(5)).double()
    (parts["groups"] * weigh).sum().backward()
    named = {name: p.grad for name, p in head.named_parameters()} | {str(i): x.grad for i, x in enumerate(leaves)}
    return parts, {name: torch.zeros(()) if g is None else g for name, g in named.items()}


@pytest.mark.parametrize("present", [None, PRESENT], ids=["all there", "some absent"])
@pytest.mark.parametrize("captions", [True, False], ids=["captions", "none"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_outputs_and_gradients_are_those_of_the_equations(settings, captions, present):
    head, *inputs = make(**settings)
    head.eval()  # random masks by their pattern; dropout is 0
    inputs = inputs if captions else [*inputs[:2]]
    ours, grads = gradients(lambda *x: run(head, x, captions), head, inputs, present)
    plain, expected = gradients(
        lambda *x: run(lambda *y, **_: reference.head(head, *y), x, captions), head, inputs, present
    )
    assert ours.keys() == plain.keys()
    for name, part in plain.items():
        torch.testing.assert_close(ours[name], part, rtol=1e-12, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
    largest = max(g.abs().max() for g in expected.values())
    assert largest > 0
    for name, grad in expected.items():
        difference = (grads[name] - grad).abs().max()
        assert difference <= 1e-12 * max(grad.abs().max(), 1e-3 * largest), (name, difference, grad.abs().max())


def run(head, given, captions):
    *inputs, present = given
    cls, tokens, *text = inputs
    return head(cls, tokens, text[0] if captions else None, present, return_parts=True)


@pytest.mark.parametrize("present", [None, PRESENT], ids=["all there", "some absent"])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_without_gradients_only_kept_tokens_are_computed_and_nothing_changes(settings, present):
    head, cls, tokens, text = make(**settings)
    head.eval()
    with torch.no_grad():
        ours = head(cls, tokens, text, present)
        expected = reference.head(head, cls, tokens, text, present)["groups"].flatten(1)
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("settings", [{}, {"structure_output": "each"}, {"masked_tokens": "drop"}], ids=str)
@pytest.mark.parametrize("present", [None, PRESENT], ids=["all there", "some absent"])
def test_with_dropout_that_drops_nothing_the_formed_updates_agree(settings, present, monkeypatch):
    head, cls, tokens, text = make(**settings)
    head.semantic_experts.experts.drop = head.structure_experts.experts.drop = 0.5
    monkeypatch.setattr(torch, "native_dropout", lambda x, p, train: (x, None))
    monkeypatch.setattr(torch.nn.functional, "dropout", lambda x, *_: x)  # of the reference
    ours, grads = gradients(lambda *x: run(head, x, True), head, (cls, tokens, text), present)
    plain, expected = gradients(
        lambda *x: run(lambda *y, **_: reference.head(head, *y), x, True), head, (cls, tokens, text), present
    )
    torch.testing.assert_close(ours["groups"], plain["groups"], rtol=1e-12, atol=1e-12)
    for name, grad in expected.items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-10, atol=1e-10, msg=lambda m, n=name: f"{n}: {m}")


def test_dropout_drops_updates_and_keeps_the_residual():
    head, cls, tokens, text = make(drop=1.0 - 1e-9)
    formed = head.semantic_experts(cls, tokens, text).sets.form()
    mask = head.semantic_experts(cls, tokens, text).mask
    torch.testing.assert_close(formed, (tokens[:, None] * mask[..., None]).flatten(2, 3), rtol=0, atol=0)


@pytest.mark.parametrize("settings", [{}, {"structure_output": "each"}, {"sampling": "random"}], ids=str)
def test_token_sets_can_be_formed(settings):
    head, cls, tokens, text = make(**settings)
    head.eval()
    sampled = head.semantic_experts(cls, tokens, text, PRESENT)
    expected = reference.semantic(head.semantic_experts, cls, tokens, text, PRESENT)["sets"]
    torch.testing.assert_close(sampled.sets.form(), expected, rtol=1e-12, atol=1e-12)
    mixed = head.structure_experts(tokens, PRESENT)
    torch.testing.assert_close(mixed.sets.form(), reference.structure(head.structure_experts, tokens, PRESENT)[0])
    assert "3" in repr(sampled.sets)


@pytest.mark.parametrize("backend", ["auto", "torch"])
def test_the_backend_changes_nothing_on_a_cpu(backend):
    head, cls, tokens, text = make()
    with use_backend(backend):
        torch.testing.assert_close(
            head(cls, tokens, text), reference.head(head, cls, tokens, text)["groups"].flatten(1)
        )
