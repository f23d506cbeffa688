"""NEXT: text-modulated semantic experts, structure experts and their aggregation (arXiv 2505.20001)."""

from collections.abc import Sequence
from typing import Any

from einops import rearrange
from torch import Tensor

from .._schema import defaults_of, kinds_of, number, table, whole
from ..layers import NEXTHead
from ..towers import ImageTowers, TextTower
from ._base import Captions, Features, ReIDModel, SampleCaption
from ._builder import build_model_with_cfg
from ._pretrained import BUNDLED, PretrainedCfg, generate_default_cfgs
from ._registry import register_model
from ._tiny import TINY_IMAGE, TINY_TEXT

CLASSIFIERS = ("joint", "expert")
_OF_TOWERS = ("dim", "num_modalities", "num_tokens", "in_dim")  # what the head gets from the towers
_count, _ratio = whole(0, 256), number(0.01, 64)
HEAD = table(
    {
        **kinds_of(NEXTHead, skip=_OF_TOWERS),
        **dict.fromkeys(("num_semantic_experts", "num_structure_experts"), _count),
        **dict.fromkeys(("mlp_ratio", "ffn_ratio"), _ratio),
        "num_heads": whole(1, 256),
        "drop": number(0, 1),
    },
    "setting of the head",
)


class NEXT(ReIDModel):
    """Multi-grained mixture of experts via text modulation.

    ``forward_features`` gives what `NEXTHead` names: ``cls``, ``tokens``, ``groups``, with semantic experts ``mask``,
    ``gamma``, ``beta`` and ``sigma``, with structure experts ``weights``. The embedding is ``(B, G*M*D)``: G = E_t + S
    expert groups (Eq. 10).

    Every row of the paper's tables is a set of head settings. Table 3: A ``{"num_semantic_experts": 0,
    "num_structure_experts": 0, "aggregation": "concat"}``, B without ``aggregation``,
    C ``{"num_structure_experts": 0}``,
    D the defaults. Table 4: ``semantic_routing``, ``structure_routing``. Table 8: ``sampling``. Fig. 4: the numbers of
    experts.

    Args:
        image_tower: See `ImageTower`; the name of a model of the zoo stands for its towers, such as
            ``"topreid_vit_b16"``.
        text_tower: open_clip name or settings, see `TextTower`; None for a model that takes no captions as text.
        img_size: Height and width in pixels.
        modalities: Names of the modalities, in the order of the images' axis M.
        embed_dim: Width D of the joint space of images and text.
        num_classes: Training identities; 0 gives embeddings.
        head: Settings of `NEXTHead`, such as ``{"num_semantic_experts": 5}``; ``text_modulation`` follows from whether
            there is a text tower where it is not given.
        classifier: One ``"joint"`` classifier, or one per ``"expert"`` group.
        share_image_tower: One image tower for all modalities, or one each.
        num_cameras: Cameras to learn an embedding for; 0 for none.
        drop_path: Stochastic depth rate of the image tower.
        camera_scope: As in `ImageTower`; so is ``camera_scale``.
        camera_scale: Factor of the camera embedding.
        image_tower_args: Further arguments of the timm model.

    Raises:
        ValueError: If a setting is unknown or two contradict each other.
    """

    @classmethod
    def resolve(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        """Complete the settings of the head."""
        given = HEAD("head", arguments["head"] or {})
        defaults = {**defaults_of(NEXTHead, skip=_OF_TOWERS), "text_modulation": arguments["text_tower"] is not None}
        return {**arguments, "head": {**defaults, **given}}

    def __init__(
        self,
        image_tower: str = "vit_base_patch16_clip_quickgelu_224",
        text_tower: str | dict[str, Any] | None = "ViT-B-16-quickgelu",
        img_size: Sequence[int] = (256, 128),
        modalities: Sequence[str] = ("rgb", "nir", "tir"),
        embed_dim: int | None = 512,
        num_classes: int = 0,
        head: dict[str, Any] | None = None,
        classifier: str = "joint",
        share_image_tower: bool = True,
        num_cameras: int = 0,
        drop_path: float = 0.0,
        camera_scope: str = "class",
        camera_scale: float = 1.0,
        image_tower_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(modalities)
        if classifier not in CLASSIFIERS:
            raise ValueError(f"unknown classifier {classifier!r}; allowed: {', '.join(CLASSIFIERS)}")
        self.image_tower = ImageTowers(
            image_tower,
            img_size,
            modalities,
            embed_dim,
            share_image_tower,
            num_cameras,
            drop_path,
            image_tower_args,
            camera_scope,
            camera_scale,
        )
        self.img_size = self.image_tower.img_size
        self.embed_dim = self.modality_width = self.image_tower.embed_dim
        self.head = NEXTHead(
            self.embed_dim,
            len(self.modalities),
            self.image_tower.num_tokens,
            **{"text_modulation": text_tower is not None, **HEAD("head", head or {})},
        )
        self.uses_text = self.head.uses_text
        if text_tower is not None and self.uses_text:
            self.text_tower = TextTower(text_tower, self.embed_dim)
        self.num_features = self.head.num_features
        self.embeddings = {"fused": self.num_features}
        self.num_groups = self.head.num_groups if classifier == "expert" else 1
        self.reset_classifier(num_classes)

    def prepare_text(self, captions: Captions, sample: SampleCaption | None = None) -> Tensor | None:
        """Caption features ``(B, M, D)``, or in training ``(B, E_t, M, D)``: a draw for each expert (Eq. 4)."""
        if not self.uses_text:
            return None
        if sample is None:
            return self.encode_text(captions)
        experts, modalities = range(self.head.num_semantic_experts), range(len(self.modalities))
        drawn = [[sample(row, m, e) for m in modalities] for row in range(len(captions)) for e in experts]
        return self.encode_text(drawn).unflatten(0, (len(captions), len(experts)))

    def encode_text(self, captions: Captions) -> Tensor:
        """Encode captions with the frozen text tower.

        Args:
            captions: For each of R rows and each modality, a caption: its sentences, one string, or None. Sentences
                are packed into as few 77-token windows as they need, and nothing is cut.

        Returns:
            Unit features ``(R, M, D)``; zero for an absent caption.

        Raises:
            ValueError: If the model has no text tower, or a row has another number of modalities.
        """
        if self.text_tower is None:
            raise ValueError(f"{type(self).__name__} was built without a text tower: it takes no captions as text")
        count = len(self.modalities)
        for i, row in enumerate(captions):
            if len(row) != count or isinstance(row, str):
                raise ValueError(
                    f"captions row {i} has {len(row)} entries, expected one per modality {self.modalities}"
                )
        windows = [self.text_tower.windows(caption) for row in captions for caption in row]
        return rearrange(self.text_tower.encode(windows), "(r m) d -> r m d", m=count)

    def forward_tokens(self, encoded: Features, text: Tensor | None = None, present: Tensor | None = None) -> Features:
        """Run the head on the towers' tokens; see the class for names and shapes."""
        return self.head(encoded["cls"], encoded["tokens"], text, present, return_parts=True)

    def pool(self, features: Features) -> Tensor:
        """Expert groups outermost, then modalities, then channels: ``(B, G*M*D)`` (Eq. 10)."""
        return features["groups"].flatten(1)

    def pool_heads(self, features: Features) -> tuple[tuple[Tensor, Tensor | None], ...]:
        """The embedding, or each expert group's part of it."""
        return tuple((part, None) for part in self.pool(features).chunk(self.num_groups, dim=1))

    @property
    def head_widths(self) -> tuple[int, ...]:
        """One width, or one for each expert group."""
        return (self.num_features // self.num_groups,) * self.num_groups


def _create_next(variant: str, pretrained: bool = False, **kwargs: Any) -> NEXT:
    return build_model_with_cfg(NEXT, variant, pretrained, **kwargs)


_CLIP_NOTE = "OpenAI's towers; the experts start untrained. Mean and std are 0.5, as in related methods, not CLIP's."

default_cfgs = generate_default_cfgs(
    {
        "next_clip_b16": PretrainedCfg(clip=("ViT-B-16-quickgelu", "openai"), notes=_CLIP_NOTE),
        "next_clip_b16_vehicle": PretrainedCfg(
            clip=("ViT-B-16-quickgelu", "openai"), input_size=(3, 128, 256), notes=_CLIP_NOTE
        ),
        "next_clip_l14": PretrainedCfg(
            clip=("ViT-L-14-quickgelu", "openai"), input_size=(3, 252, 126), notes=_CLIP_NOTE
        ),
        "next": PretrainedCfg(timm=True),
        "next_tiny.synthetic_persons": PretrainedCfg(
            input_size=(3, 64, 32), file=str(BUNDLED / "next_tiny.synthetic_persons")
        ),
    }
)


@register_model
def next_clip_b16(pretrained: bool = False, **kwargs: Any) -> NEXT:
    """NEXT on CLIP ViT-B/16, persons at 256x128 (the paper's model)."""
    return _create_next("next_clip_b16", pretrained, **kwargs)


@register_model
def next_clip_b16_vehicle(pretrained: bool = False, **kwargs: Any) -> NEXT:
    """NEXT on CLIP ViT-B/16, vehicles at 128x256."""
    return _create_next("next_clip_b16_vehicle", pretrained, **{"img_size": (128, 256), **kwargs})


@register_model
def next_clip_l14(pretrained: bool = False, **kwargs: Any) -> NEXT:
    """NEXT on CLIP ViT-L/14, persons at 252x126, the multiple of 14 next to 256x128."""
    args = {
        "image_tower": "vit_large_patch14_clip_quickgelu_224",
        "text_tower": "ViT-L-14-quickgelu",
        "img_size": (252, 126),
        "embed_dim": 768,
    }
    return _create_next("next_clip_l14", pretrained, **{**args, **kwargs})


@register_model
def next(pretrained: bool = False, **kwargs: Any) -> NEXT:
    """NEXT on any towers: ``image_tower=`` a timm name, ``text_tower=`` an open_clip name or None.

    ``pretrained=True`` fills the image tower from timm, in a model with ``text_tower=None``.
    """
    return _create_next("next", pretrained, **kwargs)


@register_model
def next_tiny(pretrained: bool = False, **kwargs: Any) -> NEXT:
    """NEXT on a four-layer tower at 64x32, small enough to train on two CPU cores in a minute.

    Unlike the paper's model it has residuals in the aggregation: without them (Eq. 11 verbatim) the class token only
    steers the attention, which a tower that starts without CLIP's weights does not make up for in a few epochs.
    """
    head = {"mlp_ratio": 2.0, "ffn_ratio": 2.0, "num_heads": 4, "mmfa_residual": True, **kwargs.pop("head", {})}
    return _create_next("next_tiny", pretrained, **{**TINY_IMAGE, "text_tower": TINY_TEXT, "head": head, **kwargs})
