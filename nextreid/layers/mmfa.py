"""Multi-modal feature aggregation, MMFA (Sec. 3.3, Eq. 10-11)."""

import torch
from einops import rearrange
from torch import Tensor, nn

from ._registry import register_layer
from .attention import CrossAttention

AGGREGATIONS = ("attention", "mean")


class Aggregator(nn.Module):
    """Turn one token set into one vector per modality: ``FFN(LN(CA(cls, tokens)))`` (NEXT, Eq. 11).

    Args:
        dim: Width D.
        num_heads: Heads of the cross-attention.
        ffn_ratio: Hidden width of the feed-forward network as a multiple of ``dim``.
        residual: Add the class tokens to the attention's output and that sum to the network's output. Eq. 11 writes
            neither.
        aggregation: ``"attention"``, or ``"mean"``: the mean of each modality's existing tokens takes its place.

    Raises:
        ValueError: If ``aggregation`` is unknown.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        ffn_ratio: float = 4.0,
        residual: bool = False,
        aggregation: str = "attention",
    ) -> None:
        super().__init__()
        if aggregation not in AGGREGATIONS:
            raise ValueError(f"unknown aggregation {aggregation!r}; allowed: {', '.join(AGGREGATIONS)}")
        self.residual = residual
        self.attention = CrossAttention(dim, num_heads) if aggregation == "attention" else None
        self.norm = nn.LayerNorm(dim)
        hidden = int(dim * ffn_ratio)
        self.ffn = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, cls: Tensor, tokens: Tensor, key_mask: Tensor | None = None) -> Tensor:
        """Aggregate.

        Args:
            cls: Class tokens ``(B, M, D)``, the queries.
            tokens: One token set ``(B, M*N, D)``.
            key_mask: Which tokens exist, bool ``(B, M*N)``; None for all.

        Returns:
            ``(B, M, D)``.
        """
        if self.attention is not None:
            mixed = self.attention(cls, tokens, key_mask)
        else:
            mixed = self._mean(tokens, key_mask, cls.shape[1])
        return self.finish(mixed, cls)

    def finish(self, mixed: Tensor, cls: Tensor) -> Tensor:
        """Apply what follows the attention to its output ``(..., B, M, D)``; `cls` is ``(B, M, D)``."""
        if self.residual:
            mixed = mixed + cls
        out = self.ffn(self.norm(mixed))
        return out + mixed if self.residual else out

    @staticmethod
    def _mean(tokens: Tensor, key_mask: Tensor | None, modalities: int) -> Tensor:
        grouped = rearrange(tokens, "b (m n) d -> b m n d", m=modalities)
        if key_mask is None:
            return grouped.mean(2)
        weight = rearrange(key_mask, "b (m n) -> b m n 1", m=modalities).to(tokens.dtype)
        return (grouped * weight).sum(2) / weight.sum(2).clamp_min(1)


@register_layer
class MMFA(nn.Module):
    """Aggregate every expert's tokens and concatenate (NEXT, Eq. 10-11).

    The modality class tokens are the queries, one expert's tokens are keys and values. One aggregator serves all
    semantic experts, another one the structure branch.

    Args:
        dim: Width D.
        num_heads: Heads of the cross-attention; must divide ``dim``.
        ffn_ratio: See `Aggregator`.
        residual: See `Aggregator`.
        aggregation: See `Aggregator`.
        semantic: Build the aggregator of the semantic branch.
        structure: Build the aggregator of the structure branch.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int = 8,
        ffn_ratio: float = 4.0,
        residual: bool = False,
        aggregation: str = "attention",
        semantic: bool = True,
        structure: bool = True,
    ) -> None:
        super().__init__()
        settings = (dim, num_heads, ffn_ratio, residual, aggregation)
        self.semantic = Aggregator(*settings) if semantic else None
        self.structure = Aggregator(*settings) if structure else None

    def forward(
        self,
        cls: Tensor,
        semantic: Tensor | None = None,
        structure: Tensor | None = None,
        present: Tensor | None = None,
        semantic_mask: Tensor | None = None,
    ) -> Tensor:
        """Aggregate the token sets of both branches.

        Args:
            cls: Class tokens ``(B, M, D)``.
            semantic: Token sets of the semantic experts ``(B, E_t, M*N, D)``.
            structure: Token sets of the structure branch ``(B, S, M*N, D)``.
            present: Which modalities exist, bool ``(B, M)``; None for all. Tokens of absent ones are no keys, and
                their own part of the result is zero.
            semantic_mask: Tokens that are keys, bool ``(B, E_t, M*N)``: give the sampling mask here to drop
                sampled-out tokens from the attention; None keeps them as zero tokens, as Eq. 7 writes.

        Returns:
            ``(B, (E_t + S) * M * D)``: experts outermost, then modalities, then channels.

        Raises:
            ValueError: If no token set is given, or one whose aggregator was not built.
        """
        if semantic is None and structure is None:
            raise ValueError("MMFA needs the tokens of at least one branch: semantic, structure or both")
        groups = []
        for name, aggregator, sets, keys in (
            ("semantic", self.semantic, semantic, semantic_mask),
            ("structure", self.structure, structure, None),
        ):
            if sets is None:
                continue
            if aggregator is None:
                raise ValueError(f"MMFA got {name} tokens but was built with {name}=False")
            groups += [
                aggregator(cls, sets[:, e], self._keys(sets[:, e], present, None if keys is None else keys[:, e]))
                for e in range(sets.shape[1])
            ]
        out = torch.stack(groups, dim=1)
        if present is not None:
            out = out * present[:, None, :, None].to(out.dtype)
        return rearrange(out, "b e m d -> b (e m d)")

    @staticmethod
    def _keys(tokens: Tensor, present: Tensor | None, keys: Tensor | None) -> Tensor | None:
        if present is None:
            return keys
        positions = tokens.shape[1] // present.shape[1]
        existing = present.repeat_interleave(positions, dim=1)
        return existing if keys is None else existing & keys
