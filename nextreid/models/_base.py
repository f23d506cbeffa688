"""The model contract: what a method implements, and all that the rest of the library knows of it."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..layers.neck import BNNeck
from ..towers import ImageTower, ImageTowers, TextTower
from ..towers.image import modalities_kind
from ._pretrained import PretrainedCfg

Captions = Sequence[Sequence[Sequence[str] | str | None]]
Features = dict[str, Tensor]
SampleCaption = Callable[[int, int, int], Sequence[str]]
"""Draws the sentences of a caption in training: called with the batch row, the modality and the number of the draw."""
EmbedTraining = Callable[[str | None], tuple[Tensor, Tensor]]
"""Embeds all training images without augmentation, in evaluation mode: called with the name of a vector (None for the
default), gives the vectors ``(n, F)``, parts of absent modalities zero, and the class indices ``(n,)``."""


class Head(NamedTuple):
    """One classified vector.

    Attributes:
        logits: ``(B, C)``.
        feature: What was classified, before its neck, ``(B, F_i)``; the triplet loss reads it.
        present: Rows that take part in the losses, bool ``(B,)``; None for all.
    """

    logits: Tensor
    feature: Tensor
    present: Tensor | None = None


class ReIDOutput(NamedTuple):
    """What a model with classifiers returns.

    Attributes:
        embedding: Retrieval feature, not normalised, ``(B, F)``.
        heads: Classified vectors; each has an identity and a triplet loss.
        losses: The method's own losses, already weighted.
        features: The named parts that ``forward_features`` gives.
    """

    embedding: Tensor
    heads: tuple[Head, ...]
    losses: dict[str, Tensor]
    features: Features


class ReIDModel(nn.Module):
    """A model of multi-modal re-identification.

    Modalities are an axis of declared order. ``present`` marks which of a sample's modalities exist: an absent one has
    no part in any mask, attention or mean, whatever its pixels hold.

    A method implements `forward_tokens` and `pool`, and `encode_images` where it asks more of its towers. It sets
    ``img_size``, ``num_features`` and ``embeddings``, and ends its constructor with `reset_classifier`. One with
    several heads overrides `pool_heads` and `head_widths`, and `neck_of` where heads share a neck; one that reads
    captions `prepare_text`; one with losses of its own `own_losses`, or `identity_losses` where they need identities.
    What changes by epoch, or is rebuilt from all training images, is done in `start_epoch`, what follows the batches
    in `after_step`.

    Args:
        modalities: Names of the modalities, in the order of the images' axis M; a string is one of them.

    Attributes:
        img_size: Height and width of the images in pixels.
        num_features: Width F of the embedding.
        num_classes: Training identities; 0 gives embeddings.
        embeddings: Names and widths of the vectors that the method's paper scores; the first is the default, any other
            one is a part of that name in what `forward_features` gives.
        modality_width: Width D of each modality's part where the embedding is ``(..., M, D)`` flattened, else None.
        uses_text: Whether captions change the embedding.
        neck_bias: Whether the necks learn a shift.
        loss_parts: Names of the parts that `identity_losses` and `after_step` read.
        of_identities: Names of the modules that belong to the training identities: `reset_classifier` makes them again,
            a model with other identities leaves a checkpoint's behind, and only `identity_losses` may use their
            parameters.
        text_tower: The frozen text tower, or None.
        loaded_weights: Where the weights were loaded from last, in words; None as long as none were.
        adapted: How the weights were trained on at test, in words, which the protocol of an evaluation then names; None
            for weights that know training images alone.

    Raises:
        ValueError: If no modality is given or one is named twice.
    """

    image_tower: ImageTowers
    text_tower: TextTower | None
    embed_dim: int
    img_size: tuple[int, int]
    num_features: int
    num_classes: int
    embeddings: Mapping[str, int]
    model_args: dict[str, Any]
    pretrained_cfg: PretrainedCfg
    modality_width: int | None = None
    modalities: tuple[str, ...]
    uses_text: bool = False
    loaded_weights: str | None = None
    neck_bias: bool = False
    adapted: str | None = None
    loss_parts: tuple[str, ...] = ()
    of_identities: tuple[str, ...] = ("necks",)

    def __init__(self, modalities: Sequence[str] = ("rgb", "nir", "tir")) -> None:
        super().__init__()
        self.text_tower = None
        self.modalities = modalities_kind("modalities", modalities)

    def prepare_text(self, captions: Captions, sample: SampleCaption | None = None) -> Tensor | None:
        """Bring the captions of a batch into the form that ``forward`` takes as ``text``.

        Args:
            captions: ``[B][M]``: sentences, one string, or None for an absent caption.
            sample: Draws the sentences that are read in training; None reads all.

        Returns:
            None for a model that reads no captions.
        """
        return None

    def no_text(self) -> Tensor | None:
        """What `forward_tokens` takes for ``text=None``, ``(1, ...)``; None where captions are just left out."""
        return None

    def encode_images(self, images: Tensor, present: Tensor | None = None, camid: Tensor | None = None) -> Features:
        """Run the image tower: tokens by name, each ``(B, M, ...)``, that neither captions nor other modalities change.

        By default class tokens ``cls (B, M, D)`` and patch tokens ``tokens (B, M, N, D)``, zero where absent.

        Args:
            images: ``(B, M, 3, H, W)``, normalised, of any floating type.
            present: Which modalities exist, bool ``(B, M)``; None for all.
            camid: Cameras ``(B,)``, negative where unknown; None for all unknown.
        """
        cls, tokens = self.image_tower(images, present, camid)
        return {"cls": cls, "tokens": tokens}

    def forward_tokens(self, encoded: Features, text: Tensor | None = None, present: Tensor | None = None) -> Features:
        """Run what follows the image tower under one condition: with these captions, and these modalities present.

        Args:
            encoded: What `encode_images` gave.
            text: What `prepare_text` gave, or None for no captions.
            present: Modalities that count, bool ``(B, M)``; None for all. May be fewer than were encoded.

        Returns:
            The method's named parts.
        """
        raise NotImplementedError

    def forward_features(
        self,
        images: Tensor,
        text: Tensor | Captions | None = None,
        present: Tensor | None = None,
        camid: Tensor | None = None,
    ) -> Features:
        """Named parts of the embedding; see the model's class for names and shapes, `forward` for arguments."""
        prepared = text if text is None or isinstance(text, Tensor) else self.prepare_text(text)
        return self.forward_tokens(self.encode_images(images, present, camid), prepared, present)

    def pool(self, features: Features) -> Tensor:
        """The default embedding ``(B, F)`` from what `forward_features` gave, not normalised."""
        raise NotImplementedError

    def pool_heads(self, features: Features) -> tuple[tuple[Tensor, Tensor | None], ...]:
        """Vectors ``(B, F_i)`` to classify, each with the rows that take part: bool ``(B,)``, or None for all."""
        return ((self.pool(features), None),)

    @property
    def head_widths(self) -> tuple[int, ...]:
        """Widths F_i of the vectors that `pool_heads` gives."""
        return (self.num_features,)

    @property
    def neck_of(self) -> tuple[int, ...]:
        """The number of each head's neck; heads of one width may share one."""
        return tuple(range(len(self.head_widths)))

    def own_losses(self, features: Features) -> dict[str, Tensor]:
        """The method's own losses besides identity and triplet, already weighted."""
        return {}

    def identity_losses(self, features: Features, pid: Tensor) -> dict[str, Tensor]:
        """The method's own losses that need identities, already weighted.

        Args:
            features: Those of ``loss_parts`` that `forward_features` gave, of a whole batch, whichever processes hold
                its samples.
            pid: Class indices ``(B,)``.
        """
        return {}

    def start_epoch(self, epoch: int, embed: EmbedTraining) -> None:
        """Called before every epoch of a training; a resumed one starts with the epoch after the last whole one.

        Args:
            epoch: Number of the epoch, from 1.
            embed: Embeds all training images as they are; it costs a pass of the model over them.
        """

    def after_step(self, features: Features, pid: Tensor) -> None:
        """Called behind every training step with what `identity_losses` got."""

    def classify(self, vectors: Sequence[tuple[Tensor, Tensor | None]]) -> tuple[Head, ...]:
        """Logits of the vectors that `pool_heads` gave."""
        pairs = zip(self.neck_of, vectors, strict=True)
        return tuple(Head(self.necks[i](vector), vector, rows) for i, (vector, rows) in pairs)

    def forward_head(self, features: Features, pre_logits: bool = False) -> Tensor | ReIDOutput:
        """Pool the parts into the embedding and classify.

        Args:
            features: What `forward_features` gave.
            pre_logits: Stop at the embedding.
        """
        embedding = self.pool(features)
        if pre_logits or self.num_classes == 0:
            return embedding
        return ReIDOutput(embedding, self.classify(self.pool_heads(features)), self.own_losses(features), features)

    def forward(
        self,
        images: Tensor,
        text: Tensor | Captions | None = None,
        present: Tensor | None = None,
        camid: Tensor | None = None,
    ) -> Tensor | ReIDOutput:
        """Embed samples.

        Args:
            images: ``(B, M, 3, H, W)``, normalised.
            text: What `prepare_text` gave, or the captions themselves, ``[B][M]``; None for none.
            present: Which modalities exist, bool ``(B, M)``; None for all. A sample without any has the zero embedding
                (evaluation and extraction reject such samples by name).
            camid: Cameras ``(B,)``; None or negative for unknown.

        Returns:
            The embedding ``(B, F)`` with ``num_classes=0``, else a `ReIDOutput`.
        """
        return self.forward_head(self.forward_features(images, text, present, camid))

    def vector(self, features: Features, name: str | None = None, after_neck: bool = False) -> Tensor:
        """A retrieval vector ``(B, F)``, not normalised, whatever ``num_classes`` is.

        Args:
            features: What `forward_features` gave.
            name: One of ``embeddings``; None for the default.
            after_neck: Give the classified vectors behind their necks' batch norm, joined.

        Raises:
            ValueError: If the name is unknown, or ``after_neck`` is asked of a model without a classifier.
        """
        if after_neck:
            if self.num_classes == 0:
                raise ValueError("a model with num_classes=0 has no neck; use the feature before the neck")
            pairs = zip(self.neck_of, self.pool_heads(features), strict=True)
            return torch.cat([self.necks.get_submodule(f"{i}.norm")(vector) for i, (vector, _) in pairs], dim=1)
        if name is None or name == next(iter(self.embeddings)):
            return self.pool(features)
        if name not in self.embeddings:
            known = ", ".join(self.embeddings)
            raise ValueError(f"{type(self).__name__} has no embedding {name!r}; there are: {known}")
        return features[name]

    def average_modalities(self, embedding: Tensor) -> Tensor:
        """Average the modalities' parts of embeddings, so that samples without a modality in common can be compared.

        An embedding keeps D numbers for each modality in each of its G groups, zero where the modality is absent:
        a thermal and a colour sample have the inner product 0. All parts lie in one space, which the towers share.

        Args:
            embedding: ``(n, G*M*D)``, before the neck.

        Returns:
            ``(n, G*D)``: in each group the mean of the parts that are not zero.

        Raises:
            ValueError: If the embedding is not made of modalities' parts.
        """
        groups = self.modality_parts(embedding).unflatten(-1, (-1, self.modality_width))  # (n, M, G, D)
        present = (groups != 0).any(dim=-1, keepdim=True).sum(dim=-3)
        return (groups.sum(dim=-3) / present.clamp_min(1)).flatten(-2)

    def modality_parts(self, embedding: Tensor) -> Tensor:
        """What embeddings ``(n, G*M*D)`` hold of each modality: ``(n, M, G*D)``, zero where it is absent.

        Raises:
            ValueError: If the embedding is not made of modalities' parts.
        """
        if self.modality_width is None:
            raise ValueError(
                f"the embedding of {type(self).__name__} is not made of modalities' parts: query and gallery must show "
                "the same modalities, and a recipe takes no contrast_weight"
            )
        groups = embedding.unflatten(-1, (-1, len(self.modalities), self.modality_width))
        return groups.transpose(-2, -3).flatten(-2)

    def get_classifier(self) -> nn.ModuleList:
        """The necks with their identity classifiers, see `neck_of`; empty with ``num_classes=0``."""
        return self.necks

    def reset_classifier(self, num_classes: int) -> None:
        """Replace necks and classifiers by fresh ones for ``num_classes`` identities; 0 removes them."""
        self.num_classes = num_classes
        reference = next(self.parameters())
        widths = dict(zip(self.neck_of, self.head_widths, strict=True))
        necks = nn.ModuleList(BNNeck(widths[i], num_classes, self.neck_bias) for i in range(len(widths)) if num_classes)
        self.necks = necks.to(device=reference.device, dtype=reference.dtype).train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the image towers' blocks in the backward pass instead of keeping their activations."""
        for module in self.modules():
            if isinstance(module, ImageTower):
                module.trunk.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are tables of positions, not weights."""
        names = {"cls_token", "pos_embed", "reg_token", "camera", "relative_position_bias_table"}
        return {name for name, _ in self.named_parameters() if name.split(".")[-1] in names}

    def param_groups(self) -> dict[str, dict[str, nn.Parameter]]:
        """Trainable parameters by role and name; roles are ``"tower"`` (pretrained), ``"adapters"`` and ``"new"``."""
        groups: dict[str, dict[str, nn.Parameter]] = {}
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                groups.setdefault(self.param_role(name), {})[name] = parameter
        return groups

    def param_role(self, name: str) -> str:
        """Role of a parameter, see `param_groups`."""
        return "tower" if name.startswith("image_tower.") else "new"

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that order the parameters from stem to head, for timm's layer-wise tools."""
        tower = next((part for part in self.modules() if isinstance(part, ImageTower)), None)
        stem, blocks = tower.layer_groups(coarse) if tower else ([], [])
        prefix = r"^image_tower\.(?:\d+\.)"
        return {
            "stem": "|".join([*(rf"{prefix}{pattern}" for pattern in stem), r"^text_tower\."]),
            "blocks": [(rf"{prefix}{pattern}", place) for pattern, place in blocks],
        }
