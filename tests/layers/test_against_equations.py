"""The layers against slow references written from the paper's equations, in float64, one number at a time."""

import math

import pytest
import torch
from torch import Tensor, nn

from nextreid.layers import (
    MMFA,
    Expert,
    SemanticSamplingExpert,
    SemanticSamplingExperts,
    StructureExperts,
    TextModulation,
)

B, M, N, D = 2, 3, 5, 16


def vec(linear: nn.Linear, x: Tensor) -> Tensor:
    out = torch.stack([sum((w * v for w, v in zip(row, x, strict=True)), torch.tensor(0.0)) for row in linear.weight])
    return out if linear.bias is None else out + linear.bias


def gelu(x: Tensor) -> Tensor:
    return torch.stack([0.5 * v * (1 + torch.erf(v / math.sqrt(2))) for v in x])


def layer_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    mean = sum(x) / len(x)
    var = sum((v - mean) ** 2 for v in x) / len(x)
    return (x - mean) / torch.sqrt(var + norm.eps) * norm.weight + norm.bias


def fc_act_fc(net: nn.Sequential, x: Tensor) -> Tensor:
    return vec(net[2], gelu(vec(net[0], x)))


def expert(module: Expert, token: Tensor) -> Tensor:
    """Eq. 1 at inference."""
    return token + fc_act_fc(module.mlp, layer_norm(module.norm, token))


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Eq. 5."""
    return (a * b).sum() / (torch.sqrt((a * a).sum()) * torch.sqrt((b * b).sum()))


def semantic_expert(module: SemanticSamplingExpert, cls: Tensor, tokens: Tensor, text: Tensor | None):
    """Eq. 2, 3, 5, 6, 7 for one sample: cls (M, D), tokens (M, N, D), text (M, D)."""
    gamma, mask = torch.zeros(M, N), torch.zeros(M, N)
    out = torch.zeros(M * N, D)
    for m in range(M):
        sigma = fc_act_fc(module.limit.nets[m], cls[m])[0]
        for n in range(N):
            gamma[m, n] = fc_act_fc(module.score.nets[m], tokens[m, n])[0]
            if text is not None:
                beta = torch.stack([cosine(text[k], tokens[k, n]) for k in range(M)])
                gamma[m, n] += fc_act_fc(module.modulation.mix, beta)[m]
            mask[m, n] = 1.0 if gamma[m, n] > sigma else 0.0
            out[m * N + n] = mask[m, n] * expert(module.expert, tokens[m, n])
    return out, gamma, mask


def cross_attention(module, query: Tensor, tokens: Tensor) -> Tensor:
    """CA of Eq. 11 for one sample, head by head."""
    width = D // module.num_heads
    keys, values = [vec(module.k, t) for t in tokens], [vec(module.v, t) for t in tokens]
    rows = []
    for q in query:
        asked = vec(module.q, q)
        heads = []
        for h in range(module.num_heads):
            part = slice(h * width, (h + 1) * width)
            logits = torch.stack([(asked[part] * k[part]).sum() for k in keys])
            weights = torch.exp(logits / math.sqrt(width))
            weights = weights / weights.sum()
            heads.append(sum(w * v[part] for w, v in zip(weights, values, strict=True)))
        rows.append(vec(module.proj, torch.cat(heads)))
    return torch.stack(rows)


def aggregate(module, cls: Tensor, tokens: Tensor) -> Tensor:
    """Eq. 11 for one sample and one expert."""
    mixed = cross_attention(module.attention, cls, tokens)
    return torch.stack([fc_act_fc(module.ffn, layer_norm(module.norm, row)) for row in mixed])


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(3)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def inputs():
    return torch.randn(B, M, D), torch.randn(B, M, N, D), torch.randn(B, M, D)


# The cosine is float32 by contract, so that modulated scores agree to that precision only.
CLOSE = {"rtol": 1e-6, "atol": 1e-6}


@pytest.mark.parametrize("with_text", [True, False])
def test_semantic_expert_is_equations_1_to_7(inputs, with_text):
    cls, tokens, text = inputs
    layer = SemanticSamplingExpert(D, mlp_ratio=2).eval()
    out = layer(cls, tokens, text if with_text else None)
    for b in range(B):
        expected, gamma, mask = semantic_expert(layer, cls[b], tokens[b], text[b] if with_text else None)
        torch.testing.assert_close(out.gamma[b], gamma, **CLOSE)
        assert torch.equal(out.mask[b], mask)
        torch.testing.assert_close(out.tokens[b], expected, **CLOSE)
    assert 0 < out.mask.mean() < 1


def test_experts_are_independent_and_read_their_own_caption(inputs):
    cls, tokens, _ = inputs
    text = torch.randn(B, 2, M, D)
    layer = SemanticSamplingExperts(D, 2).eval()
    out = layer(cls, tokens, text)
    for e, single in enumerate(layer.experts):
        alone = single(cls, tokens, text[:, e])
        for name in alone._fields:
            torch.testing.assert_close(getattr(out, name)[:, e], getattr(alone, name))


def test_modulation_over_the_map_mixes_all_positions(inputs):
    _, tokens, text = inputs
    alpha = torch.randn(B, M, N)
    layer = TextModulation(M, hidden=7, scope="map", num_tokens=N)
    gamma, beta = layer(alpha, tokens, text)
    for b in range(B):
        betas = torch.stack([cosine(text[b, m], tokens[b, m, n]) for m in range(M) for n in range(N)])
        torch.testing.assert_close(beta[b].flatten(), betas, **CLOSE)
        torch.testing.assert_close(gamma[b], alpha[b] + fc_act_fc(layer.mix, betas).view(M, N), **CLOSE)


@pytest.mark.parametrize("routing", ["shared", "specific"])
def test_structure_experts_are_equations_8_and_9(inputs, routing):
    _, tokens, _ = inputs
    layer = StructureExperts(D, 3, routing=routing).eval()
    each = StructureExperts(D, 3, routing=routing, output="each").eval()
    each.load_state_dict(layer.state_dict())
    out, sets = layer(tokens), each(tokens).tokens
    for b in range(B):
        for m in range(M):
            router = layer.routers[m if routing == "specific" else 0]
            for n in range(N):
                exps = torch.exp(vec(router, tokens[b, m, n]))
                omega = exps / exps.sum()
                parts = [w * expert(e, tokens[b, m, n]) for w, e in zip(omega, layer.experts, strict=True)]
                torch.testing.assert_close(out.weights[b, m * N + n], omega)
                torch.testing.assert_close(out.tokens[b, 0, m * N + n], sum(parts))
                torch.testing.assert_close(sets[b, :, m * N + n], torch.stack(parts))


def test_structure_weights_of_a_sample_come_from_the_mean_logit(inputs):
    _, tokens, _ = inputs
    layer = StructureExperts(D, 3, granularity="sample").eval()
    present = torch.tensor([[True, True, True], [True, False, True]])
    weights = layer(tokens, present).weights
    for b, kept in enumerate(([0, 1, 2], [0, 2])):
        logits = torch.stack([vec(layer.routers[0], tokens[b, m, n]) for m in kept for n in range(N)]).mean(0)
        torch.testing.assert_close(weights[b], logits.softmax(0).expand(M * N, -1))


def test_mmfa_is_equations_10_and_11(inputs):
    cls, *_ = inputs
    semantic, structure = torch.randn(B, 2, M * N, D), torch.randn(B, 1, M * N, D)
    semantic[:, :, ::2] = 0
    layer = MMFA(D, num_heads=4)
    out = layer(cls, semantic, structure)
    for b in range(B):
        groups = [aggregate(layer.semantic, cls[b], semantic[b, e]) for e in range(2)]
        groups.append(aggregate(layer.structure, cls[b], structure[b, 0]))
        torch.testing.assert_close(out[b], torch.cat([g.flatten() for g in groups]))


def test_mmfa_dropping_tokens_is_attention_over_the_kept_ones(inputs):
    cls, *_ = inputs
    semantic = torch.randn(B, 1, M * N, D)
    keep_ratio = torch.rand(B, 1, M * N) > 0.5
    layer = MMFA(D, num_heads=4, structure=False)
    out = layer(cls, semantic, semantic_mask=keep_ratio)
    for b in range(B):
        torch.testing.assert_close(
            out[b], aggregate(layer.semantic, cls[b], semantic[b, 0, keep_ratio[b, 0]]).flatten()
        )


def test_mmfa_mean(inputs):
    cls, *_ = inputs
    tokens = torch.randn(B, 1, M * N, D)
    layer = MMFA(D, aggregation="mean", num_heads=4, semantic=False, residual=True)
    out = layer(cls, structure=tokens).view(B, M, D)
    mixed = tokens.view(B, M, N, D).mean(2) + cls
    for b in range(B):
        for m in range(M):
            expected = mixed[b, m] + fc_act_fc(layer.structure.ffn, layer_norm(layer.structure.norm, mixed[b, m]))
            torch.testing.assert_close(out[b, m], expected)
