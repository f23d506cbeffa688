"""The baseline that every result stands beside: three branches and no fusion (NEXT, Table 3, row A)."""

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
CLASSIFIERS = ("joint", "modality")


class Baseline(ReIDModel):
    """One token per modality, concatenated (NEXT, Table 3, row A). Captions are accepted and change nothing.

    ``forward_features`` gives ``cls (B, M, D)`` and ``tokens (B, M, N, D)`` and, where it is given, ``present (B, M)``.
    The embedding is ``(B, M*D)``, zero where a modality is absent.

    Args:
        image_tower: See `ImageTower`.
        img_size: Height and width in pixels.
        modalities: Names of the modalities, in the order of the images' axis M.
        embed_dim: Width D of the tokens.
        num_classes: Training identities; 0 gives embeddings.
        pool: The class ``"token"``, or the ``"avg"`` of the patch tokens.
        classifier: One ``"joint"`` classifier, or one per ``"modality"``, as networks of convolutions have (HAMNet,
            PFNet, IEEE); a sample has a part in those of the modalities that it has.
        share_image_tower: One image tower for all modalities, or one each.
        num_cameras: Cameras to learn an embedding for; 0 for none.
        drop_path: Stochastic depth rate of the image tower.
        image_tower_args: Further arguments of the timm model.

    Raises:
        ValueError: If ``pool`` or ``classifier`` is unknown.
    """

    def __init__(
        self,
        image_tower: str = "vit_base_patch16_clip_quickgelu_224",
        img_size: Sequence[int] = (256, 128),
        modalities: Sequence[str] = ("rgb", "nir", "tir"),
        embed_dim: int | None = 512,
        num_classes: int = 0,
        pool: str = "token",
        classifier: str = "joint",
        share_image_tower: bool = True,
        num_cameras: int = 0,
        drop_path: float = 0.0,
        image_tower_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(modalities)
        for name, value, allowed in (("pool", pool, POOLS), ("classifier", classifier, CLASSIFIERS)):
            if value not in allowed:
                raise ValueError(f"unknown {name} {value!r}; allowed: {', '.join(allowed)}")
        self.image_tower = ImageTowers(
            image_tower, img_size, modalities, embed_dim, share_image_tower, num_cameras, drop_path, image_tower_args
        )
        self.img_size, self.pooling = self.image_tower.img_size, pool
        self.embed_dim = self.modality_width = self.image_tower.embed_dim
        self.num_features = len(self.modalities) * self.embed_dim
        self.embeddings = {"fused": self.num_features}
        self.num_heads = len(self.modalities) if classifier == "modality" else 1
        self.reset_classifier(num_classes)

    def forward_tokens(self, encoded: Features, text: Tensor | None = None, present: Tensor | None = None) -> Features:
        """The tokens, zero where a modality is absent; ``text`` is not read."""
        if present is None:
            return encoded
        absent = {
            name: part.masked_fill(~present[(..., *[None] * (part.dim() - 2))], 0) for name, part in encoded.items()
        }
        return {**absent, "present": present}

    def pool(self, features: Features) -> Tensor:
        """One token per modality, ``(B, M*D)``."""
        pooled = features["cls"] if self.pooling == "token" else features["tokens"].mean(dim=2)
        return pooled.flatten(1)

    def pool_heads(self, features: Features) -> tuple[tuple[Tensor, Tensor | None], ...]:
        """The embedding, or each modality's part of it with the samples that have the modality."""
        vectors = self.pool(features).chunk(self.num_heads, dim=1)
        present = features.get("present")
        if len(vectors) == 1 or present is None:
            return tuple((vector, None) for vector in vectors)
        return tuple(zip(vectors, present.unbind(1), strict=True))

    @property
    def head_widths(self) -> tuple[int, ...]:
        """One width, or D for each modality."""
        return (self.num_features // self.num_heads,) * self.num_heads


def _create_baseline(variant: str, pretrained: bool = False, **kwargs: Any) -> Baseline:
    return build_model_with_cfg(Baseline, variant, pretrained, **kwargs)


default_cfgs = generate_default_cfgs(
    {
        "baseline": PretrainedCfg(timm=True),
        "baseline_clip_b16": PretrainedCfg(clip=("ViT-B-16-quickgelu", "openai")),
        "baseline_resnet50": PretrainedCfg(
            timm=True, mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), paper_ids=None
        ),
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
def baseline(pretrained: bool = False, **kwargs: Any) -> Baseline:
    """The baseline on any tower; ``image_tower=`` is a name of timm's or of ``nextreid.towers.KNOWN_TOWERS``."""
    return _create_baseline("baseline", pretrained, **{"image_tower": "vit_base_patch16_224", **kwargs})


@register_model
def baseline_resnet50(pretrained: bool = False, **kwargs: Any) -> Baseline:
    """Three ResNet-50s with a classifier each: what HAMNet, PFNet, IEEE and CCNet stand on.

    The last stage keeps its 16x8 places at 256x128, as usual in re-identification. The losses of HAMNet and IEEE are
    fields of the recipe: ``coherence_weight``, ``center_margin_weight``.
    """
    tower = {"image_tower": "resnet50", "image_tower_args": {"output_stride": 16}, "embed_dim": None}
    branches = {"classifier": "modality", "share_image_tower": False}
    return _create_baseline("baseline_resnet50", pretrained, **{**tower, **branches, **kwargs})


@register_model
def baseline_tiny(pretrained: bool = False, **kwargs: Any) -> Baseline:
    """The baseline of ``next_tiny``: the same tower, no experts."""
    return _create_baseline("baseline_tiny", pretrained, **{**TINY_IMAGE, **kwargs})
