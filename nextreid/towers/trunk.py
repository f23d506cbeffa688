"""timm's networks as the trunks of towers: what they may be built with, and where the tokens are in what they give."""

import json
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, NamedTuple

import timm
import torch
from torch import Tensor

from .._names import closest
from .._schema import Kind, either, flag, listed, number, optional, table, whole, word
from .known import KNOWN_TOWERS

Size = tuple[int, int]

img_size_kind = listed(whole(1, 4096), 2, 2, "(height, width) in pixels, two whole numbers of 1 to 4096")
width_kind = whole(1, 8192)
rate_kind = number(0, 0.999)
_stages = listed(whole(1, 8192), 1, 8, "a whole number for each stage")
_heads = either(whole(1, 256), _stages)
TOWER_ARGS: dict[str, Kind] = {
    name: kind
    for kind, names in {
        whole(1, 256): "patch_size depth num_kv_heads window_size output_stride",
        width_kind: "embed_dim",
        _heads: "num_heads",
        _stages: "layers channels depths dims",
        whole(0, 1024): "reg_tokens num_reg_tokens",
        whole(0, 63): "stage",
        number(0.01, 64): "mlp_ratio",
        optional(number(0, 1e6)): "init_values ls_init_value",
        number(0, 1e6): "rope_temperature",
        flag: "qkv_bias qk_norm proj_bias class_token no_embed_class pre_norm final_norm swiglu_mlp scale_mlp "
        "scale_attn_norm scale_mlp_norm scale_attn_inner use_abs_pos_emb use_rot_pos_emb use_post_norm "
        "use_pre_transformer_norm rope_rotate_half",
        optional(flag): "fc_norm use_fc_norm use_post_transformer_norm",
        rate_kind: "drop_rate pos_drop_rate patch_drop_rate proj_drop_rate attn_drop_rate",
        word: "act_layer norm_layer pos_embed weight_init attn_type rope_type rope_grid_indexing",
        optional(img_size_kind): "ref_feat_shape",
    }.items()
    for name in names.split()
}
"""What `tower_args` may hold, all plain: of timm's arguments those that shape a network, and ``stage``, no other."""
tower_args_kind = table(TOWER_ARGS, "argument of a timm network")


class Layout(NamedTuple):
    """What a timm network makes of an image.

    Attributes:
        grid: Rows and columns of tokens.
        stride: Height and width in pixels of what one token stands for.
        width: Channels W of a token.
        prefix: Tokens in front of the grid's: class and register tokens.
        pool: Where the class token is: ``"token"`` (the first), ``"map"`` (the network's attention pooling),
            ``"head"`` (the network's own pooling and norm), ``"mean"`` (of the tokens).
        channels_last: Whether a map is ``(B, h, w, W)``, not ``(B, W, h, w)``.
        norm: Whether the network's head has a norm behind its pooling, which then is applied to each token too.
        stage: Stage that the tokens are taken from; None for the end of the network.
        pruned: Whether layers behind the tokens are taken off.
        settings: What timm is called with.
    """

    grid: Size
    stride: Size
    width: int
    prefix: int
    pool: str
    channels_last: bool
    norm: bool
    stage: int | None
    pruned: bool
    settings: dict[str, Any]


def build_trunk(name: str, img_size: Size, args: Mapping[str, Any], drop_path: float) -> tuple[Any, Layout]:
    """Build a timm network without its classifier, and find out where its tokens are.

    Raises:
        ValueError: If timm has no such network, it does not build with these arguments, it gives no grid of tokens, or
            the size does not fit its patches.
    """
    if not timm.is_model(name):
        meant = " or ".join(map(repr, closest(name, [*KNOWN_TOWERS, *timm.list_models()])))
        hint = f" Did you mean {meant}?" if meant else " See timm.list_models() and nextreid.towers.KNOWN_TOWERS"
        raise ValueError(f"timm has no model named {name!r}.{hint}")
    try:
        layout = _probe(name, img_size, json.dumps(dict(args), sort_keys=True))
        trunk = timm.create_model(name, num_classes=0, drop_path_rate=drop_path or None, **layout.settings)
        if layout.pruned:  # what no token reads: later stages, a head that is wider than the tokens
            last = 1 if layout.stage is None else [layout.stage]
            trunk.prune_intermediate_layers(last, prune_norm=layout.stage is not None, prune_head=True)
    except Exception as error:  # timm's families fail in ways of their own, by assertions and missing attributes too
        raise ValueError(
            f"{name!r} does not build as a tower with img_size={img_size} and image_tower_args={dict(args)} "
            f"({type(error).__name__}: {error}); name one of timm.list_models(), and a size and arguments that fit it"
        ) from error
    if any(size != grid * stride for size, grid, stride in zip(img_size, layout.grid, layout.stride, strict=True)):
        near = tuple(max(1, round(s / p)) * p for s, p in zip(img_size, layout.stride, strict=True))
        raise ValueError(
            f"img_size {img_size} is not a multiple of {name!r}'s patch size {layout.stride}: "
            f"pixels at the edge would be lost; try {near}"
        )
    return trunk, layout


