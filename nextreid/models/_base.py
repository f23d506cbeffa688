"""What every ReID model of the zoo has in common: towers in front, a neck behind, one call in between."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from ..layers.neck import BNNeck
from ..towers import ImageTower, TextTower, load_pretrained_clip
from ._pretrained import PretrainedCfg

Captions = Sequence[Sequence[Sequence[str] | str | None]]
Features = dict[str, Any]


class ReIDOutput(NamedTuple):
    """What a model with a classifier returns.

    Attributes:
        embedding: Retrieval feature before the neck, not normalised, ``(B, F)``.
        logits: ``(B, C)``, or ``(B, G, C)`` with a classifier per expert.
        features: The named parts that ``forward_features`` gives.
    """

    embedding: Tensor
    logits: Tensor
    features: Features


class ReIDModel(nn.Module):
    """Towers, neck and calling convention shared by the zoo's models.

    Modalities are an axis of declared order. ``present`` marks which of a sample's modalities exist: an absent one has
    no part in any mask, attention or mean, whatever its pixels hold.

    Args:
        image_tower: timm name of the vision transformer; see `ImageTower`.
        img_size: Height and width in pixels.
        modalities: Names of the modalities, in the order of the images' axis M.
        embed_dim: Width D of the tokens.
        share_image_tower: One tower for all modalities, or one each.
        num_cameras: Cameras to learn an embedding for; 0 for none.
        drop_path: Stochastic depth rate of the image tower.
        image_tower_args: Further arguments of the timm model.

    Raises:
        ValueError: If no modality is given or one is named twice.
    """

    neck: nn.Module
    model_args: dict[str, Any]
    pretrained_cfg: PretrainedCfg
    num_features: int
    num_classes: int
    num_groups = 1
    num_semantic_experts = 0
    text_tower: TextTower | None

    def __init__(
        self,
        image_tower: str,
        img_size: Sequence[int] = (256, 128),
        modalities: Sequence[str] = ("rgb", "nir", "tir"),
        embed_dim: int | None = 512,
        share_image_tower: bool = True,
        num_cameras: int = 0,
        drop_path: float = 0.0,
        image_tower_args: dict[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.modalities = tuple(modalities)
        if not self.modalities or len(set(self.modalities)) != len(self.modalities):
            raise ValueError(f"modalities must be one or more distinct names, got {list(self.modalities)}")
        if not isinstance(img_size, Sequence) or isinstance(img_size, str) or len(img_size) != 2:
            raise ValueError(f"img_size is (height, width) in pixels, got {img_size!r}")
        size = (int(img_size[0]), int(img_size[1]))

        def tower() -> ImageTower:
            return ImageTower(image_tower, size, embed_dim, num_cameras, drop_path, tower_args=image_tower_args)

        self.image_tower: nn.Module = tower() if share_image_tower else nn.ModuleList(tower() for _ in self.modalities)
        self.text_tower = None
        first = self._image_towers()[0]
        self.img_size = first.img_size
        self.grid_size = first.grid_size
        self.patch_size = first.patch_size
        self.embed_dim = first.embed_dim

    def _image_towers(self) -> list[ImageTower]:
        towers = self.image_tower
        return list(towers) if isinstance(towers, nn.ModuleList) else [towers]  # type: ignore[list-item, arg-type]

    @property
    def uses_text(self) -> bool:
        """Whether captions change the embedding."""
        return False

    def load_clip(self, name: str, tag: str, cache_dir: str | None = None) -> None:
        """Fill the towers with a CLIP that open_clip fetches, such as ``("ViT-B-16-quickgelu", "openai")``."""
        for i, tower in enumerate(self._image_towers()):
            load_pretrained_clip(name, tag, tower, self.text_tower if i == 0 else None, cache_dir)

    def load_timm(self, cache_dir: str | None = None) -> str:
        """Fill the image tower with the weights that timm names for it; return their full name.

        Raises:
            ValueError: If timm has none, or there is a text tower, which would stay untrained.
        """
        if self.text_tower is not None:
            raise ValueError(
                "timm's weights fill the image tower alone, and an untrained text tower makes noise of captions: build "
                "the model with text_tower=None, or take one whose towers are a CLIP, such as next_clip_b16"
            )
        names = {tower.load_timm(cache_dir) for tower in self._image_towers()}
        return names.pop()

    def encode_images(
        self, images: Tensor, present: Tensor | None = None, camid: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Encode the images of all modalities.

        Args:
            images: ``(B, M, 3, H, W)``, normalised, of any floating type.
            present: Which modalities exist, bool ``(B, M)``; None for all.
            camid: Cameras ``(B,)``, negative where unknown; None for all unknown.

        Returns:
            Class tokens ``(B, M, D)`` and patch tokens ``(B, M, N, D)``, zero where a modality is absent.

        Raises:
            ValueError: If the images' or the mask's shape is not the model's.
        """
        self._check(images, present)
        images = images.to(next(self.image_tower.parameters()).dtype)  # half, where the weights are
        if present is not None:
            # Whatever stands in for an absent image, NaN included, must not reach the sample.
            images = images.masked_fill(~present[:, :, None, None, None], 0.0)
        if isinstance(self.image_tower, nn.ModuleList):
            pairs = [tower(images[:, m], camid) for m, tower in enumerate(self.image_tower)]
            cls, tokens = torch.stack([p[0] for p in pairs], 1), torch.stack([p[1] for p in pairs], 1)
        else:
            folded = rearrange(images, "b m c h w -> (b m) c h w")
            cameras = None if camid is None else camid.repeat_interleave(len(self.modalities))
            cls, tokens = self.image_tower(folded, cameras)
            cls = rearrange(cls, "(b m) d -> b m d", m=len(self.modalities))
            tokens = rearrange(tokens, "(b m) n d -> b m n d", m=len(self.modalities))
        if present is not None:
            cls = cls * present[..., None].to(cls.dtype)
            tokens = tokens * present[..., None, None].to(tokens.dtype)
        return cls, tokens

    def _check(self, images: Tensor, present: Tensor | None) -> None:
        count, (height, width) = len(self.modalities), self.img_size
        if images.dim() != 5 or images.shape[1] != count or images.shape[2] != 3:
            raise ValueError(
                f"images have shape {tuple(images.shape)}, expected (B, M, 3, H, W) with M = {count} modalities "
                f"{self.modalities}; build the model with modalities= for others"
            )
        if images.shape[-2:] != (height, width):
            raise ValueError(
                f"images are {images.shape[-2]}x{images.shape[-1]} (HxW), this model takes {height}x{width}; "
                "resize them or build the model with img_size="
            )
        if not images.is_floating_point():
            raise ValueError(f"images must be normalised floats, got {images.dtype}")
        if present is not None and (present.shape != images.shape[:2] or present.dtype != torch.bool):
            raise ValueError(
                f"present is {present.dtype} {tuple(present.shape)}, expected bool (B, M) = {tuple(images.shape[:2])}"
            )

    def encode_text(self, captions: Captions) -> Tensor:
        """Encode captions with the frozen text tower.

        Args:
            captions: For each of R rows and each modality, a caption: its sentences, one string, or None. Sentences
                are packed into as few 77-token windows as they need, and nothing is cut.

        Returns:
            Unit features ``(R, M, D)``; zero for an absent caption.

        Raises:
            ValueError: If the model has no text tower, or a row has another number of modalities.
        """
        if self.text_tower is None:
            raise ValueError(f"{type(self).__name__} was built without a text tower: it takes no captions as text")
        count = len(self.modalities)
        windows = []
        for i, row in enumerate(captions):
            if len(row) != count or isinstance(row, str):
                raise ValueError(
                    f"captions row {i} has {len(row)} entries, expected one per modality {self.modalities}"
                )
            windows += [self.text_tower.windows(caption) for caption in row]
        return rearrange(self.text_tower.encode(windows), "(r m) d -> r m d", m=count)

    def forward_features(
        self,
        images: Tensor,
        text: Tensor | Captions | None = None,
        present: Tensor | None = None,
        camid: Tensor | None = None,
    ) -> Features:
        """Named parts of the embedding; see the model's class."""
        raise NotImplementedError

    def _pool(self, features: Features) -> Tensor:
        raise NotImplementedError

    def _embed(
        self, images: Tensor, text: Tensor | Captions | None, present: Tensor | None, camid: Tensor | None
    ) -> tuple[Tensor, Features]:
        """The embedding before the neck and the named parts that were formed on the way to it."""
        features = self.forward_features(images, text, present, camid)
        return self._pool(features), features

    def forward_head(self, features: Features, pre_logits: bool = False) -> Tensor | ReIDOutput:
        """Pool the parts into the embedding and classify it.

        Args:
            features: What ``forward_features`` gave.
            pre_logits: Stop at the embedding.

        Returns:
            The embedding ``(B, F)``, not normalised; with a classifier, a `ReIDOutput`.
        """
        embedding = self._pool(features)
        return embedding if pre_logits else self._classified(embedding, features)

    def _classified(self, embedding: Tensor, features: Features) -> Tensor | ReIDOutput:
        return embedding if self.num_classes == 0 else ReIDOutput(embedding, self.neck(embedding), features)

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
            text: Captions: features ``(B, M, D)``, features per expert ``(B, E_t, M, D)``, or the captions themselves
                (see `encode_text`), which every expert then reads whole; None for none.
            present: Which modalities exist, bool ``(B, M)``; None for all. A sample without any has the zero embedding
                (evaluation and extraction refuse such samples by name).
            camid: Cameras ``(B,)``; None or negative for unknown.

        Returns:
            The embedding ``(B, F)`` with ``num_classes=0``, else a `ReIDOutput`.
        """
        return self._classified(*self._embed(images, text, present, camid))

    def embed(
        self,
        images: Tensor,
        text: Tensor | Captions | None = None,
        present: Tensor | None = None,
        camid: Tensor | None = None,
        after_neck: bool = False,
    ) -> Tensor:
        """The retrieval feature ``(B, F)``, not normalised, whatever ``num_classes`` is.

        Args:
            images: See `forward`.
            text: See `forward`.
            present: See `forward`.
            camid: See `forward`.
            after_neck: Give the feature behind the neck's batch norm.

        Raises:
            ValueError: If ``after_neck`` is asked of a model without a classifier.
        """
        embedding, _ = self._embed(images, text, present, camid)
        if not after_neck:
            return embedding
        if self.num_classes == 0:
            raise ValueError("a model with num_classes=0 has no neck; use the feature before the neck")
        return self.neck.get_submodule("norm")(embedding)

    def average_modalities(self, embedding: Tensor) -> Tensor:
        """Average the modalities' parts of embeddings, so that samples without a modality in common can be compared.

        An embedding keeps D numbers for each modality in each of its G groups, zero where the modality is absent:
        a thermal and a colour sample have the inner product 0. All parts lie in one space, which the towers share.

        Args:
            embedding: ``(n, G*M*D)``, in front of the neck.

        Returns:
            ``(n, G*D)``: in each group the mean of the parts that are not zero.
        """
        parts = embedding.unflatten(-1, (-1, len(self.modalities), self.embed_dim))
        present = (parts != 0).any(dim=-1, keepdim=True).sum(dim=-2)
        return (parts.sum(dim=-2) / present.clamp_min(1)).flatten(-2)

    def get_classifier(self) -> nn.Module:
        """The neck with the identity classifiers, or an identity."""
        return self.neck

    def reset_classifier(self, num_classes: int) -> None:
        """Replace neck and classifier by fresh ones for ``num_classes`` identities; 0 removes them."""
        self.num_classes = num_classes
        reference = next(self.parameters())
        neck: nn.Module = BNNeck(self.num_features, num_classes, self.num_groups) if num_classes else nn.Identity()
        self.neck = neck.to(device=reference.device, dtype=reference.dtype).train(self.training)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the image tower's blocks in the backward pass instead of keeping their activations."""
        for tower in self._image_towers():
            tower.trunk.set_grad_checkpointing(enable)

    def no_weight_decay(self) -> set[str]:
        """Names of parameters that are tables of positions, not weights."""
        names = {"cls_token", "pos_embed", "reg_token", "camera"}
        return {name for name, _ in self.named_parameters() if name.split(".")[-1] in names}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Regular expressions that order the parameters from stem to head, for timm's layer-wise tools."""
        tower = r"^image_tower\.(?:\d+\.)?"
        blocks = rf"{tower}trunk\.blocks\.(\d+)" if not coarse else rf"{tower}trunk\.blocks"
        return {
            "stem": rf"{tower}(?:camera|trunk\.(?:cls_token|pos_embed|reg_token|patch_embed|norm_pre))|^text_tower\.",
            "blocks": [(blocks, None), (rf"{tower}(?:trunk\.(?:fc_)?norm|proj)", (99999,))],
        }
