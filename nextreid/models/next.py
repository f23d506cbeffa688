"""NEXT: text-modulated semantic experts, structure experts and their aggregation (arXiv 2505.20001)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..layers.neck import HEADS
from ..layers.next_head import ExpertBranches, NEXTHead
from ..towers import TextTower
from ._base import Captions, Features, ReIDModel
from ._builder import build_model_with_cfg
from ._pretrained import BUNDLED, PretrainedCfg, generate_default_cfgs
from ._registry import register_model
from ._tiny import TINY_IMAGE, TINY_TEXT


class NEXT(ExpertBranches, ReIDModel):
    """Multi-grained mixture of experts via text modulation.

    ``forward_features`` gives a dict: ``cls (B, M, D)``, ``tokens (B, M, N, D)``, ``present (B, M)`` or None;
    with semantic experts ``semantic (B, E_t, M*N, D)``, ``mask``, ``gamma``, ``beta`` ``(B, E_t, M, N)`` and ``sigma``
    ``(B, E_t, M, 1)``; ``structure (B, S, M*N, D)`` and, with structure experts, ``weights (B, M*N, E_c)``.
    The embedding is ``(B, G*M*D)``: G = E_t + S expert groups (Eq. 10).

    Every row of the paper's tables is a set of arguments. Table 3: A ``num_semantic_experts=0,
    num_structure_experts=0, aggregation="concat"``, B ``num_semantic_experts=0, num_structure_experts=0``,
    C ``num_structure_experts=0``, D the defaults. Table 4: ``semantic_routing``, ``structure_routing``. Table 8:
    ``sampling``. Fig. 4: the numbers of experts.

    Args:
        image_tower: timm name; see `ImageTower`.
        text_tower: open_clip name or settings, see `TextTower`; None for a model that takes no captions as text.
        img_size: Height and width in pixels.
        modalities: Names of the modalities, in the order of the images' axis M.
        embed_dim: Width D of the joint space of images and text.
        num_classes: Training identities; 0 gives embeddings.
        num_semantic_experts: E_t (Fig. 4); for this and the arguments that are not listed here see `NEXTHead`.
        text_modulation: Build the modulation; None builds it when there is a text tower.
        head: One ``"joint"`` classifier, or one per ``"expert"`` group.
        share_image_tower: One image tower for all modalities, or one each.
        num_cameras: Cameras to learn an embedding for; 0 for none.
        drop_path: Stochastic depth rate of the image tower.
        image_tower_args: Further arguments of the timm model.

    Raises:
        ValueError: If a setting is unknown or two contradict each other.
    """

    def __init__(
        self,
        image_tower: str = "vit_base_patch16_clip_quickgelu_224",
        text_tower: str | dict[str, Any] | None = "ViT-B-16-quickgelu",
        img_size: Sequence[int] = (256, 128),
        modalities: Sequence[str] = ("rgb", "nir", "tir"),
        embed_dim: int | None = 512,
        num_classes: int = 0,
        num_semantic_experts: int = 3,
        num_structure_experts: int = 3,
        mlp_ratio: float = 4.0,
        drop: float = 0.1,
        semantic_routing: str = "specific",
        sampling: str = "dynamic",
        sampling_threshold: float = 0.0,
        sampling_keep_ratio: float = 0.5,
        modulation_scope: str = "position",
        text_modulation: bool | None = None,
        masked_tokens: str = "zero",
        structure_routing: str = "shared",
        structure_granularity: str = "token",
        structure_output: str = "sum",
        aggregation: str = "attention",
        num_heads: int = 8,
        ffn_ratio: float = 4.0,
        mmfa_residual: bool = False,
        head: str = "joint",
        share_image_tower: bool = True,
        num_cameras: int = 0,
        drop_path: float = 0.0,
        image_tower_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(
            image_tower, img_size, modalities, embed_dim, share_image_tower, num_cameras, drop_path, image_tower_args
        )
        if head not in HEADS:
            raise ValueError(f"unknown head {head!r}; allowed: {', '.join(HEADS)}")
        blocks = NEXTHead(
            self.embed_dim,
            len(self.modalities),
            self._image_towers()[0].num_tokens,
            num_semantic_experts=num_semantic_experts,
            num_structure_experts=num_structure_experts,
            mlp_ratio=mlp_ratio,
            drop=drop,
            semantic_routing=semantic_routing,
            sampling=sampling,
            sampling_threshold=sampling_threshold,
            sampling_keep_ratio=sampling_keep_ratio,
            modulation_scope=modulation_scope,
            text_modulation=text_tower is not None if text_modulation is None else text_modulation,
            masked_tokens=masked_tokens,
            structure_routing=structure_routing,
            structure_granularity=structure_granularity,
            structure_output=structure_output,
            aggregation=aggregation,
            num_heads=num_heads,
            ffn_ratio=ffn_ratio,
            mmfa_residual=mmfa_residual,
        )
        self.num_semantic_experts = num_semantic_experts
        self.masked_tokens = masked_tokens
        self.semantic_experts = blocks.semantic_experts
        if text_tower is not None and self.uses_text:
            self.text_tower = TextTower(text_tower, self.embed_dim)
        self.structure_experts, self.mmfa = blocks.structure_experts, blocks.mmfa
        self.num_features = blocks.num_features
        self.num_groups = blocks.num_groups if head == "expert" else 1
        self.reset_classifier(num_classes)

    def forward_features(
        self,
        images: Tensor,
        text: Tensor | Captions | None = None,
        present: Tensor | None = None,
        camid: Tensor | None = None,
    ) -> Features:
        """Tokens, masks and routing weights by name; see the class for names and shapes, `forward` for arguments."""
        cls, tokens = self.encode_images(images, present, camid)
        return self.run_branches(cls, tokens, self._encoded(text), present)

    def _embed(
        self, images: Tensor, text: Tensor | Captions | None, present: Tensor | None, camid: Tensor | None
    ) -> tuple[Tensor, Features]:
        cls, tokens = self.encode_images(images, present, camid)
        return self.embed_tokens(cls, tokens, self._encoded(text), present)

    def _encoded(self, text: Tensor | Captions | None) -> Tensor | None:
        if text is None or not self.uses_text:
            return None
        return text if isinstance(text, Tensor) else self.encode_text(text)

    def _pool(self, features: Features) -> Tensor:
        return self.aggregate(features)


def _create_next(variant: str, pretrained: bool = False, **kwargs: Any) -> NEXT:
    return build_model_with_cfg(NEXT, variant, pretrained, **kwargs)


_CLIP_NOTE = "OpenAI's towers; the experts start untrained. Mean and std are the peers' 0.5, not CLIP's own."

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

    Unlike the paper's model it has residuals in the aggregation: without them (Eq. 11 as written) the class token
    only steers the attention, which a tower that starts without CLIP's weights does not make up for in a few epochs.
    """
    args = {
        **TINY_IMAGE,
        "text_tower": TINY_TEXT,
        "mlp_ratio": 2.0,
        "ffn_ratio": 2.0,
        "num_heads": 4,
        "mmfa_residual": True,
    }
    return _create_next("next_tiny", pretrained, **{**args, **kwargs})
