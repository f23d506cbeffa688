"""Mamba's selective state space on the patches of one or of all modalities (MambaPro's aggregation)."""

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..ops import selective_scan
from ._registry import register_layer
from .batch_norm import StackedBatchNorm
from .token_reduction import TokenReduction

SCANS = ("intra", "inter")
STEP_INITS = ("mamba", "uniform")


def _normal_parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(nn.init.trunc_normal_(torch.empty(shape), std=0.02))


class SelectiveStateSpace(nn.Module):
    """G state spaces side by side, whose steps and readings follow from the tokens (Mamba, arXiv 2312.00752).

    ``(d, B, C) = W_x x`` split R, N, N; ``delta = softplus(W_d d + b_d)``; ``A = -exp(A_log)``; then `selective_scan`
    and a layer norm over the channels.

    Args:
        width: Number E of channels.
        groups: Number G of state spaces.
        states: Number N of states of a channel.
        rank: Width R that the steps are made from.
        step_init: Where steps begin: at 0.001 to 0.1, as in ``"mamba"``, or ``"uniform"``, softplus(0) = 0.69 for all
            channels, as in MambaPro's code.

    Raises:
        ValueError: If ``step_init`` is unknown.
    """

    def __init__(self, width: int, groups: int = 1, states: int = 16, rank: int = 32, step_init: str = "mamba") -> None:
        super().__init__()
        if step_init not in STEP_INITS:
            raise ValueError(f"unknown step_init {step_init!r}; allowed: {', '.join(STEP_INITS)}")
        self.rank, self.states = rank, states
        self.x_weight = _normal_parameter(groups, rank + 2 * states, width)
        self.step_weight = _normal_parameter(groups, width, rank)
        self.step_bias = nn.Parameter(torch.zeros(groups, width))
        self.A_log = nn.Parameter(torch.arange(1.0, states + 1).log().repeat(groups, width, 1))
        self.D = nn.Parameter(torch.ones(groups, width))
        self.norm_weight = nn.Parameter(torch.ones(groups, width))
        self.norm_bias = nn.Parameter(torch.zeros(groups, width))
        if step_init == "mamba":
            nn.init.uniform_(self.step_weight, -(rank**-0.5), rank**-0.5)
            steps = torch.exp(torch.empty(groups, width).uniform_(math.log(0.001), math.log(0.1)))
            self.step_bias = nn.Parameter(steps + torch.log(-torch.expm1(-steps)))  # the inverse of softplus

    def forward(self, x: Tensor, exists: Tensor | None = None) -> Tensor:
        """Map tokens ``(B, G, L, E)`` to as many.

        Args:
            x: The tokens.
            exists: Which tokens there are, bool ``(B, L)``; None for all. The others change no state.
        """
        parts = torch.einsum("bgle,gre->bglr", x, self.x_weight)
        steps, enter, read = parts.split((self.rank, self.states, self.states), dim=-1)
        steps = torch.einsum("bglr,ger->bgle", steps, self.step_weight) + self.step_bias[:, None]
        # Softplus, whose own backward pass compiled graphs expect to be laid out otherwise than it is.
        delta = torch.logaddexp(steps, steps.new_zeros(()))
        if exists is not None:
            delta = delta * exists[:, None, :, None].to(delta.dtype)
        y = selective_scan(x, delta, -self.A_log.exp(), enter, read, self.D)
        normed = F.layer_norm(y, y.shape[-1:])
        return normed * self.norm_weight[:, None] + self.norm_bias[:, None]


