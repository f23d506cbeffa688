"""How a caption shifts the choice of patches (Eq. 5 and 6, Fig. 3 (c))."""

from torch import Tensor, nn

from ..ops import Mix, cosine, modulation_shift
from ._registry import register_layer
from .experts import uniform_parameter

SCOPES = ("position", "map")
_FLAT = 1e-8  # variance of cosines below which patches count as alike


@register_layer
class TextModulation(nn.Module):
    """Modulate routing scores with the caption's cosine similarity to each patch (NEXT, Eq. 5-6).

    ``beta_m`` is the cosine of modality m's caption feature and each of its patch tokens. A small network reads the
    betas of all modalities together, as the authors' figure of the framework draws it, and adds one score per
    modality: ``gamma_m = FC(act(FC([beta_1; ...; beta_M])))_m + alpha_m``. Each of E experts has its own network.

    A zero caption feature means "this image has no caption": its beta is zero. Where no present modality of a
    sample has a caption, and when ``text`` is None, ``gamma = alpha`` exactly.

    Args:
        num_modalities: Number M of modalities.
        num_experts: Number E of experts.
        hidden: Hidden width of the modulation network; by default ``8 * M`` (``position``) or ``N`` (``map``).
        scope: ``"position"`` mixes the M betas at each grid position with the same weights, so that any grid size
            works; ``"map"`` reads the flattened maps, ``M * N`` to ``M * N``, for one fixed grid.
        num_tokens: Number N of patch tokens per modality; needed by ``scope="map"`` only.
        contrast: Compare the patches with each other (not in the paper): each beta map is standardised over its
            patches before the network reads it, and what the network adds has mean zero over the patches. A caption
            then says where to look, and never how much to keep.

    Raises:
        ValueError: If ``scope`` is unknown or ``num_tokens`` is missing with ``"map"``.
    """

    def __init__(
        self,
        num_modalities: int = 3,
        num_experts: int = 1,
        hidden: int | None = None,
        scope: str = "position",
        num_tokens: int | None = None,
        contrast: bool = False,
    ) -> None:
        super().__init__()
        if scope not in SCOPES:
            raise ValueError(f"unknown modulation scope {scope!r}; allowed: {', '.join(SCOPES)}")
        if scope == "map" and num_tokens is None:
            raise ValueError("modulation scope 'map' needs num_tokens, the number of patch tokens of one modality")
        self.scope, self.num_tokens, self.contrast = scope, num_tokens, contrast
        width = num_modalities if scope == "position" else num_modalities * (num_tokens or 0)
        hidden = hidden or (8 * num_modalities if scope == "position" else num_tokens) or width
        self.fc1_weight = uniform_parameter(num_experts, hidden, width, fan_in=width)
        self.fc1_bias = uniform_parameter(num_experts, hidden, fan_in=width)
        self.fc2_weight = uniform_parameter(num_experts, width, hidden, fan_in=hidden)
        self.fc2_bias = uniform_parameter(num_experts, width, fan_in=hidden)

    @property
    def fused(self) -> bool:
        """Whether the routing operation can add the shift by itself: it reads one position at a time."""
        return self.scope == "position" and not self.contrast

    @property
    def mix(self) -> Mix:
        """The network's layers, as the routing operation takes them."""
        return self.fc1_weight, self.fc1_bias, self.fc2_weight, self.fc2_bias

    def forward(
        self, alpha: Tensor, tokens: Tensor, text: Tensor | None, present: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """Return the modulated routing scores and the similarities.

        Args:
            alpha: Routing scores ``(B, E, M, N)`` (Eq. 2).
            tokens: Patch tokens ``(B, M, N, D)`` in the joint space of images and text.
            text: Caption features ``(B, E, M, D)``; zero rows stand for absent captions; None for no captions at all.
            present: Which modalities exist, bool ``(B, M)``; None for all of them.

        Returns:
            ``gamma`` ``(B, E, M, N)`` and ``beta`` ``(B, E, M, N)``; ``beta`` is None when ``text`` is.

        Raises:
            ValueError: If shapes do not agree.
        """
        if text is None:
            return alpha, None
        expected = (tokens.shape[0], len(self.fc1_bias), tokens.shape[1], tokens.shape[3])
        if text.shape != expected:
            raise ValueError(f"caption features have shape {tuple(text.shape)}, expected (B, E, M, D) = {expected}")
        captioned = has_caption(text, present)
        beta = cosine(tokens, text, captioned)
        return alpha + self.shift(beta, captioned), beta.to(alpha.dtype)

    def shift(self, beta: Tensor, captioned: Tensor) -> Tensor:
        """What the similarities ``(B, E, M, N)`` add to the scores; nothing without ``captioned`` ``(B, E, M)``.

        Raises:
            ValueError: If the modulation reads maps of another size.
        """
        if self.contrast:
            spread = beta.var(-1, keepdim=True, unbiased=False)
            beta = (beta - beta.mean(-1, keepdim=True)) * (spread + _FLAT).rsqrt()
        if self.scope == "position":
            shift = modulation_shift(beta, self.mix)
        elif beta.shape[-1] == self.num_tokens:
            shift = modulation_shift(beta.flatten(2)[..., None], self.mix).view_as(beta)
        else:
            raise ValueError(
                f"modulation over the map was built for {self.num_tokens} tokens, got {beta.shape[-1]}; "
                "use scope='position' for other grids"
            )
        if self.contrast:
            shift = shift - shift.mean(-1, keepdim=True)
        return shift * captioned.any(2)[..., None, None]


def has_caption(text: Tensor, present: Tensor | None = None) -> Tensor:
    """Which features ``(B, E, M, D)`` are of a caption, and of a modality that is present, bool ``(B, E, M)``."""
    captioned = text.detach().abs().amax(-1) > 0
    return captioned if present is None else captioned & present[:, None]
