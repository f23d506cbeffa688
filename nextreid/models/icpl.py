"""ICPL-ReID: identity-conditional prompt learning (Li et al., IEEE TMM 2025)."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .._schema import choice, number, table, whole
from ..layers import ClassPrompts
from ..losses import (
    batch_hard_triplet,
    class_means,
    identity_loss,
    pairwise_contrast,
    prototype_loss,
    update_prototypes,
)
from ..towers import ImageTower, ImageTowers, SideAdapter, TextTower, freeze_but, run_block
from ._authors import Authors, Rule, State, clip_tower_rules, neck_rules, register_authors
from ._base import EmbedTraining, Features, ReIDModel
from ._builder import build_model_with_cfg
from ._pretrained import PretrainedCfg, generate_default_cfgs
from ._registry import register_model
from ._tiny import TINY_IMAGE, TINY_TEXT

OBJECTS = ("person", "vehicle")
LOSSES: dict[str, Any] = {
    "modality": 0.33,
    "triplet": 1.0,
    "margin": 0.3,
    "prototype": 0.9,
    "prototype_late": 0.1,
    "text": 0.1,
    "text_late": 0.9,
    "contrast": 1.0,
    "late": 20,
    "temperature": 0.05,
    "momentum": 0.1,
    "plain_epochs": 3,
}
"""Settings of the method's own losses, the authors': see `ICPL`."""
_weight = number(0, 1e3)
_losses_kind = table(
    {
        **dict.fromkeys(LOSSES, _weight),
        **dict.fromkeys(("late", "plain_epochs"), whole(0, 1_000_000)),
        "temperature": number(1e-3, 1e3),
        "momentum": number(0, 1),
    },
    "setting of the losses",
)


class ICPL(ReIDModel):
    """Adapters beside the blocks of a frozen CLIP, aligned with prompts and prototypes of the training identities.

    Each modality has a tower with a `SideAdapter` beside each MLP, or all share one, with its adapters, necks and
    prompts. The embedding is, for each modality, the class token behind the last norm and its projection side by side,
    ``(B, M*(W+D))``, zero where a modality is absent. Captions are accepted and change nothing: the text tower reads
    the prompts ("A photo of a X X X X person."), whose four words X are learned for each identity, and serves in
    training alone.

    ``forward_features`` gives ``block (B, M, W)``, the class token before the last block, ``wide (B, M, W)``, behind
    the last norm, ``cls (B, M, D)``, projected, ``tokens (B, M, N, D)``, and the named vectors.

    In training both class tokens of a modality are classified. To these come, summed over modalities and times the
    setting ``"modality"``: a triplet loss on ``block``, times ``"triplet"``; the cross entropy of ``wide`` against the
    prototypes, times ``"prototype"``; the contrast of projected prototypes and texts of the batch's identities, times
    ``"contrast"``; the cross entropy of ``cls`` against the texts of all identities, times ``"text"``. Behind epoch
    ``"late"`` the weights are ``"prototype_late"`` and ``"text_late"``. The prototypes are made again before every
    epoch, as means over the training images, in the first ``"plain_epochs"`` without the adapters, and move after every
    step (``"momentum"``).

    Args:
        image_tower: timm name of a plain vision transformer; see `ImageTower`.
        text_tower: open_clip name or settings, see `TextTower`; None trains without prompts.
        img_size: Height and width in pixels.
        modalities: Names of the modalities, in the order of the images' axis M.
        embed_dim: Width D of the joint space of images and text.
        num_classes: Training identities; 0 gives embeddings.
        share_image_tower: One tower for all modalities (the authors' ``single``), or one each (``multi``).
        num_cameras: Cameras to learn an embedding for; 0 for none, as the authors.
        drop_path: Stochastic depth rate of the image tower.
        image_tower_args: Further arguments of the timm model.
        adapter_width: Hidden width of the adapters; None for the tower's.
        adapter_scale: Factor of the adapters' outputs.
        adapter_drop: Dropout in the adapters.
        freeze_tower: Whether of the towers only the last norm and the projection learn.
        object_type: What the prompts name, ``"person"`` or ``"vehicle"``.
        num_prompts: Number of learned words of an identity.
        prompt_file: Whether the fixed words of the prompts are weights of the model, as in the authors' files, and not
            read from the text tower.
        losses: Changed ones of the settings `LOSSES`.

    Raises:
        ValueError: If a setting is unknown or not allowed, or the tower cannot be run part by part.
    """

    loss_parts = ("block", "wide", "cls", "present")
    prototypes: Tensor
    prompt_ids: Tensor
    words_before: Tensor
    words_after: Tensor

    @classmethod
    def resolve(cls, arguments: dict[str, Any]) -> dict[str, Any]:
        """Complete the settings of the losses."""
        return {**arguments, "losses": {**LOSSES, **_losses_kind("losses", arguments["losses"] or {})}}

    def __init__(
        self,
        image_tower: str = "vit_base_patch16_clip_quickgelu_224",
        text_tower: str | dict[str, Any] | None = "ViT-B-16-quickgelu",
        img_size: Sequence[int] = (256, 128),
        modalities: Sequence[str] = ("rgb", "nir", "tir"),
        embed_dim: int | None = 512,
        num_classes: int = 0,
        share_image_tower: bool = False,
        num_cameras: int = 0,
        drop_path: float = 0.0,
        image_tower_args: dict[str, Any] | None = None,
        adapter_width: int | None = None,
        adapter_scale: float = 1.0,
        adapter_drop: float = 0.1,
        freeze_tower: bool = True,
        object_type: str = "person",
        num_prompts: int = 4,
        prompt_file: bool = False,
        losses: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(modalities)
        self.image_tower = ImageTowers(
            image_tower, img_size, modalities, embed_dim, share_image_tower, num_cameras, drop_path, image_tower_args
        )
        self.img_size, self.embed_dim = self.image_tower.img_size, self.image_tower.embed_dim
        self.width = self.image_tower.width
        self.adapters = nn.ModuleList()
        for tower in self.image_tower.towers():
            if not tower.is_plain:
                raise ValueError(
                    f"adapters stand beside the blocks of a plain vision transformer, not of {image_tower!r}"
                )
            if freeze_tower:
                freeze_but(tower, ("proj.", "trunk.norm.", "camera"))
            sides = (
                SideAdapter(self.width, adapter_width, "relu", adapter_drop, adapter_scale) for _ in tower.trunk.blocks
            )
            self.adapters.append(nn.ModuleList(sides))
        self.losses = {**LOSSES, **_losses_kind("losses", losses or {})}
        self.epoch, self.plain = 0, False
        count, self.modality_width = len(self.modalities), self.width + self.embed_dim
        self.num_features = count * self.modality_width
        self.embeddings = {
            "fused": self.num_features,
            "unprojected": count * self.width,
            "projected": count * self.embed_dim,
        }
        self.num_prompts = whole(1, 64)("num_prompts", num_prompts)
        choice(*OBJECTS)("object_type", object_type)
        if text_tower is not None:
            self.text_tower, self.of_identities = TextTower(text_tower, self.embed_dim), ("necks", "prompts")
            sentence = f"A photo of a {'X ' * num_prompts}{object_type}."
            self.register_buffer("prompt_ids", self.text_tower.tokenize([sentence])[0], persistent=False)
            self.before = self.text_tower.count_tokens("A photo of a") - 1  # without the end
            self.end = self.text_tower.read_length(sentence)
            if prompt_file:
                words = self.text_tower.embed_words(self.prompt_ids).repeat(len(self.adapters), 1, 1)
                self.register_buffer("words_before", words[:, : self.before].detach())
                self.register_buffer("words_after", words[:, self.before + num_prompts :].detach())
        self.prompt_file = prompt_file
        self.reset_classifier(num_classes)

    def reset_classifier(self, num_classes: int) -> None:
        """Replace necks, prompts and prototypes by fresh ones for ``num_classes`` identities; 0 removes them."""
        super().reset_classifier(num_classes)
        reference, towers = next(self.parameters()), len(self.adapters)
        shape = (len(self.modalities), num_classes, self.width)
        self.register_buffer("prototypes", reference.new_zeros(shape), persistent=False)
        if self.text_tower is not None:
            prompts: nn.Module = nn.Identity()
            if num_classes:
                width = self.text_tower.transformer.token_embedding.embedding_dim
                prompts = ClassPrompts(num_classes, width, self.num_prompts, towers)
            self.prompts = prompts.to(device=reference.device, dtype=reference.dtype)

    def encode_images(self, images: Tensor, present: Tensor | None = None, camid: Tensor | None = None) -> Features:
        """Class tokens ``block (B, M, W)``, ``wide (B, M, W)``, ``cls (B, M, D)``; patches ``tokens (B, M, N, D)``."""
        prefix = self.image_tower.num_prefix_tokens
        tokens = self.image_tower.stem(images, present, camid)  # (B, M, P+N, W)
        before = self.image_tower.for_each(lambda *args: self._run_blocks(slice(-1), *args), tokens)
        last = self.image_tower.for_each(lambda *args: self._run_blocks(slice(-1, None), *args), before)
        wide = self.image_tower.norm(last)
        narrow = self.image_tower.project(wide)  # (B, M, P+N, D)
        parts = {
            "block": before[:, :, 0],
            "wide": wide[:, :, 0],
            "cls": narrow[:, :, 0],
            "tokens": narrow[:, :, prefix:],
        }
        return parts if present is None else _masked(parts, present)

    def _run_blocks(self, part: slice, tower: ImageTower, tokens: Tensor, modality: int | None) -> Tensor:
        adapters = list(self.adapters.get_submodule(str(modality or 0)).children())
        for block, adapter in zip(tower.trunk.blocks[part], adapters[part], strict=True):
            tokens = run_block(tower, block, tokens, None if self.plain else adapter)
        return tokens

    def forward_tokens(self, encoded: Features, text: Tensor | None = None, present: Tensor | None = None) -> Features:
        """The tokens, zero where a modality is absent, and the named vectors; ``text`` is not read."""
        parts = encoded if present is None else {**_masked(encoded, present), "present": present}
        return {**parts, "unprojected": parts["wide"].flatten(1), "projected": parts["cls"].flatten(1)}

    def pool(self, features: Features) -> Tensor:
        """For each modality both class tokens side by side, ``(B, M*(W+D))``."""
        return torch.cat([features["wide"], features["cls"]], dim=-1).flatten(1)

    def pool_heads(self, features: Features) -> tuple[tuple[Tensor, Tensor | None], ...]:
        """Each modality's class token behind the last norm, and projected."""
        present, count = features.get("present"), len(self.modalities)
        rows = [None if present is None else present[:, m] for m in range(count)]
        return tuple((features[name][:, m], rows[m]) for m in range(count) for name in ("wide", "cls"))

    @property
    def head_widths(self) -> tuple[int, ...]:
        """W and D for each modality."""
        return (self.width, self.embed_dim) * len(self.modalities)

    @property
    def neck_of(self) -> tuple[int, ...]:
        """Two necks for each tower."""
        return tuple(i % (2 * len(self.adapters)) for i in range(2 * len(self.modalities)))

    def param_role(self, name: str) -> str:
        """Adapters have a role of their own."""
        return "adapters" if name.startswith("adapters.") else super().param_role(name)

    def encode_prompts(self, pid: Tensor | None = None) -> Tensor:
        """Text features of identities.

        Args:
            pid: Class indices ``(b,)``; None for all C.

        Returns:
            ``(K, b, D)``, not normalised, for each of K towers; the gradient reaches the prompts.

        Raises:
            ValueError: If the model has no text tower or no identities.
        """
        if self.text_tower is None or not self.num_classes:
            raise ValueError("prompts are of training identities: build the model with text_tower and num_classes")
        if self.prompt_file:
            before, after = self.words_before, self.words_after
        else:
            words = self.text_tower.embed_words(self.prompt_ids)
            before, after = words[: self.before], words[self.before + self.num_prompts :]
        sentences = self.prompts(before, after, pid)[:, :, : self.end]  # (K, b, L, W)
        read = self.text_tower.run_words(sentences.flatten(0, 1))[:, -1]  # (K*b, W)
        return self.text_tower.project(read).unflatten(0, sentences.shape[:2])

    def start_epoch(self, epoch: int, embed: EmbedTraining) -> None:
        """Make the prototypes again: unit means of ``wide`` over each identity's training images."""
        self.epoch = epoch
        self.plain = epoch <= self.losses["plain_epochs"]
        try:
            vectors, pid = embed("unprojected")
        finally:
            self.plain = False
        vectors, pid = vectors.to(self.prototypes.device), pid.to(self.prototypes.device)
        for m, part in enumerate(vectors.unflatten(1, (-1, self.width)).unbind(1)):
            means = class_means(part, pid, self.num_classes, (part != 0).any(1))
            self.prototypes[m] = F.normalize(means, dim=1)

    def after_step(self, features: Features, pid: Tensor) -> None:
        """Move the prototypes by the batch, sample by sample."""
        for m, rows in enumerate(self._rows(features)):
            update_prototypes(self.prototypes[m], features["wide"][:, m], pid, self.losses["momentum"], rows)

    def identity_losses(self, features: Features, pid: Tensor) -> dict[str, Tensor]:
        """Triplet before the last block, prototypes, and texts where there is a text tower; weighted."""
        set_, late = self.losses, "_late" if self.epoch > self.losses["late"] else ""
        found: dict[str, list[Tensor]] = {}
        ids = pid.unique()
        if self.text_tower is not None:
            with torch.no_grad():
                texts = self.encode_prompts()
            own = self.encode_prompts(ids)
        for m, rows in enumerate(self._rows(features)):
            block, wide, cls = (features[name][:, m].float() for name in ("block", "wide", "cls"))
            tower = m % len(self.adapters)
            losses = {
                "block_triplet": set_["triplet"] * batch_hard_triplet(block, pid, set_["margin"], rows),
                "prototype": set_["prototype" + late]
                * prototype_loss(wide, self.prototypes[m], pid, set_["temperature"], rows),
            }
            if self.text_tower is not None:
                with torch.no_grad():
                    towards = self.image_tower.towers()[tower].proj(self.prototypes[m][ids])
                seen = None if rows is None else (pid[rows][:, None] == ids).any(0)
                losses["prototype_text"] = set_["contrast"] * pairwise_contrast(towards, own[tower], seen)
                losses["image_text"] = set_["text" + late] * identity_loss(cls @ texts[tower].T, pid, 0.0, rows)
            for name, loss in losses.items():
                found.setdefault(name, []).append(set_["modality"] * loss)
        return {name: torch.stack(each).sum() for name, each in found.items()}

    def _rows(self, features: Features) -> list[Tensor | None]:
        """For each modality the rows that have it; None for all."""
        present = features.get("present")
        return [None if present is None else present[:, m] for m in range(len(self.modalities))]


def _masked(parts: Mapping[str, Tensor], present: Tensor) -> Features:
    return {
        name: part.masked_fill(~present[(..., *[None] * (part.dim() - 2))], 0)
        if part.shape[:2] == present.shape
        else part
        for name, part in parts.items()
    }


def _is_shared(state: State) -> bool:
    """Whether a file holds one branch, under two or three names."""
    first = {key: value for key, value in state.items() if key.startswith("model1.")}
    second = {key: state.get(f"model2.{key.removeprefix('model1.')}") for key in first}
    return all(other is not None and torch.equal(first[key], other) for key, other in second.items())


def _rules(state: State) -> list[Rule]:
    """For each branch; of one under three names the second and third fill the first's places again."""
    text = r"positional_embedding|text_projection|ln_final\..*|transformer\.resblocks\.\d+\.[lam].*"
    rules = [Rule(rf"model[123]\.text_encoder\.({text})", r"text_tower.transformer.\1")]
    shared = _is_shared(state)
    for m in range(3):
        branch, n = f"model{m + 1}.", 0 if shared else m
        adapter = rf"{branch}image_encoder.transformer.resblocks.(\d+).MLP_Adapter.(down|up)_proj.(.*)"
        rules += [
            *clip_tower_rules(f"{branch}image_encoder.", f"image_tower.{n}."),
            Rule(adapter, rf"adapters.{n}.\1.\2.\3"),
            *neck_rules(f"{branch}bottleneck", f"{branch}classifier", f"necks.{2 * n}"),
            *neck_rules(f"{branch}bottleneck_proj", f"{branch}classifier_proj", f"necks.{2 * n + 1}"),
            Rule(f"{branch}prompt_learner.cls_ctx", f"prompts.contexts[{n}]"),
            Rule(f"{branch}prompt_learner.token_prefix", f"words_before[{n}]", "reshape"),
            Rule(f"{branch}prompt_learner.token_suffix", f"words_after[{n}]", "reshape"),
        ]
    return rules


def _arguments(state: State) -> dict[str, Any]:
    classes, words = state["model1.prompt_learner.cls_ctx"].shape[:2]
    found = {
        "num_classes": classes,
        "share_image_tower": _is_shared(state),
        "adapter_width": len(state["model1.image_encoder.transformer.resblocks.0.MLP_Adapter.down_proj.weight"]),
        "num_prompts": words,
        "prompt_file": True,
    }
    two = not any(key.startswith("model3.") for key in state)  # RGBN300
    return {**found, "modalities": ("rgb", "nir")} if two else found


register_authors(
    "icpl",
    Authors(
        title="ICPL-ReID",
        repository="lsh-ahu/ICPL-ReID",
        license="MIT",
        model="icpl_clip_b16",
        rules=_rules,
        arguments=_arguments,
        dropped={
            r"model[123]\.text_encoder\.transformer\.resblocks\.\d+\.MLP_Adapter\..*": "adapters of the text tower, "
            "which the authors' code stores and never runs",
            r"model[123]\.cv_embed": "camera embeddings, which the authors' own loader leaves out",
        },
        kept=(r"text_tower\.transformer\.token_embedding\.weight",),
    ),
)

_CLIP = ("ViT-B-16-quickgelu", "openai")
default_cfgs = generate_default_cfgs(
    {
        "icpl_clip_b16": PretrainedCfg(clip=_CLIP),
        "icpl_clip_b16_vehicle": PretrainedCfg(clip=_CLIP, input_size=(3, 128, 256)),
        "icpl_clip_b16_msvr310": PretrainedCfg(clip=_CLIP, input_size=(3, 128, 256)),
        "icpl_tiny": PretrainedCfg(input_size=(3, 64, 32)),
    }
)
_VEHICLE = {"img_size": (128, 256), "object_type": "vehicle"}


@register_model
def icpl_clip_b16(pretrained: bool = False, **kwargs: Any) -> ICPL:
    """ICPL-ReID with three CLIP ViT-B/16, persons at 256x128 (the authors' RGBNT201)."""
    return build_model_with_cfg(ICPL, "icpl_clip_b16", pretrained, **kwargs)


@register_model
def icpl_clip_b16_vehicle(pretrained: bool = False, **kwargs: Any) -> ICPL:
    """ICPL-ReID with three CLIP ViT-B/16, vehicles at 128x256 (the authors' RGBNT100 and WMVEID863)."""
    return build_model_with_cfg(ICPL, "icpl_clip_b16_vehicle", pretrained, **{**_VEHICLE, **kwargs})


@register_model
def icpl_clip_b16_msvr310(pretrained: bool = False, **kwargs: Any) -> ICPL:
    """ICPL-ReID with one CLIP ViT-B/16 for all modalities and half as much of the adapters (the authors' MSVR310)."""
    args = {**_VEHICLE, "share_image_tower": True, "adapter_scale": 0.5}
    return build_model_with_cfg(ICPL, "icpl_clip_b16_msvr310", pretrained, **{**args, **kwargs})


@register_model
def icpl_tiny(pretrained: bool = False, **kwargs: Any) -> ICPL:
    """ICPL-ReID on three four-layer towers at 64x32, which learn as a whole: nothing of them was trained before."""
    args = {**TINY_IMAGE, "text_tower": TINY_TEXT, "freeze_tower": False, "losses": {"triplet": 0.05}}
    return build_model_with_cfg(ICPL, "icpl_tiny", pretrained, **{**args, **kwargs})
