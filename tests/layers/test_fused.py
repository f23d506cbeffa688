"""The fused head against the blocks it stands in for: outputs, parts and all gradients, in double precision."""

import pytest
import torch
from torch import nn

from nextreid.layers import MMFA, SemanticSamplingExperts, StructureExperts
from nextreid.layers.fused import fused_head, is_fusible

B, M, N, D = 3, 3, 10, 16

SEMANTIC = {
    "dynamic": {},
    "one expert": {"num_experts": 1},
    "eight experts": {"num_experts": 8},
    "shared routers": {"routing": "shared"},
    "fixed": {"sampling": "fixed", "threshold": 0.05},
    "topk": {"sampling": "topk", "keep_ratio": 0.3},
    "all": {"sampling": "all"},
    "random": {"sampling": "random", "keep_ratio": 0.5, "num_tokens": N},
    "map": {"modulation_scope": "map", "num_tokens": N},
    "no modulation": {"text": False},
    "warm": {"temperature": 3.0},
}
STRUCTURE = {
    "sum": {},
    "one expert": {"num_experts": 1},
    "eight experts": {"num_experts": 8},
    "specific routers": {"routing": "specific"},
    "a sample's weights": {"granularity": "sample"},
    "each": {"output": "each"},
}
PRESENT = torch.tensor([[True, True, True], [True, False, True], [False, False, False]])


class Head(nn.Module):
    """The blocks between towers and neck."""

    def __init__(self, semantic=None, structure=None, residual=False, drop_masked=False):
        super().__init__()
        self.semantic = None if semantic is None else SemanticSamplingExperts(D, **{"drop": 0.0, **semantic})
        self.structure = None if structure is None else StructureExperts(D, **{"drop": 0.0, **structure})
        sets = self.structure.num_sets if self.structure else int(semantic is None)
        self.mmfa = MMFA(D, num_heads=4, residual=residual, semantic=semantic is not None, structure=sets > 0)
        self.drop_masked = drop_masked

    def plain(self, cls, tokens, text=None, present=None):
        parts, semantic, structure, mask = {}, None, None, None
        if self.semantic is not None:
            sampled = self.semantic(cls, tokens, text, present)
            semantic, parts = sampled.tokens, dict(sampled._asdict())
            parts.pop("tokens")
            mask = parts["mask"].detach().flatten(2) > 0 if self.drop_masked else None
        if self.structure is not None:
            structure, parts["weights"] = self.structure(tokens, present)
        elif self.semantic is None:
            structure = tokens.flatten(1, 2)[:, None]
        return self.mmfa(cls, semantic, structure, present, mask).view(len(cls), -1, M, D), parts

    def fused(self, cls, tokens, text=None, present=None):
        blocks = {"semantic": self.semantic, "structure": self.structure, "mmfa": self.mmfa}
        assert is_fusible(*blocks.values())
        return fused_head(cls, tokens, text, present, **blocks, drop_masked=self.drop_masked)


def make(seed=0, **settings):
    torch.manual_seed(seed)
    head = Head(**settings).double()
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))  # biases and norms away from zero and one
    cls, tokens = torch.randn(B, M, D).double(), torch.randn(B, M, N, D).double()
    count = len(head.semantic.experts) if head.semantic is not None else 1
    text = torch.randn(B, count, M, D).double()
    text[0, :, 1] = 0.0  # an image without a caption
    text[1, 0] = 0.0
    return head, cls, tokens, text


def gradients(head, form, inputs, present, weigh):
    head.zero_grad(set_to_none=True)
    leaves = [x.clone().requires_grad_() for x in inputs]
    torch.manual_seed(5)
    groups, parts = form(*leaves, present)
    (groups * weigh).sum().backward()
    named = {name: p.grad for name, p in head.named_parameters()} | {str(i): x.grad for i, x in enumerate(leaves)}
    return groups, parts, {name: torch.zeros(()) if g is None else g for name, g in named.items()}


def assert_same(head, inputs, present):
    weigh = torch.randn(2, 8, M, D).double()[0, 0]
    ours, our_parts, our_grads = gradients(head, head.fused, inputs, present, weigh)
    plain, parts, grads = gradients(head, head.plain, inputs, present, weigh)
    torch.testing.assert_close(ours, plain, rtol=1e-12, atol=1e-12)
    assert our_parts.keys() == parts.keys()
    for name, part in parts.items():
        assert (part is None) == (our_parts[name] is None), name
        if part is not None:
            torch.testing.assert_close(our_parts[name], part, rtol=1e-12, atol=1e-12, msg=lambda m, n=name: f"{n}: {m}")
    largest = max(g.abs().max() for g in grads.values())
    assert largest > 0
    for name, grad in grads.items():
        difference = (our_grads[name] - grad).abs().max()
        assert difference <= 1e-12 * max(grad.abs().max(), 1e-3 * largest), (name, difference, grad.abs().max())


CASES = [
    *({"semantic": s, "structure": {}} for s in SEMANTIC.values()),
    *({"semantic": {}, "structure": s} for s in STRUCTURE.values()),
    {"semantic": {}},
    {"structure": {}},
    {},
    {"semantic": {}, "structure": {}, "residual": True},
    {"semantic": {}, "structure": {}, "drop_masked": True},
]


