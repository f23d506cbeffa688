"""NEXT's head (Eq. 1-11) in forms that cost less and give the same embeddings and gradients.

The blocks of this room compute the equations as they are written; `fused_head` reads the same blocks' parameters and

- normalises the tokens once for all experts and runs these as one batched product;
- gives no token set to the attention: keys and values are never formed (`CrossAttention.absorb`, `release`), and a
  token that is sampled out is a factor of a logit and of a weight, not a row of zeros;
- where no dropout acts on the experts' outputs, moves their second layers to the few queries as well;
- without gradients, computes the tokens that stay alone: ``n`` tokens of zeros are one key of logit ``log n`` whose
  value is zero.
"""

from collections.abc import Sequence, Sized
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import autocast_dtype, gated_attention, route
from .attention import CrossAttention
from .expert import Expert
from .mmfa import MMFA, Aggregator
from .router import Router
from .sampling import straight_through_mask, topk_threshold
from .semantic_experts import SampledTokens, SemanticSamplingExpert, SemanticSamplingExperts
from .structure_experts import StructureExpert, StructureExperts
from .text_modulation import TextModulation

_OURS = (CrossAttention, Expert, MMFA, Aggregator, Router, TextModulation, StructureExpert, StructureExperts)
_KNOWN = {
    *_OURS, SemanticSamplingExpert, SemanticSamplingExperts,
    nn.Linear, nn.LayerNorm, nn.GELU, nn.Dropout, nn.Sequential, nn.ModuleList,
}  # fmt: skip


class FusedHead(NamedTuple):
    """What `fused_head` returns.

    Attributes:
        groups: One vector per token set and modality ``(B, E_t + S, M, D)`` (Eq. 10).
        parts: ``mask``, ``gamma``, ``beta``, ``sigma`` and ``weights`` by name, as the blocks give them; the token
            sets are not among them, because they are not formed.
    """

    groups: Tensor
    parts: dict[str, Tensor | None]


def is_fusible(*blocks: nn.Module | None) -> bool:
    """Whether `fused_head` may stand in for these blocks.

    It reads parameters and passes the modules' own ``forward`` by, so that every module must be one it knows (an
    adapter around a linear layer is not), none may carry hooks, the aggregation must be attention, and the experts of
    both branches must be of one shape and drop alike.
    """
    kinds = set()
    for block in blocks:
        for module in () if block is None else block.modules():
            if type(module) not in _KNOWN or "forward" in module.__dict__ or any(map(len, _hooks(module))):
                return False
            if isinstance(module, Aggregator) and module.attention is None:
                return False
            if isinstance(module, CrossAttention) and module.drop:
                return False
            if isinstance(module, Expert):
                kinds.add((module.mlp[0].weight.shape, module.norm.eps, module.drop.p, module.drop.training))
    return len(kinds) <= 1


def _hooks(module: nn.Module) -> tuple[Sized, ...]:
    return module._forward_hooks, module._forward_pre_hooks, module._backward_hooks, module._backward_pre_hooks


