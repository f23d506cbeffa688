"""Text-modulated semantic-sampling experts, TMSE (Sec. 3.1, Eq. 1-7)."""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..ops import route
from ._registry import register_layer
from .experts import Experts, ExpertTokens, join_keys
from .router import Router
from .sampling import SAMPLINGS, random_mask, straight_through_mask, topk_threshold
from .text_modulation import TextModulation, has_caption


class SampledTokens(NamedTuple):
    """What the semantic experts return.

    Attributes:
        sets: Expert outputs times the mask (Eq. 7), one set of M*N tokens for each expert.
        mask: Sampling mask of zeros and ones ``(B, E_t, M, N)``.
        gamma: Modulated routing scores ``(B, E_t, M, N)``; None with ``sampling="all"`` or ``"random"``.
        sigma: Thresholds ``(B, E_t, M, 1)``; None with ``sampling="all"`` or ``"random"``.
        beta: Caption-to-patch cosines ``(B, E_t, M, N)``; None without captions.
    """

    sets: ExpertTokens
    mask: Tensor
    gamma: Tensor | None
    sigma: Tensor | None
    beta: Tensor | None


@register_layer
class SemanticSamplingExperts(nn.Module):
    """E_t experts that each sample the patches they want, their choice modulated by a caption (NEXT, Eq. 1-7).

    Per expert and modality, a router scores each patch token (alpha) and a second one turns the class token into a
    threshold (sigma, Eq. 2); the caption shifts the scores (gamma, Eq. 6); tokens with ``gamma > sigma`` stay (Eq. 3).
    The expert network (Eq. 1) is the same for all modalities. Sampled-out tokens are zero and stay in the sequence.

    Args:
        dim: Width D of tokens and caption features.
        num_experts: Number E_t of experts (Fig. 4).
        num_modalities: Number M of modalities.
        mlp_ratio: Hidden width of an expert as a multiple of ``dim``.
        drop: Dropout of an expert.
        routing: ``"specific"`` routers per modality (the paper's choice) or one ``"shared"`` router (Table 4).
        sampling: ``"dynamic"`` learned threshold (the paper's choice), ``"fixed"`` threshold, ``"topk"`` share of the
            tokens, or ``"all"`` tokens (Table 8); or ``"random"``, the baseline of the learned masks: a share of the
            tokens drawn in every training step (torch's generator), and in evaluation by a pattern that was drawn once
            and is part of the weights. The last two have no routers and no text.
        threshold: The threshold of ``"fixed"``.
        keep_ratio: The share that ``"topk"`` and ``"random"`` keep.
        temperature: Of the straight-through gradient.
        text: Build the text modulation; False makes ``gamma = alpha`` always.
        masked_tokens: Sampled-out tokens stay in the attention as ``"zero"`` tokens (Eq. 7) or ``"drop"`` out of it.
        router_hidden: Hidden width of the routers; by default ``dim // 4``.
        modulation_scope: See `TextModulation`.
        modulation_hidden: See `TextModulation`.
        modulation_contrast: See `TextModulation`.
        num_tokens: Patch tokens per modality, needed by ``modulation_scope="map"`` and ``sampling="random"`` only.

    Raises:
        ValueError: If a setting is unknown, ``num_experts`` is below 1, ``keep_ratio`` is outside (0, 1], or
            ``num_tokens`` is missing where it is needed.
    """

    pattern: Tensor

    def __init__(
        self,
        dim: int,
        num_experts: int = 3,
        num_modalities: int = 3,
        mlp_ratio: float = 4.0,
        drop: float = 0.1,
        routing: str = "specific",
        sampling: str = "dynamic",
        threshold: float = 0.0,
        keep_ratio: float = 0.5,
        temperature: float = 1.0,
        text: bool = True,
        masked_tokens: str = "zero",
        router_hidden: int | None = None,
        modulation_scope: str = "position",
        modulation_hidden: int | None = None,
        num_tokens: int | None = None,
        modulation_contrast: bool = False,
    ) -> None:
        super().__init__()
        for name, value, allowed in (
            ("sampling", sampling, SAMPLINGS),
            ("masked_tokens", masked_tokens, ("zero", "drop")),
        ):
            if value not in allowed:
                raise ValueError(f"unknown {name} {value!r}; allowed: {', '.join(allowed)}")
        if not 0 < keep_ratio <= 1:
            raise ValueError(
                f"keep_ratio, the share that topk or random sampling keeps, must be in (0, 1]: {keep_ratio}"
            )
        if sampling == "random" and num_tokens is None:
            raise ValueError("sampling 'random' needs num_tokens, the number of patch tokens of one modality")
        self.sampling, self.threshold, self.keep_ratio = sampling, threshold, keep_ratio
        self.temperature, self.masked_tokens = temperature, masked_tokens
        self.experts = Experts(dim, num_experts, mlp_ratio, drop)
        self.score_router = self.threshold_router = self.modulation = None
        if sampling in ("dynamic", "fixed", "topk"):
            self.score_router = Router(dim, num_experts, num_modalities, router_hidden, routing)
            if text:
                self.modulation = TextModulation(
                    num_modalities, num_experts, modulation_hidden, modulation_scope, num_tokens, modulation_contrast
                )
        if sampling == "dynamic":
            self.threshold_router = Router(dim, num_experts, num_modalities, router_hidden, routing)
        if sampling == "random":
            self.register_buffer("pattern", _random_order(num_experts, num_modalities, num_tokens or 0))

    def forward(
        self,
        cls: Tensor,
        tokens: Tensor,
        text: Tensor | None = None,
        present: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> SampledTokens:
        """Sample and transform the patch tokens of all modalities.

        Args:
            cls: Class tokens ``(B, M, D)``.
            tokens: Patch tokens ``(B, M, N, D)``.
            text: Caption features for each expert ``(B, E_t, M, D)`` (Eq. 4), or ``(B, M, D)`` for all of them; None
                for no captions; see `TextModulation`.
            present: Which modalities exist, bool ``(B, M)``; None for all. Absent ones are never sampled.
            mask: What to sample, zeros and ones ``(B, M, N)``, in the place of what ``sampling`` would choose.

        Returns:
            Token sets, mask, scores, thresholds and similarities.

        Raises:
            ValueError: If ``text`` or ``mask`` has another shape.
        """
        batch, modalities, _, dim = tokens.shape
        expected = (batch, len(self.experts), modalities, dim)
        if text is not None and text.dim() == 3:
            text = text[:, None].expand(-1, len(self.experts), -1, -1)
        if text is not None and text.shape != expected:
            raise ValueError(f"caption features have shape {tuple(text.shape)}, expected (B, E_t, M, D) = {expected}")
        gamma = sigma = beta = None
        if mask is None:
            mask, gamma, sigma, beta = self._sample(cls, tokens, text, present)
        elif mask.shape != tokens.shape[:3]:
            raise ValueError(f"the mask has shape {tuple(mask.shape)}, expected (B, M, N) = {tuple(tokens.shape[:3])}")
        else:
            mask = _of_present(mask[:, None].to(tokens.dtype).expand(-1, len(self.experts), -1, -1), present)
        gate = mask.flatten(2).transpose(0, 1)  # (E, B, M*N)
        stays = gate.detach() > 0 if self.masked_tokens == "drop" else None
        exists = None if present is None else present.repeat_interleave(tokens.shape[2], dim=1)  # (B, M*N)
        sets = ExpertTokens(self.experts, tokens.flatten(1, 2), gate, join_keys(stays, exists), hard=True)
        return SampledTokens(sets, mask, gamma, sigma, beta)

    def _sample(
        self, cls: Tensor, tokens: Tensor, text: Tensor | None, present: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Mask, gamma, sigma and beta."""
        if self.score_router is None:
            mask = self._unrouted_mask(tokens)
            return _of_present(mask, present), None, None, None
        if self.threshold_router is None:
            sigma = tokens.new_full((*tokens.shape[:1], len(self.experts), tokens.shape[1]), self.threshold)
        else:
            sigma = self.threshold_router.score(self.threshold_router(cls))  # (B, E, M)
        modulation = self.modulation
        captioned = mix = None
        if modulation is None:
            text = None
        elif text is not None:
            captioned = has_caption(text, present)
            mix = modulation.mix if modulation.fused else None
        routed = route(
            self.score_router(tokens), *self.score_router.second_layer(), sigma,
            tokens, text, captioned, mix, present, self.temperature,
        )  # fmt: skip
        mask, gamma, beta = routed
        shifted = False
        if modulation is not None and not modulation.fused and beta is not None and captioned is not None:
            gamma, shifted = gamma + modulation.shift(beta, captioned), True
        sigma = topk_threshold(gamma, self.keep_ratio) if self.sampling == "topk" else sigma[..., None]
        if shifted or self.sampling == "topk":
            mask = _of_present(straight_through_mask(gamma, sigma, self.temperature), present)
        return mask, gamma, sigma, beta

    def _unrouted_mask(self, tokens: Tensor) -> Tensor:
        """Mask ``(B, E, M, N)`` without a router: all tokens, or random ones."""
        size = (tokens.shape[0], len(self.experts), *tokens.shape[1:3])
        if self.sampling != "random":
            return tokens.new_ones(size)
        order = _random_order(*size, device=tokens.device) if self.training else self.pattern
        return random_mask(order, self.keep_ratio).to(tokens.dtype).expand(size)


@register_layer
class SemanticSamplingExpert(SemanticSamplingExperts):
    """One semantic-sampling expert: `SemanticSamplingExperts` with ``num_experts=1``.

    Args:
        dim: Width D of tokens and caption features.
        **settings: Of `SemanticSamplingExperts`, but for ``num_experts``.
    """

    def __init__(self, dim: int, **settings: Any) -> None:
        super().__init__(dim, num_experts=1, **settings)


def _of_present(mask: Tensor, present: Tensor | None) -> Tensor:
    return mask if present is None else mask * present[:, None, :, None].to(mask.dtype)


def _random_order(*size: int, device: torch.device | None = None) -> Tensor:
    """Random permutations of the last axis' positions, which never tie, not even in half precision."""
    return torch.rand(size, device=device).argsort(-1).float()
