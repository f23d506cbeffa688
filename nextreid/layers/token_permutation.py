"""Cyclic token permutation: class tokens that visit the patches of every modality (TOP-ReID, arXiv 2312.09612)."""

import torch
from torch import Tensor, nn

from ._registry import register_layer


class PermutationRound(nn.Module):
    """One round: each query attends to one set of patches, then passes an MLP (TOP-ReID's rotation).

    ``c' = c + W_o A(W_q LN(c), W_k LN(p), W_v p)``, then ``c' + MLP(LN(c'))``; A is multi-head attention, and the
    values are not normalised. Keys and values are never formed: ``W_k`` is moved to the few queries, ``W_v`` behind the
    sums.

    Args:
        dim: Width D.
        num_heads: Number h of heads; must divide ``dim``.
        mlp_ratio: Hidden width of the MLP as a multiple of ``dim``.

    Raises:
        ValueError: If ``num_heads`` does not divide ``dim``.
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        if dim % num_heads:
            raise ValueError(f"num_heads must divide dim; got num_heads={num_heads}, dim={dim}")
        self.num_heads = num_heads
        self.query_norm, self.key_norm, self.mlp_norm = (nn.LayerNorm(dim) for _ in range(3))
        self.q = nn.Linear(dim, dim, bias=False)
        self.k = nn.Linear(dim, dim, bias=False)
        self.v = nn.Linear(dim, dim, bias=False)
        self.proj = nn.Linear(dim, dim)
        hidden = int(dim * mlp_ratio)
        self.mlp = nn.Sequential(nn.Linear(dim, hidden), nn.GELU(), nn.Linear(hidden, dim))

    def forward(self, cls: Tensor, patches: Tensor) -> Tensor:
        """Update class tokens ``(..., D)`` from the patch tokens ``(..., N, D)`` that each of them visits."""
        k, v = (weight.unflatten(0, (self.num_heads, -1)) for weight in (self.k.weight, self.v.weight))  # (h, e, D)
        q = self.q(self.query_norm(cls)).unflatten(-1, (self.num_heads, -1))  # (..., h, e)
        rows = torch.einsum("...he,hed->...hd", q * q.shape[-1] ** -0.5, k)
        weights = (rows @ self.key_norm(patches).mT).softmax(-1)  # (..., h, N)
        values = torch.einsum("...hd,hed->...he", weights.to(patches.dtype) @ patches, v).flatten(-2)
        cls = cls + self.proj(values)
        return cls + self.mlp(self.mlp_norm(cls))


@register_layer
class TokenPermutation(nn.Module):
    """Let every modality's class token visit the patches of all others, and at last its own (TOP-ReID, Sec. 3.2).

    In round r = 1 ... M, modality m's class token attends to the patches of modality (m + r) mod M, all with the class
    tokens of the round before; the patches never change. The modalities share the weights of a round.

    Args:
        dim: Width D.
        num_modalities: Number M of modalities, and of rounds.
        num_heads: Heads of the attention; must divide ``dim``.
        mlp_ratio: Hidden width of the MLPs as a multiple of ``dim``.

    Raises:
        ValueError: If ``num_heads`` does not divide ``dim``, or there is no modality.

    Example:
        >>> layer = create_layer("TokenPermutation", dim=64, num_heads=4)
        >>> layer(torch.randn(2, 3, 64), torch.randn(2, 3, 128, 64)).shape
        torch.Size([2, 3, 64])
    """

    def __init__(self, dim: int, num_modalities: int = 3, num_heads: int = 12, mlp_ratio: float = 4.0) -> None:
        super().__init__()
        if num_modalities < 1:
            raise ValueError(f"num_modalities must be at least 1, got {num_modalities}")
        self.rounds = nn.ModuleList(PermutationRound(dim, num_heads, mlp_ratio) for _ in range(num_modalities))

    def forward(self, cls: Tensor, patches: Tensor) -> Tensor:
        """Permute.

        Args:
            cls: Class tokens ``(B, M, D)``.
            patches: Patch tokens ``(B, M, N, D)``.

        Returns:
            Class tokens ``(B, M, D)``.

        Raises:
            ValueError: If M is not the layer's.
        """
        if cls.shape[1] != len(self.rounds):
            raise ValueError(f"the layer permutes {len(self.rounds)} modalities, got class tokens {tuple(cls.shape)}")
        for number, layer in enumerate(self.rounds, start=1):
            cls = layer(cls, patches.roll(-number, dims=1))  # row m holds the patches of modality m + number
        return cls