def fused_head(
    cls: Tensor,
    tokens: Tensor,
    text: Tensor | None = None,
    present: Tensor | None = None,
    *,
    semantic: SemanticSamplingExperts | None,
    structure: StructureExperts | None,
    mmfa: MMFA,
    drop_masked: bool = False,
) -> FusedHead:
    """Compute what the blocks compute one after the other.

    Args:
        cls: Class tokens ``(B, M, D)``.
        tokens: Patch tokens ``(B, M, N, D)``.
        text: One caption feature per expert and modality ``(B, E_t, M, D)``, or None.
        present: Which modalities exist, bool ``(B, M)``; None for all.
        semantic: The semantic branch, or None.
        structure: The structure branch, or None: then, without a semantic branch, the tokens are the one set.
        mmfa: The aggregation; see `is_fusible`.
        drop_masked: Whether sampled-out tokens leave the attention rather than stay as zeros.

    Returns:
        Vectors and routing; absent modalities' vectors are zero.
    """
    flat = tokens.flatten(1, 2)
    keys = None if present is None else present.repeat_interleave(tokens.shape[2], dim=1)
    samplers, mixers = _experts(semantic), _experts(structure)
    normed = _normed(flat, samplers + mixers)
    updates: Sequence[Tensor | None] = (None, None)
    if _drops(samplers + mixers):
        updates = _updates(samplers + mixers, normed).split([len(samplers), len(mixers)])
    groups: list[Tensor] = []
    parts: dict[str, Tensor | None] = {}
    if semantic is not None:
        assert mmfa.semantic is not None  # built together
        sampled = _sample(semantic, cls, tokens, text, present)
        parts |= {name: getattr(sampled, name) for name in ("mask", "gamma", "beta", "sigma")}
        inputs = (cls, flat, normed, updates[0], sampled.mask, keys)
        groups.append(_semantic(samplers, mmfa.semantic, *inputs, drop_masked))
    if structure is not None:
        assert mmfa.structure is not None
        weights = structure.weigh(tokens, present).flatten(1, 2)
        parts["weights"] = weights
        inputs = (cls, flat, normed, updates[1], weights, keys)
        groups.append(_structure(mixers, mmfa.structure, *inputs, structure.output == "sum"))
    elif semantic is None:
        assert mmfa.structure is not None
        query, attention = _query(mmfa.structure, cls)
        context = gated_attention(query, flat, keys=keys).transpose(0, 1)
        groups.append(mmfa.structure.finish(attention.release(context, _some(keys)), cls))
    out = torch.cat(groups).transpose(0, 1)
    if present is not None:
        out = out * present[:, None, :, None].to(out.dtype)
    return FusedHead(out, parts)


def _semantic(
    experts: Sequence[Expert], aggregator: Aggregator, cls: Tensor, tokens: Tensor, normed: Tensor,
    update: Tensor | None, mask: Tensor, keys: Tensor | None, drop_masked: bool,
) -> Tensor:  # fmt: skip
    query, attention = _query(aggregator, cls)
    gate = mask.flatten(2).transpose(0, 1)  # (E, B, L)
    stays = gate.detach() > 0
    if drop_masked:
        keys = stays if keys is None else stays & keys
    if update is not None:
        own_keys = keys if keys is None or keys.dim() == 2 else keys.transpose(0, 1)
        context = gated_attention(query, tokens, update.transpose(0, 1), gate.transpose(0, 1), own_keys).transpose(0, 1)
    elif torch.is_grad_enabled() or torch.compiler.is_compiling() or tokens.is_meta:
        context = _absorbed(query, tokens, experts, normed, gate, keys)
    else:
        own = [keys if keys is None or keys.dim() == 2 else keys[e] for e in range(len(experts))]
        sets = zip(experts, stays, own, strict=True)
        context = torch.stack([_absorbed_of_kept(query, tokens, expert, *rest) for expert, *rest in sets])
    return aggregator.finish(attention.release(context, _some(keys)), cls)


def _structure(
    experts: Sequence[Expert], aggregator: Aggregator, cls: Tensor, tokens: Tensor, normed: Tensor,
    update: Tensor | None, weights: Tensor, keys: Tensor | None, summed: bool,
) -> Tensor:  # fmt: skip
    query, attention = _query(aggregator, cls)
    share = weights.movedim(-1, 0)  # (E, B, L)
    if update is not None:
        if summed:  # the weights sum to one, so that the residual counts once
            update, gate = (update * share[..., None].to(update.dtype)).sum(0)[:, None], None
        else:
            update, gate = update.transpose(0, 1), share.transpose(0, 1)
        context = gated_attention(query, tokens, update, gate, keys).transpose(0, 1)
    else:
        context = _absorbed(query, tokens, experts, normed, share, keys, summed)
    return aggregator.finish(attention.release(context, _some(keys)), cls)