@pytest.mark.parametrize("present", [None, PRESENT], ids=["all there", "some absent"])
@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("captions", [True, False], ids=["captions", "none"])
def test_equals_the_blocks(case, present, captions):
    head, cls, tokens, text = make(**case)
    if case.get("semantic", {}).get("sampling") == "random":
        head.eval()
    if not captions:
        inputs = (cls, tokens)
        form = head.fused, head.plain
        head.fused, head.plain = (lambda c, t, p, f=f: f(c, t, None, p) for f in form)
    else:
        inputs = (cls, tokens, text)
    if present is not None:
        tokens *= present[..., None, None]
        cls *= present[..., None]
    assert_same(head, inputs, present)


@pytest.mark.parametrize("present", [None, PRESENT], ids=["all there", "some absent"])
@pytest.mark.parametrize("drop_masked", [False, True], ids=["zeros", "dropped"])
@pytest.mark.parametrize("threshold", [-99.0, 0.0, 99.0], ids=["all kept", "some", "none kept"])
def test_without_gradients_only_kept_tokens_are_computed(threshold, drop_masked, present):
    case = {"semantic": {"sampling": "fixed", "threshold": threshold}, "structure": {}, "drop_masked": drop_masked}
    head, cls, tokens, text = make(**case)
    rows = []
    linear = torch.nn.functional.linear

    def counted(x, weight, *rest):
        if len(weight) == 4 * D and not any(weight is own for own in head.mmfa.parameters()):
            rows.append(x.shape[:-1].numel())
        return linear(x, weight, *rest)

    with torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        expected, parts = head.plain(cls, tokens, text, present)
        patch.setattr(torch.nn.functional, "linear", counted)
        groups, _ = head.fused(cls, tokens, text, present)
    torch.testing.assert_close(groups, expected, rtol=1e-12, atol=1e-12)
    kept = parts["mask"].sum((0, 2, 3)).int().tolist()
    everything = B * M * N if present is None else int(present.sum()) * N
    if threshold:
        assert kept == [everything if threshold < 0 else 0] * 3
    else:
        assert all(0 < k < everything for k in kept)
    assert rows == kept + [B * M * N] * 3  # the semantic experts', then the structure experts'


@pytest.mark.parametrize("output", ["sum", "each"])
def test_equals_the_blocks_with_dropout(output, monkeypatch):
    """The same tokens are dropped in both forms, which draw them in another order."""
    head, cls, tokens, text = make(semantic={"drop": 0.4}, structure={"drop": 0.4, "output": output})
    torch.manual_seed(1)
    drawn = (torch.rand(6, B, M * N, D) > 0.4).double() / 0.6
    left: list[torch.Tensor] = []

    def dropout(x, p=0.5, training=True, inplace=False):
        assert p == 0.4 and training
        return x * left.pop(0).view(x.shape)  # (B, M, N, D): one expert

    def native(x, p, train):
        assert p == 0.4 and train
        return x * torch.stack([left.pop(0) for _ in range(len(x))]).flatten(1, 2), None  # (E, B*L, D)

    monkeypatch.setattr(torch.nn.functional, "dropout", dropout)
    monkeypatch.setattr(torch, "native_dropout", native)
    inner = head.fused, head.plain
    for name, form in zip(("fused", "plain"), inner, strict=True):
        setattr(head, name, lambda *args, form=form: (left.extend(drawn), form(*args))[1])
    assert_same(head, (cls, tokens, text), PRESENT)
    assert not left


def test_every_kind_of_gradient_is_needed():
    """The gate's gradient reaches the routers also from tokens that are sampled out."""
    head, cls, tokens, text = make(semantic={"sampling": "fixed", "threshold": 99.0})
    groups, parts = head.fused(cls, tokens, text)
    (gradient,) = torch.autograd.grad(groups.sum(), parts["gamma"])
    assert not parts["mask"].any() and gradient.abs().min() > 0


def test_half_precision_is_as_close_as_the_blocks():
    head, *inputs = make(semantic={}, structure={})
    head, inputs = head.bfloat16(), [x.bfloat16() for x in inputs]
    own = [form(*inputs)[0].double() for form in (head.fused, head.plain)]
    head, inputs = head.float(), [x.float() for x in inputs]
    with torch.autocast("cpu", torch.bfloat16):
        mixed = [form(*inputs)[0].double() for form in (head.fused, head.plain)]
    exact = head.double().plain(*(x.double() for x in inputs))[0]
    for ours, plain in (own, mixed):
        assert 0 < (ours - exact).norm() <= 2 * (plain - exact).norm()


def test_foreign_modules_are_left_to_the_blocks():
    head, *_ = make(semantic={}, structure={})
    blocks = head.semantic, head.structure, head.mmfa
    assert is_fusible(*blocks) and is_fusible(None, None, head.mmfa)
    inner = head.structure.experts[1].mlp[0]
    for kind in ("forward", "forward_pre", "full_backward", "full_backward_pre"):
        handle = getattr(inner, f"register_{kind}_hook")(lambda *_: None)
        assert not is_fusible(*blocks), kind
        handle.remove()
        assert is_fusible(*blocks)
    inner.forward = lambda x: x  # as libraries that offload weights do
    assert not is_fusible(*blocks)
    del inner.forward

    class Adapter(nn.Linear):
        pass

    head.semantic.experts[0].expert.mlp[2] = Adapter(4 * D, D)
    assert not is_fusible(*blocks)
    assert not is_fusible(MMFA(D, aggregation="mean"))
    for other in ({"mlp_ratio": 2.0}, {"drop": 0.3}):
        assert not is_fusible(make(semantic={}, structure=other)[0])
