"""Pixels to tokens: any timm network, one that the modalities share or one each."""

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import timm
import torch
from timm.models import VisionTransformer, checkpoint_seq
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from .._download import fetch_file
from .._schema import choice, distinct, flag, listed, number, optional, whole, word
from .known import KNOWN_TOWERS
from .trunk import (
    Size,
    as_tokens,
    build_trunk,
    img_size_kind,
    pool_features,
    rate_kind,
    tower_args_kind,
    width_kind,
)

modalities_kind = distinct(listed(word, 1, 16, "one or more distinct names of modalities, at most 16"))
cameras_kind = whole(0, 100_000)
CAMERA_SCOPES = ("class", "all")
_BIASED = re.compile(r"eva.*_clip_|vit_pe_core_")
"""Names of towers whose CLIP projects with a bias."""


class ImageTower(nn.Module):
    """A timm network that gives the class token and the patch tokens of one image, projected to width D.

    Tokens are taken after the tower's final norm. With a CLIP tower the projection is CLIP's visual projection,
    applied to every token, so that patches and captions share one space.

    A network of convolutions or of stages gives the positions of its last map as tokens, row by row. Where a network
    has no class token, what it pools its tokens to (by attention, or by a mean and its head's norm) is one.

    Args:
        name: A name of `KNOWN_TOWERS`, such as ``dinov3_vitb16``, or timm's name of any network: vision transformers
            (``vit_*``, EVA, DINO), hierarchical ones and networks of convolutions. OpenAI's CLIP weights need a
            ``quickgelu`` architecture, such as ``vit_base_patch16_clip_quickgelu_224``.
        img_size: Height and width in pixels; any multiple of the patch size, square or not.
        embed_dim: Width D after the projection; None leaves the tower's width, without a projection.
        num_cameras: Number of cameras to learn an embedding for; 0 for none.
        drop_path: Stochastic depth rate.
        tower_args: Further arguments of the timm model, such as ``{"depth": 4}``: those of `TOWER_ARGS`. Besides,
            ``stage`` takes the tokens from that stage of a network of stages, as timm counts them from 0, and leaves
            out the later ones; ``{"output_stride": 16}`` is ReID's usual ResNet, with twice the rows and columns.
        camera_scope: Which tokens the camera embedding is added to: the ``"class"`` token (CLIP-ReID) or ``"all"``
            tokens (TransReID).
        camera_scale: Factor of the camera embedding (TransReID: 3).

    Attributes:
        width: Width W of the tower's own tokens, before the projection.
        grid_size: Rows and columns of patch tokens.
        patch_size: Height and width in pixels of what a patch token stands for.

    Raises:
        ValueError: If timm has no such model, it gives no grid of tokens, an argument is not one of those that are
            allowed, or the size does not fit its patches.
    """

    def __init__(
        self,
        name: str,
        img_size: Size = (256, 128),
        embed_dim: int | None = 512,
        num_cameras: int = 0,
        drop_path: float = 0.0,
        tower_args: Mapping[str, Any] | None = None,
        camera_scope: str = "class",
        camera_scale: float = 1.0,
    ) -> None:
        super().__init__()
        name = word("image_tower", name)
        self.name = KNOWN_TOWERS[name].image if name in KNOWN_TOWERS else name
        self.img_size: Size = img_size_kind("img_size", img_size)
        self.num_cameras = cameras_kind("num_cameras", num_cameras)
        embed_dim = optional(width_kind)("embed_dim", embed_dim)
        drop_path = rate_kind("drop_path", drop_path)
        self.camera_scope = choice(*CAMERA_SCOPES)("camera_scope", camera_scope)
        self.camera_scale = number(0, 100)("camera_scale", camera_scale)
        args = tower_args_kind("image_tower_args", tower_args or {})
        self.trunk, self.layout = build_trunk(self.name, self.img_size, args, drop_path)
        self.grid_size, self.patch_size = self.layout.grid, self.layout.stride
        self.width, self.num_prefix_tokens = self.layout.width, self.layout.prefix
        self.has_batch_norm = any(isinstance(module, _BatchNorm) for module in self.trunk.modules())
        self.embed_dim = embed_dim or self.width
        self.proj: nn.Module = nn.Identity()
        if embed_dim:
            self.proj = linear = nn.Linear(self.width, embed_dim, bias=bool(_BIASED.match(self.name)))
            nn.init.normal_(linear.weight, std=self.width**-0.5)
            if linear.bias is not None:
                nn.init.zeros_(linear.bias)
        if self.num_cameras:
            if self.layout.pool != "token" or not hasattr(self.trunk, "cls_token"):
                raise ValueError(f"a camera embedding is added to the class token, and {name!r} has none that it reads")
            if self.camera_scope == "all" and not self.is_plain:
                raise ValueError(f"camera_scope='all' needs a plain vision transformer, and {name!r} is none")
            self.camera = nn.Parameter(torch.empty(self.num_cameras, self.width))
            nn.init.trunc_normal_(self.camera, std=0.02)

    def load_timm(self, cache_dir: str | None = None) -> str:
        """Fill the tower from the weights that timm names for it; return their full name, ``architecture.tag``.

        The projection to width D stays as it is, and so does a norm at the end of the tower where the weights are of
        a tower that pools before its norm.

        Raises:
            ValueError: If timm knows no weights, or they do not fit the tower's arguments.
            ConnectionError: If the hub cannot be reached and the cache has not got them.
        """
        known, settings = timm.get_pretrained_cfg(self.name), dict(self.layout.settings)
        settings.pop("global_pool", None)
        if not known.has_weights:
            raise ValueError(f"timm has no weights for {self.name!r}; see timm.list_pretrained()")
        repo, overlay = known.hf_hub_id, None
        if repo:  # by our own hands, which ask once and read no pickle
            repo += f"{known.architecture}.{known.tag}" if repo.endswith("/") else ""
            file = fetch_file(repo, known.hf_hub_filename or "model.safetensors", cache_dir)
            overlay = {"file": str(file), "custom_load": False}
        try:  # with its classifier: without one, timm loads what fits and keeps silent on the rest
            source = timm.create_model(
                self.name, pretrained=True, pretrained_cfg_overlay=overlay, cache_dir=cache_dir, **settings
            ).state_dict()
        except RuntimeError as error:
            raise ValueError(f"timm's weights for {self.name!r} do not fit {settings}: {error}") from error
        own = self.trunk.state_dict()
        if missing := [key for key in own if key not in source and not key.startswith("norm.")]:
            raise ValueError(f"timm's weights for {self.name!r} lack {', '.join(missing[:4])}")
        self.trunk.load_state_dict({key: source.get(key, value) for key, value in own.items()})
        return f"{known.architecture}.{known.tag}".removesuffix(".")

    @property
    def num_tokens(self) -> int:
        """Number N of patch tokens of one image."""
        return self.grid_size[0] * self.grid_size[1]

    @property
    def first_conv(self) -> str:
        """Name of the first convolution, as timm's configuration has it, in this module."""
        name = self.trunk.default_cfg.get("first_conv") or "patch_embed.proj"
        return f"trunk.{name if isinstance(name, str) else name[0]}"

    def layer_groups(self, coarse: bool = False) -> tuple[list[str], list[tuple[str, tuple[int, ...] | None]]]:
        """Names of parameters from stem to head, as timm's ``group_matcher`` orders them.

        Returns:
            Regular expressions of the stem's names, and of the blocks' with their place: None for the numbers that the
            expression holds.
        """
        own = self.trunk.group_matcher(coarse=coarse)
        blocks = [(own["blocks"], None)] if isinstance(own["blocks"], str) else own["blocks"]
        stem = [own["stem"], *(["reg_token|norm_pre"] if self.is_plain else [])]  # which timm takes for the head's
        ours = [(rf"trunk\.(?:{pattern.replace('^', '')})", place) for pattern, place in blocks]
        last = (r"trunk\.(?:fc_norm|attn_pool|head)|proj", (99999,))
        return ["camera", *(rf"trunk\.(?:{pattern.replace('^', '')})" for pattern in stem)], [*ours, last]

    def forward(self, images: Tensor, camid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode images.

        Args:
            images: ``(B, 3, H, W)``, normalised.
            camid: Cameras ``(B,)``, 0-based; an unknown one (negative, or None for all) takes the mean of the
                learned embeddings. Ignored when the tower has no camera embedding.

        Returns:
            Class tokens ``(B, D)`` and patch tokens ``(B, N, D)``. Without a class token in the tower, its own pooling
            or else the mean of the patch tokens takes its place; register tokens are left out.

        Raises:
            ValueError: If the images' size is not the tower's, or a camera number is too large.
        """
        features = self._run(images, camid)
        tokens = self.proj(as_tokens(self.trunk, self.layout, features))
        patches = tokens[:, self.num_prefix_tokens :]
        if self.layout.pool in ("token", "mean"):
            return tokens[:, 0] if self.num_prefix_tokens else patches.mean(1), patches
        return self.proj(pool_features(self.trunk, self.layout, features)), patches

    def _run(self, images: Tensor, camid: Tensor | None) -> Tensor:
        """What the trunk gives, in its own layout."""
        if self.is_plain:
            return self.trunk.norm(self.run_blocks(self.stem(images, camid)))
        self._check(images)
        if self.layout.stage is not None:
            kept = {"indices": [self.layout.stage], "intermediates_only": True, "output_fmt": "NCHW"}
            return self.trunk.forward_intermediates(images, **kept)[0]
        if self.num_cameras:
            # The trunk expands its class token over the batch, so one class token per sample takes its place.
            token = self.trunk.cls_token + self.camera_scale * self._camera_embedding(images.shape[0], camid)[:, None]
            return functional_call(self.trunk, {"cls_token": token}, (images,))
        return self.trunk.forward_features(images)

    @property
    def is_plain(self) -> bool:
        """Whether the tower is timm's plain vision transformer, which can be run part by part.

        Its parts are `stem`, `run_blocks`, ``trunk.norm`` and ``proj``.
        """
        return isinstance(self.trunk, VisionTransformer) and (
            type(self.trunk).forward_features is VisionTransformer.forward_features
        )

    def stem(self, images: Tensor, camid: Tensor | None = None) -> Tensor:
        """Tokens before the first block: patches, positions, cameras and, in a CLIP, its first norm.

        Args:
            images: ``(B, 3, H, W)``, normalised.
            camid: Cameras ``(B,)``, as in `forward`.

        Returns:
            ``(B, P+N, W)``: P prefix tokens, the class token first, then the patch tokens.

        Raises:
            ValueError: If the tower is no plain vision transformer, or as in `forward`.
        """
        if not self.is_plain:
            raise ValueError(
                f"{self.name!r} cannot be run part by part, which this method needs; name a plain vision transformer, "
                "such as vit_base_patch16_224 or vit_base_patch16_clip_quickgelu_224"
            )
        self._check(images)
        tokens = self.trunk._pos_embed(self.trunk.patch_embed(images))  # timm has no public name for it
        if self.num_cameras:
            camera = self.camera_scale * self._camera_embedding(images.shape[0], camid)[:, None]
            wide = self.camera_scope == "all"
            tokens = tokens + camera if wide else torch.cat([tokens[:, :1] + camera, tokens[:, 1:]], dim=1)
        return self.trunk.norm_pre(self.trunk.patch_drop(tokens))

    def run_blocks(self, tokens: Tensor) -> Tensor:
        """Run all blocks on tokens ``(B, T, W)``; recomputed in the backward pass where that is set."""
        if self.trunk.grad_checkpointing:
            return checkpoint_seq(self.trunk.blocks, tokens)
        return self.trunk.blocks(tokens)

    def _check(self, images: Tensor) -> None:
        if images.shape[-2:] != self.img_size:
            raise ValueError(
                f"images are {images.shape[-2]}x{images.shape[-1]} (HxW), this model takes "
                f"{self.img_size[0]}x{self.img_size[1]}; resize them or build the model with img_size="
            )

    def _camera_embedding(self, batch: int, camid: Tensor | None) -> Tensor:
        unknown = self.camera.mean(0)
        if camid is None:
            return unknown.expand(batch, -1)
        # In a compiled graph, which knows no values, the look-up itself rejects such a camera.
        if not torch.compiler.is_compiling() and camid.numel() and int(camid.max()) >= self.num_cameras:
            raise ValueError(
                f"camera {int(camid.max())} is out of range for {self.num_cameras} cameras (0-based); "
                "give -1 for a camera that the model has not seen"
            )
        return torch.where((camid < 0)[:, None], unknown, self.camera[camid.clamp_min(0)])


_Encode = Callable[[ImageTower, Tensor, Tensor | None], tuple[Tensor, ...]]


def _run(
    function: _Encode, tower: ImageTower, images: Tensor, camid: Tensor | None, present: Tensor | None
) -> tuple[Tensor, ...]:
    """Call a function with a tower, images and cameras; absent images have no part in a batch norm's statistics."""
    if present is None or not (tower.training and tower.has_batch_norm):
        return function(tower, images, camid)
    rows = present.nonzero()[:, 0]
    if not len(rows):
        try:
            return function(tower.eval(), images, camid)
        finally:
            tower.train()
    parts = function(tower, images[rows], None if camid is None else camid[rows])
    return tuple(part.new_zeros(len(images), *part.shape[1:]).index_copy(0, rows, part) for part in parts)


class ImageTowers(nn.ModuleList):
    """The image towers of M modalities: a single `ImageTower` that all share, or one each.

    Args:
        name: timm name; it and all that is not named here is as for `ImageTower`.
        modalities: Names of the modalities, in the order of the images' axis M.
        shared: One tower for all modalities, or one each.

    Raises:
        ValueError: As `ImageTower`, or if ``modalities`` are no names.
    """

    def __init__(
        self,
        name: str,
        img_size: Sequence[int],
        modalities: Sequence[str],
        embed_dim: int | None = 512,
        shared: bool = True,
        num_cameras: int = 0,
        drop_path: float = 0.0,
        tower_args: Mapping[str, Any] | None = None,
        camera_scope: str = "class",
        camera_scale: float = 1.0,
    ) -> None:
        self.modalities: tuple[str, ...] = modalities_kind("modalities", modalities)
        size: Size = img_size_kind("img_size", img_size)
        count = 1 if flag("share_image_tower", shared) else len(self.modalities)
        super().__init__(
            ImageTower(name, size, embed_dim, num_cameras, drop_path, tower_args, camera_scope, camera_scale)
            for _ in range(count)
        )
        first = self.towers()[0]
        self.img_size, self.grid_size, self.patch_size = first.img_size, first.grid_size, first.patch_size
        self.embed_dim, self.num_tokens, self.num_cameras = first.embed_dim, first.num_tokens, first.num_cameras
        self.width, self.num_prefix_tokens = first.width, first.num_prefix_tokens

    def forward(
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
            ValueError: If the images' or the mask's shape is not the towers'.
        """
        cls, tokens = self._encode(ImageTower.forward, images, present, camid)
        if present is not None:
            cls = cls * present[..., None].to(cls.dtype)
            tokens = tokens * present[..., None, None].to(tokens.dtype)
        return cls, tokens

    def stem(self, images: Tensor, present: Tensor | None = None, camid: Tensor | None = None) -> Tensor:
        """Tokens before the first block, ``(B, M, P+N, W)``; see `ImageTower.stem`.

        An absent modality's image counts as zeros here; what becomes of its tokens is the caller's.
        """
        (tokens,) = self._encode(lambda *args: (ImageTower.stem(*args),), images, present, camid)
        return tokens

    def cameras(self, batch: int, camid: Tensor | None = None) -> Tensor | None:
        """What `stem` adds for the cameras, ``(B, M, W)``, for tokens that a method adds; None without cameras."""
        if not self.num_cameras:
            return None
        rows = [tower.camera_scale * tower._camera_embedding(batch, camid) for tower in self.towers()]
        return torch.stack(rows, dim=1).expand(-1, len(self.modalities), -1)

    def run_blocks(self, tokens: Tensor) -> Tensor:
        """Run all blocks of each modality's tower on tokens ``(B, M, T, W)``."""
        return self.for_each(lambda tower, part, _: tower.run_blocks(part), tokens)

    def norm_pre(self, tokens: Tensor) -> Tensor:
        """The norm before a CLIP's first block on tokens ``(B, M, ..., W)``; other towers have none."""
        return self.for_each(lambda tower, part, _: tower.trunk.norm_pre(part), tokens)

    def norm(self, tokens: Tensor) -> Tensor:
        """The towers' last norm on tokens ``(B, M, ..., W)``."""
        return self.for_each(lambda tower, part, _: tower.trunk.norm(part), tokens)

    def project(self, tokens: Tensor) -> Tensor:
        """Tokens ``(B, M, ..., W)`` projected to width D."""
        return self.for_each(lambda tower, part, _: tower.proj(part), tokens)

    def for_each(self, function: Callable[[ImageTower, Tensor, int | None], Tensor], tokens: Tensor) -> Tensor:
        """Apply a function to the tokens of each tower.

        Args:
            function: Called with a tower, its tokens ``(b, ...)`` and the number of its modality; a shared tower is
                called once, with the modalities folded into the batch, b = B*M, and None for their number.
            tokens: ``(B, M, ...)``.

        Returns:
            What the function gave, ``(B, M, ...)``.
        """
        if len(self) == 1:
            return function(self.towers()[0], tokens.flatten(0, 1), None).unflatten(0, tokens.shape[:2])
        parts = [function(tower, tokens[:, m], m) for m, tower in enumerate(self.towers())]
        return torch.stack(parts, dim=1)

    def _encode(
        self,
        function: _Encode,
        images: Tensor,
        present: Tensor | None,
        camid: Tensor | None,
    ) -> list[Tensor]:
        """What a function of (tower, images ``(b, 3, H, W)``, cameras ``(b,)``) gives, each part ``(B, M, ...)``."""
        self._check(images, present)
        count = len(self.modalities)
        images = images.to(next(self.parameters()).dtype)  # half precision where the weights are
        if present is not None:
            # Whatever stands in for an absent image, NaN included, must not reach the sample.
            images = images.masked_fill(~present[:, :, None, None, None], 0.0)
        if len(self) == 1:
            cameras = None if camid is None else camid.repeat_interleave(count)
            rows = None if present is None else present.flatten()
            parts = _run(function, self.towers()[0], images.flatten(0, 1), cameras, rows)
            return [part.unflatten(0, (-1, count)) for part in parts]
        columns = [None] * count if present is None else present.unbind(1)
        apart = [_run(function, tower, images[:, m], camid, columns[m]) for m, tower in enumerate(self.towers())]
        return [torch.stack(part, dim=1) for part in zip(*apart, strict=True)]

    def _check(self, images: Tensor, present: Tensor | None) -> None:
        count = len(self.modalities)
        if images.dim() != 5 or images.shape[1] != count or images.shape[2] != 3:
            raise ValueError(
                f"images have shape {tuple(images.shape)}, expected (B, M, 3, H, W) with M = {count} modalities "
                f"{self.modalities}; build the model with modalities= for others"
            )
        if not images.is_floating_point():
            raise ValueError(f"images must be normalised floats, got {images.dtype}")
        if present is not None and (present.shape != images.shape[:2] or present.dtype != torch.bool):
            raise ValueError(
                f"present is {present.dtype} {tuple(present.shape)}, expected bool (B, M) = {tuple(images.shape[:2])}"
            )

    def load_timm(self, cache_dir: str | None = None) -> str:
        """Fill every tower from timm, see `ImageTower.load_timm`; return the weights' full name."""
        return [tower.load_timm(cache_dir) for tower in self.towers()][-1]

    def towers(self) -> list[ImageTower]:
        """The towers, one or M of them."""
        return list(self)  # type: ignore[arg-type]
