"""EDITOR: tokens selected by attention and brightness, fused without the background (arXiv 2403.10254)."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._schema import choice
from ..layers import SelectedFusion, TokenSelection
from ..layers.token_selection import attention_rollout, background_loss, count_bright
from ..losses import center_loss, update_centers
from ..towers import ImageTowers, run_blocks_with_maps
from ._authors import Authors, Rule, State, neck_rules, register_authors, vit_tower_rules
from ._base import Features, ReIDModel
from ._builder import build_model_with_cfg
from ._pretrained import PretrainedCfg, generate_default_cfgs
from ._registry import register_model
from ._tiny import TINY_IMAGE

CLASSIFIERS = ("joint", "modality")


class EDITOR(ReIDModel):
    """EDITOR (Zhang et al., CVPR 2024): select diverse tokens, fuse them, keep the background alike.

    `TokenSelection` keeps the patches that class tokens attend to through all blocks, and bright windows;
    `SelectedFusion` makes one vector of each modality's kept tokens. The embedding is these side by side, ``(B, M*D)``,
    zero where a modality is absent; an absent one selects nothing and nothing attends to it. Captions are accepted and
    change nothing.

    ``forward_features`` gives ``cls (B, M, D)``, ``tokens (B, M, N, D)``, ``rollout (B, M, h, N)``, ``mask (B, N)``,
    ``attention_mask (B, M, N)``, ``bright_mask (B, N)``, ``reduced``, ``fused_cls``, ``fused_mean`` and ``own_cls``
    ``(B, M, D)`` (see `SelectedFusion`), and ``present (B, M)`` where it is given.

    Losses: identity and triplet on each head, with necks that learn a shift; ``background``, see `background_loss`;
    ``centers``, the squared distance of each modality's unit ``own_cls`` from its identity's centre, which follows the
    batches (`center_loss`, `update_centers`).

    Args:
        image_tower: timm name of a plain vision transformer; see `ImageTower`.
        img_size: Height and width in pixels.
        modalities: Names of the modalities, in the order of the images' axis M.
        embed_dim: Width D of the tokens; None for the tower's, without a projection.
        num_classes: Training identities; 0 gives embeddings.
        classifier: What is classified beside the embedding: the tower's class tokens as a ``"joint"`` vector (the
            authors on RGBNT201), or each ``"modality"``'s, all with one neck, (the authors on vehicles).
        attention_keep: Patches that each head of each modality keeps.
        bright_keep: Windows that the brightness keeps.
        head_dim: Width of a head of the fusion; fewer than D / ``head_dim`` heads are one.
        share_image_tower: One tower for all modalities, or one each.
        num_cameras: Cameras to learn an embedding for, which is added to all tokens; 0 for none.
        drop_path: Stochastic depth rate.
        image_tower_args: Further arguments of the timm model.
    """

    neck_bias = True
    loss_parts = ("own_cls", "present")
    of_identities = ("necks", "centers")

    def __init__(
        self,
        image_tower: str = "vit_base_patch16_224",
        img_size: Sequence[int] = (256, 128),
        modalities: Sequence[str] = ("rgb", "nir", "tir"),
        embed_dim: int | None = None,
        num_classes: int = 0,
        classifier: str = "joint",
        attention_keep: int = 2,
        bright_keep: int = 10,
        head_dim: int = 64,
        share_image_tower: bool = True,
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
        if not self.image_tower.num_prefix_tokens:
            raise ValueError(f"EDITOR needs a class token, and {image_tower!r} has none")
        self.img_size = self.image_tower.img_size
        self.embed_dim = self.modality_width = self.image_tower.embed_dim
        count = len(self.modalities)
        self.selection = TokenSelection(attention_keep, bright_keep)
        self.fusion = SelectedFusion(self.embed_dim, count, max(1, self.embed_dim // head_dim))
        self.num_features = count * self.embed_dim
        self.embeddings = {"fused": self.num_features}
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace necks, classifiers and centres by fresh ones for ``num_classes`` identities; 0 removes them."""
        super().reset_classifier(num_classes)
        count, reference = len(self.modalities) if num_classes else 0, next(self.parameters())
        self.centers = nn.ParameterList(
            nn.Parameter(reference.new_zeros(num_classes, self.embed_dim), requires_grad=False) for _ in range(count)
        )

    def encode_images(self, images: Tensor, present: Tensor | None = None, camid: Tensor | None = None) -> Features:
        """Class and patch tokens, the class tokens' ``rollout (B, M, h, N)``, ``brightness (B, M, H, W)``."""
        prefix = self.image_tower.num_prefix_tokens
        tokens, maps = run_blocks_with_maps(self.image_tower, self.image_tower.stem(images, present, camid))
        tokens = self.image_tower.project(self.image_tower.norm(tokens))
        brightness = images.to(torch.promote_types(images.dtype, torch.float32)).mean(2)
        if present is not None:  # whatever stands in for an absent image, NaN included
            brightness = brightness.masked_fill(~present[..., None, None], 0)
        return {
            "cls": tokens[:, :, 0],
            "tokens": tokens[:, :, prefix:],
            "rollout": attention_rollout(maps)[..., prefix:],
            "brightness": brightness,
        }

    def forward_tokens(self, encoded: Features, text: Tensor | None = None, present: Tensor | None = None) -> Features:
        """What was selected, and what was made of it; ``text`` is not read."""
        cls, tokens, rollout = encoded["cls"], encoded["tokens"], encoded["rollout"]
        if present is not None:
            cls, tokens = (part.masked_fill(~present[(..., *[None] * (part.dim() - 2))], 0) for part in (cls, tokens))
        bright = count_bright(encoded["brightness"], self.image_tower.grid_size, present)
        mask, attention, brightest = self.selection(rollout, bright, present)
        fused = self.fusion(cls, tokens, mask, present, self.selection.limit(*rollout.shape[1:]))
        return {
            "cls": cls,
            "tokens": tokens,
            "rollout": rollout,
            "mask": mask,
            "attention_mask": attention,
            "bright_mask": brightest,
            "reduced": fused.reduced,
            "fused_cls": fused.cls,
            "fused_mean": fused.mean,
            "own_cls": fused.own,
            **({} if present is None else {"present": present}),
        }

    def pool(self, features: Features) -> Tensor:
        """The reduced vectors side by side, ``(B, M*D)``."""
        return features["reduced"].flatten(1)

    def pool_heads(self, features: Features) -> tuple[tuple[Tensor, Tensor | None], ...]:
        """The embedding, then the tower's class tokens: side by side, or each modality's."""
        cls, present = features["cls"], features.get("present")
        if self.classifier == "joint":
            return (self.pool(features), None), (cls.flatten(1), None)
        apart = ((cls[:, m], None if present is None else present[:, m]) for m in range(cls.shape[1]))
        return (self.pool(features), None), *apart

    @property
    def head_widths(self) -> tuple[int, ...]:
        """``M*D`` twice, or once and D for each modality."""
        apart = (self.embed_dim,) * len(self.modalities)
        return (self.num_features, *((self.num_features,) if self.classifier == "joint" else apart))

    @property
    def neck_of(self) -> tuple[int, ...]:
        """One neck for each head, or one for the embedding and one for all class tokens."""
        return (0, 1) if self.classifier == "joint" else (0, *(1 for _ in self.modalities))

    def own_losses(self, features: Features) -> dict[str, Tensor]:
        """How far the modalities' backgrounds are from each other."""
        return {"background": background_loss(features["tokens"], features["mask"], features.get("present"))}

    def identity_losses(self, features: Features, pid: Tensor) -> dict[str, Tensor]:
        """How far each modality's class tokens are from the centres, which the batch itself has moved."""
        total = features["own_cls"].sum() * 0
        for (unit, rows), centers in zip(self._by_modality(features), self.centers, strict=True):
            moved = centers.detach().clone()
            update_centers(moved, unit.detach(), pid, rows=rows)
            total = total + center_loss(unit, moved, pid, rows)
        return {"centers": total}

    def after_step(self, features: Features, pid: Tensor) -> None:
        """Move the centres."""
        for (unit, rows), centers in zip(self._by_modality(features), self.centers, strict=True):
            update_centers(centers, unit, pid, rows=rows)

    def _by_modality(self, features: Features) -> list[tuple[Tensor, Tensor | None]]:
        """Unit class tokens ``(B, D)`` behind each modality's own block, and the rows that have the modality."""
        units, present = F.normalize(features["own_cls"].float(), dim=-1).unbind(1), features.get("present")
        return [(unit, None if present is None else present[:, m]) for m, unit in enumerate(units)]


