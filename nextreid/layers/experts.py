"""The expert networks that both branches share (Eq. 1), and their token sets, attended to without being formed.

The parameters of E experts are stacked. A set of gated tokens ``z = g (x + W2 h + b2)`` is given to the attention in
its factors, which is exact and costs less than the tokens:

- keys and values are never formed (`CrossAttention`), and a token that is sampled out is a factor of a logit and of a
  weight, not a row of zeros;
- where no dropout acts on the experts' outputs, their second layers act on the few queries and behind the sums;
- without gradients, only the tokens that stay are computed: ``n`` tokens of zeros are one key of logit ``log n`` whose
  value is zero.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import autocast_dtype, gated_attention

_EPS = 1e-5  # of nn.LayerNorm


def uniform_parameter(*shape: int, fan_in: int) -> nn.Parameter:
    """A parameter that starts as nn.Linear's weights and biases do."""
    return nn.Parameter(torch.empty(shape).uniform_(-(fan_in**-0.5), fan_in**-0.5))


class Experts(nn.Module):
    """E pre-normalised residual MLPs: ``E(F) = F + Dropout(MLP(LN(F)))`` (NEXT, Eq. 1).

    They work token by token, so one expert serves every modality.

    Args:
        dim: Width D of the tokens.
        num_experts: Number E of experts.
        mlp_ratio: Hidden width H as a multiple of ``dim``.
        drop: Dropout probability on the MLP's output.

    Raises:
        ValueError: If ``num_experts`` is below 1.
    """

    def __init__(self, dim: int, num_experts: int = 1, mlp_ratio: float = 4.0, drop: float = 0.1) -> None:
        super().__init__()
        if num_experts < 1:
            raise ValueError(f"num_experts must be at least 1, got {num_experts}")
        hidden = int(dim * mlp_ratio)
        self.drop = drop
        self.norm_weight = nn.Parameter(torch.ones(num_experts, dim))
        self.norm_bias = nn.Parameter(torch.zeros(num_experts, dim))
        self.fc1_weight = uniform_parameter(num_experts, hidden, dim, fan_in=dim)
        self.fc1_bias = uniform_parameter(num_experts, hidden, fan_in=dim)
        self.fc2_weight = uniform_parameter(num_experts, dim, hidden, fan_in=hidden)
        self.fc2_bias = uniform_parameter(num_experts, dim, fan_in=hidden)

    def __len__(self) -> int:
        """Number E of experts."""
        return len(self.fc1_bias)

    def extra_repr(self) -> str:
        """Sizes, for the module's repr."""
        experts, hidden, dim = self.fc1_weight.shape
        return f"{experts} x ({dim}, {hidden}, {dim}), drop={self.drop}"

    def forward(self, tokens: Tensor) -> Tensor:
        """Map tokens ``(B, L, D)`` to every expert's tokens ``(E, B, L, D)``."""
        return tokens + self.updates(self.normalise(tokens))

    @property
    def drops(self) -> bool:
        """Whether dropout acts now."""
        return self.training and self.drop > 0

    def normalise(self, tokens: Tensor) -> Tensor:
        """Layer norm without gain and bias, which `hidden` and `updates` fold into the first layer."""
        normed = F.layer_norm(tokens, tokens.shape[-1:], eps=_EPS)
        # Autocast normalises in float32 and would round the result again for every product that reads it.
        dtype = autocast_dtype(tokens)
        return normed if dtype is None else normed.to(dtype)

    def updates(self, normed: Tensor) -> Tensor:
        """What the experts add to the tokens, ``(E, B, L, D)``, from normalised tokens ``(B, L, D)``."""
        hidden = self.hidden(normed).flatten(1, 2)
        update = torch.baddbmm(self.fc2_bias[:, None], hidden, self.fc2_weight.mT)
        if self.drops:
            # The operator behind F.dropout on a GPU; elsewhere that one is made of four.
            update = torch.native_dropout(update, self.drop, True)[0]
        return update.unflatten(1, normed.shape[:2])

    # All experts are one product: in a graph, one expert's slice of a parameter has a gradient as large as all of it.

    def hidden(self, normed: Tensor) -> Tensor:
        """What the second layers read, ``(E, B, L, H)``, from normalised tokens ``(B, L, D)``."""
        w1 = self.fc1_weight
        b1 = torch.baddbmm(self.fc1_bias[..., None], w1, self.norm_bias[..., None]).mT  # (E, 1, H)
        rows = normed.flatten(0, 1).expand(len(self), -1, -1)  # (E, B*L, D)
        return F.gelu(torch.baddbmm(b1, rows, (w1 * self.norm_weight[:, None]).mT)).unflatten(1, normed.shape[:2])

    def hidden_of(self, e: int, tokens: Tensor) -> Tensor:
        """What the second layer of expert e reads, ``(..., H)``, from tokens ``(..., D)``."""
        normed = F.layer_norm(tokens, tokens.shape[-1:], self.norm_weight[e], self.norm_bias[e], _EPS)
        return F.gelu(F.linear(normed, self.fc1_weight[e], self.fc1_bias[e]))

    def _second_layer(self, at: slice | None) -> tuple[Tensor, Tensor]:
        return (self.fc2_weight, self.fc2_bias) if at is None else (self.fc2_weight[at], self.fc2_bias[at])

    def logits(self, query: Tensor, hidden: Tensor, at: slice | None = None) -> Tensor:
        """Products ``(E, B, R, L)`` of queries with what experts ``at`` (all) add, second layers on the queries."""
        w2, b2 = self._second_layer(at)
        rows = query.flatten(0, 1).expand(len(w2), -1, -1)  # (E, B*R, D)
        inner = torch.bmm(rows, w2).unflatten(1, query.shape[:2])  # (E, B, R, H)
        logit = torch.bmm(inner.flatten(0, 1), hidden.flatten(0, 1).mT).unflatten(0, hidden.shape[:2])
        return _precise(logit) + _precise(torch.bmm(rows, b2[..., None])).view(*logit.shape[:3], 1)

    def mix(self, weight: Tensor, hidden: Tensor, at: slice | None = None) -> Tensor:
        """Weighted sums ``(E, B, R, D)`` of what experts ``at`` (all) add, their second layer behind the sums."""
        w2, b2 = self._second_layer(at)
        inner = torch.bmm(weight.to(hidden.dtype).flatten(0, 1), hidden.flatten(0, 1))  # (E*B, R, H)
        # Weights first: their gradient then lies as they do, as that of `logits` does, and neither is copied.
        out = torch.bmm(w2, inner.view(len(w2), -1, inner.shape[-1]).mT).mT.unflatten(1, weight.shape[1:3])
        return out + (weight.sum(-1, keepdim=True) * b2[:, None, None]).to(out.dtype)


