"""NEXT: text-modulated semantic experts, structure experts and their aggregation (arXiv 2505.20001)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..layers import MMFA, SemanticSamplingExperts, StructureExperts
from ..layers.fused import fused_head, is_fusible
from ..layers.mmfa import AGGREGATIONS
from ..layers.neck import HEADS
from ..ops import get_backend
from ..towers import TextTower
from ._base import Captions, Features, ReIDModel
from ._builder import build_model_with_cfg
from ._pretrained import PretrainedCfg, generate_default_cfgs
from ._registry import register_model
from ._tiny import TINY_IMAGE, TINY_TEXT

MASKED_TOKENS = ("zero", "drop")


class NEXT(ReIDModel):
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
        modalities: Names of the modalities, in the order of the pictures' axis M.
        embed_dim: Width D of the joint space of pictures and text.
        num_classes: Training identities; 0 gives embeddings.
        num_semantic_experts: E_t (Fig. 4).
        num_structure_experts: E_c (Fig. 4).
        mlp_ratio: Hidden width of the experts as a multiple of D (Eq. 1).
        drop: Dropout of the experts (Eq. 1).
        semantic_routing: ``"specific"`` or ``"shared"`` (Table 4).
        sampling: ``"dynamic"``, ``"fixed"``, ``"topk"``, ``"all"`` (Table 8) or ``"random"``, their control.
        sampling_threshold: Threshold of ``"fixed"``.
        sampling_keep: Share that ``"topk"`` and ``"random"`` keep.
        modulation_scope: ``"position"`` or ``"map"``; see `TextModulation` (Eq. 6).
        text_modulation: Build the modulation; None builds it when there is a text tower.
        masked_tokens: Sampled-out tokens stay in the attention as ``"zero"`` tokens (Eq. 7) or ``"drop"`` out of it.
        structure_routing: ``"shared"`` or ``"specific"`` (Table 4).
        structure_grain: Routing weights per ``"token"`` or per ``"sample"`` (Eq. 8).
        structure_output: ``"sum"`` (Eq. 9), or ``"each"`` structure expert as a token set of its own.
        aggregation: ``"attention"`` (Eq. 11), ``"mean"``, or ``"concat"`` of the class tokens, without experts.
        num_heads: Heads of the aggregation.
        ffn_ratio: Hidden width of the aggregation's feed-forward network as a multiple of D.
        mmfa_residual: Residuals in the aggregation, which Eq. 11 does not write.
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
        sampling_keep: float = 0.5,
        modulation_scope: str = "position",
        text_modulation: bool | None = None,
        masked_tokens: str = "zero",
        structure_routing: str = "shared",
        structure_grain: str = "token",
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
        for name, value, allowed in (
            ("aggregation", aggregation, (*AGGREGATIONS, "concat")),
            ("head", head, HEADS),
            ("masked_tokens", masked_tokens, MASKED_TOKENS),
        ):
            if value not in allowed:
                raise ValueError(f"unknown {name} {value!r}; allowed: {', '.join(allowed)}")
        if aggregation == "concat" and (num_semantic_experts or num_structure_experts):
            raise ValueError(
                "aggregation='concat' joins the class tokens and reads no expert: set num_semantic_experts=0 and "
                "num_structure_experts=0, or aggregate by 'attention' or 'mean'"
            )
        dim, count = self.embed_dim, len(self.modalities)
        self.num_semantic_experts = num_semantic_experts
        self.masked_tokens = masked_tokens
        modulated = text_tower is not None if text_modulation is None else text_modulation
        self.semantic_experts = self.structure_experts = self.mmfa = None
        if num_semantic_experts:
            self.semantic_experts = SemanticSamplingExperts(
                dim,
                num_semantic_experts,
                num_modalities=count,
                mlp_ratio=mlp_ratio,
                drop=drop,
                routing=semantic_routing,
                sampling=sampling,
                threshold=sampling_threshold,
                keep=sampling_keep,
                text=modulated,
                modulation_scope=modulation_scope,
                num_tokens=self._image_towers()[0].num_tokens,
            )
        if text_tower is not None and self.uses_text:
            self.text_tower = TextTower(text_tower, dim)
        if num_structure_experts:
            self.structure_experts = StructureExperts(
                dim,
                num_structure_experts,
                num_modalities=count,
                mlp_ratio=mlp_ratio,
                drop=drop,
                routing=structure_routing,
                grain=structure_grain,
                output=structure_output,
            )
        # Without any expert the backbone's own tokens are the one token set (Table 3, row B).
        structure_sets = self.structure_experts.num_sets if self.structure_experts else int(not num_semantic_experts)
        if aggregation != "concat":
            self.mmfa = MMFA(
                dim, num_heads, ffn_ratio, mmfa_residual, aggregation, num_semantic_experts > 0, structure_sets > 0
            )
        groups = num_semantic_experts + structure_sets
        self.num_features = groups * count * dim
        self.num_groups = groups if head == "expert" else 1
        self.reset_classifier(num_classes)

    @property
    def uses_text(self) -> bool:
        """Whether captions change the embedding: there are semantic experts, modulated ones."""
        experts = self.semantic_experts
        return experts is not None and experts.experts[0].modulation is not None

    def forward_features(
        self,
        images: Tensor,
        text: Tensor | Captions | None = None,
        present: Tensor | None = None,
        camid: Tensor | None = None,
    ) -> Features:
        """Tokens, masks and routing weights by name; see the class for names and shapes, `forward` for arguments."""
        cls, tokens = self.encode_images(images, present, camid)
        features: Features = {"cls": cls, "tokens": tokens, "present": present}
        if self.semantic_experts is not None:
            sampled = self.semantic_experts(cls, tokens, self._text_features(text, tokens), present)
            parts = sampled._asdict()
            features |= {"semantic": parts.pop("tokens"), **parts}
        if self.structure_experts is not None:
            structure, weights = self.structure_experts(tokens, present)
            features |= {"structure": structure, "weights": weights}
        elif self.semantic_experts is None:
            features["structure"] = tokens.flatten(1, 2)[:, None]
        return features

    def _embed(
        self, images: Tensor, text: Tensor | Captions | None, present: Tensor | None, camid: Tensor | None
    ) -> tuple[Tensor, Features]:
        blocks = (self.semantic_experts, self.structure_experts, self.mmfa)
        if self.mmfa is None or get_backend() == "reference" or not is_fusible(*blocks):
            return super()._embed(images, text, present, camid)
        cls, tokens = self.encode_images(images, present, camid)
        head = fused_head(
            cls,
            tokens,
            self._text_features(text, tokens),
            present,
            semantic=self.semantic_experts,
            structure=self.structure_experts,
            mmfa=self.mmfa,
            drop_masked=self.masked_tokens == "drop",
        )
        return head.groups.flatten(1), {"cls": cls, "tokens": tokens, "present": present, **head.parts}

    def _text_features(self, text: Tensor | Captions | None, tokens: Tensor) -> Tensor | None:
        if text is None or not self.uses_text:
            return None
        if not isinstance(text, Tensor):
            text = self.encode_text(text)
        text = text.to(device=tokens.device)
        if text.dim() == 3:
            text = text[:, None].expand(-1, self.num_semantic_experts, -1, -1)
        if text.shape[0] != tokens.shape[0]:
            raise ValueError(f"captions for {text.shape[0]} samples were given with pictures of {tokens.shape[0]}")
        return text

    def _pool(self, features: Features) -> Tensor:
        if self.mmfa is None:
            return features["cls"].flatten(1)
        mask = None
        if self.masked_tokens == "drop" and "mask" in features:
            mask = features["mask"].detach().flatten(2) > 0
        return self.mmfa(
            features["cls"], features.get("semantic"), features.get("structure"), features["present"], mask
        )


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
        "next": PretrainedCfg(),
        "next_tiny": PretrainedCfg(input_size=(3, 64, 32)),
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
    """NEXT on any towers: ``image_tower=`` a timm name, ``text_tower=`` an open_clip name or None."""
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