def timm_normalisation(name: str) -> dict[str, tuple[float, ...]]:
    """Mean and standard deviation of the images that timm's weights of a network expect; nothing of an unknown one."""
    known = timm.get_pretrained_cfg(name) if timm.is_model(name) else None
    return {"mean": tuple(known.mean), "std": tuple(known.std)} if known else {}


def as_tokens(trunk: Any, layout: Layout, features: Tensor) -> Tensor:
    """Tokens ``(B, P+N, W)`` of what a trunk gave."""
    if features.dim() == 3:
        return trunk.fc_norm(features) if hasattr(trunk, "fc_norm") else features  # none, but where it is the only one
    features = head_norm(trunk)(features) if layout.norm else features
    return features.flatten(1, 2) if layout.channels_last else features.flatten(2).transpose(1, 2)


def pool_features(trunk: Any, layout: Layout, features: Tensor) -> Tensor:
    """Class token ``(B, W)`` by the network's own pooling, of what a trunk with one gave."""
    return trunk.attn_pool(features) if layout.pool == "map" else trunk.forward_head(features, pre_logits=True)


def head_norm(trunk: Any) -> Any:
    """The norm behind the pooling of a network's head, or None."""
    return getattr(getattr(trunk, "head", None), "norm", None)


@lru_cache(256)
def _probe(name: str, img_size: Size, args: str) -> Layout:
    """Run a network without numbers (PyTorch's meta device) and read its layout off the shapes."""
    given: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in json.loads(args).items()}
    stage: int | None = given.pop("stage", None)
    with torch.device("meta"), torch.no_grad():
        settings = {"img_size": img_size, **given}
        try:
            trunk = timm.create_model(name, num_classes=0, **settings)
        except TypeError as error:
            if "img_size" not in str(error):
                raise
            del settings["img_size"]  # a network of convolutions, which takes any size
            trunk = timm.create_model(name, num_classes=0, **settings)
        trunk.eval()
        indices = 1 if stage is None else [stage]
        final, maps = trunk.forward_intermediates(torch.empty(1, 3, *img_size), indices, output_fmt="NCHW")
        _, channels, *grid = maps[0].shape
        rows, columns = grid
        if hasattr(trunk, "fc_norm"):  # timm's ViT, EVA, BEiT and NaFlex: a sequence of tokens from end to end
            if stage is not None:
                raise ValueError("a vision transformer has no stages; take fewer blocks by depth")
            prefix, patch = int(trunk.num_prefix_tokens), int(trunk.feature_info[-1]["reduction"])
            pool = "map" if getattr(trunk, "attn_pool", None) is not None else "token" if prefix else "mean"
            if pool != "map" and not hasattr(trunk, "head_dist"):
                settings["global_pool"] = ""  # the norm stands behind the blocks, not behind a mean
            return Layout((rows, columns), (patch, patch), channels, prefix, pool, False, False, None, False, settings)
        stride = round(img_size[0] / rows), round(img_size[1] / columns)
        if stage is not None:
            return Layout((rows, columns), stride, channels, 0, "mean", False, False, stage, True, settings)
        prefix = int(getattr(trunk, "num_prefix_tokens", 0)) if final.dim() == 3 else 0
        last = getattr(trunk, "output_fmt", "NCHW") == "NHWC"
        width = final.shape[-1] if last or final.dim() == 3 else final.shape[1]
        if final.numel() != width * (prefix + rows * columns):
            raise ValueError(f"its features {tuple(final.shape)} are no grid of {rows}x{columns} tokens")
        fits = trunk.forward_head(final, pre_logits=True).shape == (1, width)
        pool = "token" if prefix else "head" if fits else "mean"
        norm = head_norm(trunk) if fits and final.dim() == 4 else None
        has_norm = norm is not None and norm(final).shape == final.shape
        return Layout((rows, columns), stride, width, prefix, pool, last, has_norm, None, not fits, settings)
