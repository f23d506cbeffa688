"""ProxyTTT without its test-time training: proxies of identities for each modality and for all (AAAI 2026)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from ..losses import ProxyLoss
from ..towers import ImageTowers
from ._base import Features, ReIDModel
from ._builder import build_model_with_cfg
from ._pretrained import PretrainedCfg, generate_default_cfgs
from ._registry import register_model
from ._tiny import TINY_IMAGE


class ProxyTTT(ReIDModel):
    """The class tokens of one shared CLIP side by side, before CLIP's projection, learned with proxies of identities.

    The embedding is ``(B, M*W)``, zero where a modality is absent. In training come a `ProxyLoss` with one proxy for
    each modality's class token, and one with ``num_proxies`` for a projection of them all; a loss that keeps the
    modalities' proxies apart is left out, since the published code of it cannot run. The test-time training is an
    option of the evaluation, for every method: ``nextreid eval --adapt proxyttt``. Captions change nothing.

    ``forward_features`` gives ``cls (B, M, W)``, ``tokens (B, M, N, W)`` and, where it is given, ``present (B, M)``.

    Args:
        image_tower: timm name; see `ImageTower`.
        img_size: Height and width in pixels.
        modalities: Names of the modalities, in the order of the images' axis M.
        embed_dim: Width of the tokens after a projection; None, as the authors, for the tower's W without one.
        num_classes: Training identities; 0 gives embeddings.
        direct: One head on all class tokens (the authors on RGBNT201), or also one for each modality.
        share_image_tower: One tower for all modalities, as the authors, or one each.
        num_cameras: Cameras to learn an embedding for; 0 for none, as the authors.
        drop_path: Stochastic depth rate.
        image_tower_args: Further arguments of the timm model.
        num_proxies: Proxies of an identity for all modalities.
        proxy_weight: Weight of the proxy losses.
    """

    loss_parts = ("cls", "present")
    of_identities = ("necks", "proxies")

    def __init__(
        self,
        image_tower: str = "vit_base_patch16_clip_quickgelu_224",
        img_size: Sequence[int] = (256, 128),
        modalities: Sequence[str] = ("rgb", "nir", "tir"),
        embed_dim: int | None = None,
        num_classes: int = 0,
        direct: bool = True,
        share_image_tower: bool = True,
        num_cameras: int = 0,
        drop_path: float = 0.0,
        image_tower_args: dict[str, Any] | None = None,
        num_proxies: int = 3,
        proxy_weight: float = 1.0,
    ) -> None:
        super().__init__(modalities)
        self.image_tower = ImageTowers(
            image_tower, img_size, modalities, embed_dim, share_image_tower, num_cameras, drop_path, image_tower_args
        )
        self.img_size = self.image_tower.img_size
        self.embed_dim = self.modality_width = self.image_tower.embed_dim
        self.direct, self.num_proxies, self.proxy_weight = direct, num_proxies, proxy_weight
        self.num_features = len(self.modalities) * self.embed_dim
        self.embeddings = {"fused": self.num_features}
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace necks and proxies by fresh ones for ``num_classes`` identities; 0 removes them."""
        super().reset_classifier(num_classes)
        proxies = nn.ModuleDict()
        if num_classes:
            proxies["join"] = nn.Linear(self.num_features, self.embed_dim)
            proxies["all"] = ProxyLoss(self.embed_dim, num_classes, self.num_proxies)
            proxies["each"] = nn.ModuleList(ProxyLoss(self.embed_dim, num_classes) for _ in self.modalities)
        reference = next(self.image_tower.parameters())
        self.proxies = proxies.to(device=reference.device, dtype=reference.dtype).train(self.training)

    def encode_images(self, images: Tensor, present: Tensor | None = None, camid: Tensor | None = None) -> Features:
        """Class tokens ``cls (B, M, W)`` and patch tokens ``tokens (B, M, N, W)``."""
        cls, tokens = self.image_tower(images, present, camid)
        return {"cls": cls, "tokens": tokens}

    def forward_tokens(self, encoded: Features, text: Tensor | None = None, present: Tensor | None = None) -> Features:
        """The tokens, class tokens zero where a modality is absent; ``text`` is not read."""
        if present is None:
            return encoded
        return {**encoded, "cls": encoded["cls"].masked_fill(~present[..., None], 0), "present": present}

    def pool(self, features: Features) -> Tensor:
        """The class tokens side by side, ``(B, M*W)``."""
        return features["cls"].flatten(1)

    def pool_heads(self, features: Features) -> tuple[tuple[Tensor, Tensor | None], ...]:
        """The embedding, and unless ``direct`` each modality's class token."""
        each = () if self.direct else enumerate(self._rows(features))
        return ((self.pool(features), None), *((features["cls"][:, m], rows) for m, rows in each))

    @property
    def head_widths(self) -> tuple[int, ...]:
        """M*W, and unless ``direct`` W for each modality."""
        return (self.num_features, *(() if self.direct else (self.embed_dim,) * len(self.modalities)))

    def identity_losses(self, features: Features, pid: Tensor) -> dict[str, Tensor]:
        """Proxies of all modalities and of each; weighted."""
        cls, each = features["cls"], self.proxies["each"]
        cls = cls.to(next(each.parameters()).dtype)
        single = [each.get_submodule(str(m))(cls[:, m], pid, rows) for m, rows in enumerate(self._rows(features))]
        joint = self.proxies["all"](self.proxies["join"](cls.flatten(1)), pid)
        return {"proxies": self.proxy_weight * (joint + sum(single))}

    def after_step(self, features: Features, pid: Tensor) -> None:
        """Move the proxies towards the batch."""
        cls, each = features["cls"], self.proxies["each"]
        cls = cls.to(next(each.parameters()).dtype)
        joint: Any = self.proxies["all"]
        joint.follow(self.proxies["join"](cls.flatten(1)).detach(), pid)
        for m, rows in enumerate(self._rows(features)):
            single: Any = each.get_submodule(str(m))
            single.follow(cls[:, m], pid, rows=rows)

    def _rows(self, features: Features) -> list[Tensor | None]:
        """For each modality the rows that have it; None for all."""
        present = features.get("present")
        return [None if present is None else present[:, m] for m in range(len(self.modalities))]