_LETTERS = ("R", "N", "T")
_CENTERS = ("RGB", "NIR", "TIR")


def _block_rules(norm1: str, attention: str, norm2: str, mlp: str, ours: str) -> list[Rule]:
    names = {norm1: "norm1", attention: "attn", norm2: "norm2", mlp: "mlp"}
    return [Rule(rf"FUSE_block\.{theirs}\.(.*)", rf"fusion.{ours}.{name}.\1") for theirs, name in names.items()]


def _authors_rules(joint: bool) -> list[Rule]:
    head = "AL" if joint else "BACKBONE"
    return [
        *vit_tower_rules("BACKBONE.base."),
        *(
            rule
            for m, x in enumerate(_LETTERS)
            for rule in _block_rules(f"norm{x}", f"attn{x}", f"norm{x}_", f"mlp{x}", f"blocks.{m}")
        ),
        *_block_rules("norm1", "attn1", "norm2", "mlp", "joint"),
        Rule(r"FUSE_block\.out_norm\.(.*)", r"fusion.norm.\1"),
        *(Rule(rf"{x}_REDUCE\.(.*)", rf"fusion.reduce.{m}.\1") for m, x in enumerate(_CENTERS)),
        *(Rule(rf"FUSE_block\.memory_cls\.{x}_centers", f"centers.{m}") for m, x in enumerate(_CENTERS)),
        *neck_rules("FUSE_BN", "FUSE_HEAD", "necks.0"),
        *neck_rules(f"{head}_BN", f"{head}_HEAD", "necks.1"),
    ]


