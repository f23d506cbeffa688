"""A caption's say in which patches are sampled (Eq. 5 and 6, Fig. 3 (c))."""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ._registry import register_layer

SCOPES = ("position", "map")


@register_layer
class TextModulation(nn.Module):
    """Modulate routing scores with the caption's cosine similarity to each patch (NEXT, Eq. 5-6).

    ``beta_m`` is the cosine of modality m's caption feature and each of its patch tokens. A small network reads the
    betas of all modalities together, as the authors' figure of the framework draws it, and adds one score per
    modality: ``gamma_m = FC(act(FC([beta_1; ...; beta_M])))_m + alpha_m``.

    A zero caption feature means "this image has no caption": its beta is zero. Where no present modality of a
    sample has a caption, and when ``text`` is None, ``gamma = alpha`` exactly.

    Args:
        num_modalities: Number M of modalities.
        hidden: Hidden width of the modulation network; by default ``8 * M`` (``position``) or ``N`` (``map``).
        scope: ``"position"`` mixes the M betas at each grid position with the same weights, so that any grid size
            works; ``"map"`` reads the flattened maps, ``M * N`` to ``M * N``, for one fixed grid.
        num_tokens: Number N of patch tokens per modality; needed by ``scope="map"`` only.

    Raises:
        ValueError: If ``scope`` is unknown or ``"map"`` lacks ``num_tokens``.
    """

    def __init__(
        self, num_modalities: int = 3, hidden: int | None = None, scope: str = "position", num_tokens: int | None = None
    ) -> None:
        super().__init__()
        if scope not in SCOPES:
            raise ValueError(f"unknown modulation scope {scope!r}; allowed: {', '.join(SCOPES)}")
        if scope == "map" and num_tokens is None:
            raise ValueError("modulation scope 'map' needs num_tokens, the number of patch tokens of one modality")
        self.scope = scope
        self.num_tokens = num_tokens
        width = num_modalities if scope == "position" else num_modalities * (num_tokens or 0)
        hidden = hidden or (8 * num_modalities if scope == "position" else num_tokens)
        self.mix = nn.Sequential(nn.Linear(width, hidden or width), nn.GELU(), nn.Linear(hidden or width, width))

    def forward(
        self, alpha: Tensor, tokens: Tensor, text: Tensor | None, present: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the modulated routing scores and the similarities.

        Args:
            alpha: Routing scores ``(B, M, N)`` (Eq. 2).
            tokens: Patch tokens ``(B, M, N, D)`` in the joint space of images and text.
            text: Caption features ``(B, M, D)``; zero rows stand for absent captions; None for no captions at all.
            present: Which modalities exist, bool ``(B, M)``; None for all of them.

        Returns:
            ``gamma`` ``(B, M, N)`` and ``beta`` ``(B, M, N)``; ``beta`` is None when ``text`` is.

        Raises:
            ValueError: If shapes do not agree.
        """
        if text is None:
            return alpha, None
        if text.shape != (*tokens.shape[:2], tokens.shape[-1]):
            expected = (*tokens.shape[:2], tokens.shape[-1])
            raise ValueError(f"caption features have shape {tuple(text.shape)}, expected (B, M, D) = {expected}")
        captioned = text.detach().abs().amax(-1) > 0
        if present is not None:
            captioned = captioned & present
        # In float32 at least, and by a product and a sum that autocast leaves alone: half precision moves the cosine by
        # more than the margins between scores.
        kind = torch.promote_types(tokens.dtype, torch.float32)
        unit_tokens, unit_text = F.normalize(tokens.to(kind), dim=-1), F.normalize(text.to(kind), dim=-1)
        beta = (unit_tokens * unit_text[:, :, None]).sum(-1)
        beta = (beta * captioned[..., None]).to(alpha.dtype)
        return alpha + self.shift(beta) * captioned.any(1)[:, None, None], beta

    def shift(self, beta: Tensor) -> Tensor:
        """What the similarities ``(B, M, N)`` add to the scores.

        Raises:
            ValueError: If the modulation reads maps of another size.
        """
        if self.scope == "position":
            return rearrange(self.mix(rearrange(beta, "b m n -> b n m")), "b n m -> b m n")
        if beta.shape[-1] != self.num_tokens:
            raise ValueError(
                f"modulation over the map was built for {self.num_tokens} tokens, got {beta.shape[-1]}; "
                "use scope='position' for other grids"
            )
        return self.mix(beta.flatten(1)).view_as(beta)
