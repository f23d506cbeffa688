"""IDEA: captions inverted into tokens of the image tower, and deformable aggregation (arXiv 2503.10324)."""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..layers import DeformableAggregation
from ..towers import ImageTowers, TextTower
from ._authors import Authors, Rule, State, clip_tower_rules, neck_rules, register_authors
from ._base import Captions, Features, ReIDModel, SampleCaption
from ._builder import build_model_with_cfg
from ._pretrained import PretrainedCfg, generate_default_cfgs
from ._registry import register_model
from ._tiny import TINY_IMAGE, TINY_TEXT

CLASSIFIERS = ("joint", "modality")
MISSING = ("leave_out", "zeros")
CLAUSES = ("long", "short")
_START = "An image of a"
_SPECTRA = {
    "rgb": ("visible", "capturing natural colors and fine details"),
    "nir": ("near infrared", "capturing contrasts and surface reflectance"),
    "tir": ("thermal infrared", "capturing heat emissions as temperature gradients"),
}

_logger = logging.getLogger(__name__)


class IDEA(ReIDModel):
    """Inverted text with cooperative deformable aggregation (Wang et al., CVPR 2025).

    A caption, behind a prefix with n learned words, goes through the frozen text tower; an inverse network makes a
    token of it, which runs through the image tower behind the patches. Class tokens V and inverted tokens T then
    attend to patches that are sampled at learned positions, see `DeformableAggregation`.

    Captions change what the image tower computes: `encode_images` gives the tokens before its first block, and its
    blocks run once for each condition. A missing caption leaves the prefix alone. A caption that is longer than the
    text window is cut at its end, as the authors do. The whole caption is read in training too.

    ``forward_features`` gives ``cls (B, M, D)``, ``tokens (B, M, N, D)``, ``inverted (B, M, D)`` (T),
    ``text (B, M, D)`` and ``inverse (B, M, W)``, a caption's feature and its token before the tower,
    ``offsets (B, 2, h, w)``, ``positions (B, h, w, 2)``, and the vectors ``visual (B, M*D)``, ``textual (B, M*D)`` and
    ``fused (B, 2*M*D)``. The embedding is ``textual``.

    An absent modality gives no key and no query: its parts of the embedding are zero.

    Args:
        image_tower: timm name of a plain vision transformer; see `ImageTower`.
        text_tower: open_clip name or settings of a CLIP text tower, see `TextTower`.
        img_size: Height and width in pixels.
        modalities: Names of the modalities, in the order of the images' axis M; the prefix of one that is not among
            rgb, nir and tir has its name as the spectrum.
        embed_dim: Width D of the joint space of images and text.
        num_classes: Training identities; 0 gives embeddings.
        classifier: What is classified besides ``visual`` and ``textual``: V and T as two ``"joint"`` vectors (the
            authors on RGBNT201 and MSVR310), or each ``"modality"``'s (the authors on RGBNT100).
        object_type: What the prefix says an image shows, such as ``"person"`` or ``"vehicle"``.
        num_prompts: Learned words n of the prefix (the authors: 2 on RGBNT201, else 1).
        clauses: ``"long"``: the prefix also tells what a spectrum captures; ``"short"`` (the authors on RGBNT100).
        offset_factor: See `DeformableAggregation` (the authors: 5 on RGBNT201, 25 on MSVR310, 21 on RGBNT100).
        kernel_size: See `DeformableAggregation`.
        drop: Dropout behind both layers of the inverse network.
        missing: What an absent modality is: ``"leave_out"``, or an image of ``"zeros"`` with its caption, as in the
            authors' code.
        share_image_tower: One image tower for all modalities, or one each.
        num_cameras: Cameras to learn an embedding for; 0 for none.
        drop_path: Stochastic depth rate of the image tower.
        image_tower_args: Further arguments of the timm model.

    Raises:
        ValueError: If a setting is unknown, the model is without a text tower, or a tower cannot be run part by part.
    """

    prefix_ids: Tensor
    text_tower: TextTower
    uses_text = True

    def __init__(
        self,
        image_tower: str = "vit_base_patch16_clip_quickgelu_224",
        text_tower: str | dict[str, Any] | None = "ViT-B-16-quickgelu",
        img_size: Sequence[int] = (256, 128),
        modalities: Sequence[str] = ("rgb", "nir", "tir"),
        embed_dim: int | None = 512,
        num_classes: int = 0,
        classifier: str = "joint",
        object_type: str = "person",
        num_prompts: int = 2,
        clauses: str = "long",
        offset_factor: float = 5.0,
        kernel_size: int = 4,
        drop: float = 0.1,
        missing: str = "leave_out",
        share_image_tower: bool = True,
        num_cameras: int = 0,
        drop_path: float = 0.0,
        image_tower_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(modalities)
        settings = (
            ("classifier", classifier, CLASSIFIERS),
            ("missing", missing, MISSING),
            ("clauses", clauses, CLAUSES),
        )
        for name, value, allowed in settings:
            if value not in allowed:
                raise ValueError(f"unknown {name} {value!r}; allowed: {', '.join(allowed)}")
        if text_tower is None:
            raise ValueError(
                "IDEA makes tokens of captions and needs a text tower: text_tower=None is no setting of it"
            )
        if not 1 <= num_prompts <= 16:
            raise ValueError(f"num_prompts must be 1 to 16, got {num_prompts}")
        self.image_tower = ImageTowers(
            image_tower, img_size, modalities, embed_dim, share_image_tower, num_cameras, drop_path, image_tower_args
        )
        self.img_size, self.missing, self.classifier = self.image_tower.img_size, missing, classifier
        dim = self.embed_dim = self.modality_width = self.image_tower.embed_dim
        width, count = self.image_tower.width, len(self.modalities)
        tower = self.text_tower = TextTower(text_tower, dim)
        self.prefixes = [_prefix(name, object_type, num_prompts, clauses == "long") for name in self.modalities]
        at = tower.count_tokens(_START) - 1  # behind the start and before the end
        self.prompted = slice(at, at + num_prompts)
        self.text_prompt = nn.Parameter(torch.randn(num_prompts, tower.transformer.token_embedding.embedding_dim))
        self.inverse = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.GELU(), nn.Dropout(drop), nn.Linear(4 * dim, width), nn.Dropout(drop)
        )
        self.inverse_pos = nn.Parameter(torch.randn(width) * width**-0.5)
        self.aggregation = DeformableAggregation(
            dim, self.image_tower.grid_size, count, kernel_size, offset_factor=offset_factor
        )
        self.register_buffer("prefix_ids", self._tokenize(self.prefixes), persistent=False)
        self.num_features = count * dim
        self.embeddings = {"textual": count * dim, "visual": count * dim, "fused": 2 * count * dim}
        self._warned = False
        self.reset_classifier(num_classes)

    def prepare_text(self, captions: Captions, sample: SampleCaption | None = None) -> Tensor:
        """Text features ``(B, M, D)``, with a gradient to the learned words; ``sample`` is not read."""
        count = len(self.modalities)
        texts = []
        for i, row in enumerate(captions):
            if len(row) != count or isinstance(row, str):
                raise ValueError(
                    f"captions row {i} has {len(row)} entries, expected one per modality {self.modalities}"
                )
            said = [caption if isinstance(caption, str) else " ".join(caption or ()) for caption in row]
            texts += [prefix + words for prefix, words in zip(self.prefixes, said, strict=True)]
        distinct = {text: i for i, text in enumerate(dict.fromkeys(texts))}
        features = self._encode(self._tokenize(list(distinct)).to(self.text_prompt.device))
        return features[[distinct[text] for text in texts]].unflatten(0, (-1, count))

    def no_text(self) -> Tensor:
        """What stands for the absence of all captions: features ``(1, M, D)`` of the prefixes alone."""
        return self._encode(self.prefix_ids)[None]

    def _tokenize(self, texts: Sequence[str]) -> Tensor:
        """Token ids ``(n, L)``, L that of the longest text, cut at the window as the authors cut."""
        tower = self.text_tower
        rows = [tower.tokenizer.ids(text) for text in texts]
        room = tower.context_length
        if (long := sum(len(row) > room for row in rows)) and not self._warned:
            _logger.warning("%d of %d captions are longer than %d tokens and cut; reported once", long, len(rows), room)
            self._warned = True
        rows = [row if len(row) <= room else [*row[: room - 1], row[-1]] for row in rows]
        longest = max(map(len, rows))
        return torch.tensor([[*row, *[tower.tokenizer.pad] * (longest - len(row))] for row in rows])

    def _encode(self, ids: Tensor) -> Tensor:
        """Features ``(n, D)``: the mean of what the tower gives at the end and at the learned words."""
        tower, at = self.text_tower, self.prompted
        words = tower.embed_words(ids)
        words = torch.cat([words[:, : at.start], words[:, at] + self.text_prompt, words[:, at.stop :]], dim=1)
        out = tower.run_words(words)
        end = out[torch.arange(len(out), device=out.device), tower.places(ids)]
        # The projection is linear: the mean may come first.
        return tower.project((end + out[:, at].sum(1)) / (len(self.text_prompt) + 1))

    def encode_images(self, images: Tensor, present: Tensor | None = None, camid: Tensor | None = None) -> Features:
        """Tokens before the first block, ``stem (B, M, P+N, W)``, and ``camera (B, M, W)`` where there are cameras.

        With ``missing="zeros"`` also ``blank``, the tokens of an image of zeros.
        """
        encoded = {"stem": self.image_tower.stem(images, present, camid)}
        if self.missing == "zeros":
            encoded["blank"] = self.image_tower.stem(torch.zeros_like(images), None, camid)
        camera = self.image_tower.cameras(images.shape[0], camid)
        return encoded if camera is None else {**encoded, "camera": camera}

    def forward_tokens(self, encoded: Features, text: Tensor | None = None, present: Tensor | None = None) -> Features:
        """Invert the text, run the tower's blocks and aggregate; see the class for names and shapes."""
        towers, stem = self.image_tower, encoded["stem"]
        if self.missing == "zeros" and present is not None:
            stem = torch.where(present[..., None, None], stem, encoded["blank"])
            present = None
        text = (self.no_text().expand(stem.shape[0], -1, -1) if text is None else text).to(stem.dtype)
        inverse = self.inverse(text)
        token = inverse + self.inverse_pos + (encoded["camera"] if "camera" in encoded else 0)
        tokens = torch.cat([stem, towers.norm_pre(token[:, :, None])], dim=2)  # (B, M, P+N+1, W)
        tokens = towers.project(towers.norm(towers.run_blocks(tokens)))
        if present is not None:
            tokens = tokens * present[..., None, None].to(tokens.dtype)
        prefix = towers.num_prefix_tokens
        cls, patches, inverted = tokens[:, :, 0], tokens[:, :, prefix:-1], tokens[:, :, -1]
        queries, offsets, positions = self.aggregation(torch.cat([cls, inverted], dim=1), patches, present)
        visual, textual = queries.chunk(2, dim=1)  # (B, M, D)
        parts = {"cls": cls, "tokens": patches, "inverted": inverted, "text": text, "inverse": inverse}
        if present is not None:
            visual, textual = (part * present[..., None].to(part.dtype) for part in (visual, textual))
            parts["present"] = present
        visual, textual = visual.flatten(1), textual.flatten(1)
        vectors = {"visual": visual, "textual": textual, "fused": torch.cat([visual, textual], dim=1)}
        return {**parts, "offsets": offsets, "positions": positions, **vectors}

    def pool(self, features: Features) -> Tensor:
        """``textual``."""
        return features["textual"]

    def pool_heads(self, features: Features) -> tuple[tuple[Tensor, Tensor | None], ...]:
        """``visual``, ``textual``, then V and T, joint or of each modality with the samples that have it."""
        first = (features["visual"], None), (features["textual"], None)
        v, t, present = features["cls"], features["inverted"], features.get("present")
        if self.classifier == "joint":
            return *first, (v.flatten(1), None), (t.flatten(1), None)
        rows = [None] * v.shape[1] if present is None else present.unbind(1)
        return *first, *((part[:, m], row) for part in (v, t) for m, row in enumerate(rows))

    @property
    def head_widths(self) -> tuple[int, ...]:
        """Those of `pool_heads`."""
        joint, count = self.classifier == "joint", len(self.modalities)
        return (self.num_features,) * 2 + ((self.num_features,) * 2 if joint else (self.embed_dim,) * 2 * count)


