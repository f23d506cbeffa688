"""TOP-ReID: class tokens permuted over the modalities' patches, missing modalities reconstructed (arXiv 2312.09612)."""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._schema import choice
from ..layers import ComplementaryReconstruction, TokenPermutation
from ..towers import ImageTowers
from ._authors import Authors, Rule, State, neck_rules, register_authors, vit_tower_rules
from ._base import Features, ReIDModel
from ._builder import build_model_with_cfg
from ._pretrained import PretrainedCfg, generate_default_cfgs
from ._registry import register_model
from ._tiny import TINY_IMAGE

CLASSIFIERS = ("joint", "modality")


class TOPReID(ReIDModel):
    """TOP-ReID (Wang et al., AAAI 2024): a tower per modality, token permutation, complementary reconstruction.

    The embedding is the class tokens that come out of `TokenPermutation`, side by side, ``(B, M*D)``. A missing
    modality's tokens, class token included, are what `ComplementaryReconstruction` predicts from the sample's other
    ones; the authors do so at test, with one pattern for a whole run. Captions are accepted and change nothing.

    ``forward_features`` gives ``cls (B, M, D)``, ``tokens (B, M, N, D)``, both complete, ``tpm (B, M*D)``,
    ``vit (B, M*D)`` (the class tokens of the towers) and, in training, ``predicted (B, M, M, 1+N, D)``,
    ``encoded (B, M, 1+N, D)`` and, where it is given, ``present (B, M)``.

    Losses: identity and triplet on each head, and ``reconstruction``, see `ComplementaryReconstruction.loss`.

    Args:
        image_tower: timm name; see `ImageTower`.
        img_size: Height and width in pixels.
        modalities: Names of the modalities, in the order of the images' axis M.
        embed_dim: Width D of the tokens; None for the tower's, without a projection.
        num_classes: Training identities; 0 gives embeddings.
        classifier: What is classified beside the embedding: the towers' class tokens as a ``"joint"`` vector (the
            authors on RGBNT201), or each ``"modality"``'s (the authors on vehicles).
        head_dim: Width of a head of the attentions; fewer than D / ``head_dim`` heads are one.
        share_image_tower: One tower for all modalities instead of one each.
        num_cameras: Cameras to learn an embedding for, which is added to all tokens; 0 for none.
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
        classifier: str = "joint",
        head_dim: int = 64,
        share_image_tower: bool = False,
        num_cameras: int = 0,
        drop_path: float = 0.1,
        image_tower_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(modalities)
        self.classifier = choice(*CLASSIFIERS)("classifier", classifier)
        self.image_tower = ImageTowers(
            image_tower,
            img_size,
            modalities,
            embed_dim,
            share_image_tower,
            num_cameras,
            drop_path,
            image_tower_args,
            camera_scope="all",
            camera_scale=3.0,
        )
        self.img_size = self.image_tower.img_size
        self.embed_dim, count = self.image_tower.embed_dim, len(self.modalities)
        heads = max(1, self.embed_dim // head_dim)
        self.permutation = TokenPermutation(self.embed_dim, count, heads)
        self.reconstruction = ComplementaryReconstruction(self.embed_dim, count, heads)
        self.num_features = count * self.embed_dim
        self.embeddings = {"tpm": self.num_features, "vit": self.num_features}
        self.reset_classifier(num_classes)

    def forward_tokens(self, encoded: Features, text: Tensor | None = None, present: Tensor | None = None) -> Features:
        """Tokens complete for every sample, and the permuted class tokens; ``text`` is not read."""
        tokens = torch.cat([encoded["cls"][:, :, None], encoded["tokens"]], dim=2)  # (B, M, 1+N, D)
        extra: Features = {}
        missing = present is not None and (torch.compiler.is_compiling() or not bool(present.all()))
        if self.training or missing:
            predicted = self.reconstruction(tokens)
            if self.training:
                extra = {"encoded": tokens, "predicted": predicted}
                extra |= {} if present is None else {"present": present}
            if present is not None:
                tokens = self.reconstruction.complete(tokens, predicted, present)
        cls, patches = tokens[:, :, 0], tokens[:, :, 1:]
        permuted = self.permutation(cls, patches).flatten(1)
        if missing and present is not None:  # a sample without any modality has no embedding
            permuted = permuted * present.any(1, keepdim=True).to(permuted.dtype)
        return {"cls": cls, "tokens": patches, "tpm": permuted, "vit": cls.flatten(1), **extra}

    def pool(self, features: Features) -> Tensor:
        """The permuted class tokens side by side, ``(B, M*D)``."""
        return features["tpm"]

    def pool_heads(self, features: Features) -> tuple[tuple[Tensor, Tensor | None], ...]:
        """The permuted class tokens, then those of the towers: side by side, or each modality's."""
        if self.classifier == "joint":
            return (features["tpm"], None), (features["vit"], None)
        return (features["tpm"], None), *((part, None) for part in features["cls"].unbind(1))

    @property
    def head_widths(self) -> tuple[int, ...]:
        """``M*D`` twice, or once and D for each modality."""
        apart = (self.embed_dim,) * len(self.modalities)
        return (self.num_features, *((self.num_features,) if self.classifier == "joint" else apart))

    def own_losses(self, features: Features) -> dict[str, Tensor]:
        """In training, how far the predictions are from the tokens."""
        if "predicted" not in features:
            return {}
        return {
            "reconstruction": self.reconstruction.loss(
                features["encoded"], features["predicted"], features.get("present")
            )
        }


