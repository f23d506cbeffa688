"""Pixels to tokens: any timm vision transformer, shared over the modalities."""

import timm
import torch
from einops import rearrange
from torch import Tensor, nn
from torch.func import functional_call

Size = tuple[int, int]


class ImageTower(nn.Module):
    """A timm ViT that gives the class token and the patch tokens of one image, projected to width D.

    Tokens are taken after the tower's final norm. With a CLIP tower the projection is CLIP's own visual projection,
    applied to every token, so that patches and captions share one space.

    Args:
        name: timm name of a vision transformer (``timm.list_models("vit_*")``, EVA and DINO families too). OpenAI's
            CLIP weights need a ``quickgelu`` architecture, such as ``vit_base_patch16_clip_quickgelu_224``.
        img_size: Height and width in pixels; any multiple of the patch size, square or not.
        embed_dim: Width D after the projection; None leaves the tower's own width, without a projection.
        num_cameras: Number of cameras to learn an embedding for; 0 for none. It is added to the class token.
        drop_path: Stochastic depth rate.
        tower_args: Further arguments of the timm model, such as ``{"depth": 4}``.

    Raises:
        ValueError: If timm has no such model, it is not a vision transformer, or the size does not fit its patches.
    """

    def __init__(
        self,
        name: str,
        img_size: Size = (256, 128),
        embed_dim: int | None = 512,
        num_cameras: int = 0,
        drop_path: float = 0.0,
        tower_args: dict[str, object] | None = None,
    ) -> None:
        super().__init__()
        if not timm.is_model(name):
            raise ValueError(f"timm has no model named {name!r}; see timm.list_models('vit_*')")
        self.name = name
        self._settings = {"img_size": tuple(img_size), **(tower_args or {})}
        try:
            self.trunk = timm.create_model(
                name, num_classes=0, global_pool="", drop_path_rate=drop_path or None, **self._settings
            )
        except TypeError as error:
            raise ValueError(
                f"{name!r} does not build as a vision transformer with img_size, global_pool and {tower_args or {}} "
                f"({error}); name one of timm.list_models('vit_*') and arguments that it knows"
            ) from error
        if not hasattr(self.trunk, "num_prefix_tokens"):
            raise ValueError(f"{name!r} is not a vision transformer: it gives no class and patch tokens")
        self.grid_size = tuple(self.trunk.patch_embed.grid_size)
        self.patch_size = tuple(self.trunk.patch_embed.patch_size)
        self.img_size: Size = (int(img_size[0]), int(img_size[1]))
        if any(size % patch for size, patch in zip(self.img_size, self.patch_size, strict=True)):
            near = tuple(max(1, round(s / p)) * p for s, p in zip(self.img_size, self.patch_size, strict=True))
            raise ValueError(
                f"img_size {self.img_size} is not a multiple of {name!r}'s patch size {self.patch_size}: "
                f"pixels at the edge would be lost; try {near}"
            )
        width = self.trunk.num_features
        self.embed_dim = embed_dim or width
        self.proj: nn.Module = nn.Identity()
        if embed_dim:
            linear = nn.Linear(width, embed_dim, bias=False)
            nn.init.normal_(linear.weight, std=width**-0.5)
            self.proj = linear
        self.num_cameras = num_cameras
        if num_cameras:
            if getattr(self.trunk, "cls_token", None) is None:
                raise ValueError(f"a camera embedding is added to the class token, and {name!r} has none")
            self.camera = nn.Parameter(torch.empty(num_cameras, width))
            nn.init.trunc_normal_(self.camera, std=0.02)

    def load_timm(self, cache_dir: str | None = None) -> str:
        """Fill the tower from the weights that timm names for it; the projection to width D stays as it is.

        A norm at the end of the tower, which weights of a tower that pools before its norm lack, starts anew.

        Args:
            cache_dir: Where downloads are kept; None for timm's place.

        Returns:
            The weights' full name, such as ``vit_small_patch16_dinov3.lvd1689m``.

        Raises:
            ValueError: If timm knows no weights, or they do not fit the tower's arguments.
        """
        known = timm.get_pretrained_cfg(self.name)
        if not known.has_weights:
            raise ValueError(f"timm has no weights for {self.name!r}; see timm.list_pretrained()")
        try:  # with its classifier: without one, timm loads what fits and keeps silent on the rest
            source = timm.create_model(self.name, pretrained=True, cache_dir=cache_dir, **self._settings).state_dict()
        except RuntimeError as error:
            raise ValueError(f"timm's weights for {self.name!r} do not fit {self._settings}: {error}") from error
        own = self.trunk.state_dict()
        if missing := [key for key in own if key not in source and not key.startswith("norm.")]:
            raise ValueError(f"timm's weights for {self.name!r} lack {', '.join(missing[:4])}")
        self.trunk.load_state_dict({key: source.get(key, value) for key, value in own.items()})
        return f"{known.architecture}.{known.tag}".removesuffix(".")

    @property
    def num_tokens(self) -> int:
        """Number N of patch tokens of one image."""
        return self.grid_size[0] * self.grid_size[1]

    def forward(self, images: Tensor, camid: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Encode images.

        Args:
            images: ``(B, 3, H, W)``, normalised.
            camid: Cameras ``(B,)``, 0-based; an unknown one (negative, or None for all) takes the mean of the
                learned embeddings. Ignored when the tower has no camera embedding.

        Returns:
            Class tokens ``(B, D)`` and patch tokens ``(B, N, D)``. Without a class token in the tower, the mean of
            the patch tokens takes its place; register tokens are left out.

        Raises:
            ValueError: If the images' size is not the tower's, or a camera number is too large.
        """
        if images.shape[-2:] != self.img_size:
            raise ValueError(
                f"images are {images.shape[-2]}x{images.shape[-1]} (HxW), this tower takes "
                f"{self.img_size[0]}x{self.img_size[1]}; resize them or build the model with img_size="
            )
        tokens = self.proj(self._tokens(images, camid))
        prefix = self.trunk.num_prefix_tokens
        patches = tokens[:, prefix:]
        cls = tokens[:, 0] if prefix else patches.mean(1)
        return cls, patches

    def _tokens(self, images: Tensor, camid: Tensor | None) -> Tensor:
        if not self.num_cameras:
            return self.trunk(images)
        embedding = self._camera_embedding(images.shape[0], camid)
        # The trunk expands its class token over the batch, so one class token per sample takes its place.
        token = self.trunk.cls_token + rearrange(embedding, "b d -> b 1 d")
        return functional_call(self.trunk, {"cls_token": token}, (images,))

    def _camera_embedding(self, batch: int, camid: Tensor | None) -> Tensor:
        unknown = self.camera.mean(0)
        if camid is None:
            return unknown.expand(batch, -1)
        # In a compiled graph, which knows no values, the look-up itself refuses such a number.
        if not torch.compiler.is_compiling() and camid.numel() and int(camid.max()) >= self.num_cameras:
            raise ValueError(
                f"camera {int(camid.max())} is out of range for {self.num_cameras} cameras (0-based); "
                "give -1 for a camera that the model has not seen"
            )
        return torch.where((camid < 0)[:, None], unknown, self.camera[camid.clamp_min(0)])
