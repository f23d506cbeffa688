"""Batch norm of stacked vectors, over the rows that are there."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EPS, _MOMENTUM = 1e-5, 0.1  # of nn.BatchNorm1d


class StackedBatchNorm(nn.Module):
    """`nn.BatchNorm1d` of many vectors at once, whose statistics leave out the rows of absent vectors.

    Args:
        *shape: Of one sample, such as ``(S, H, E)``; every number has its own mean, variance, weight and bias.
    """

    running_mean: Tensor
    running_var: Tensor
    num_batches_tracked: Tensor

    def __init__(self, *shape: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape))
        self.bias = nn.Parameter(torch.zeros(shape))
        self.register_buffer("running_mean", torch.zeros(shape))
        self.register_buffer("running_var", torch.ones(shape))
        self.register_buffer("num_batches_tracked", torch.tensor(0))

    def forward(self, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """Normalise.

        Args:
            x: ``(B, *shape)``, or ``(B, *shape, H, W)`` as in `nn.BatchNorm2d`.
            rows: Which rows count in training, bool ``(B, *shape)`` or what broadcasts to it; None for all.

        Raises:
            ValueError: If a batch of one is given in training.
        """
        if self.training:
            self.num_batches_tracked.add_(1)
        if rows is None or not self.training:
            mean, var = self.running_mean.view(-1), self.running_var.view(-1)
            affine = self.weight.flatten(), self.bias.flatten()
            flat = x.flatten(1, self.weight.dim())
            return F.batch_norm(flat, mean, var, *affine, self.training, _MOMENTUM, _EPS).view_as(x)
        dims = self.weight.dim() + 1
        wide = x.to(torch.promote_types(x.dtype, torch.float32)).reshape(*x.shape[:dims], -1)  # (B, *shape, positions)
        weight = rows.to(wide.dtype)[..., None]
        count = weight.sum((0, -1)) * wide.shape[-1]
        mean = (wide * weight).sum((0, -1)) / count.clamp_min(1)
        centred = wide - mean[..., None]
        var = (centred.square() * weight).sum((0, -1)) / count.clamp_min(1)
        with torch.no_grad():
            step = _MOMENTUM * (count > 0)
            unbiased = var * count / (count - 1).clamp_min(1)
            self.running_mean += (step * (mean - self.running_mean)).to(self.running_mean.dtype)
            self.running_var += (step * (unbiased - self.running_var)).to(self.running_var.dtype)
        scale = (var + _EPS).rsqrt() * self.weight
        return (centred * scale[..., None] + self.bias[..., None]).to(x.dtype).reshape(x.shape)
