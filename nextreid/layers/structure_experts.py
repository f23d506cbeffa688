"""Context-shared structure-aware experts, CSSE (Sec. 3.2, Eq. 8-9)."""

from typing import Any, NamedTuple

import torch
from einops import repeat
from torch import Tensor, nn

from ._registry import register_layer
from .experts import Experts, ExpertTokens
from .router import ROUTINGS

GRANULARITIES = ("token", "sample")
OUTPUTS = ("sum", "each")


class StructureTokens(NamedTuple):
    """What the structure experts return.

    Attributes:
        sets: S = 1 set of M*N tokens with ``output="sum"`` (Eq. 9), E_c sets with ``"each"``.
        weights: Soft routing weights ``(B, M*N, E_c)``, each row sums to one (Eq. 8).
    """

    sets: ExpertTokens
    weights: Tensor


@register_layer
class StructureExperts(nn.Module):
    """E_c experts over every patch of every modality, mixed by a soft router (NEXT, Eq. 8-9).

    Args:
        dim: Width D of the tokens.
        num_experts: Number E_c of experts (Fig. 4).
        num_modalities: Number M of modalities.
        mlp_ratio: Hidden width of an expert as a multiple of ``dim``.
        drop: Dropout of an expert.
        routing: One router ``"shared"`` by the modalities (the paper's choice) or one per modality,
            ``"specific"`` (Table 4).
        granularity: Weights for each ``"token"``, or one set per ``"sample"`` from the mean of its tokens' logits.
        output: ``"sum"`` gives the weighted sum as one token set (Eq. 9); ``"each"`` keeps every expert's weighted
            tokens as a set.

    Raises:
        ValueError: If a setting is unknown or ``num_experts`` is below 1.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int = 3,
        num_modalities: int = 3,
        mlp_ratio: float = 4.0,
        drop: float = 0.1,
        routing: str = "shared",
        granularity: str = "token",
        output: str = "sum",
    ) -> None:
        super().__init__()
        for name, value, allowed in (
            ("routing", routing, ROUTINGS),
            ("granularity", granularity, GRANULARITIES),
            ("output", output, OUTPUTS),
        ):
            if value not in allowed:
                raise ValueError(f"unknown {name} {value!r}; allowed: {', '.join(allowed)}")
        self.routing, self.granularity, self.output = routing, granularity, output
        self.experts = Experts(dim, num_experts, mlp_ratio, drop)
        count = num_modalities if routing == "specific" else 1
        self.routers = nn.ModuleList(nn.Linear(dim, num_experts) for _ in range(count))

    @property
    def num_sets(self) -> int:
        """Number S of token sets that come out."""
        return len(self.experts) if self.output == "each" else 1

    def forward(self, tokens: Tensor, present: Tensor | None = None) -> StructureTokens:
        """Mix the experts' outputs.

        Args:
            tokens: Patch tokens ``(B, M, N, D)``.
            present: Which modalities exist, bool ``(B, M)``; None for all. Absent ones have no part in the weights
                of a sample, and their tokens are no keys.

        Returns:
            Token sets and routing weights.
        """
        if self.routing == "shared":
            logits = self.routers[0](tokens)  # (B, M, N, E)
        else:
            logits = torch.stack([router(tokens[:, m]) for m, router in enumerate(self.routers)], dim=1)
        if self.granularity == "sample":
            logits = _mean_over_tokens(logits, present)
        weights = logits.softmax(-1).flatten(1, 2)  # (B, M*N, E)
        keys = None if present is None else present.repeat_interleave(tokens.shape[2], dim=1)
        gate = weights.movedim(-1, 0)  # (E, B, M*N)
        sets = ExpertTokens(self.experts, tokens.flatten(1, 2), gate, keys, summed=self.output == "sum")
        return StructureTokens(sets, weights)


@register_layer
class StructureExpert(StructureExperts):
    """One structure expert: `StructureExperts` with ``num_experts=1``.

    Args:
        dim: Width D of the tokens.
        **settings: Of `StructureExperts`, but for ``num_experts``.
    """

    def __init__(self, dim: int, **settings: Any) -> None:
        super().__init__(dim, num_experts=1, **settings)


def _mean_over_tokens(logits: Tensor, present: Tensor | None) -> Tensor:
    """Every token's logits ``(B, M, N, E)`` as the mean over the tokens of the modalities that exist."""
    _, modalities, positions, _ = logits.shape
    weight = logits.new_ones(logits.shape[:2]) if present is None else present.to(logits.dtype)
    mean = (logits.mean(2) * weight[..., None]).sum(1) / weight.sum(1, keepdim=True).clamp_min(1)
    return repeat(mean, "b e -> b m n e", m=modalities, n=positions)