def _normed(tokens: Tensor, experts: Sequence[Expert]) -> Tensor:
    if not experts:
        return tokens
    normed = F.layer_norm(tokens, tokens.shape[-1:], eps=experts[0].norm.eps)
    # Autocast normalises in float32 and would round the result anew for every product that reads it.
    kind = autocast_dtype(tokens)
    return normed if kind is None else normed.to(kind)


def _experts(branch: SemanticSamplingExperts | StructureExperts | None) -> list[Expert]:
    if isinstance(branch, SemanticSamplingExperts):
        return [cast(SemanticSamplingExpert, expert).expert for expert in branch.experts]
    return [] if branch is None else [cast(Expert, expert) for expert in branch.experts]


def _drops(experts: Sequence[Expert]) -> bool:
    return bool(experts) and experts[0].drop.training and experts[0].drop.p > 0


def _updates(experts: Sequence[Expert], normed: Tensor) -> Tensor:
    """What the experts add to the tokens, ``(E, B, L, D)``."""
    gain, shift = _affine([expert.norm for expert in experts])
    w1, b1 = _affine([expert.mlp[0] for expert in experts])  # (E, H, D), (E, H)
    w2, b2 = _affine([expert.mlp[2] for expert in experts])  # (E, D, H), (E, D)
    b1 = torch.baddbmm(b1[..., None], w1, shift[..., None]).mT  # the norm's gain and bias are folded in
    rows = normed.flatten(0, 1).expand(len(experts), -1, -1)
    hidden = F.gelu(torch.baddbmm(b1, rows, (w1 * gain[:, None]).mT))
    update = torch.baddbmm(b2[:, None], hidden, w2.mT)
    # The operator behind F.dropout on a GPU; elsewhere that one is made of four.
    return torch.native_dropout(update, experts[0].drop.p, True)[0].unflatten(1, normed.shape[:2])


def _query(aggregator: Aggregator, cls: Tensor) -> tuple[Tensor, CrossAttention]:
    assert aggregator.attention is not None  # is_fusible
    return aggregator.attention.absorb(cls), aggregator.attention


def _some(keys: Tensor | None) -> Tensor | None:
    return None if keys is None else keys.any(-1)


def _absorbed(
    query: Tensor, tokens: Tensor, experts: Sequence[Expert], normed: Tensor, gate: Tensor, keys: Tensor | None,
    summed: bool = False,
) -> Tensor:  # fmt: skip
    """Contexts ``(E, B, R, D)`` of gated sets, or ``(1, B, R, D)`` of the sum of the experts' gated updates."""
    hidden = [_hidden(expert, normed) for expert in experts]
    plain = _precise(torch.bmm(query, tokens.mT))  # (B, R, L)
    gates = gate[:, :, None].to(plain.dtype).unbind()  # of (B, 1, L)
    update = [_logit(query, expert, own) for expert, own in zip(experts, hidden, strict=True)]
    gated = zip(update, gates, strict=True)
    if summed:
        weight = _softmax(sum((own * factor for own, factor in gated), plain), keys)
        whole, shares = [weight], [weight * factor for factor in gates]
    else:
        of_set = [keys if keys is None or keys.dim() == 2 else keys[e] for e in range(len(experts))]
        logits = [(own + plain) * factor for own, factor in gated]
        weights = [_softmax(logit, own_keys) for logit, own_keys in zip(logits, of_set, strict=True)]
        whole = shares = [weight * factor for weight, factor in zip(weights, gates, strict=True)]
    contexts = torch.stack([torch.bmm(weight.to(tokens.dtype), tokens) for weight in whole])
    updates = torch.stack([_mixed(expert, *pair) for expert, *pair in zip(experts, shares, hidden, strict=True)])
    return contexts + (updates.sum(0, keepdim=True) if summed else updates)