def _arguments(state: State) -> dict[str, Any]:
    cameras = len(state["BACKBONE.base.sie_embed"]) if "BACKBONE.base.sie_embed" in state else 0
    return {"num_classes": len(state["FUSE_HEAD.weight"]), "num_cameras": cameras}


def _check_haar(state: State) -> None:
    """The wavelet's filters are constants; with others the brightness would be something else."""
    for key in (key for key in state if key.startswith("FREQ_INDEX.")):
        signs = (1.0, -1.0 if key.rpartition(".")[2].startswith(("h1", "g1")) else 1.0)
        if not torch.allclose(state[key].flatten().cpu().float(), torch.tensor(signs) * 0.5**0.5, atol=1e-6):
            raise ValueError(f"{key} is no Haar filter")


def _authors(model: str, joint: bool) -> Authors:
    unused = {r"BACKBONE_(HEAD|BN)\..*": "a head that this configuration does not train"} if joint else {}
    return Authors(
        title="EDITOR",
        repository="924973292/EDITOR",
        license="MIT",
        model=model,
        rules=_authors_rules(joint),
        arguments=_arguments,
        dropped={
            r"BACKBONE\.base\.fc\.(weight|bias)": "ImageNet's classifier, which is never used",
            r"FREQ_INDEX\.I?DWT\.[hg][01]_(col|row)": "constants of a wavelet transform and its inverse",
            **unused,
        },
        check=_check_haar,
    )


register_authors("editor", _authors("editor_vit_b16", joint=True))
register_authors("editor_vehicle", _authors("editor_vit_b16_vehicle", joint=False))

default_cfgs = generate_default_cfgs(
    {
        "editor_vit_b16": PretrainedCfg(timm=True, paper_ids="arXiv:2403.10254"),
        "editor_vit_b16_vehicle": PretrainedCfg(timm=True, input_size=(3, 128, 256), paper_ids="arXiv:2403.10254"),
        "editor_tiny": PretrainedCfg(input_size=(3, 64, 32), paper_ids="arXiv:2403.10254"),
    }
)


@register_model
def editor_vit_b16(pretrained: bool = False, **kwargs: Any) -> EDITOR:
    """EDITOR for persons on a shared ViT-B/16 at 256x128, which starts from timm's weights with ``pretrained=True``."""
    return build_model_with_cfg(EDITOR, "editor_vit_b16", pretrained, **kwargs)


@register_model
def editor_vit_b16_vehicle(pretrained: bool = False, **kwargs: Any) -> EDITOR:
    """EDITOR for vehicles at 128x256: a head for each modality's class token, with one neck."""
    settings = {"classifier": "modality", "img_size": (128, 256), **kwargs}
    return build_model_with_cfg(EDITOR, "editor_vit_b16_vehicle", pretrained, **settings)


@register_model
def editor_tiny(pretrained: bool = False, **kwargs: Any) -> EDITOR:
    """EDITOR on a shared four-layer tower at 64x32, small enough to train on two CPU cores in a minute."""
    settings = {"head_dim": 16, "attention_keep": 1, "bright_keep": 3, "drop_path": 0.0, **TINY_IMAGE, **kwargs}
    return build_model_with_cfg(EDITOR, "editor_tiny", pretrained, **settings)
