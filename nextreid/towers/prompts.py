"""Prompts that stand among the tokens of an image tower and pass from block to block and between modalities."""

from collections.abc import Callable

import torch
from torch import Tensor, nn

from .adapters import SideAdapter


class TransferPrompts(nn.Module):
    """Prompts of every modality before every block, with what the block before made of them (MambaPro, PFA).

    To the tokens of modality m, block l gets M groups of K prompts: its own, ``P_m + u + A(u)``, and for each other
    modality k ``P_k + A_k(P_k)``. u is the mean of the groups behind block l - 1, which leave the tokens there; before
    the first block there is none. ``P_m``, ``A_m`` and ``A`` are the block's own; A is a bottleneck with QuickGELU.

    Nothing of another modality's image is in its prompts, so that each modality is encoded alone.

    Args:
        depth: Number L of blocks.
        width: Width W of the tokens.
        num_modalities: Number M of modalities.
        num_prompts: Number K of prompts of a modality.
        hidden: Hidden width of the adapters; None for W / 2.

    Example:
        >>> prompts = TransferPrompts(12, 768)
        >>> prompts(torch.randn(2, 3, 129, 768), lambda block, tokens: tokens).shape
        torch.Size([2, 3, 129, 768])
    """

    def __init__(
        self, depth: int, width: int, num_modalities: int = 3, num_prompts: int = 4, hidden: int | None = None
    ) -> None:
        super().__init__()
        hidden, count = hidden or width // 2, num_modalities
        self.prompts = nn.Parameter(torch.zeros(depth, count, num_prompts, width))
        self.exchanged = count > 1
        if self.exchanged:  # A_k of all blocks
            self.down_weight = nn.Parameter(torch.empty(depth, count, width, hidden))
            self.down_bias = nn.Parameter(torch.zeros(depth, count, hidden))
            self.up_weight = nn.Parameter(torch.empty(depth, count, hidden, width))
            self.up_bias = nn.Parameter(torch.zeros(depth, count, width))
            for weight in (self.down_weight, self.up_weight):
                nn.init.trunc_normal_(weight, std=0.02)
            others = [[k for k in range(count) if k != m] for m in range(count)]
            self.register_buffer("others", torch.tensor(others), persistent=False)
        transfers = (SideAdapter(width, hidden, "quick_gelu", zero_init=False) for _ in range(depth - 1))
        self.transfers = nn.ModuleList([nn.Identity(), *transfers])  # by block; nothing comes to the first

    others: Tensor

    def forward(self, tokens: Tensor, run_block: Callable[[int, Tensor], Tensor]) -> Tensor:
        """Run blocks with prompts among the tokens.

        Args:
            tokens: ``(B, M, T, W)`` before the first block.
            run_block: Called with the number of a block and tokens ``(B, M, T + M*K, W)``; gives them behind it.

        Returns:
            ``(B, M, T, W)`` behind the last block.
        """
        batch, count, length, _ = tokens.shape
        others = self._from_others()
        passed: Tensor | None = None
        for i, prompts in enumerate(self.prompts):
            own = prompts.expand(batch, -1, -1, -1)
            if passed is not None:
                own = own + passed + self.transfers[i](passed)
            groups = [own] if others is None else [own, others[i].expand(batch, -1, -1, -1)]
            mixed = run_block(i, torch.cat([tokens, *groups], dim=2))
            tokens = mixed[:, :, :length]
            if i + 1 < len(self.prompts):
                passed = mixed[:, :, length:].unflatten(2, (count, -1)).mean(2)  # (B, M, K, W)
        return tokens

    def _from_others(self) -> Tensor | None:
        """What each modality gets of the others, ``(L, M, (M-1)*K, W)``: that of all blocks in one product."""
        if not self.exchanged:
            return None
        flat = self.prompts.flatten(0, 1)  # (L*M, K, W)
        down, up = self.down_weight.flatten(0, 1), self.up_weight.flatten(0, 1)
        hidden = torch.baddbmm(self.down_bias.flatten(0, 1)[:, None], flat, down)
        hidden = hidden * torch.sigmoid(1.702 * hidden)
        adapted = torch.baddbmm(self.up_bias.flatten(0, 1)[:, None], hidden, up) + flat
        return adapted.view_as(self.prompts)[:, self.others].flatten(2, 3)