class TokenSets:
    """S sets of L tokens that exist as one tensor.

    Args:
        tokens: ``(B, S, L, D)``.
        keys: Which tokens an attention sees, bool ``(B, L)`` or ``(B, S, L)``; None for all.
    """

    def __init__(self, tokens: Tensor, keys: Tensor | None = None) -> None:
        self.tokens = tokens
        self.keys = keys if keys is None or keys.dim() == 2 else keys.transpose(0, 1)  # (B, L) or (S, B, L)

    def __repr__(self) -> str:
        """The shape of what is held."""
        return f"{type(self).__name__}({', '.join(map(str, self.tokens.shape))})"

    def form(self) -> Tensor:
        """The tokens ``(B, S, L, D)``."""
        return self.tokens

    def attend(self, query: Tensor) -> Tensor:
        """Softmax attention of rows ``(B, R, D)``, scale included, over the keys of each set: ``(S, B, R, D)``."""
        batch, sets = self.tokens.shape[:2]
        keys = None
        if self.keys is not None:
            keys = (self.keys.expand(sets, -1, -1) if self.keys.dim() == 2 else self.keys).transpose(0, 1).flatten(0, 1)
        rows = query.repeat_interleave(sets, dim=0)  # (B*S, R, D)
        context = gated_attention(rows, self.tokens.flatten(0, 1), keys=keys)  # (B*S, 1, R, D)
        return context.view(batch, sets, *query.shape[1:]).transpose(0, 1)


