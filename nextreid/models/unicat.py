"""UniCat: one tower and one classifier per modality, trained apart, joined at test only (arXiv 2310.18812)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..towers import ImageTowers
from ._base import Features, ReIDModel
from ._builder import build_model_with_cfg
from ._pretrained import PretrainedCfg, generate_default_cfgs
from ._registry import register_model
from ._tiny import TINY_IMAGE


class UniCat(ReIDModel):
    """Unimodal concatenation (Crawford et al., 2023): late fusion without any fusion in training.

    Each modality has a tower, a neck and a classifier of its own, with identity and triplet loss on its class token; a
    sample takes part in those of the modalities that it has. The embedding is the class tokens side by side,
    ``(B, M*D)``, zero where a modality is absent. Captions are accepted and change nothing.

    ``forward_features`` gives ``cls (B, M, D)``, ``tokens (B, M, N, D)`` and, where it is given, ``present (B, M)``.

    Args:
        image_tower: timm name; see `ImageTower`.
        img_size: Height and width in pixels.
        modalities: Names of the modalities, in the order of the images' axis M.
        embed_dim: Width D of the tokens; None for the tower's, without a projection.
        num_classes: Training identities; 0 gives embeddings.
        share_image_tower: One tower for all modalities instead of one each.
        num_cameras: Cameras to learn an embedding for; 0 for none.
        drop_path: Stochastic depth rate.
        image_tower_args: Further arguments of the timm model.
    """

    def __init__(
        self,
        image_tower: str = "vit_base_patch16_224",
        img_size: Sequence[int] = (256, 128),
        modalities: Sequence[str] = ("rgb", "nir", "tir"),
        embed_dim: int | None = None,
        num_classes: int = 0,
        share_image_tower: bool = False,
        num_cameras: int = 0,
        drop_path: float = 0.0,
        image_tower_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(modalities)
        self.image_tower = ImageTowers(
            image_tower, img_size, modalities, embed_dim, share_image_tower, num_cameras, drop_path, image_tower_args
        )
        self.img_size = self.image_tower.img_size
        self.embed_dim = self.modality_width = self.image_tower.embed_dim
        self.num_features = len(self.modalities) * self.embed_dim
        self.embeddings = {"fused": self.num_features}
        self.reset_classifier(num_classes)

    def forward_tokens(self, encoded: Features, text: Tensor | None = None, present: Tensor | None = None) -> Features:
        """The tokens, class tokens zero where a modality is absent."""
        if present is None:
            return encoded
        return {**encoded, "cls": encoded["cls"].masked_fill(~present[..., None], 0), "present": present}

    def pool(self, features: Features) -> Tensor:
        """The class tokens side by side, ``(B, M*D)``."""
        return features["cls"].flatten(1)

    def pool_heads(self, features: Features) -> tuple[tuple[Tensor, Tensor | None], ...]:
        """Each modality's class token, and the samples that have the modality."""
        cls, present = features["cls"], features.get("present")
        return tuple((cls[:, m], None if present is None else present[:, m]) for m in range(cls.shape[1]))

    @property
    def head_widths(self) -> tuple[int, ...]:
        """D for each modality."""
        return (self.embed_dim,) * len(self.modalities)


default_cfgs = generate_default_cfgs(
    {
        "unicat_vit_b16": PretrainedCfg(timm=True, paper_ids="arXiv:2310.18812"),
        "unicat_tiny": PretrainedCfg(input_size=(3, 64, 32), paper_ids="arXiv:2310.18812"),
    }
)


@register_model
def unicat_vit_b16(pretrained: bool = False, **kwargs: Any) -> UniCat:
    """UniCat on three ViT-B/16 at 256x128, which start from timm's ImageNet weights with ``pretrained=True``."""
    return build_model_with_cfg(UniCat, "unicat_vit_b16", pretrained, **kwargs)


@register_model
def unicat_tiny(pretrained: bool = False, **kwargs: Any) -> UniCat:
    """UniCat on three four-layer towers at 64x32, small enough to train on two CPU cores in a minute."""
    return build_model_with_cfg(UniCat, "unicat_tiny", pretrained, **{**TINY_IMAGE, **kwargs})
