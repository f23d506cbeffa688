"""Multi-modal feature aggregation, MMFA (Sec. 3.3, Eq. 10-11)."""

import torch
from torch import Tensor, nn

from ._registry import register_layer
from .attention import CrossAttention
from .experts import TokenSets, as_token_sets

AGGREGATIONS = ("attention", "mean")


class Aggregator(nn.Module):
    """Turn token sets into one vector per set and modality: ``FFN(LN(CA(cls, tokens)))`` (NEXT, Eq. 11).

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

    def forward(self, cls: Tensor, sets: Tensor | TokenSets) -> Tensor:
        """Aggregate.

        Args:
            cls: Class tokens ``(B, M, D)``, the queries.
            sets: Token sets ``(B, S, M*N, D)``, or as the experts give them.

        Returns:
            ``(S, B, M, D)``.
        """
        if self.attention is not None:
            mixed = self.attention(cls, sets)
        else:
            mixed = _mean(as_token_sets(sets), cls.shape[1])
        if self.residual:
            mixed = mixed + cls
        out = self.ffn(self.norm(mixed))
        return out + mixed if self.residual else out


def _mean(sets: TokenSets, modalities: int) -> Tensor:
    """Mean of each modality's tokens that are keys, ``(S, B, M, D)``."""
    tokens = sets.form().transpose(0, 1).unflatten(2, (modalities, -1))  # (S, B, M, N, D)
    if sets.keys is None:
        return tokens.mean(3)
    weight = sets.keys.unflatten(-1, (modalities, -1))[..., None].to(tokens.dtype)  # (B, M, N, 1) or (S, B, M, N, 1)
    return (tokens * weight).sum(3) / weight.sum(-2).clamp_min(1)


@register_layer
class MMFA(nn.Module):
    """Aggregate every expert's tokens (NEXT, Eq. 10-11).

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
        semantic: Tensor | TokenSets | None = None,
        structure: Tensor | TokenSets | None = None,
        present: Tensor | None = None,
    ) -> Tensor:
        """Aggregate the token sets of both branches.

        Args:
            cls: Class tokens ``(B, M, D)``.
            semantic: Token sets of the semantic experts ``(B, E_t, M*N, D)``, or as they give them.
            structure: Token sets of the structure branch ``(B, S, M*N, D)``, or as it gives them.
            present: Which modalities exist, bool ``(B, M)``; None for all. An absent one's part of the result is zero.

        Returns:
            ``(B, E_t + S, M, D)``; flattened, it is the embedding of Eq. 10.

        Raises:
            ValueError: If no token set is given, or one whose aggregator was not built.
        """
        groups = []
        for name, aggregator, sets in (
            ("semantic", self.semantic, semantic),
            ("structure", self.structure, structure),
        ):
            if sets is None:
                continue
            if aggregator is None:
                raise ValueError(f"MMFA got {name} tokens but was built with {name}=False")
            groups.append(aggregator(cls, sets))
        if not groups:
            raise ValueError("MMFA needs the tokens of at least one branch: semantic, structure or both")
        out = torch.cat(groups).transpose(0, 1)  # (B, G, M, D)
        return out if present is None else out * present[:, None, :, None].to(out.dtype)