def _prefix(modality: str, object_type: str, num_prompts: int, long: bool) -> str:
    """What stands before a caption, such as "An image of a X person in the visible spectrum: "."""
    spectrum, clause = _SPECTRA.get(modality, (modality, ""))
    more = f", {clause}" if long and clause else ""
    return f"{_START} {'X ' * num_prompts}{object_type} in the {spectrum} spectrum{more}: "


def _arguments(state: State) -> dict[str, Any]:
    return {
        "num_classes": len(state["textual_classifier.weight"]),
        "num_cameras": len(state.get("BACKBONE.cv_embed", ())),
        "num_prompts": len(state["BACKBONE.base.text_prompt"]),
        "classifier": "joint" if "classifier_v.weight" in state else "modality",
    }


_CDA = r"CDA\.da_group\.0"
_ATTENTION = {"q": r"q.\1", "v": r"v_\1", "out": r"proj.\1"}
register_authors(
    "idea",
    Authors(
        title="IDEA",
        repository="924973292/IDEA",
        license="MIT",
        model="idea_clip_b16",
        arguments=_arguments,
        rules=[
            *clip_tower_rules("BACKBONE.base.visual."),
            Rule(r"BACKBONE\.cv_embed", "image_tower.0.camera", "reshape"),
            Rule(r"BACKBONE\.base\.visual\.new_positional_embedding", "inverse_pos", "reshape"),
            Rule(r"BACKBONE\.base\.text_prompt", "text_prompt"),
            Rule(
                r"BACKBONE\.base\.((?:token_embedding|ln_final|transformer)\..*|positional_embedding|text_projection)",
                r"text_tower.transformer.\1",
            ),
            Rule(r"BACKBONE\.inverseNet\.fc1\.(weight|bias)", r"inverse.0.\1"),
            Rule(r"BACKBONE\.inverseNet\.fc2\.(weight|bias)", r"inverse.3.\1"),
            Rule(rf"{_CDA}\.conv_offset\.(.*)", r"aggregation.offset.\1"),
            Rule(rf"{_CDA}\.proj_k\.weight", "aggregation.attention.k_weight", "reshape"),
            *(
                Rule(rf"{_CDA}\.proj_{theirs}\.(weight|bias)", f"aggregation.attention.{ours}", "reshape")
                for theirs, ours in _ATTENTION.items()
            ),
            *neck_rules("bottleneck_visual", "visual_classifier", "necks.0"),
            *neck_rules("bottleneck_textual", "textual_classifier", "necks.1"),
            *(
                rule
                for i, name in enumerate("vt")
                for rule in neck_rules(f"bottleneck_{name}", f"classifier_{name}", f"necks.{2 + i}")
            ),
            *(
                rule
                for i, name in enumerate(f"{part}_{modality}" for part in "vt" for modality in ("rgb", "nir", "tir"))
                for rule in neck_rules(f"bottleneck_{name}", f"classifier_{name}", f"necks.{2 + i}")
            ),
        ],
        dropped={
            r"BACKBONE\.base\.logit_scale": "the temperature of CLIP's loss",
            rf"{_CDA}\.proj_k\.bias": "a bias of keys, which cancels in the softmax",
        },
    ),
)