class ExpertTokens(TokenSets):
    """The gated outputs of experts as token sets, in their factors (NEXT, Eq. 7 and 9).

    Set e is ``gate_e * E_e(tokens)``; with ``summed`` there is one set, their sum.

    Args:
        experts: The networks.
        tokens: ``(B, L, D)``.
        gate: Factors ``(E, B, L)``; with ``summed`` they sum to one over the experts.
        keys: Which tokens an attention sees, bool ``(B, L)`` or ``(E, B, L)``; None for all.
        summed: Whether the sets are added up.
        hard: Whether gates are 0 or 1, so that without gradients the zeros need not be computed.
    """

    def __init__(
        self,
        experts: Experts,
        tokens: Tensor,
        gate: Tensor,
        keys: Tensor | None = None,
        summed: bool = False,
        hard: bool = False,
    ) -> None:
        self.experts, self.tokens, self.gate, self.keys = experts, tokens, gate, keys
        self.summed, self.hard = summed, hard

    def form(self) -> Tensor:
        """The tokens ``(B, S, L, D)``."""
        sets = self.experts(self.tokens) * self.gate[..., None]
        return (sets.sum(0, keepdim=True) if self.summed else sets).transpose(0, 1)

    def attend(self, query: Tensor) -> Tensor:
        """Softmax attention of rows ``(B, R, D)``, scale included, over the keys of each set: ``(S, B, R, D)``."""
        if self.experts.drops:
            return self._attend_updates(query)
        if self.hard and not (torch.is_grad_enabled() or torch.compiler.is_compiling() or self.tokens.is_meta):
            return torch.stack([self._attend_kept(query, e) for e in range(len(self.experts))])
        return self._attend_factors(query)

    def _attend_updates(self, query: Tensor) -> Tensor:
        """With dropout: what the experts add is formed."""
        update = self.experts.updates(self.experts.normalise(self.tokens))  # (E, B, L, D)
        gate: Tensor | None = self.gate.transpose(0, 1)
        if self.summed:  # the gates sum to one, so that the residual counts once
            update, gate = (update * self.gate[..., None].to(update.dtype)).sum(0)[:, None], None
        else:
            update = update.transpose(0, 1)
        keys = self.keys if self.keys is None or self.keys.dim() == 2 else self.keys.transpose(0, 1)
        return gated_attention(query, self.tokens, update, gate, keys).transpose(0, 1)

    def _attend_factors(self, query: Tensor) -> Tensor:
        experts, tokens = self.experts, self.tokens
        hidden = experts.hidden(experts.normalise(tokens))
        plain = _precise(torch.bmm(query, tokens.mT))  # (B, R, L)
        gate = self.gate[:, :, None].to(plain.dtype)  # (E, B, 1, L)
        logits = experts.logits(query, hidden)  # (E, B, R, L)
        if self.summed:
            weight = _softmax((logits * gate).sum(0) + plain, self.keys)
            share = weight * gate
            context = torch.bmm(weight.to(tokens.dtype), tokens)[None]
            return context + experts.mix(share, hidden).sum(0, keepdim=True)
        share = _softmax((logits + plain) * gate, self.keys) * gate
        rows = share.to(tokens.dtype).transpose(0, 1).flatten(1, 2)  # (B, E*R, L)
        context = torch.bmm(rows, tokens).unflatten(1, (len(experts), -1)).transpose(0, 1)
        return context + experts.mix(share, hidden)

    def _attend_kept(self, query: Tensor, e: int) -> Tensor:
        """Context ``(B, R, D)`` of set e, computed for the tokens that its gate keeps."""
        tokens, experts, at = self.tokens, self.experts, slice(e, e + 1)
        keys = self.keys if self.keys is None or self.keys.dim() == 2 else self.keys[e]
        batch, stays = tokens.shape[0], self.gate[e] > 0
        kept, zeros = (stays, ~stays) if keys is None else (stays & keys, ~stays & keys)
        count, spare = kept.sum(-1), zeros.sum(-1)
        longest = int(count.max()) if batch else 0
        own = tokens[kept]  # (T, D): what the expert is computed for
        hidden = experts.hidden_of(e, own)
        place = (kept.cumsum(-1) - 1 + longest * torch.arange(batch, device=kept.device)[:, None])[kept]
        own, hidden = (
            rows.new_zeros(batch * longest, rows.shape[1]).index_copy_(0, place, rows).unflatten(0, (batch, longest))
            for rows in (own, hidden)
        )
        logit = experts.logits(query, hidden[None], at)[0] + _precise(torch.bmm(query, own.mT))
        unused = torch.arange(longest, device=kept.device) >= count[:, None]
        logit = logit.masked_fill(unused[:, None], -torch.inf)
        # n zero tokens weigh as much as one of logit log n; where nothing is left, any finite number gives weight zero.
        slot = spare.to(logit.dtype).log().masked_fill(spare + count == 0, 0.0)
        slot = slot[:, None, None].expand(-1, logit.shape[1], 1)
        weight = torch.cat([logit, slot], dim=-1).softmax(-1)[..., :-1]
        return torch.bmm(weight.to(own.dtype), own) + experts.mix(weight[None], hidden[None], at)[0]


def as_token_sets(sets: Tensor | TokenSets) -> TokenSets:
    """Token sets as they are, or a tensor ``(B, S, L, D)`` as token sets of which all tokens are keys."""
    return sets if isinstance(sets, TokenSets) else TokenSets(sets)


def join_keys(*masks: Tensor | None) -> Tensor | None:
    """Where all masks are true; None for all."""
    given: Sequence[Tensor] = [mask for mask in masks if mask is not None]
    return given[0] & given[1] if len(given) > 1 else given[0] if given else None


def _precise(logit: Tensor) -> Tensor:
    return logit if logit.dtype == torch.float64 else logit.float()


def _softmax(logit: Tensor, keys: Tensor | None) -> Tensor:
    """Softmax over the keys ``(..., B, L)``; without any, over all: `CrossAttention` makes nothing of those."""
    if keys is not None:
        logit = logit.masked_fill(~keys[..., None, :], torch.finfo(logit.dtype).min)
    return logit.softmax(-1)
