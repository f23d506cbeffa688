"""CLIP's weights, as open_clip and OpenAI name them, into our towers."""

from collections.abc import Mapping

import open_clip
import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor

from .image import ImageTower
from .text import TextTower

_TEXT = ("positional_embedding", "text_projection", "token_embedding.", "transformer.", "ln_final.")


def load_clip_weights(state_dict: Mapping[str, Tensor], image: ImageTower | None, text: TextTower | None) -> None:
    """Copy one CLIP into an image tower and a text tower, strictly.

    The position table is resampled (bicubic, antialiased) from CLIP's square grid to the tower's grid.

    Args:
        state_dict: A CLIP in OpenAI's or open_clip's names: ``visual.*`` and the text side at the root or under
            ``text.``.
        image: Tower to fill, a timm CLIP ViT; None to leave out.
        text: Tower to fill; None to leave out.

    Raises:
        ValueError: If names or shapes do not fit; the message lists them.
    """
    if image is not None:
        _fill(image, _image_names(state_dict, image), skip=("camera",))
    if text is not None:
        renamed = {key.removeprefix("text."): value for key, value in state_dict.items()}
        own = {f"transformer.{k}": v for k, v in renamed.items() if k.startswith(_TEXT)}
        _fill(text, own)
        text.clear_cache()


def load_pretrained_clip(
    name: str, tag: str, image: ImageTower | None, text: TextTower | None, cache_dir: str | None
) -> None:
    """Fetch a CLIP through open_clip (and so from the hub) and copy it into the towers.

    Args:
        name: open_clip model name, such as ``ViT-B-16-quickgelu``.
        tag: open_clip weights tag, such as ``openai``.
        image: See `load_clip_weights`.
        text: See `load_clip_weights`.
        cache_dir: Where downloads are kept; None for the hub's default.
    """
    clip = open_clip.create_model(name, pretrained=tag, cache_dir=cache_dir)
    load_clip_weights(clip.state_dict(), image, text)


def _image_names(state_dict: Mapping[str, Tensor], tower: ImageTower) -> dict[str, Tensor]:
    fixed = {
        "class_embedding": ("trunk.cls_token", lambda v: v.reshape(1, 1, -1)),
        "positional_embedding": ("trunk.pos_embed", lambda v: _resample(v, tower)),
        "conv1.weight": ("trunk.patch_embed.proj.weight", lambda v: v),
        "proj": ("proj.weight", lambda v: v.T),
    }
    parts = (
        ("ln_pre.", "norm_pre."),
        ("ln_post.", "norm."),
        ("transformer.resblocks.", "blocks."),
        (".ln_1.", ".norm1."),
        (".ln_2.", ".norm2."),
        (".attn.in_proj_", ".attn.qkv."),
        (".attn.out_proj.", ".attn.proj."),
        (".mlp.c_fc.", ".mlp.fc1."),
        (".mlp.c_proj.", ".mlp.fc2."),
    )
    out: dict[str, Tensor] = {}
    for key, value in state_dict.items():
        if not key.startswith("visual."):
            continue
        own = key.removeprefix("visual.")
        if own in fixed:
            target, change = fixed[own]
            out[target] = change(value)
            continue
        for old, new in parts:
            own = own.replace(old, new)
        out[f"trunk.{own}"] = value
    return out


def _resample(table: Tensor, tower: ImageTower) -> Tensor:
    side = round((table.shape[0] - 1) ** 0.5)
    return resample_abs_pos_embed(
        table[None], new_size=list(tower.grid_size), old_size=[side, side], num_prefix_tokens=1
    )


def _fill(module: torch.nn.Module, state: dict[str, Tensor], skip: tuple[str, ...] = ()) -> None:
    expected = {k: v for k, v in module.state_dict().items() if k not in skip}
    missing = sorted(expected.keys() - state.keys())
    unexpected = sorted(state.keys() - expected.keys())
    shapes = [
        f"{k}: {tuple(state[k].shape)} given, {tuple(expected[k].shape)} expected"
        for k in sorted(expected.keys() & state.keys())
        if state[k].shape != expected[k].shape
    ]
    if missing or unexpected or shapes:
        raise ValueError(
            f"these CLIP weights do not fit the tower: missing {missing[:5]}, unexpected {unexpected[:5]}, "
            f"shapes {shapes[:5]} ({len(missing)}, {len(unexpected)} and {len(shapes)} in all)"
        )
    module.load_state_dict(state, strict=not skip)