_PAPER = "arXiv:2503.10324"
default_cfgs = generate_default_cfgs(
    {
        "idea_clip_b16": PretrainedCfg(clip=("ViT-B-16-quickgelu", "openai"), paper_ids=_PAPER),
        "idea_clip_b16_vehicle": PretrainedCfg(
            clip=("ViT-B-16-quickgelu", "openai"), input_size=(3, 128, 256), paper_ids=_PAPER
        ),
        "idea_tiny": PretrainedCfg(input_size=(3, 64, 32), paper_ids=_PAPER),
    }
)


@register_model
def idea_clip_b16(pretrained: bool = False, **kwargs: Any) -> IDEA:
    """IDEA on CLIP ViT-B/16, persons at 256x128 (the authors' model for RGBNT201)."""
    return build_model_with_cfg(IDEA, "idea_clip_b16", pretrained, **kwargs)


@register_model
def idea_clip_b16_vehicle(pretrained: bool = False, **kwargs: Any) -> IDEA:
    """IDEA on CLIP ViT-B/16, vehicles at 128x256 (the authors' model for MSVR310).

    Their model for RGBNT100 has ``classifier="modality"``, ``clauses="short"`` and ``offset_factor=21``.
    """
    args = {"img_size": (128, 256), "object_type": "vehicle", "num_prompts": 1, "offset_factor": 25.0}
    return build_model_with_cfg(IDEA, "idea_clip_b16_vehicle", pretrained, **{**args, **kwargs})


@register_model
def idea_tiny(pretrained: bool = False, **kwargs: Any) -> IDEA:
    """IDEA on four-layer towers at 64x32, small enough to train on two CPU cores in a minute."""
    args = {**TINY_IMAGE, "text_tower": TINY_TEXT, "kernel_size": 2}
    return build_model_with_cfg(IDEA, "idea_tiny", pretrained, **{**args, **kwargs})
