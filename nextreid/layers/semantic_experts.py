"""Text-modulated semantic-sampling experts, TMSE (Sec. 3.1, Eq. 1-7)."""

from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from ._registry import register_layer
from .expert import Expert
from .router import Router
from .sampling import SAMPLINGS, random_mask, straight_through_mask, topk_threshold
from .text_modulation import TextModulation


class SampledTokens(NamedTuple):
    """What a semantic expert returns; a set of experts adds an axis ``E_t`` after ``B``.

    Attributes:
        tokens: Expert outputs times the mask, modalities concatenated, ``(B, M*N, D)`` (Eq. 7).
        mask: Sampling mask of zeros and ones ``(B, M, N)``.
        gamma: Modulated routing scores ``(B, M, N)``; None with ``sampling="all"`` or ``"random"``.
        sigma: Thresholds ``(B, M, 1)``; None with ``sampling="all"`` or ``"random"``.
        beta: Caption-to-patch cosines ``(B, M, N)``; None without captions.
    """

    tokens: Tensor
    mask: Tensor
    gamma: Tensor | None
    sigma: Tensor | None
    beta: Tensor | None


@register_layer
class SemanticSamplingExpert(nn.Module):
    """One expert that samples the patches it wants, its choice modulated by a caption (NEXT, Eq. 1-7).

    Per modality, a router scores each patch token (alpha) and a second one turns the class token into a threshold
    (sigma, Eq. 2); the caption shifts the scores (gamma, Eq. 6); tokens with ``gamma > sigma`` stay (Eq. 3). The
    expert network (Eq. 1) is the same for all modalities. Sampled-out tokens are zero and stay in the sequence.

    Args:
        dim: Width D of tokens and caption features.
        num_modalities: Number M of modalities.
        mlp_ratio: Hidden width of the expert as a multiple of ``dim``.
        drop: Dropout of the expert.
        routing: ``"specific"`` routers per modality (the paper's choice) or one ``"shared"`` router (Table 4).
        sampling: ``"dynamic"`` learned threshold (the paper's choice), ``"fixed"`` threshold, ``"topk"`` share of the
            tokens, or ``"all"`` tokens (Table 8); or ``"random"``, the control of the learned masks: a share of the
            tokens drawn anew in every training step (torch's generator), and in evaluation by a pattern that was
            drawn once and is part of the weights. The last two have no routers and no text.
        threshold: The threshold of ``"fixed"``.
        keep_ratio: The share that ``"topk"`` and ``"random"`` keep.
        temperature: Of the straight-through gradient.
        text: Build the text modulation; False makes ``gamma = alpha`` always.
        router_hidden: Hidden width of the routers; by default ``dim // 4``.
        modulation_scope: See `TextModulation`.
        modulation_hidden: See `TextModulation`.
        num_tokens: Patch tokens per modality, needed by ``modulation_scope="map"`` and ``sampling="random"`` only.

    Raises:
        ValueError: If ``sampling`` is unknown, ``keep_ratio`` is outside (0, 1], or ``"random"`` lacks ``num_tokens``.
    """

    pattern: Tensor

    def __init__(
        self,
        dim: int,
        num_modalities: int = 3,
        mlp_ratio: float = 4.0,
        drop: float = 0.1,
        routing: str = "specific",
        sampling: str = "dynamic",
        threshold: float = 0.0,
        keep_ratio: float = 0.5,
        temperature: float = 1.0,
        text: bool = True,
        router_hidden: int | None = None,
        modulation_scope: str = "position",
        modulation_hidden: int | None = None,
        num_tokens: int | None = None,
    ) -> None:
        super().__init__()
        if sampling not in SAMPLINGS:
            raise ValueError(f"unknown sampling {sampling!r}; allowed: {', '.join(SAMPLINGS)}")
        if not 0 < keep_ratio <= 1:
            raise ValueError(
                f"keep_ratio is the share of tokens that topk or random sampling keeps, in (0, 1]; got {keep_ratio}"
            )
        if sampling == "random" and num_tokens is None:
            raise ValueError("sampling 'random' needs num_tokens, the number of patch tokens of one modality")
        self.sampling = sampling
        self.threshold = threshold
        self.keep_ratio = keep_ratio
        self.temperature = temperature
        self.expert = Expert(dim, mlp_ratio, drop)
        routed = sampling not in ("random", "all")
        self.score = Router(dim, num_modalities, router_hidden, routing) if routed else None
        self.limit = Router(dim, num_modalities, router_hidden, routing) if sampling == "dynamic" else None
        self.modulation = (
            TextModulation(num_modalities, modulation_hidden, modulation_scope, num_tokens) if routed and text else None
        )
        if sampling == "random":
            self.register_buffer("pattern", _random_order(num_modalities, num_tokens or 0))

    def forward(
        self, cls: Tensor, tokens: Tensor, text: Tensor | None = None, present: Tensor | None = None
    ) -> SampledTokens:
        """Sample and transform the patch tokens of all modalities.

        Args:
            cls: Class tokens ``(B, M, D)``.
            tokens: Patch tokens ``(B, M, N, D)``.
            text: Caption features ``(B, M, D)``, or None; see `TextModulation`.
            present: Which modalities exist, bool ``(B, M)``; None for all. Absent ones are never sampled.

        Returns:
            Sampled tokens, mask, scores, thresholds and similarities.
        """
        gamma = sigma = beta = None
        if self.score is None:
            mask = self.unrouted_mask(tokens)
        else:
            gamma = self.score(tokens)
            if self.modulation is not None:
                gamma, beta = self.modulation(gamma, tokens, text, present)
            sigma = self._threshold(cls, gamma)
            mask = straight_through_mask(gamma, sigma, self.temperature)
        if present is not None:
            mask = mask * present[..., None].to(mask.dtype)
        sampled = rearrange(self.expert(tokens) * mask[..., None], "b m n d -> b (m n) d")
        return SampledTokens(sampled, mask, gamma, sigma, beta)

    def unrouted_mask(self, tokens: Tensor) -> Tensor:
        """Mask ``(B, M, N)`` of an expert without a router: all tokens ``(B, M, N, D)``, or random ones."""
        if self.sampling != "random":
            return tokens.new_ones(tokens.shape[:3])
        order = _random_order(*tokens.shape[:3], device=tokens.device) if self.training else self.pattern
        return random_mask(order, self.keep_ratio).to(tokens.dtype).expand(tokens.shape[:3])

    def _threshold(self, cls: Tensor, gamma: Tensor) -> Tensor:
        if self.limit is not None:
            return self.limit(cls)[..., None]
        if self.sampling == "topk":
            return topk_threshold(gamma, self.keep_ratio)
        return torch.full_like(gamma[..., :1], self.threshold)


