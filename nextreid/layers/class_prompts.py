"""Learned words of each training identity in a sentence whose other words are fixed (CoOp; CLIP-ReID; ICPL-ReID)."""

import torch
from torch import Tensor, nn

from ._registry import register_layer


@register_layer
class ClassPrompts(nn.Module):
    """Sentences such as ``"A photo of a X X X X person."``, in which the words X are learned for each identity.

    Args:
        num_classes: Number C of identities.
        dim: Width W of a text tower's words.
        num_words: Number n of learned words.
        num_sets: Number K of sets of words: one for all modalities, or one each.

    Raises:
        ValueError: If a number is below 1.

    Example:
        >>> prompts = ClassPrompts(171, 512, num_sets=3)
        >>> before, after = torch.randn(5, 512), torch.randn(3, 512)
        >>> prompts(before, after, torch.tensor([0, 7])).shape
        torch.Size([3, 2, 12, 512])
    """

    def __init__(self, num_classes: int, dim: int = 512, num_words: int = 4, num_sets: int = 1) -> None:
        super().__init__()
        if min(num_classes, dim, num_words, num_sets) < 1:
            raise ValueError("class prompts need at least one class, set, word and channel")
        self.contexts = nn.Parameter(torch.empty(num_sets, num_classes, num_words, dim))
        nn.init.normal_(self.contexts, std=0.02)

    def forward(self, before: Tensor, after: Tensor, pid: Tensor | None = None) -> Tensor:
        """Put the learned words of identities between fixed ones.

        Args:
            before: Embedded words before them, ``(P, W)``, or ``(K, P, W)`` for each set its own.
            after: Embedded words behind them, ``(S, W)`` or ``(K, S, W)``.
            pid: Class indices ``(b,)``; None for all C.

        Returns:
            ``(K, b, P+n+S, W)``.
        """
        words = self.contexts if pid is None else self.contexts[:, pid]
        shape = words.shape[:2]
        fixed = [part.expand(shape[0], -1, -1)[:, None].expand(-1, shape[1], -1, -1) for part in (before, after)]
        return torch.cat([fixed[0], words, fixed[1]], dim=2)
