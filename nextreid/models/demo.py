"""DeMo: what modalities share and what they do not, decoupled and gated (arXiv 2412.10650)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..layers import AttentionTriggeredExperts, HierarchicalDecoupling, TokenReduction
from ..towers import ImageTowers
from ._authors import Authors, Rule, State, clip_tower_rules, neck_rules, register_authors
from ._base import Features, ReIDModel
from ._builder import build_model_with_cfg
from ._pretrained import PretrainedCfg, generate_default_cfgs
from ._registry import register_model
from ._tiny import TINY_IMAGE

CLASSIFIERS = ("joint", "modality")
MISSING = ("leave_out", "zeros")


class DeMo(ReIDModel):
    """Decoupled feature-based mixture of experts (Wang et al., AAAI 2025).

    Each modality's class token and mean patch become a reduced token (PIFE). A learned query for every subset of the
    modalities gathers what is specific to one or shared by several (HDM, S = 2^M - 1 features), and an attention over
    these features weights an expert for each slice of each of them (ATMoE). Captions are accepted and change nothing.

    ``forward_features`` gives ``cls (B, M, D)``, ``tokens (B, M, N, D)``, ``reduced (B, M, D)``,
    ``decoupled (B, S, D)``, ``gates (B, H, S)``, and the vectors ``ori (B, M*D)``, the reduced tokens, and
    ``moe (B, S*D)``, behind the experts. The embedding is ``[ori ; moe]``.

    An absent modality is no key of any query; a subset without any modality that exists has no feature, no gate, and
    zeros in the embedding.

    Args:
        image_tower: timm name; see `ImageTower`.
        img_size: Height and width in pixels.
        modalities: Names of the modalities, in the order of the images' axis M; at most 6.
        embed_dim: Width D of the tokens.
        num_classes: Training identities; 0 gives embeddings.
        classifier: What is classified beside ``moe``: ``ori`` as a ``"joint"`` vector (the authors on RGBNT201), or
            each ``"modality"``'s reduced token (the authors on vehicles).
        num_heads: Heads of the decoupling attentions.
        expert_heads: Slices H of a feature, each with its own gate (the authors: 4 for persons, 8 for vehicles).
        drop: Dropout of the decoupling attentions' weights.
        missing: What an absent modality is: ``"leave_out"``, or an image of ``"zeros"`` as in the authors' code, at the
            cost of encoding such an image beside every one.
        share_image_tower: One image tower for all modalities, or one each.
        num_cameras: Cameras to learn an embedding for; 0 for none.
        drop_path: Stochastic depth rate of the image tower.
        image_tower_args: Further arguments of the timm model.

    Raises:
        ValueError: If a setting is unknown, heads do not divide the width, or there are more than 6 modalities.
    """

    def __init__(
        self,
        image_tower: str = "vit_base_patch16_clip_quickgelu_224",
        img_size: Sequence[int] = (256, 128),
        modalities: Sequence[str] = ("rgb", "nir", "tir"),
        embed_dim: int | None = 512,
        num_classes: int = 0,
        classifier: str = "joint",
        num_heads: int = 8,
        expert_heads: int = 4,
        drop: float = 0.1,
        missing: str = "leave_out",
        share_image_tower: bool = True,
        num_cameras: int = 0,
        drop_path: float = 0.0,
        image_tower_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(modalities)
        for name, value, allowed in (("classifier", classifier, CLASSIFIERS), ("missing", missing, MISSING)):
            if value not in allowed:
                raise ValueError(f"unknown {name} {value!r}; allowed: {', '.join(allowed)}")
        self.image_tower = ImageTowers(
            image_tower, img_size, modalities, embed_dim, share_image_tower, num_cameras, drop_path, image_tower_args
        )
        self.img_size, self.embed_dim = self.image_tower.img_size, self.image_tower.embed_dim
        self.classifier, self.missing = classifier, missing
        dim, count = self.embed_dim, len(self.modalities)
        self.decoupling = HierarchicalDecoupling(dim, count, num_heads, drop)
        self.reduction = TokenReduction(dim, count)
        subsets = len(self.decoupling.members)
        self.experts = AttentionTriggeredExperts(dim, subsets, expert_heads)
        self.num_features = (count + subsets) * dim
        self.embeddings = {"fused": self.num_features, "ori": count * dim, "moe": subsets * dim}
        self.reset_classifier(num_classes)

    def encode_images(self, images: Tensor, present: Tensor | None = None, camid: Tensor | None = None) -> Features:
        """Class tokens ``cls (B, M, D)`` and patch tokens ``tokens (B, M, N, D)``.

        With ``missing="zeros"`` also ``blank_cls`` and ``blank_tokens``, those of an image of zeros.
        """
        cls, tokens = self.image_tower(images, present, camid)
        if self.missing == "leave_out":
            return {"cls": cls, "tokens": tokens}
        blank_cls, blank_tokens = self.image_tower(torch.zeros_like(images), None, camid)
        return {"cls": cls, "tokens": tokens, "blank_cls": blank_cls, "blank_tokens": blank_tokens}

    def forward_tokens(self, encoded: Features, text: Tensor | None = None, present: Tensor | None = None) -> Features:
        """Reduce, decouple and gate; see the class for names and shapes."""
        cls, tokens = encoded["cls"], encoded["tokens"]
        if self.missing == "zeros" and present is not None:
            cls = torch.where(present[..., None], cls, encoded["blank_cls"])
            tokens = torch.where(present[..., None, None], tokens, encoded["blank_tokens"])
            present = None
        reduced = self.reduction(cls, tokens)
        parts = {"cls": cls, "tokens": tokens}
        subsets = None
        if present is not None:
            reduced = reduced.masked_fill(~present[..., None], 0)
            subsets = (self.decoupling.members & present[:, None]).any(-1)  # (B, S)
            parts["present"] = present
        decoupled = self.decoupling(torch.cat([reduced[:, :, None], tokens], dim=2), present)
        moe, gates = self.experts(decoupled, subsets)
        vectors = {"ori": reduced.flatten(1), "moe": moe.flatten(1)}
        return {**parts, "reduced": reduced, "decoupled": decoupled, "gates": gates, **vectors}

    def param_role(self, name: str) -> str:
        """As in the authors' code, cameras learn as the new layers do."""
        return "new" if name.endswith(".camera") else super().param_role(name)

    def pool(self, features: Features) -> Tensor:
        """``[ori ; moe]``."""
        return torch.cat([features["ori"], features["moe"]], dim=1)

    def pool_heads(self, features: Features) -> tuple[tuple[Tensor, Tensor | None], ...]:
        """``moe``, and ``ori`` or each modality's reduced token, with the samples that have the modality."""
        if self.classifier == "joint":
            return (features["moe"], None), (features["ori"], None)
        reduced, present = features["reduced"], features.get("present")
        rows = [None if present is None else present[:, m] for m in range(len(self.modalities))]
        return (features["moe"], None), *((reduced[:, m], row) for m, row in enumerate(rows))

    @property
    def head_widths(self) -> tuple[int, ...]:
        """That of ``moe``, and that of ``ori``, whole or for each modality."""
        joint = self.classifier == "joint"
        rest = (self.embeddings["ori"],) if joint else (self.embed_dim,) * len(self.modalities)
        return self.embeddings["moe"], *rest


