"""Proxies: several learned vectors for each training identity, which attract its samples (ProxyTTT, AAAI 2026)."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ProxyLoss(nn.Module):
    """Proxies of identities, and the two losses that they have.

    A sample's unit vector f comes near its identity's proxies p_yk and away from those of others,
    ``-mean_k f p_yk + mean_{c != y, k} f p_ck / (C - 1)``. And the proxies must tell what a sample lacks: a share of
    its channels is hidden, an encoder reads the rest, its attention over the identity's proxies is decoded, and the
    hidden channels are compared (mean squared difference). One proxy needs no attention, and no encoder.

    Args:
        dim: Width D of the vectors.
        num_classes: Number C of identities.
        num_proxies: Proxies K of an identity.
        temperature: Divisor of the products in both attentions, of the reconstruction and of `follow`.
        hidden: Share of the channels that is hidden.

    Raises:
        ValueError: If there is no identity or no proxy.
    """

    def __init__(
        self, dim: int, num_classes: int, num_proxies: int = 1, temperature: float = 0.1, hidden: float = 0.15
    ) -> None:
        super().__init__()
        if min(num_classes, num_proxies) < 1:
            raise ValueError("a proxy loss needs at least one identity and one proxy")
        self.temperature, self.kept = temperature, int(dim * (1 - hidden))
        self.proxies = nn.Parameter(F.normalize(torch.randn(num_classes, num_proxies, dim), dim=-1))
        self.encoder: nn.Module | None = None
        if num_proxies > 1:
            self.encoder = nn.Sequential(nn.Linear(dim, dim), nn.LayerNorm(dim), nn.ReLU())
        self.decoder = nn.Sequential(nn.Linear(dim, dim), nn.LayerNorm(dim))
        self.register_buffer("followed", torch.zeros(num_classes, num_proxies, dim))
        self.followed: Tensor

    def forward(self, vectors: Tensor, pid: Tensor, rows: Tensor | None = None) -> Tensor:
        """The sum of both losses.

        Args:
            vectors: ``(B, D)``, of any length; half precision is computed in float32.
            pid: ``(B,)`` int64 class indices in [0, C).
            rows: Samples that take part, bool ``(B,)``; None for all.

        Returns:
            Scalar mean; zero, still attached to the graph, when no sample takes part.
        """
        vectors = vectors.float() if vectors.dtype.itemsize < 4 else vectors
        if rows is not None:
            vectors, pid = vectors[rows], pid[rows]
        if not len(pid):
            return vectors.sum() * 0 + self.proxies.sum() * 0
        cosines = (F.normalize(vectors, dim=1) @ self.proxies.flatten(0, 1).T).unflatten(1, self.proxies.shape[:2])
        means = cosines.mean(2)  # (B, C)
        own = means.gather(1, pid[:, None])[:, 0]
        others = max(means.shape[1] - 1, 1)
        pull = (means.sum(1) - own) / others**2 - own
        return (pull + self._reconstruction(vectors, pid)).mean()

    def _reconstruction(self, vectors: Tensor, pid: Tensor) -> Tensor:
        """Mean squared difference of each sample's hidden channels from what its proxies say of them, ``(B,)``."""
        hidden = torch.rand_like(vectors).argsort(1).argsort(1) >= self.kept
        if not hidden.any():
            return vectors.new_zeros(len(vectors))
        read = self.proxies[pid]  # (B, K, D)
        if self.encoder is not None:
            weights = (read @ self.encoder(vectors * ~hidden)[..., None])[..., 0] / self.temperature
            read = weights.softmax(1)[:, None] @ read
        decoded = self.decoder(read[:, 0])
        return ((decoded - vectors).square() * hidden).sum(1) / hidden.sum(1)

    @torch.no_grad()
    def follow(self, vectors: Tensor, pid: Tensor, momentum: float = 0.9, rows: Tensor | None = None) -> None:
        """Move the proxies of a batch's identities towards its unit vectors, each to those that are nearest, in place.

        ``r = m r + (1 - m) sum_i a_ik f_i``, then ``p_k = unit(m p_k + (1 - m) unit(r))``, where ``a_i`` is the
        softmax of sample i's products with its proxies.
        """
        vectors = F.normalize(vectors.to(self.proxies.dtype), dim=1)
        if rows is not None:
            vectors, pid = vectors[rows], pid[rows]
        ids = pid.unique()
        shares = ((self.proxies[pid] @ vectors[..., None])[..., 0] / self.temperature).softmax(1)  # (B, K)
        sums = torch.zeros_like(self.followed).index_add_(0, pid, shares[..., None] * vectors[:, None])
        self.followed[ids] = momentum * self.followed[ids] + (1 - momentum) * sums[ids]
        towards = momentum * self.proxies[ids] + (1 - momentum) * F.normalize(self.followed[ids], dim=-1)
        self.proxies[ids] = F.normalize(towards, dim=-1)