_TOWERS = ("RGB", "NI", "TI")
_ROUNDS = ("start", "middle", "end")
_PAIRS = {"RGBRE": (0, 1, 2), "NIRE": (1, 0, 2), "TIRE": (2, 0, 1)}  # source, targets of re1 and re2
_ATTENTION = {"norm1": "query_norm", "attn.normy": "key_norm", "norm2": "mlp_norm", "mlp.fc1": "mlp.0"}
_ATTENTION |= {"mlp.fc2": "mlp.2", "attn.q_": "q", "attn.k_": "k", "attn.v_": "v", "attn.proj": "proj"}
_RULES = [
    *(rule for m, name in enumerate(_TOWERS) for rule in vit_tower_rules(f"{name}.base.", f"image_tower.{m}.")),
    *(
        Rule(rf"TPM\.Ro_{name}\.Rotation\.{re.escape(theirs)}\.(weight|bias)", rf"permutation.rounds.{r}.{ours}.\1")
        for r, name in enumerate(_ROUNDS)
        for theirs, ours in _ATTENTION.items()
    ),
    *(
        Rule(rf"CRM\.{name}\.re{i}\.blocks\.0\.(.*)", rf"reconstruction.blocks.{source}_{target}.\1")
        for name, (source, *targets) in _PAIRS.items()
        for i, target in enumerate(targets, start=1)
    ),
    *neck_rules("bottleneck_TPM", "classifier_TPM", "necks.0"),
]


def _arguments(state: State) -> dict[str, Any]:
    cameras = len(state["RGB.base.sie_embed"]) if "RGB.base.sie_embed" in state else 0
    return {"num_classes": len(state["classifier_TPM.weight"]), "num_cameras": cameras}


def _authors(model: str, rules: list[Rule], unused: str) -> Authors:
    return Authors(
        title="TOP-ReID",
        repository="924973292/TOP-ReID",
        license="MIT",
        model=model,
        rules=[*_RULES, *rules],
        arguments=_arguments,
        dropped={
            r".*\.base\.fc\.(weight|bias)": "ImageNet's classifier, which is never used",
            unused: "heads that this configuration does not train; the file holds those of the other one too",
        },
    )


# A file holds the heads of both configurations and does not say of which one it is.
register_authors(
    "topreid",
    _authors(
        "topreid_vit_b16",
        neck_rules("bottleneck_ViT", "classifier_ViT", "necks.1"),
        r"(RGB|NI|TI)\.(classifier|bottleneck)\..*",
    ),
)
register_authors(
    "topreid_vehicle",
    _authors(
        "topreid_vit_b16_vehicle",
        [
            rule
            for m, name in enumerate(_TOWERS, start=1)
            for rule in neck_rules(f"{name}.bottleneck", f"{name}.classifier", f"necks.{m}")
        ],
        r"(classifier|bottleneck)_ViT\..*",
    ),
)

default_cfgs = generate_default_cfgs(
    {
        "topreid_vit_b16": PretrainedCfg(timm=True, paper_ids="arXiv:2312.09612"),
        "topreid_vit_b16_vehicle": PretrainedCfg(timm=True, paper_ids="arXiv:2312.09612"),
        "topreid_tiny": PretrainedCfg(input_size=(3, 64, 32), paper_ids="arXiv:2312.09612"),
    }
)


@register_model
def topreid_vit_b16(pretrained: bool = False, **kwargs: Any) -> TOPReID:
    """TOP-ReID for persons on three ViT-B/16 at 256x128, which start from timm's weights with ``pretrained=True``."""
    return build_model_with_cfg(TOPReID, "topreid_vit_b16", pretrained, **kwargs)


@register_model
def topreid_vit_b16_vehicle(pretrained: bool = False, **kwargs: Any) -> TOPReID:
    """TOP-ReID for vehicles: a head for each tower; 256x128 too, as the authors train it."""
    return build_model_with_cfg(TOPReID, "topreid_vit_b16_vehicle", pretrained, **{"classifier": "modality", **kwargs})


@register_model
def topreid_tiny(pretrained: bool = False, **kwargs: Any) -> TOPReID:
    """TOP-ReID on three four-layer towers at 64x32, small enough to train on two CPU cores in a minute."""
    settings = {"head_dim": 16, "drop_path": 0.0, **TINY_IMAGE, **kwargs}
    return build_model_with_cfg(TOPReID, "topreid_tiny", pretrained, **settings)