def _arguments(state: State) -> dict[str, Any]:
    heads = {key.split(".")[3] for key in state if key.startswith("generalFusion.moe.experts.")}
    return {
        "num_classes": len(state["classifier_moe.weight"]),
        "num_cameras": len(state.get("BACKBONE.cv_embed", ())),
        "expert_heads": len(heads),
        "classifier": "joint" if "classifier.weight" in state else "modality",
    }


_EXPERT, _GATE = (
    r"generalFusion\.moe\.experts\.(\d+)\.expertHead\.(\d+)\.mlp",
    r"generalFusion\.moe\.gating_network\.gate",
)
_BATCH_NORM = r"\.(weight|bias|running_mean|running_var)"
register_authors(
    "demo",
    Authors(
        title="DeMo",
        repository="924973292/DeMo",
        license="MIT",
        model="demo_clip_b16",
        arguments=_arguments,
        rules=[
            *clip_tower_rules("BACKBONE.base."),
            Rule(r"BACKBONE\.cv_embed", "image_tower.0.camera", "reshape"),
            *(
                rule
                for m, name in enumerate(("rgb", "nir", "tir"))
                for rule in (
                    Rule(rf"{name}_reduce\.0\.(weight|bias)", rf"reduction.norm_\1[{m}]"),
                    Rule(rf"{name}_reduce\.1\.(weight|bias)", rf"reduction.\1[{m}]"),
                )
            ),
            *(
                Rule(rf"generalFusion\.{name}{theirs}", ours, layout)
                for s, name in enumerate(("r", "n", "t", "rn", "rt", "nt", "rnt"))
                for theirs, ours, layout in (
                    ("_token", f"decoupling.query[{s}]", "reshape"),
                    (r"\.in_proj_weight", tuple(f"decoupling.{x}_weight[{s}]" for x in "qkv"), ""),
                    # A bias of keys cancels in the softmax.
                    (r"\.in_proj_bias", (f"decoupling.q_bias[{s}]", "", f"decoupling.v_bias[{s}]"), ""),
                    (r"\.out_proj\.(weight|bias)", rf"decoupling.proj_\1[{s}]", ""),
                )
            ),
            Rule(rf"{_EXPERT}\.0\.(weight|bias)", r"experts.\3[\2,\1]"),
            Rule(rf"{_EXPERT}\.2{_BATCH_NORM}", r"experts.norm.\3[\2,\1]"),
            Rule(rf"{_EXPERT}\.2\.num_batches_tracked", "experts.norm.num_batches_tracked"),
            Rule(rf"{_GATE}\.linear_re\.0\.(weight|bias)", r"experts.reduce.\1"),
            Rule(rf"{_GATE}\.linear_re\.2\.(.*)", r"experts.reduce_norm.\1"),
            Rule(rf"{_GATE}\.([qk])_\.weight", r"experts.\1.weight"),
            *neck_rules("bottleneck_moe", "classifier_moe", "necks.0"),
            *neck_rules("bottleneck", "classifier", "necks.1"),
            *(
                rule
                for m, name in enumerate("rnt", start=1)
                for rule in neck_rules(f"bottleneck_{name}", f"classifier_{name}", f"necks.{m}")
            ),
        ],
    ),
)