@register_layer
class SemanticSamplingExperts(nn.Module):
    """The set of E_t semantic-sampling experts, each with its own routers and caption (NEXT, Sec. 3.1).

    Args:
        dim: Width D of tokens and caption features.
        num_experts: Number E_t of experts (Fig. 4).
        **expert: Arguments of `SemanticSamplingExpert`.

    Raises:
        ValueError: If ``num_experts`` is below 1.
    """

    def __init__(self, dim: int, num_experts: int = 3, **expert: Any) -> None:
        super().__init__()
        if num_experts < 1:
            raise ValueError(f"num_experts must be at least 1, got {num_experts}")
        self.experts = nn.ModuleList(SemanticSamplingExpert(dim, **expert) for _ in range(num_experts))

    def forward(
        self, cls: Tensor, tokens: Tensor, text: Tensor | None = None, present: Tensor | None = None
    ) -> SampledTokens:
        """Run every expert on the same tokens.

        Args:
            cls: Class tokens ``(B, M, D)``.
            tokens: Patch tokens ``(B, M, N, D)``.
            text: One caption feature per expert and modality ``(B, E_t, M, D)``, or None (Eq. 4).
            present: Which modalities exist, bool ``(B, M)``; None for all.

        Returns:
            `SampledTokens` with ``tokens (B, E_t, M*N, D)``, ``mask (B, E_t, M, N)`` and so on.

        Raises:
            ValueError: If ``text`` has another shape.
        """
        self.check_text(text, tokens)
        outputs = [
            expert(cls, tokens, None if text is None else text[:, e], present) for e, expert in enumerate(self.experts)
        ]
        return SampledTokens(
            torch.stack([out.tokens for out in outputs], dim=1),
            torch.stack([out.mask for out in outputs], dim=1),
            *(_stack([getattr(out, name) for out in outputs]) for name in ("gamma", "sigma", "beta")),
        )

    def check_text(self, text: Tensor | None, tokens: Tensor) -> None:
        """Raise ValueError unless there are caption features for each expert and token axis, or none at all."""
        batch, modalities, _, dim = tokens.shape
        expected = (batch, len(self.experts), modalities, dim)
        if text is not None and text.shape != expected:
            raise ValueError(f"caption features have shape {tuple(text.shape)}, expected (B, E_t, M, D) = {expected}")


def _stack(parts: list[Tensor | None]) -> Tensor | None:
    tensors = [part for part in parts if part is not None]
    return torch.stack(tensors, dim=1) if tensors else None


def _random_order(*size: int, device: torch.device | None = None) -> Tensor:
    """Random permutations of the last axis' positions, which never tie, not even in half precision."""
    return torch.rand(size, device=device).argsort(-1).float()
