"""The baseline that every NEXT result stands beside: a three-branch tower without experts (NEXT, Table 3, row A)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ..towers import ImageTowers
from ._base import Features, ReIDModel
from ._builder import build_model_with_cfg
from ._pretrained import BUNDLED, PretrainedCfg, generate_default_cfgs
from ._registry import register_model
from ._tiny import TINY_IMAGE

POOLS = ("token", "avg")


class Baseline(ReIDModel):
    """One token per modality, concatenated (NEXT, Table 3, row A). Captions are accepted and change nothing.

    ``forward_features`` gives ``cls (B, M, D)`` and ``tokens (B, M, N, D)``. The embedding is ``(B, M*D)``, zero where
    a modality is absent.

    Args:
        image_tower: timm name; see `ImageTower`.
        img_size: Height and width in pixels.
        modalities: Names of the modalities, in the order of the images' axis M.
        embed_dim: Width D of the tokens.
        num_classes: Training identities; 0 gives embeddings.
        pool: The class ``"token"``, or the ``"avg"`` of the patch tokens.
        share_image_tower: One image tower for all modalities, or one each.
        num_cameras: Cameras to learn an embedding for; 0 for none.
        drop_path: Stochastic depth rate of the image tower.
        image_tower_args: Further arguments of the timm model.

    Raises:
        ValueError: If ``pool`` is unknown.
    """

    def __init__(
        self,
        image_tower: str = "vit_base_patch16_clip_quickgelu_224",
        img_size: Sequence[int] = (256, 128),
        modalities: Sequence[str] = ("rgb", "nir", "tir"),
        embed_dim: int | None = 512,
        num_classes: int = 0,
        pool: str = "token",
        share_image_tower: bool = True,
        num_cameras: int = 0,
        drop_path: float = 0.0,
        image_tower_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(modalities)
        if pool not in POOLS:
            raise ValueError(f"unknown pool {pool!r}; allowed: {', '.join(POOLS)}")
        self.image_tower = ImageTowers(
            image_tower, img_size, modalities, embed_dim, share_image_tower, num_cameras, drop_path, image_tower_args
        )
        self.img_size, self.pooling = self.image_tower.img_size, pool
        self.embed_dim = self.modality_width = self.image_tower.embed_dim
        self.num_features = len(self.modalities) * self.embed_dim
        self.embeddings = {"fused": self.num_features}
        self.reset_classifier(num_classes)

    def encode_images(self, images: Tensor, present: Tensor | None = None, camid: Tensor | None = None) -> Features:
        """Class tokens ``cls (B, M, D)`` and patch tokens ``tokens (B, M, N, D)``."""
        cls, tokens = self.image_tower(images, present, camid)
        return {"cls": cls, "tokens": tokens}

    def forward_tokens(self, encoded: Features, text: Tensor | None = None, present: Tensor | None = None) -> Features:
        """The tokens, zero where a modality is absent; ``text`` is not read."""
        if present is None:
            return encoded
        return {
            name: part.masked_fill(~present[(..., *[None] * (part.dim() - 2))], 0) for name, part in encoded.items()
        }

    def pool(self, features: Features) -> Tensor:
        """One token per modality, ``(B, M*D)``."""
        pooled = features["cls"] if self.pooling == "token" else features["tokens"].mean(dim=2)
        return pooled.flatten(1)


def _create_baseline(variant: str, pretrained: bool = False, **kwargs: Any) -> Baseline:
    return build_model_with_cfg(Baseline, variant, pretrained, **kwargs)


default_cfgs = generate_default_cfgs(
    {
        "baseline_clip_b16": PretrainedCfg(clip=("ViT-B-16-quickgelu", "openai")),
        "baseline_tiny.synthetic_persons": PretrainedCfg(
            input_size=(3, 64, 32), file=str(BUNDLED / "baseline_tiny.synthetic_persons")
        ),
    }
)


@register_model
def baseline_clip_b16(pretrained: bool = False, **kwargs: Any) -> Baseline:
    """The baseline on CLIP ViT-B/16 at 256x128; ``img_size=(128, 256)`` for vehicles."""
    return _create_baseline("baseline_clip_b16", pretrained, **kwargs)


@register_model
def baseline_tiny(pretrained: bool = False, **kwargs: Any) -> Baseline:
    """The baseline of ``next_tiny``: the same tower, no experts."""
    return _create_baseline("baseline_tiny", pretrained, **{**TINY_IMAGE, **kwargs})