_PAPER = "arXiv:2412.10650"
default_cfgs = generate_default_cfgs(
    {
        "demo_clip_b16": PretrainedCfg(clip=("ViT-B-16-quickgelu", "openai"), paper_ids=_PAPER),
        "demo_clip_b16_vehicle": PretrainedCfg(
            clip=("ViT-B-16-quickgelu", "openai"), input_size=(3, 128, 256), paper_ids=_PAPER
        ),
        "demo_tiny": PretrainedCfg(input_size=(3, 64, 32), paper_ids=_PAPER),
    }
)


@register_model
def demo_clip_b16(pretrained: bool = False, **kwargs: Any) -> DeMo:
    """DeMo on CLIP ViT-B/16, persons at 256x128 (the authors' model for RGBNT201)."""
    return build_model_with_cfg(DeMo, "demo_clip_b16", pretrained, **kwargs)


@register_model
def demo_clip_b16_vehicle(pretrained: bool = False, **kwargs: Any) -> DeMo:
    """DeMo on CLIP ViT-B/16, vehicles at 128x256 (the authors' model for MSVR310 and RGBNT100)."""
    args = {"img_size": (128, 256), "classifier": "modality", "expert_heads": 8}
    return build_model_with_cfg(DeMo, "demo_clip_b16_vehicle", pretrained, **{**args, **kwargs})


@register_model
def demo_tiny(pretrained: bool = False, **kwargs: Any) -> DeMo:
    """DeMo on a four-layer tower at 64x32, small enough to train on two CPU cores in a minute."""
    return build_model_with_cfg(DeMo, "demo_tiny", pretrained, **{**TINY_IMAGE, **kwargs})
