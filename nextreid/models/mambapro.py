"""MambaPro: prompts and adapters in a frozen CLIP, state spaces inside and across modalities (arXiv 2412.10707)."""

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .._schema import choice, flag, whole
from ..layers import MambaAggregation
from ..towers import ImageTower, ImageTowers, SideAdapter, TransferPrompts, freeze_but, run_block
from ._authors import Authors, Rule, State, clip_tower_rules, neck_rules, register_authors
from ._base import Features, ReIDModel
from ._builder import build_model_with_cfg
from ._pretrained import PretrainedCfg, generate_default_cfgs
from ._registry import register_model
from ._tiny import TINY_IMAGE

CLASSIFIERS = ("joint", "modality")


class MambaPro(ReIDModel):
    """Synergistic prompts in a frozen CLIP and Mamba aggregation (Wang et al., AAAI 2025).

    Beside the MLP of every block stands a `SideAdapter`, among its tokens stand prompts of every modality, which pass
    from block to block (`TransferPrompts`); the tower itself is frozen. State spaces then read the patches of each
    modality and of all (`MambaAggregation`). Any number of modalities; captions are accepted and change nothing.

    ``forward_features`` gives ``cls (B, M, D)``, ``tokens (B, M, N, D)``, ``ori (B, M*D)``, the class tokens side by
    side, ``fused (B, M*D)``, the aggregated vectors, which are the embedding, and, where it is given,
    ``present (B, M)``.

    The authors have no rule for a missing modality. Here its patches change no state, count in no batch norm, and its
    part of the embedding is zero.

    Args:
        image_tower: timm name of a plain vision transformer; see `ImageTower`.
        img_size: Height and width in pixels.
        modalities: Names of the modalities, in the order of the images' axis M.
        embed_dim: Width D of the tokens.
        num_classes: Training identities; 0 gives embeddings.
        classifier: What is classified beside the fused vector: the class tokens as a ``"joint"`` vector (the authors on
            RGBNT201), or that of each ``"modality"``, with one neck for all (the authors on vehicles).
        num_prompts: Prompts of a modality in a block.
        freeze_tower: Whether of the tower only the camera embeddings learn.
        depth: Blocks of the aggregation.
        states: States of a channel.
        expand: Channels of a state space as a multiple of D.
        step_init: Where the time steps of the state spaces begin: as in ``"mamba"``, or ``"uniform"``, as in the
            authors' code, which undoes Mamba's.
        share_image_tower: One image tower for all modalities, or one each; prompts and adapters are shared.
        num_cameras: Cameras to learn an embedding for; 0 for none.
        drop_path: Stochastic depth rate of the image tower.
        image_tower_args: Further arguments of the timm model.

    Raises:
        ValueError: If a setting is not allowed, or the tower cannot be run part by part.
    """

    def __init__(
        self,
        image_tower: str = "vit_base_patch16_clip_quickgelu_224",
        img_size: Sequence[int] = (256, 128),
        modalities: Sequence[str] = ("rgb", "nir", "tir"),
        embed_dim: int | None = 512,
        num_classes: int = 0,
        classifier: str = "joint",
        num_prompts: int = 4,
        freeze_tower: bool = True,
        depth: int = 2,
        states: int = 16,
        expand: int = 2,
        step_init: str = "mamba",
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
        first, count = self.image_tower.towers()[0], len(self.modalities)
        if not first.is_plain:
            raise ValueError(f"prompts need a plain vision transformer, which {image_tower!r} is not")
        if flag("freeze_tower", freeze_tower):
            for tower in self.image_tower.towers():
                freeze_but(tower, ("camera",))
        blocks, width = len(first.trunk.blocks), first.width
        self.prompts = TransferPrompts(blocks, width, count, whole(1, 256)("num_prompts", num_prompts))
        self.adapters = nn.ModuleList(
            SideAdapter(width, 2 * width, "quick_gelu", zero_init=False) for _ in range(blocks)
        )
        self.img_size, self.grid_size = self.image_tower.img_size, self.image_tower.grid_size
        self.embed_dim = self.modality_width = self.image_tower.embed_dim
        self.aggregation = MambaAggregation(self.embed_dim, count, depth, states, expand, step_init)
        self.num_features = count * self.embed_dim
        self.embeddings = {"fused": self.num_features, "ori": self.num_features}
        self.reset_classifier(num_classes)

    def encode_images(self, images: Tensor, present: Tensor | None = None, camid: Tensor | None = None) -> Features:
        """Class tokens ``cls (B, M, D)`` and patch tokens ``tokens (B, M, N, D)``."""
        towers = self.image_tower

        def run(block: int, tokens: Tensor) -> Tensor:
            return towers.for_each(lambda tower, part, _: self._run_block(tower, block, part), tokens)

        tokens = self.prompts(towers.stem(images, present, camid), run)  # (B, M, P+N, W)
        tokens = towers.project(towers.norm(tokens))
        encoded = {"cls": tokens[:, :, 0], "tokens": tokens[:, :, towers.num_prefix_tokens :]}
        return encoded if present is None else _masked(encoded, present)

    def _run_block(self, tower: ImageTower, block: int, tokens: Tensor) -> Tensor:
        return run_block(tower, tower.trunk.blocks[block], tokens, self.adapters[block])

    def forward_tokens(self, encoded: Features, text: Tensor | None = None, present: Tensor | None = None) -> Features:
        """Aggregate; see the class for names and shapes. ``text`` is not read."""
        parts = encoded if present is None else {**_masked(encoded, present), "present": present}
        fused = self.aggregation(parts["cls"], parts["tokens"], self.grid_size, present)
        return {**parts, "ori": parts["cls"].flatten(1), "fused": fused.flatten(1)}

    def pool(self, features: Features) -> Tensor:
        """The aggregated vectors side by side, ``(B, M*D)``."""
        return features["fused"]

    def pool_heads(self, features: Features) -> tuple[tuple[Tensor, Tensor | None], ...]:
        """The class tokens, side by side or each with the samples that have the modality, and the embedding."""
        if self.classifier == "joint":
            return (features["ori"], None), (features["fused"], None)
        present = features.get("present")
        rows = [None if present is None else present[:, m] for m in range(len(self.modalities))]
        return *zip(features["cls"].unbind(1), rows, strict=True), (features["fused"], None)

    @property
    def head_widths(self) -> tuple[int, ...]:
        """``M*D`` twice, or D for each modality and ``M*D``."""
        joint = self.classifier == "joint"
        return (*((self.num_features,) if joint else (self.embed_dim,) * len(self.modalities)), self.num_features)

    @property
    def neck_of(self) -> tuple[int, ...]:
        """One neck for all modalities' class tokens."""
        return (0, 1) if self.classifier == "joint" else (*(0 for _ in self.modalities), 1)

    def param_role(self, name: str) -> str:
        """Prompts and adapters have a role of their own."""
        return "adapters" if name.startswith(("adapters.", "prompts.")) else super().param_role(name)


def _masked(encoded: Features, present: Tensor) -> Features:
    """Parts ``(B, M, ...)``, zero where a modality is absent."""
    return {name: part.masked_fill(~present[(..., *[None] * (part.dim() - 2))], 0) for name, part in encoded.items()}


def _arguments(state: State) -> dict[str, Any]:
    return {
        "num_classes": len(state["classifier.weight"]),
        "num_cameras": len(state.get("BACKBONE.cv_embed", ())),
        "num_prompts": len(state["BACKBONE.base.transformer.resblocks.0.adapter_prompt_rgb"]),
        "step_init": "uniform",
    }


_NAMES = ("rgb", "nir", "tir")
_BLOCK = r"BACKBONE\.base\.transformer\.resblocks\.(\d+)\.adapter_"
_LATER = _BLOCK.replace(r"(\d+)", r"([1-9]\d*)")  # no prompts come to the first block
_SPACE = r"AAM\.ma_block\.(\d+)\.SSM_(intra|inter)\."
_END, _STATISTICS = r"(weight|bias)", r"(weight|bias|running_mean|running_var)"
_RULES = [
    *clip_tower_rules("BACKBONE.base."),
    Rule(r"BACKBONE\.cv_embed", "image_tower.0.camera"),
    Rule(rf"{_BLOCK}ffn\.0\.{_END}", r"adapters.\1.down.\2"),
    Rule(rf"{_BLOCK}ffn\.2\.{_END}", r"adapters.\1.up.\2"),
    Rule(rf"{_LATER}transfer\.0\.{_END}", r"prompts.transfers.\1.down.\2"),
    Rule(rf"{_LATER}transfer\.3\.{_END}", r"prompts.transfers.\1.up.\2"),
    Rule(rf"{_SPACE}conv2d_.\.1\.num_batches_tracked", r"aggregation.blocks.\1.\2.norm.num_batches_tracked"),
    Rule(rf"{_SPACE}out_proj\.weight", r"aggregation.blocks.\1.\2.out_proj.weight"),
]
for _m, _name in enumerate(_NAMES):
    _short, _layer = _name[0], r"aggregation.blocks.\1.\2"
    _RULES += [
        Rule(rf"{_BLOCK}prompt_{_name}", rf"prompts.prompts[\1,{_m}]"),
        Rule(rf"{_BLOCK}{_short}\.0\.weight", rf"prompts.down_weight[\1,{_m}]", "T"),
        Rule(rf"{_BLOCK}{_short}\.3\.weight", rf"prompts.up_weight[\1,{_m}]", "T"),
        Rule(rf"{_BLOCK}{_short}\.0\.bias", rf"prompts.down_bias[\1,{_m}]"),
        Rule(rf"{_BLOCK}{_short}\.3\.bias", rf"prompts.up_bias[\1,{_m}]"),
        Rule(rf"{_SPACE}in_proj_{_short}\.weight", rf"{_layer}.in_weight[{_m}]"),
        Rule(rf"{_SPACE}conv2d_{_short}\.0\.{_END}", rf"{_layer}.conv_\3[{_m}]"),
        Rule(rf"{_SPACE}conv2d_{_short}\.1\.{_STATISTICS}", rf"{_layer}.norm.\3[{_m}]"),
        Rule(rf"AAM\.linear_reduction_{_short}\.0\.{_END}", rf"aggregation.reduction.norm_\1[{_m}]"),
        Rule(rf"AAM\.linear_reduction_{_short}\.1\.{_END}", rf"aggregation.reduction.\1[{_m}]"),
    ]
for _group, _name in ((0, "r"), (1, "n"), (2, "t"), (0, "2")):  # the one over all modalities is number 2
    _space = r"aggregation.blocks.\1.\2.state_space"
    _RULES += [
        Rule(rf"{_SPACE}SSM_{_name}_f\.(A_log|D)", rf"{_space}.\3[{_group}]"),
        Rule(rf"{_SPACE}SSM_{_name}_f\.x_proj\.weight", rf"{_space}.x_weight[{_group}]"),
        Rule(rf"{_SPACE}SSM_{_name}_f\.dt_proj\.{_END}", rf"{_space}.step_\3[{_group}]"),
        Rule(rf"{_SPACE}SSM_{_name}_f\.out_norm\.{_END}", rf"{_space}.norm_\3[{_group}]"),
    ]


def _authors(model: str, necks: tuple[str, str], unused: str) -> Authors:
    """The name map of one configuration: a file holds the heads of both and does not say of which one it is."""
    bottleneck, classifier = necks
    return Authors(
        title="MambaPro",
        repository="924973292/MambaPro",
        license="MIT",
        model=model,
        rules=[
            *_RULES,
            *neck_rules(bottleneck, classifier, "necks.0"),
            *neck_rules("bottleneck_fuse", "classifier_fuse", "necks.1"),
        ],
        arguments=_arguments,
        dropped={
            r".*\.resblocks\.0\.adapter_transfer\..*": "an adapter of what comes from before the first block",
            unused: "heads that this configuration does not train; the file holds those of the other one too",
        },
    )


register_authors(
    "mambapro",
    _authors("mambapro_clip_b16", ("bottleneck", "classifier"), r"BACKBONE\.(classifier|bottleneck)\..*"),
)
register_authors(
    "mambapro_vehicle",
    _authors(
        "mambapro_clip_b16_vehicle", ("BACKBONE.bottleneck", "BACKBONE.classifier"), r"(classifier|bottleneck)\..*"
    ),
)

_CLIP, _PAPER = ("ViT-B-16-quickgelu", "openai"), "arXiv:2412.10707"
default_cfgs = generate_default_cfgs(
    {
        "mambapro_clip_b16": PretrainedCfg(clip=_CLIP, paper_ids=_PAPER),
        "mambapro_clip_b16_vehicle": PretrainedCfg(clip=_CLIP, input_size=(3, 128, 256), paper_ids=_PAPER),
        "mambapro_tiny": PretrainedCfg(input_size=(3, 64, 32), paper_ids=_PAPER),
    }
)


@register_model
def mambapro_clip_b16(pretrained: bool = False, **kwargs: Any) -> MambaPro:
    """MambaPro on CLIP ViT-B/16, persons at 256x128 (the authors' model for RGBNT201)."""
    return build_model_with_cfg(MambaPro, "mambapro_clip_b16", pretrained, **kwargs)


@register_model
def mambapro_clip_b16_vehicle(pretrained: bool = False, **kwargs: Any) -> MambaPro:
    """MambaPro on CLIP ViT-B/16, vehicles at 128x256 (the authors' model for MSVR310 and RGBNT100)."""
    args = {"img_size": (128, 256), "classifier": "modality"}
    return build_model_with_cfg(MambaPro, "mambapro_clip_b16_vehicle", pretrained, **{**args, **kwargs})


@register_model
def mambapro_tiny(pretrained: bool = False, **kwargs: Any) -> MambaPro:
    """MambaPro on a four-layer tower at 64x32, which learns, small enough to train on two CPU cores in a minute."""
    args = {"freeze_tower": False, "states": 4, "expand": 1}
    return build_model_with_cfg(MambaPro, "mambapro_tiny", pretrained, **{**TINY_IMAGE, **args, **kwargs})
