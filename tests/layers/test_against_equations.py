"""The layers and their reference against loops written from the paper's equations, in float64, one number at a time."""

import math

import pytest
import torch
from torch import Tensor, nn

from benchmarks.speed import reference
from nextreid.layers import (
    MMFA,
    CrossAttention,
    SemanticSamplingExpert,
    SemanticSamplingExperts,
    StructureExperts,
    TextModulation,
)
from nextreid.layers.experts import Experts, TokenSets
from nextreid.layers.mmfa import Aggregator
from nextreid.layers.router import Router

B, M, N, D = 2, 3, 4, 8


def affine(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    out = torch.stack([sum((w * v for w, v in zip(row, x, strict=True)), torch.tensor(0.0)) for row in weight])
    return out if bias is None else out + bias


def linear(module: nn.Linear, x: Tensor) -> Tensor:
    return affine(module.weight, module.bias, x)


def gelu(x: Tensor) -> Tensor:
    return torch.stack([0.5 * v * (1 + torch.erf(v / math.sqrt(2))) for v in x])


def layer_norm(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    mean = sum(x) / len(x)
    variance = sum((v - mean) ** 2 for v in x) / len(x)
    return (x - mean) / torch.sqrt(variance + 1e-5) * weight + bias


def expert(experts: Experts, e: int, token: Tensor) -> Tensor:
    """Eq. 1 at inference."""
    normed = layer_norm(experts.norm_weight[e], experts.norm_bias[e], token)
    hidden = gelu(affine(experts.fc1_weight[e], experts.fc1_bias[e], normed))
    return token + affine(experts.fc2_weight[e], experts.fc2_bias[e], hidden)


def score(router: Router, e: int, m: int, feature: Tensor) -> Tensor:
    """Eq. 2: expert e's hidden units are rows e*H to (e+1)*H of the first layer."""
    width = router.fc2_weight.shape[-1]
    own = slice(e * width, (e + 1) * width)
    hidden = gelu(affine(router.fc1_weight[m][own], router.fc1_bias[m][own], feature))
    return (router.fc2_weight[e, m] * hidden).sum() + router.fc2_bias[e, m]


def modulate(layer: TextModulation, e: int, beta: Tensor) -> Tensor:
    """What Eq. 6 adds for the numbers that the network reads together."""
    inner = gelu(affine(layer.fc1_weight[e], layer.fc1_bias[e], beta))
    return affine(layer.fc2_weight[e], layer.fc2_bias[e], inner)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    """Eq. 5."""
    return (a * b).sum() / (torch.sqrt((a * a).sum()) * torch.sqrt((b * b).sum()))


def semantic_expert(
    layer: SemanticSamplingExperts, e: int, cls: Tensor, tokens: Tensor, text: Tensor | None
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Eq. 2, 3, 5, 6, 7 for one sample and expert: cls (M, D), tokens (M, N, D), text (M, D)."""
    gamma, mask, sigma = torch.zeros(M, N), torch.zeros(M, N), torch.zeros(M, 1)
    out = torch.zeros(M * N, D)
    for m in range(M):
        sigma[m] = score(layer.threshold_router, e, m, cls[m])
        for n in range(N):
            gamma[m, n] = score(layer.score_router, e, m, tokens[m, n])
            if text is not None:
                beta = torch.stack([cosine(text[k], tokens[k, n]) for k in range(M)])
                gamma[m, n] += modulate(layer.modulation, e, beta)[m]
            mask[m, n] = 1.0 if gamma[m, n] > sigma[m, 0] else 0.0
            out[m * N + n] = mask[m, n] * expert(layer.experts, e, tokens[m, n])
    return out, gamma, sigma, mask


def cross_attention(module: CrossAttention, query: Tensor, tokens: Tensor) -> Tensor:
    """CA of Eq. 11 for one sample, head by head."""
    width = D // module.num_heads
    keys = [affine(module.k_weight, None, t) for t in tokens]
    values = [affine(module.v_weight, module.v_bias, t) for t in tokens]
    rows = []
    for row in query:
        q = linear(module.q, row)
        heads = []
        for h in range(module.num_heads):
            part = slice(h * width, (h + 1) * width)
            weights = torch.exp(torch.stack([(q[part] * k[part]).sum() for k in keys]) / math.sqrt(width))
            weights = weights / weights.sum()
            heads.append(sum(w * v[part] for w, v in zip(weights, values, strict=True)))
        rows.append(linear(module.proj, torch.cat(heads)))
    return torch.stack(rows)


def feed_forward(module: Aggregator, row: Tensor) -> Tensor:
    normed = layer_norm(module.norm.weight, module.norm.bias, row)
    return linear(module.ffn[2], gelu(linear(module.ffn[0], normed)))


def aggregate(module: Aggregator, cls: Tensor, tokens: Tensor) -> Tensor:
    """Eq. 11 for one sample and one token set."""
    return torch.stack([feed_forward(module, row) for row in cross_attention(module.attention, cls, tokens)])


@pytest.fixture(autouse=True)
def double():
    torch.set_default_dtype(torch.float64)
    torch.manual_seed(3)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.fixture
def inputs():
    return torch.randn(B, M, D), torch.randn(B, M, N, D), torch.randn(B, 2, M, D)


def shaken(layer):
    """The layer with norms and biases away from one and zero."""
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return layer.eval()


@pytest.mark.parametrize("with_text", [True, False])
def test_semantic_experts_are_equations_1_to_7(inputs, with_text):
    cls, tokens, text = inputs
    layer = shaken(SemanticSamplingExperts(D, 2, mlp_ratio=2))
    text = text if with_text else None
    out, plain = layer(cls, tokens, text), reference.semantic(layer, cls, tokens, text)
    for b in range(B):
        for e in range(2):
            given = text[b, e] if with_text else None
            expected, gamma, sigma, mask = semantic_expert(layer, e, cls[b], tokens[b], given)
            for parts, sets in ((out._asdict(), out.sets.form()), (plain, plain["sets"])):
                torch.testing.assert_close(parts["gamma"][b, e], gamma)
                torch.testing.assert_close(parts["sigma"][b, e], sigma)
                assert torch.equal(parts["mask"][b, e], mask)
                torch.testing.assert_close(sets[b, e], expected)
    assert 0 < out.mask.mean() < 1


def test_a_single_expert_is_the_plural_of_one(inputs):
    cls, tokens, text = inputs
    plural = SemanticSamplingExperts(D, 1).eval()
    single = SemanticSamplingExpert(D).eval()
    single.load_state_dict(plural.state_dict())
    ours, theirs = single(cls, tokens, text[:, :1]), plural(cls, tokens, text[:, :1])
    assert all(torch.equal(a, b) for a, b in zip(ours[1:], theirs[1:], strict=True))
    assert torch.equal(ours.sets.form(), theirs.sets.form()) and ours.mask.shape == (B, 1, M, N)


def test_experts_are_independent_and_read_their_own_caption(inputs):
    cls, tokens, text = inputs
    layer = SemanticSamplingExperts(D, 2).eval()
    out = layer(cls, tokens, text)
    for e in range(2):
        width = layer.score_router.fc2_weight.shape[-1]
        single = SemanticSamplingExpert(D).eval()
        stacked = {name: value.chunk(2, 0)[e] for name, value in layer.state_dict().items()}
        for router in ("score_router", "threshold_router"):
            for part in ("fc1_weight", "fc1_bias"):
                name = f"{router}.{part}"
                stacked[name] = layer.state_dict()[name][:, e * width : (e + 1) * width]
        single.load_state_dict(stacked)
        alone = single(cls, tokens, text[:, e : e + 1])
        for name in ("mask", "gamma", "sigma", "beta"):
            torch.testing.assert_close(getattr(out, name)[:, e], getattr(alone, name)[:, 0])
        torch.testing.assert_close(out.sets.form()[:, e], alone.sets.form()[:, 0])


def test_modulation_over_the_map_mixes_all_positions(inputs):
    _, tokens, text = inputs
    alpha = torch.randn(B, 2, M, N)
    layer = TextModulation(M, 2, hidden=7, scope="map", num_tokens=N)
    gamma, beta = layer(alpha, tokens, text)
    for b in range(B):
        for e in range(2):
            betas = torch.stack([cosine(text[b, e, m], tokens[b, m, n]) for m in range(M) for n in range(N)])
            torch.testing.assert_close(beta[b, e].flatten(), betas)
            torch.testing.assert_close(gamma[b, e], alpha[b, e] + modulate(layer, e, betas).view(M, N))
            plain = reference.modulate(layer, e, alpha[:, e], tokens, text[:, e], None)
            torch.testing.assert_close(plain[0][b], gamma[b, e])


@pytest.mark.parametrize("routing", ["shared", "specific"])
def test_structure_experts_are_equations_8_and_9(inputs, routing):
    _, tokens, _ = inputs
    layer = shaken(StructureExperts(D, 3, routing=routing, mlp_ratio=2))
    each = StructureExperts(D, 3, routing=routing, mlp_ratio=2, output="each").eval()
    each.load_state_dict(layer.state_dict())
    mixed, weights = layer(tokens).sets.form(), layer(tokens).weights
    sets = each(tokens).sets.form()
    plain, plain_weights = reference.structure(layer, tokens)
    for b in range(B):
        for m in range(M):
            router = layer.routers[m if routing == "specific" else 0]
            for n in range(N):
                exps = torch.exp(linear(router, tokens[b, m, n]))
                omega = exps / exps.sum()
                parts = [w * expert(layer.experts, e, tokens[b, m, n]) for e, w in enumerate(omega)]
                for found in (weights, plain_weights):
                    torch.testing.assert_close(found[b, m * N + n], omega)
                for found in (mixed, plain):
                    torch.testing.assert_close(found[b, 0, m * N + n], sum(parts))
                torch.testing.assert_close(sets[b, :, m * N + n], torch.stack(parts))


def test_structure_weights_of_a_sample_come_from_the_mean_logit(inputs):
    _, tokens, _ = inputs
    layer = StructureExperts(D, 3, granularity="sample").eval()
    present = torch.tensor([[True, True, True], [True, False, True]])
    weights = layer(tokens, present).weights
    for b, kept in enumerate(([0, 1, 2], [0, 2])):
        logits = torch.stack([linear(layer.routers[0], tokens[b, m, n]) for m in kept for n in range(N)]).mean(0)
        torch.testing.assert_close(weights[b], logits.softmax(0).expand(M * N, -1))


def test_mmfa_is_equations_10_and_11(inputs):
    cls, *_ = inputs
    semantic, structure = torch.randn(B, 2, M * N, D), torch.randn(B, 1, M * N, D)
    semantic[:, :, ::2] = 0
    layer = shaken(MMFA(D, num_heads=4))
    for out in (layer(cls, semantic, structure), reference.mmfa(layer, cls, semantic, structure)):
        for b in range(B):
            groups = [aggregate(layer.semantic, cls[b], semantic[b, e]) for e in range(2)]
            groups.append(aggregate(layer.structure, cls[b], structure[b, 0]))
            torch.testing.assert_close(out[b], torch.stack(groups))


@pytest.mark.parametrize("each", [True, False], ids=["keys of each set", "keys of the sample"])
def test_tokens_that_are_no_keys_are_as_if_they_were_not_there(inputs, each):
    cls, *_ = inputs
    tokens = torch.randn(B, 2, M * N, D)
    keys = torch.rand(B, 2, M * N) > 0.5 if each else torch.rand(B, M * N) > 0.5
    layer = MMFA(D, num_heads=4, structure=False)
    out = layer(cls, TokenSets(tokens, keys))
    for b in range(B):
        for s in range(2):
            kept = keys[b, s] if each else keys[b]
            torch.testing.assert_close(out[b, s], aggregate(layer.semantic, cls[b], tokens[b, s, kept]))


def test_mmfa_by_the_mean_with_residuals(inputs):
    cls, *_ = inputs
    tokens = torch.randn(B, 1, M * N, D)
    layer = MMFA(D, aggregation="mean", num_heads=4, semantic=False, residual=True)
    out = layer(cls, structure=tokens)
    mixed = tokens.view(B, M, N, D).mean(2) + cls
    for b in range(B):
        for m in range(M):
            torch.testing.assert_close(out[b, 0, m], mixed[b, m] + feed_forward(layer.structure, mixed[b, m]))
