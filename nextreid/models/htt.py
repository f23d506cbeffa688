"""HTT: heterogeneous test-time training for multi-modal person re-identification (Wang et al., AAAI 2024)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..losses import identity_margin, modality_margin
from ..towers import ImageTowers
from ._base import Features, ReIDModel
from ._builder import build_model_with_cfg
from ._pretrained import PretrainedCfg, generate_default_cfgs
from ._registry import register_model
from ._tiny import TINY_IMAGE


class HTT(ReIDModel):
    """The class tokens of one shared tower side by side, and margins between modalities and between identities.

    The embedding is ``(B, M*D)``, zero where a modality is absent, with one neck and classifier. In training come
    `modality_margin` and `identity_margin` of the class tokens. The paper scores the vector behind the neck
    (``EmbedOptions(after_neck=True)``) of a model that was trained on at test: ``nextreid eval --adapt htt``, which
    works with other methods too. Captions are accepted and change nothing.

    ``forward_features`` gives ``cls (B, M, D)``, ``tokens (B, M, N, D)`` and, where it is given, ``present (B, M)``.

    Args:
        image_tower: timm name; see `ImageTower`.
        img_size: Height and width in pixels.
        modalities: Names of the modalities, in the order of the images' axis M.
        embed_dim: Width D of the tokens; None for the tower's, without a projection.
        num_classes: Training identities; 0 gives embeddings.
        share_image_tower: One tower for all modalities, as the authors, or one each.
        num_cameras: Cameras to learn an embedding for; 0 for none, as the authors.
        drop_path: Stochastic depth rate.
        image_tower_args: Further arguments of the timm model.
        modality_weight: Weight of `modality_margin`.
        modality_distance: Its margin.
        identity_weight: Weight of `identity_margin`.
        identity_distance: Its margin.
    """

    loss_parts = ("cls", "present")

    def __init__(
        self,
        image_tower: str = "vit_base_patch16_224",
        img_size: Sequence[int] = (256, 128),
        modalities: Sequence[str] = ("rgb", "nir", "tir"),
        embed_dim: int | None = None,
        num_classes: int = 0,
        share_image_tower: bool = True,
        num_cameras: int = 0,
        drop_path: float = 0.1,
        image_tower_args: dict[str, Any] | None = None,
        modality_weight: float = 0.5,
        modality_distance: float = 1.0,
        identity_weight: float = 0.5,
        identity_distance: float = 0.5,
    ) -> None:
        super().__init__(modalities)
        self.image_tower = ImageTowers(
            image_tower, img_size, modalities, embed_dim, share_image_tower, num_cameras, drop_path, image_tower_args
        )
        self.img_size = self.image_tower.img_size
        self.embed_dim = self.modality_width = self.image_tower.embed_dim
        self.modality_weight, self.modality_distance = modality_weight, modality_distance
        self.identity_weight, self.identity_distance = identity_weight, identity_distance
        self.num_features = len(self.modalities) * self.embed_dim
        self.embeddings = {"fused": self.num_features}
        self.reset_classifier(num_classes)

    def forward_tokens(self, encoded: Features, text: Tensor | None = None, present: Tensor | None = None) -> Features:
        """The tokens, class tokens zero where a modality is absent; ``text`` is not read."""
        if present is None:
            return encoded
        return {**encoded, "cls": encoded["cls"].masked_fill(~present[..., None], 0), "present": present}

    def pool(self, features: Features) -> Tensor:
        """The class tokens side by side, ``(B, M*D)``."""
        return features["cls"].flatten(1)

    def identity_losses(self, features: Features, pid: Tensor) -> dict[str, Tensor]:
        """Margins between the modalities of an identity and between identities; weighted."""
        cls, present = features["cls"], features.get("present")
        return {
            "modality_margin": self.modality_weight * modality_margin(cls, pid, self.modality_distance, present),
            "identity_margin": self.identity_weight * identity_margin(cls, pid, self.identity_distance, present),
        }


default_cfgs = generate_default_cfgs(
    {
        "htt_vit_b16": PretrainedCfg(timm=True),
        "htt_vit_b16_vehicle": PretrainedCfg(timm=True, input_size=(3, 128, 256)),
        "htt_tiny": PretrainedCfg(input_size=(3, 64, 32)),
    }
)


@register_model
def htt_vit_b16(pretrained: bool = False, **kwargs: Any) -> HTT:
    """HTT on one ViT-B/16, persons at 256x128; it starts from timm's ImageNet weights with ``pretrained=True``."""
    return build_model_with_cfg(HTT, "htt_vit_b16", pretrained, **kwargs)


@register_model
def htt_vit_b16_vehicle(pretrained: bool = False, **kwargs: Any) -> HTT:
    """HTT on one ViT-B/16, vehicles at 128x256."""
    return build_model_with_cfg(HTT, "htt_vit_b16_vehicle", pretrained, **{"img_size": (128, 256), **kwargs})


@register_model
def htt_tiny(pretrained: bool = False, **kwargs: Any) -> HTT:
    """HTT on a four-layer tower at 64x32, whose margins weigh less: the tower was not trained before."""
    args = {**TINY_IMAGE, "drop_path": 0.0, "modality_weight": 0.05, "identity_weight": 0.05}
    return build_model_with_cfg(HTT, "htt_tiny", pretrained, **{**args, **kwargs})