def _absorbed_of_kept(query: Tensor, tokens: Tensor, expert: Expert, stays: Tensor, keys: Tensor | None) -> Tensor:
    """Context ``(B, R, D)`` of a set that is zero outside ``stays (B, L)``; ``keys`` may leave zeros out."""
    batch = tokens.shape[0]
    kept, zeros = (stays, ~stays) if keys is None else (stays & keys, ~stays & keys)
    count, spare = kept.sum(-1), zeros.sum(-1)
    longest = int(count.max()) if batch else 0
    own = tokens[kept]  # (T, D): what the expert is computed for
    hidden = expert.mlp[:2](expert.norm(own))
    place = (kept.cumsum(-1) - 1 + longest * torch.arange(batch, device=kept.device)[:, None])[kept]
    own, hidden = (
        rows.new_zeros(batch * longest, rows.shape[1]).index_copy_(0, place, rows).unflatten(0, (batch, longest))
        for rows in (own, hidden)
    )
    logit = _logit(query, expert, hidden) + _precise(torch.bmm(query, own.mT))
    unused = torch.arange(longest, device=kept.device) >= count[:, None]
    logit = logit.masked_fill(unused[:, None], -torch.inf)
    # n zero tokens weigh as much as one of logit log n; where nothing is left, any finite number gives weights of zero.
    slot = spare.to(logit.dtype).log().masked_fill(spare + count == 0, 0.0)
    slot = slot[:, None, None].expand(-1, logit.shape[1], 1)
    weight = torch.cat([logit, slot], dim=-1).softmax(-1)[..., :-1]
    return torch.bmm(weight.to(own.dtype), own) + _mixed(expert, weight, hidden)


def _hidden(expert: Expert, normed: Tensor) -> Tensor:
    """What the second layer reads, ``(B, L, H)``; gain and bias of the norm are folded into the first."""
    first, norm = cast(nn.Linear, expert.mlp[0]), expert.norm
    return F.gelu(F.linear(normed, first.weight * norm.weight, first.bias + first.weight @ norm.bias))


def _logit(query: Tensor, expert: Expert, hidden: Tensor) -> Tensor:
    """Logits ``(B, R, L)`` of what the expert adds to the tokens, its second layer on the queries' side."""
    second = cast(nn.Linear, expert.mlp[2])
    logit = _precise(torch.bmm(torch.matmul(query, second.weight), hidden.mT))
    return logit + _precise(torch.matmul(query, second.bias))[..., None]


def _mixed(expert: Expert, weight: Tensor, hidden: Tensor) -> Tensor:
    """Weighted sums ``(B, R, D)`` of what the expert adds to the tokens, its second layer behind the sums."""
    second = cast(nn.Linear, expert.mlp[2])
    out = F.linear(torch.bmm(weight.to(hidden.dtype), hidden), second.weight)
    return out + (weight.sum(-1, keepdim=True) * second.bias).to(out.dtype)


def _precise(logit: Tensor) -> Tensor:
    return logit if logit.dtype == torch.float64 else logit.float()


def _softmax(logit: Tensor, keys: Tensor | None) -> Tensor:
    """Softmax over the keys ``(B, L)`` that exist; without any, over all tokens: `release` makes nothing of those."""
    if keys is not None:
        logit = logit.masked_fill(~keys[:, None], torch.finfo(logit.dtype).min)
    return logit.softmax(-1)


