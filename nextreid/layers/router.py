"""Small networks that score tokens for the experts (Eq. 2)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .experts import uniform_parameter

ROUTINGS = ("specific", "shared")


class Router(nn.Module):
    """FC, activation, FC from features to one score for each of E experts (NEXT, Eq. 2, Table 4).

    The module's call is the first layer, whose output the routing operation takes with the second layer's weights;
    `score` applies that layer by itself.

    Args:
        dim: Width D of the features.
        num_experts: Number E of experts.
        num_modalities: Number M of modalities.
        hidden: Hidden width H; by default ``dim // 4``.
        routing: ``"specific"`` has networks of each modality's own, ``"shared"`` one for all.

    Raises:
        ValueError: If ``routing`` is unknown.
    """

    def __init__(
        self,
        dim: int,
        num_experts: int = 1,
        num_modalities: int = 3,
        hidden: int | None = None,
        routing: str = "specific",
    ) -> None:
        super().__init__()
        if routing not in ROUTINGS:
            raise ValueError(f"unknown routing {routing!r}; allowed: {', '.join(ROUTINGS)}")
        hidden = hidden or max(1, dim // 4)
        count = num_modalities if routing == "specific" else 1
        self.num_experts, self.num_modalities, self.routing = num_experts, num_modalities, routing
        self.fc1_weight = uniform_parameter(count, num_experts * hidden, dim, fan_in=dim)
        self.fc1_bias = uniform_parameter(count, num_experts * hidden, fan_in=dim)
        self.fc2_weight = uniform_parameter(num_experts, count, hidden, fan_in=hidden)
        self.fc2_bias = uniform_parameter(num_experts, count, fan_in=hidden)

    def forward(self, features: Tensor) -> Tensor:
        """Map features ``(B, M, ..., D)`` to the first layer's output ``(B, M, ..., E, H)``, before the activation."""
        if self.routing == "shared":
            out = F.linear(features, self.fc1_weight[0], self.fc1_bias[0])
        else:
            by_modality = features.movedim(1, 0).flatten(1, -2)  # (M, B*..., D)
            out = torch.baddbmm(self.fc1_bias[:, None], by_modality, self.fc1_weight.mT)
            out = out.unflatten(1, (features.shape[0], *features.shape[2:-1])).movedim(0, 1)
        return out.unflatten(-1, (self.num_experts, -1))

    def second_layer(self) -> tuple[Tensor, Tensor]:
        """Weights ``(E, M, H)`` and biases ``(E, M)`` of the second layer, those of a shared router expanded."""
        count = self.num_modalities
        return self.fc2_weight.expand(-1, count, -1), self.fc2_bias.expand(-1, count)

    def score(self, hidden: Tensor) -> Tensor:
        """Map the first layer's output for one vector a modality ``(B, M, E, H)`` to scores ``(B, E, M)``."""
        weight, bias = self.second_layer()
        return (F.gelu(hidden).transpose(1, 2) * weight).sum(-1) + bias
