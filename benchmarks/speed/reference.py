"""NEXT's head as its equations write it (Eq. 1-11): one expert and one modality at a time, every token set formed.

The reference of the layers, which the tests compare them with in float64 and the benchmarks in cost: it reads their
stacked parameters and computes plainly what they compute in factors. Differentiable, so that gradients can be compared.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nextreid.layers import MMFA, CrossAttention, NEXTHead, SemanticSamplingExperts, StructureExperts, TextModulation
from nextreid.layers.experts import Experts
from nextreid.layers.mmfa import Aggregator
from nextreid.layers.router import Router
from nextreid.layers.sampling import random_mask, straight_through_mask, topk_threshold


def expert(experts: Experts, e: int, tokens: Tensor) -> Tensor:
    """Eq. 1."""
    normed = F.layer_norm(tokens, tokens.shape[-1:], experts.norm_weight[e], experts.norm_bias[e])
    hidden = F.gelu(F.linear(normed, experts.fc1_weight[e], experts.fc1_bias[e]))
    return tokens + F.dropout(
        F.linear(hidden, experts.fc2_weight[e], experts.fc2_bias[e]), experts.drop, experts.training
    )


def score(router: Router, e: int, m: int, features: Tensor) -> Tensor:
    """Eq. 2: FC, activation, FC of expert e for modality m, ``(..., D)`` to ``(...)``."""
    m = 0 if router.routing == "shared" else m
    rows = slice(e * router.fc2_weight.shape[2], (e + 1) * router.fc2_weight.shape[2])
    hidden = F.gelu(F.linear(features, router.fc1_weight[m, rows], router.fc1_bias[m, rows]))
    return (hidden * router.fc2_weight[e, m]).sum(-1) + router.fc2_bias[e, m]


def modulate(
    layer: TextModulation, e: int, alpha: Tensor, tokens: Tensor, text: Tensor, present: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Eq. 5 and 6 of expert e: alpha ``(B, M, N)``, tokens ``(B, M, N, D)``, text ``(B, M, D)``."""
    captioned = text.detach().abs().amax(-1) > 0
    captioned = captioned if present is None else captioned & present
    beta = F.cosine_similarity(tokens, text[:, :, None], dim=-1, eps=1e-12) * captioned[..., None]
    read = beta.mT if layer.scope == "position" else beta.flatten(1)  # (B, N, M) or (B, M*N)
    inner = F.gelu(F.linear(read, layer.fc1_weight[e], layer.fc1_bias[e]))
    shift = F.linear(inner, layer.fc2_weight[e], layer.fc2_bias[e])
    shift = shift.mT if layer.scope == "position" else shift.view_as(beta)
    return alpha + shift * captioned.any(1)[:, None, None], beta


def semantic(
    layer: SemanticSamplingExperts,
    cls: Tensor,
    tokens: Tensor,
    text: Tensor | None = None,
    present: Tensor | None = None,
) -> dict[str, Tensor]:
    """Eq. 2 to 7: token sets ``(B, E, M*N, D)`` with their masks and scores."""
    sets: list[Tensor] = []
    parts: dict[str, list[Any]] = {"mask": [], "gamma": [], "sigma": [], "beta": []}
    for e in range(len(layer.experts)):
        gamma = sigma = beta = None
        if layer.score_router is None:
            kept = random_mask(layer.pattern[e], layer.keep_ratio) if layer.sampling == "random" else 1.0
            mask = torch.ones_like(tokens[..., 0]) * kept
        else:
            modalities = range(tokens.shape[1])
            gamma = torch.stack([score(layer.score_router, e, m, tokens[:, m]) for m in modalities], dim=1)
            if layer.modulation is not None and text is not None:
                gamma, beta = modulate(layer.modulation, e, gamma, tokens, text[:, e], present)
            if layer.threshold_router is not None:
                sigma = torch.stack([score(layer.threshold_router, e, m, cls[:, m, None]) for m in modalities], dim=1)
            elif layer.sampling == "topk":
                sigma = topk_threshold(gamma, layer.keep_ratio)
            else:
                sigma = torch.full_like(gamma[..., :1], layer.threshold)
            mask = straight_through_mask(gamma, sigma, layer.temperature)
        mask = mask if present is None else mask * present[..., None]
        sets.append((expert(layer.experts, e, tokens) * mask[..., None]).flatten(1, 2))
        for name, part in (("mask", mask), ("gamma", gamma), ("sigma", sigma), ("beta", beta)):
            parts[name].append(part)
    stacked = {name: torch.stack(each, 1) for name, each in parts.items() if each[0] is not None}
    return {"sets": torch.stack(sets, 1), **stacked}