def _sample(
    semantic: SemanticSamplingExperts, cls: Tensor, tokens: Tensor, text: Tensor | None, present: Tensor | None
) -> SampledTokens:
    """Masks and scores of all experts; their tokens are left out."""
    experts = cast(Sequence[SemanticSamplingExpert], semantic.experts)
    semantic.check_text(text, tokens)
    first, nothing = experts[0], tokens[:0]
    if first.score is None:
        mask = torch.stack([expert.unrouted_mask(tokens) for expert in experts], dim=1)
        mask = mask if present is None else mask * present[:, None, :, None].to(mask.dtype)
        return SampledTokens(nothing, mask, None, None, None)
    modalities, mapped = tokens.shape[1], first.modulation is not None and first.modulation.scope == "map"
    scores = _Routers.of([cast(Router, expert.score) for expert in experts], modalities)
    if first.limit is None:
        sigma = tokens.new_full((cls.shape[0], len(experts), modalities), first.threshold)
    else:
        sigma = _Routers.of([cast(Router, expert.limit) for expert in experts], modalities).scores(cls)
    captioned = mix = None
    if first.modulation is None:
        text = None
    if text is not None:
        captioned = text.detach().abs().amax(-1) > 0
        captioned = captioned if present is None else captioned & present[:, None]
        mix = None if mapped else _mix(experts)
    hidden, settings = scores.hidden(tokens), (tokens, text, captioned, mix, present, first.temperature)
    mask, gamma, beta = route(hidden, scores.w2, scores.b2, sigma, *settings)
    if mapped and beta is not None and captioned is not None:
        modulations = [cast(TextModulation, expert.modulation) for expert in experts]
        shift = torch.stack([modulation.shift(beta[:, e]) for e, modulation in enumerate(modulations)], dim=1)
        gamma = gamma + shift * captioned.any(2)[..., None, None]
    sigma = topk_threshold(gamma, first.keep_ratio) if first.sampling == "topk" else sigma[..., None]
    if mapped or first.sampling == "topk":
        mask = straight_through_mask(gamma, sigma, first.temperature)
        mask = mask if present is None else mask * present[:, None, :, None].to(mask.dtype)
    return SampledTokens(nothing, mask, gamma, sigma, beta)


def _mix(experts: Sequence[SemanticSamplingExpert]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """First and second layers of the experts' modulation networks."""
    layers = [cast(TextModulation, expert.modulation).mix for expert in experts]
    return *_affine([layer[0] for layer in layers]), *_affine([layer[2] for layer in layers])


def _affine(layers: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """Weights and biases of layers of one shape, stacked."""
    return torch.stack([layer.weight for layer in layers]), torch.stack([layer.bias for layer in layers])


class _Routers(NamedTuple):
    """The same router of E experts for M modalities: ``w1 (M, E*H, D)``, ``b1 (M, E*H)``, ``w2 (E, M, H)``, ``b2``.

    With a router for all modalities, M is 1 in ``w1`` and ``b1``.
    """

    w1: Tensor
    b1: Tensor
    w2: Tensor
    b2: Tensor

    @classmethod
    def of(cls, routers: Sequence[Router], modalities: int) -> "_Routers":
        nets = list(
            zip(*(cast(Sequence[Any], router.nets) for router in routers), strict=True)
        )  # by modality, then expert
        w1, b1 = _affine([net[0] for nets_of_one in nets for net in nets_of_one])
        w2, b2 = _affine([net[2] for nets_of_one in nets for net in nets_of_one])
        w2, b2 = (part.unflatten(0, (len(nets), -1)).transpose(0, 1) for part in (w2, b2))  # (E, M, 1, H), (E, M, 1)
        return cls(
            w1.view(len(nets), -1, w1.shape[-1]),
            b1.view(len(nets), -1),
            w2.squeeze(2).expand(-1, modalities, -1),
            b2.squeeze(2).expand(-1, modalities),
        )

    def hidden(self, features: Tensor) -> Tensor:
        """Map features ``(B, M, ..., D)`` to the first layer's output ``(B, M, ..., E, H)``."""
        if len(self.w1) == 1:
            out = F.linear(features, self.w1[0], self.b1[0])
        else:
            by_modality = features.movedim(1, 0).flatten(1, -2)
            out = torch.baddbmm(self.b1[:, None], by_modality, self.w1.transpose(1, 2))
            out = out.unflatten(1, (features.shape[0], *features.shape[2:-1])).movedim(0, 1)
        return out.unflatten(-1, (len(self.w2), -1))

    def scores(self, features: Tensor) -> Tensor:
        """Map features ``(B, M, D)`` to scores ``(B, E, M)``."""
        active = F.gelu(self.hidden(features)).transpose(1, 2)  # (B, E, M, H)
        return (active * self.w2).sum(-1) + self.b2
