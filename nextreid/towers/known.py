"""The towers that people ask for by name: what timm and open_clip call them, and what an image must look like."""

from typing import NamedTuple

Triple = tuple[float, float, float]
_IMAGENET: tuple[Triple, Triple] = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_OPENAI: tuple[Triple, Triple] = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
_HALF: tuple[Triple, Triple] = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)


class KnownTower(NamedTuple):
    """One row of the table.

    Attributes:
        image: timm name of the image tower.
        stride: Side in pixels of what a token stands for.
        registers: Register tokens, which no method reads.
        pool: Where the class token comes from: its own ``"token"``, attention pooling (``"map"``), or the network's
            ``"head"``, a mean and a norm.
        normalisation: Mean and standard deviation of each channel that the weights expect.
        license: Of the weights, as timm names it.
        text: open_clip name of the text tower that shares a space with it; None where there is none.
        tag: open_clip's tag of the weights of both.
        embed_dim: Width D of the shared space behind the projection; None where the tower has no projection.
    """

    image: str
    stride: int
    registers: int
    pool: str
    normalisation: tuple[Triple, Triple]
    license: str
    text: str | None = None
    tag: str | None = None
    embed_dim: int | None = None

    @property
    def img_size(self) -> tuple[int, int]:
        """The size next to 256x128 that the tower takes."""
        return round(256 / self.stride) * self.stride, round(128 / self.stride) * self.stride


KNOWN_TOWERS: dict[str, KnownTower] = {
    "clip_vitb16": KnownTower(
        "vit_base_patch16_clip_quickgelu_224", 16, 0, "token", _OPENAI, "mit", "ViT-B-16-quickgelu", "openai", 512
    ),
    "clip_vitl14": KnownTower(
        "vit_large_patch14_clip_quickgelu_224", 14, 0, "token", _OPENAI, "mit", "ViT-L-14-quickgelu", "openai", 768
    ),
    "siglip2_vitb16": KnownTower(
        "vit_base_patch16_siglip_256", 16, 0, "map", _HALF, "apache-2.0", "ViT-B-16-SigLIP2-256", "webli"
    ),
    "siglip2_vitl16": KnownTower(
        "vit_large_patch16_siglip_256", 16, 0, "map", _HALF, "apache-2.0", "ViT-L-16-SigLIP2-256", "webli"
    ),
    "pe_core_vitb16": KnownTower(
        "vit_pe_core_base_patch16_224", 16, 0, "map", _HALF, "apache-2.0", "PE-Core-B-16", "meta", 1024
    ),
    "pe_core_vitl14": KnownTower(
        "vit_pe_core_large_patch14_336", 14, 0, "map", _HALF, "apache-2.0", "PE-Core-L-14-336", "meta", 1024
    ),
    "eva02_clip_vitb16": KnownTower(
        "eva02_base_patch16_clip_224", 16, 0, "token", _OPENAI, "mit", "EVA02-B-16", "merged2b_s8b_b131k", 512
    ),
    "eva02_clip_vitl14": KnownTower(
        "eva02_large_patch14_clip_224", 14, 0, "token", _OPENAI, "mit", "EVA02-L-14", "merged2b_s4b_b131k", 768
    ),
    "eva02_vitb14": KnownTower("eva02_base_patch14_224", 14, 0, "token", _OPENAI, "mit"),
    "eva02_vitl14": KnownTower("eva02_large_patch14_224", 14, 0, "token", _OPENAI, "mit"),
    "dinov3_vits16": KnownTower("vit_small_patch16_dinov3", 16, 4, "token", _IMAGENET, "dinov3-license"),
    "dinov3_vitb16": KnownTower("vit_base_patch16_dinov3", 16, 4, "token", _IMAGENET, "dinov3-license"),
    "dinov3_vitl16": KnownTower("vit_large_patch16_dinov3", 16, 4, "token", _IMAGENET, "dinov3-license"),
    "sapiens2_vitb16": KnownTower("vit_base_patch16_sapiens2", 16, 8, "token", _IMAGENET, "sapiens2-license"),
    "sapiens2_vitl16": KnownTower("vit_large_patch16_sapiens2", 16, 8, "token", _IMAGENET, "sapiens2-license"),
    "resnet50": KnownTower("resnet50", 32, 0, "head", _IMAGENET, "apache-2.0"),
    "convnext_base": KnownTower("convnext_base", 32, 0, "head", _IMAGENET, "apache-2.0"),
    "swin_base": KnownTower("swin_base_patch4_window7_224", 32, 0, "head", _IMAGENET, "mit"),
}
"""Towers by the names that ``image_tower=`` takes besides timm's; open_clip fills those with a text tower, timm the
others."""
