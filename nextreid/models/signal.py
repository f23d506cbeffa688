"""Signal: selected patches that interact, modalities aligned as wholes and patch by patch (AAAI 2026)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._schema import choice
from ..layers import ModalityAlignment, SelectiveInteraction
from ..towers import ImageTowers
from ._authors import Authors, Rule, State, clip_tower_rules, neck_rules, register_authors
from ._base import Features, ReIDModel
from ._builder import build_model_with_cfg
from ._pretrained import PretrainedCfg, generate_default_cfgs
from ._registry import register_model
from ._tiny import TINY_IMAGE

CLASSIFIERS = ("joint", "modality")


class Signal(ReIDModel):
    """Selection-based interaction and global-local alignment (Liu et al., AAAI 2026).

    The embedding is ``[ori ; fused]``: the class tokens of a shared tower, and what `SelectiveInteraction` makes of
    them, each zero where a modality is absent. Captions are accepted and change nothing.

    ``forward_features`` gives ``cls (B, M, D)``, ``tokens (B, M, N, D)``, ``ori (B, M*D)``, ``fused (B, M*D)`` and,
    where it is given, ``present (B, M)``.

    Losses: identity and triplet on each head; ``volume`` and ``patch``, see `ModalityAlignment`.

    Args:
        image_tower: timm name; see `ImageTower`.
        img_size: Height and width in pixels.
        modalities: Names of the modalities, in the order of the images' axis M.
        embed_dim: Width D of the tokens.
        num_classes: Training identities; 0 gives embeddings.
        classifier: What is classified beside ``fused``: ``ori`` as a ``"joint"`` vector (the authors on RGBNT201), or
            each ``"modality"``'s class token (the authors on vehicles).
        keep: Patches that a class token keeps of one modality (the authors: 80 of 128 on RGBNT201, 64 on MSVR310, 112
            on RGBNT100).
        num_heads: Heads of the interaction's attention.
        volume_weight: Weight of the loss ``volume`` (the authors: 0.2, and 0.1 on RGBNT100).
        patch_weight: Weight of the loss ``patch`` (the authors: 0.2, 0.01 on MSVR310, 0.1 on RGBNT100).
        share_image_tower: One tower for all modalities, or one each.
        num_cameras: Cameras to learn an embedding for; 0 for none.
        drop_path: Stochastic depth rate.
        image_tower_args: Further arguments of the timm model.
    """

    def __init__(
        self,
        image_tower: str = "vit_base_patch16_clip_quickgelu_224",
        img_size: Sequence[int] = (256, 128),
        modalities: Sequence[str] = ("rgb", "nir", "tir"),
        embed_dim: int | None = 512,
        num_classes: int = 0,
        classifier: str = "joint",
        keep: int = 80,
        num_heads: int = 8,
        volume_weight: float = 0.2,
        patch_weight: float = 0.2,
        share_image_tower: bool = True,
        num_cameras: int = 0,
        drop_path: float = 0.0,
        image_tower_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(modalities)
        self.classifier = choice(*CLASSIFIERS)("classifier", classifier)
        self.image_tower = ImageTowers(
            image_tower, img_size, modalities, embed_dim, share_image_tower, num_cameras, drop_path, image_tower_args
        )
        self.img_size = self.image_tower.img_size
        self.embed_dim = self.modality_width = self.image_tower.embed_dim
        count = len(self.modalities)
        self.interaction = SelectiveInteraction(self.embed_dim, count, keep, num_heads)
        self.alignment = ModalityAlignment(self.embed_dim, self.image_tower.grid_size, count)
        self.volume_weight, self.patch_weight = volume_weight, patch_weight
        self.num_features = 2 * count * self.embed_dim
        self.embeddings = {"all": self.num_features, "ori": count * self.embed_dim, "fused": count * self.embed_dim}
        self.reset_classifier(num_classes)

    def forward_tokens(self, encoded: Features, text: Tensor | None = None, present: Tensor | None = None) -> Features:
        """Class tokens as they are and behind the interaction; ``text`` is not read."""
        cls, tokens, parts = encoded["cls"], encoded["tokens"], {}
        if present is not None:
            cls, tokens = cls.masked_fill(~present[..., None], 0), tokens.masked_fill(~present[..., None, None], 0)
            parts = {"present": present}
        fused = self.interaction(cls, tokens, present)
        return {"cls": cls, "tokens": tokens, "ori": cls.flatten(1), "fused": fused.flatten(1), **parts}

    def pool(self, features: Features) -> Tensor:
        """``[ori ; fused]``."""
        return torch.cat([features["ori"], features["fused"]], dim=1)

    def pool_heads(self, features: Features) -> tuple[tuple[Tensor, Tensor | None], ...]:
        """``fused``, and ``ori`` or each modality's class token, with the samples that have the modality."""
        if self.classifier == "joint":
            return (features["fused"], None), (features["ori"], None)
        cls, present = features["cls"], features.get("present")
        rows = [None if present is None else present[:, m] for m in range(len(self.modalities))]
        return (features["fused"], None), *((cls[:, m], row) for m, row in enumerate(rows))

    @property
    def head_widths(self) -> tuple[int, ...]:
        """That of ``fused``, and that of ``ori``, whole or for each modality."""
        whole = self.embeddings["fused"]
        return (whole, *((whole,) if self.classifier == "joint" else (self.embed_dim,) * len(self.modalities)))

    def own_losses(self, features: Features) -> dict[str, Tensor]:
        """How far the modalities of a sample are from each other, as wholes and patch by patch."""
        tokens, present = features["tokens"], features.get("present")
        return {
            "volume": self.volume_weight * self.alignment.volume_loss(tokens, present),
            "patch": self.patch_weight * self.alignment.patch_loss(tokens, present),
        }