default_cfgs = generate_default_cfgs(
    {
        "proxyttt_clip_b16": PretrainedCfg(clip=("ViT-B-16-quickgelu", "openai")),
        "proxyttt_clip_b16_vehicle": PretrainedCfg(clip=("ViT-B-16-quickgelu", "openai"), input_size=(3, 128, 256)),
        "proxyttt_tiny": PretrainedCfg(input_size=(3, 64, 32)),
    }
)


@register_model
def proxyttt_clip_b16(pretrained: bool = False, **kwargs: Any) -> ProxyTTT:
    """ProxyTTT on CLIP ViT-B/16, persons at 256x128, before any training at test."""
    return build_model_with_cfg(ProxyTTT, "proxyttt_clip_b16", pretrained, **kwargs)


@register_model
def proxyttt_clip_b16_vehicle(pretrained: bool = False, **kwargs: Any) -> ProxyTTT:
    """ProxyTTT on CLIP ViT-B/16, vehicles at 128x256: a head for each modality too."""
    args = {"img_size": (128, 256), "direct": False}
    return build_model_with_cfg(ProxyTTT, "proxyttt_clip_b16_vehicle", pretrained, **{**args, **kwargs})


@register_model
def proxyttt_tiny(pretrained: bool = False, **kwargs: Any) -> ProxyTTT:
    """ProxyTTT on a four-layer tower at 64x32, small enough to train on two CPU cores in a minute."""
    return build_model_with_cfg(ProxyTTT, "proxyttt_tiny", pretrained, **{**TINY_IMAGE, **kwargs})