def structure(layer: StructureExperts, tokens: Tensor, present: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Eq. 8 and 9: token sets ``(B, S, M*N, D)`` and routing weights ``(B, M*N, E)``."""
    routers = [layer.routers[0 if layer.routing == "shared" else m] for m in range(tokens.shape[1])]
    logits = torch.stack([router(tokens[:, m]) for m, router in enumerate(routers)], 1)  # (B, M, N, E)
    if layer.granularity == "sample":
        rows = []
        for b in range(len(tokens)):
            kept = logits[b] if present is None else logits[b][present[b]]
            rows.append(kept.flatten(0, 1).mean(0) if len(kept) else torch.zeros_like(logits[b, 0, 0]))
        logits = torch.stack(rows)[:, None, None].expand_as(logits)
    weights = logits.softmax(-1)
    sets = torch.stack([weights[..., e, None] * expert(layer.experts, e, tokens) for e in range(len(layer.experts))], 1)
    sets = sets.sum(1, keepdim=True) if layer.output == "sum" else sets
    return sets.flatten(2, 3), weights.flatten(1, 2)


def attend(attention: CrossAttention, cls: Tensor, tokens: Tensor, keys: Tensor | None = None) -> Tensor:
    """The attention of Eq. 11 over one token set ``(B, L, D)``, keys and values formed: ``(B, M, D)``."""
    projected = (
        attention.q(cls),
        F.linear(tokens, attention.k_weight),
        F.linear(tokens, attention.v_weight, attention.v_bias),
    )
    q, k, v = (x.unflatten(-1, (attention.num_heads, -1)).transpose(1, 2) for x in projected)
    logits = q @ k.mT / q.shape[-1] ** 0.5
    if keys is None:
        context = logits.softmax(-1) @ v
    else:  # without any key the softmax is over nothing: taken over all tokens, and zeroed after
        some = keys.any(-1)
        logits = logits.masked_fill(~(keys | ~some[:, None])[:, None, None], -torch.inf)
        context = (logits.softmax(-1) @ v) * some[:, None, None, None]
    return attention.proj(context.transpose(1, 2).flatten(2))


def aggregate(layer: Aggregator, cls: Tensor, tokens: Tensor, keys: Tensor | None = None) -> Tensor:
    """Eq. 11 of one token set ``(B, L, D)``: ``(B, M, D)``."""
    if layer.attention is None:
        grouped = tokens.unflatten(1, (cls.shape[1], -1))
        weight = torch.ones_like(tokens[..., 0]) if keys is None else keys.to(tokens.dtype)
        weight = weight.unflatten(1, (cls.shape[1], -1))[..., None]
        mixed = (grouped * weight).sum(2) / weight.sum(2).clamp_min(1)
    else:
        mixed = attend(layer.attention, cls, tokens, keys)
    if layer.residual:
        mixed = mixed + cls
    out = layer.ffn(layer.norm(mixed))
    return out + mixed if layer.residual else out


def mmfa(
    layer: MMFA,
    cls: Tensor,
    semantic: Tensor | None = None,
    structure: Tensor | None = None,
    present: Tensor | None = None,
    keys: Tensor | None = None,
    dropped: Tensor | None = None,
) -> Tensor:
    """Eq. 10: ``(B, G, M, D)``; `keys` ``(B, L)`` are all sets', `dropped` ``(B, E, L)`` leave the semantic ones."""
    groups = []
    if semantic is not None and layer.semantic is not None:
        for e, tokens in enumerate(semantic.unbind(1)):
            kept = keys if dropped is None else ~dropped[:, e] if keys is None else keys & ~dropped[:, e]
            groups.append(aggregate(layer.semantic, cls, tokens, kept))
    if structure is not None and layer.structure is not None:
        groups += [aggregate(layer.structure, cls, tokens, keys) for tokens in structure.unbind(1)]
    out = torch.stack(groups, 1)
    return out if present is None else out * present[:, None, :, None]


def head(
    layer: NEXTHead, cls: Tensor, tokens: Tensor, text: Tensor | None = None, present: Tensor | None = None
) -> dict[str, Tensor]:
    """All parts that ``layer(..., return_parts=True)`` gives."""
    if present is not None:
        cls, tokens = cls * present[..., None], tokens * present[..., None, None]
    parts, sets = {"cls": cls, "tokens": tokens}, {}
    keys = dropped = None
    if present is not None:
        keys = present.repeat_interleave(tokens.shape[2], 1)
    if layer.semantic_experts is not None:
        experts = len(layer.semantic_experts.experts)
        if text is not None and text.dim() == 3:
            text = text[:, None].expand(-1, experts, -1, -1)
        found = semantic(layer.semantic_experts, cls, tokens, text, present)
        sets["semantic"] = found.pop("sets")
        parts |= found
        if layer.semantic_experts.masked_tokens == "drop":
            dropped = found["mask"].detach().flatten(2) == 0
    if layer.structure_experts is not None:
        sets["structure"], parts["weights"] = structure(layer.structure_experts, tokens, present)
    elif layer.semantic_experts is None:
        sets["structure"] = tokens.flatten(1, 2)[:, None]
    if layer.mmfa is None:
        parts["groups"] = cls[:, None]
    else:
        parts["groups"] = mmfa(layer.mmfa, cls, **sets, present=present, keys=keys, dropped=dropped)
    return parts
