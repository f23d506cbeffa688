"""A class token and the mean of its patch tokens, reduced to one vector (DeMo's PIFE)."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ._registry import register_layer
from .experts import uniform_parameter


def quick_gelu(x: Tensor) -> Tensor:
    """CLIP's activation, ``x sigmoid(1.702 x)``."""
    return x * torch.sigmoid(1.702 * x)


@register_layer
class TokenReduction(nn.Module):
    """``g_m = QuickGELU(W_m LN_m([z_m ; mean_n p_mn]) + b_m)``, each modality with weights of its own.

    The patch-integrated features of DeMo (arXiv 2412.10650); without the activation, the reduction of MambaPro.

    Args:
        dim: Width D of the tokens.
        num_modalities: Number M of modalities.
        activation: Whether a QuickGELU follows.

    Example:
        >>> TokenReduction(512)(torch.randn(2, 3, 512), torch.randn(2, 3, 128, 512)).shape
        torch.Size([2, 3, 512])
    """

    def __init__(self, dim: int, num_modalities: int = 3, activation: bool = True) -> None:
        super().__init__()
        self.activation = activation
        self.norm_weight = nn.Parameter(torch.ones(num_modalities, 2 * dim))
        self.norm_bias = nn.Parameter(torch.zeros(num_modalities, 2 * dim))
        self.weight = uniform_parameter(num_modalities, dim, 2 * dim, fan_in=2 * dim)
        self.bias = uniform_parameter(num_modalities, dim, fan_in=2 * dim)

    def forward(self, cls: Tensor, tokens: Tensor) -> Tensor:
        """Reduce class tokens ``(B, M, D)`` and patch tokens ``(B, M, N, D)`` to ``(B, M, D)``."""
        joined = torch.cat([cls, tokens.mean(dim=2)], dim=-1)
        normed = F.layer_norm(joined, joined.shape[-1:]) * self.norm_weight + self.norm_bias
        reduced = torch.einsum("bmi,moi->bmo", normed, self.weight) + self.bias
        return quick_gelu(reduced) if self.activation else reduced