def _arguments(state: State) -> dict[str, Any]:
    return {
        "num_classes": len(state["classifier_var.weight"]),
        "num_cameras": len(state.get("clip_vision_encoder.cv_embed", ())),
        "classifier": "joint" if "classifier.weight" in state else "modality",
    }


_SELECTION, _ATTENTION = r"SIM\.token_selection", r"SIM\.modal_interactive"
register_authors(
    "signal",
    Authors(
        title="Signal",
        repository="010129/Signal",
        license="MIT",
        model="signal_clip_b16",
        arguments=_arguments,
        rules=[
            *clip_tower_rules("clip_vision_encoder.base."),
            Rule(r"clip_vision_encoder\.cv_embed", "image_tower.0.camera", "reshape"),
            Rule(rf"{_SELECTION}\.W_q\.(weight|bias)", r"interaction.q_\1"),
            Rule(rf"{_SELECTION}\.W_k\.weight", "interaction.k_weight"),
            Rule(
                rf"{_ATTENTION}\.cross_attn\.in_proj_weight",
                ("interaction.attention.q.weight", "interaction.attention.k_weight", "interaction.attention.v_weight"),
            ),
            # A bias of keys cancels in the softmax.
            Rule(
                rf"{_ATTENTION}\.cross_attn\.in_proj_bias",
                ("interaction.attention.q.bias", "", "interaction.attention.v_bias"),
            ),
            Rule(rf"{_ATTENTION}\.cross_attn\.out_proj\.(.*)", r"interaction.attention.proj.\1"),
            Rule(rf"{_ATTENTION}\.((?:ffn|norm1|norm2)\..*)", r"interaction.\1"),
            Rule(r"AlignM\.contra_temp", "alignment.temperature"),
            *(
                rule
                for m, x in enumerate("rnt")
                for rule in (
                    Rule(rf"AlignM\.DAS_{x}\.conv_offset\.(.*)", rf"alignment.samplers.{m}.offset.\1"),
                    Rule(rf"AlignM\.DAS_{x}\.proj_q\.(.*)", rf"alignment.samplers.{m}.proj.\1"),
                    *neck_rules(f"bottleneck_{x}", f"classifier_{x}", f"necks.{m + 1}"),
                )
            ),
            *neck_rules("bottleneck_var", "classifier_var", "necks.0"),
            *neck_rules("bottleneck", "classifier", "necks.1"),
        ],
        dropped={
            rf"{_SELECTION}\.W_v\.(weight|bias)": "a projection that is never used",
            rf"{_SELECTION}\.W_k\.bias": "a bias that changes no choice",
        },
    ),
)

_CLIP = ("ViT-B-16-quickgelu", "openai")
default_cfgs = generate_default_cfgs(
    {
        "signal_clip_b16": PretrainedCfg(clip=_CLIP, paper_ids=None),
        "signal_clip_b16_vehicle": PretrainedCfg(clip=_CLIP, input_size=(3, 128, 256), paper_ids=None),
        "signal_tiny": PretrainedCfg(input_size=(3, 64, 32), paper_ids=None),
    }
)


@register_model
def signal_clip_b16(pretrained: bool = False, **kwargs: Any) -> Signal:
    """Signal on CLIP ViT-B/16, persons at 256x128 (the authors' model for RGBNT201)."""
    return build_model_with_cfg(Signal, "signal_clip_b16", pretrained, **kwargs)


@register_model
def signal_clip_b16_vehicle(pretrained: bool = False, **kwargs: Any) -> Signal:
    """Signal on CLIP ViT-B/16, vehicles at 128x256 (the authors' model for MSVR310).

    Their model for RGBNT100 has ``keep=112``, ``volume_weight=0.1`` and ``patch_weight=0.1``.
    """
    args = {"img_size": (128, 256), "classifier": "modality", "keep": 64, "patch_weight": 0.01}
    return build_model_with_cfg(Signal, "signal_clip_b16_vehicle", pretrained, **{**args, **kwargs})


@register_model
def signal_tiny(pretrained: bool = False, **kwargs: Any) -> Signal:
    """Signal on a four-layer tower at 64x32, small enough to train on two CPU cores in a minute."""
    return build_model_with_cfg(Signal, "signal_tiny", pretrained, **{"keep": 20, **TINY_IMAGE, **kwargs})