@register_layer
class SS2D(nn.Module):
    """A state space over the patches, gated, with a residual (MambaPro's SS2D; one layer of its aggregation).

    ``(x_m, g_m) = W_m p_m``; x_m passes a depth-wise 3x3 convolution over the grid, a batch norm and SiLU; the state
    space reads the patches in row-major order; ``p_m += W_out (y_m SiLU(g_m))``.

    Args:
        dim: Width D of the tokens.
        num_modalities: Number M of modalities.
        scan: ``"intra"``: a state space for each modality; ``"inter"``: one, over the patches of all of them, in the
            declared order.
        states: Number N of states of a channel.
        expand: Number of channels as a multiple of ``dim``.
        rank: Width that the steps are made from; None for ``dim / 16``.
        step_init: See `SelectiveStateSpace`.

    Raises:
        ValueError: If ``scan`` or ``step_init`` is unknown.

    Example:
        >>> SS2D(512, scan="inter")(torch.randn(2, 3, 128, 512), (16, 8)).shape
        torch.Size([2, 3, 128, 512])
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int = 3,
        scan: str = "intra",
        states: int = 16,
        expand: int = 2,
        rank: int | None = None,
        step_init: str = "mamba",
    ) -> None:
        super().__init__()
        if scan not in SCANS:
            raise ValueError(f"unknown scan {scan!r}; allowed: {', '.join(SCANS)}")
        width, self.scan = expand * dim, scan
        self.in_weight = _normal_parameter(num_modalities, 2 * width, dim)
        self.conv_weight = nn.Parameter(torch.empty(num_modalities, width, 1, 3, 3).uniform_(-1 / 3, 1 / 3))
        self.conv_bias = nn.Parameter(torch.empty(num_modalities, width).uniform_(-1 / 3, 1 / 3))
        self.norm = StackedBatchNorm(num_modalities, width)
        groups = num_modalities if scan == "intra" else 1
        self.state_space = SelectiveStateSpace(width, groups, states, rank or math.ceil(dim / 16), step_init)
        self.out_proj = nn.Linear(width, dim, bias=False)
        nn.init.trunc_normal_(self.out_proj.weight, std=0.02)

    def forward(self, tokens: Tensor, grid: Sequence[int], present: Tensor | None = None) -> Tensor:
        """Mix patch tokens.

        Args:
            tokens: ``(B, M, N, D)``, N = H*W in row-major order; zero where a modality is absent, and they stay so.
            grid: H and W.
            present: Which modalities exist, bool ``(B, M)``; None for all. An absent one changes no state and has no
                part in the batch norm.

        Returns:
            ``(B, M, N, D)``.
        """
        inner, gate = torch.einsum("bmnd,med->bmne", tokens, self.in_weight).chunk(2, dim=-1)
        maps = inner.transpose(2, 3).flatten(1, 2).unflatten(-1, tuple(grid))  # (B, M*E, H, W)
        maps = F.conv2d(maps, self.conv_weight.flatten(0, 1), self.conv_bias.flatten(), padding=1, groups=maps.shape[1])
        maps = maps.unflatten(1, self.conv_bias.shape)  # (B, M, E, H, W)
        rows = None if present is None else present[:, :, None]
        x = F.silu(self.norm(maps, rows)).flatten(3).transpose(2, 3)  # (B, M, N, E)
        if self.scan == "intra":
            y = self.state_space(x)
        else:
            exists = None if present is None else present.repeat_interleave(x.shape[2], dim=1)
            y = self.state_space(x.flatten(1, 2)[:, None], exists).view_as(gate)
        return tokens + self.out_proj(y * F.silu(gate))


@register_layer
class MambaAggregation(nn.Module):
    """State spaces inside each modality and across them in turn, then a vector of each modality (MambaPro's AAM).

    Each of ``depth`` blocks is an intra `SS2D` and an inter `SS2D`. Then ``f_m = W_m LN_m([z_m ; mean_n p_mn]) + b_m``.

    Args:
        dim: Width D of the tokens.
        num_modalities: Number M of modalities.
        depth: Number of blocks.
        states: Number of states of a channel.
        expand: Number of channels as a multiple of ``dim``.
        step_init: See `SelectiveStateSpace`.

    Example:
        >>> MambaAggregation(64)(torch.randn(2, 3, 64), torch.randn(2, 3, 32, 64), (8, 4)).shape
        torch.Size([2, 3, 64])
    """

    def __init__(
        self,
        dim: int,
        num_modalities: int = 3,
        depth: int = 2,
        states: int = 16,
        expand: int = 2,
        step_init: str = "mamba",
    ) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(
            nn.ModuleDict(
                {scan: SS2D(dim, num_modalities, scan, states, expand, step_init=step_init) for scan in SCANS}
            )
            for _ in range(depth)
        )
        self.reduction = TokenReduction(dim, num_modalities, activation=False)
        nn.init.trunc_normal_(self.reduction.weight, std=0.02)
        nn.init.zeros_(self.reduction.bias)

    def forward(self, cls: Tensor, tokens: Tensor, grid: Sequence[int], present: Tensor | None = None) -> Tensor:
        """Aggregate.

        Args:
            cls: Class tokens ``(B, M, D)``.
            tokens: Patch tokens ``(B, M, N, D)``, zero where a modality is absent.
            grid: Height and width of the patches' grid.
            present: Which modalities exist, bool ``(B, M)``; None for all.

        Returns:
            ``(B, M, D)``, zero where a modality is absent.
        """
        for block in self.blocks:
            for scan in SCANS:
                tokens = block.get_submodule(scan)(tokens, grid, present)
        reduced = self.reduction(cls, tokens)
        return reduced if present is None else reduced.masked_fill(~present[..., None], 0)
