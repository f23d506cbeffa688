"""CLIP's weights, as OpenAI, open_clip and timm name them, into our towers."""

import logging
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

import open_clip
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from .._download import fetch_file, hub_answers
from .._names import unknown
from .image import ImageTower, Size
from .text import TextTower

_logger = logging.getLogger(__name__)

_TEXT = ("positional_embedding", "text_projection", "token_embedding.", "transformer.", "ln_final.")
# What a CLIP keeps beside its towers: the temperature of its loss, OpenAI's settings, a mask that is computed.
_BESIDE = {"logit_scale", "logit_bias", "input_resolution", "context_length", "vocab_size", "attn_mask"}
_TIMM_NAMES = (
    ("class_embedding", "cls_token"),
    ("positional_embedding", "pos_embed"),
    ("conv1.", "patch_embed.proj."),
    ("transformer.resblocks.", "blocks."),
    ("ln_pre.", "norm_pre."),
    ("ln_post.", "norm."),
    (".ln_", ".norm"),
    (".in_proj_", ".qkv."),
    (".out_proj.", ".proj."),
    (".c_fc.", ".fc1."),
    (".c_proj.", ".fc2."),
)
_POSITIONS = "trunk.pos_embed"


class ClipMapping(NamedTuple):
    """What of a CLIP went where.

    Attributes:
        naming: ``"OpenAI"`` (which is open_clip's too), ``"open_clip with a timm tower"`` or ``"timm"``.
        image: Number of tensors that filled the image tower.
        text: Number of tensors that filled the text tower.
        left_out: Names of the source that no tower was to take.
        grids: Grids of the position table before and after it was resampled; None where it was not.
    """

    naming: str
    image: int
    text: int
    left_out: tuple[str, ...]
    grids: tuple[Size, Size] | None


def load_clip_weights(
    state_dict: Mapping[str, Tensor], image: ImageTower | Sequence[ImageTower] | None, text: TextTower | None
) -> ClipMapping:
    """Copy one CLIP into image towers and a text tower, strictly: all of it fits, or nothing is changed.

    The position table is resampled (bicubic, antialiased) from CLIP's square grid to the tower's grid.

    Args:
        state_dict: A CLIP in OpenAI's or open_clip's names (``visual.*`` and the text tower at the root or under
            ``text.``), in open_clip's names around a timm tower (``visual.trunk.*``), or the image tower alone in
            timm's names (``blocks.*``, the projection as ``head.weight``).
        image: Towers to fill, timm CLIP ViTs; None to leave out.
        text: Tower to fill; None to leave out.

    Returns:
        What was mapped.

    Raises:
        ValueError: If the names are not those of a CLIP, or names or shapes do not fit; the message lists them.
    """
    naming = _naming(state_dict)
    towers = [image] if isinstance(image, ImageTower) else list(image or ())
    image_names, text_names, left_out = _split_names(state_dict, naming)
    if not towers:
        left_out += image_names.values()
        image_names = {}
    if text is None:
        left_out += text_names.values()
        text_names = {}
    if towers and "proj.weight" in image_names and "proj.weight" not in towers[0].state_dict():
        left_out.append(image_names.pop("proj.weight"))  # a tower that keeps its own width
    image_state = {key: state_dict[source] for key, source in image_names.items()}
    text_state = {key: state_dict[source] for key, source in text_names.items()}
    if naming == "OpenAI":
        image_state = {key: _as_timm(key, tensor) for key, tensor in image_state.items()}
    grids = resample_positions(image_state, towers[0]) if towers else None
    problems = _problems(towers[0], image_state, image_names, "image tower") if towers else []
    if text is not None:
        problems += _problems(text, text_state, text_names, "text tower")
    if problems:
        raise ValueError(f"these CLIP weights ({naming} names) do not fit: " + "; ".join(problems))
    for tower in towers:
        tower.load_state_dict(image_state, strict=not tower.num_cameras)
    if text is not None:
        text.load_state_dict(text_state)
        text.clear_cache()
    if grids:
        _logger.info("position table resampled from %dx%d to %dx%d patches", *grids[0], *grids[1])
    return ClipMapping(naming, len(image_names), len(text_names), tuple(sorted(left_out)), grids)


def load_pretrained_clip(
    name: str, tag: str, image: ImageTower | Sequence[ImageTower] | None, text: TextTower | None, cache_dir: str | None
) -> None:
    """Fetch a CLIP through open_clip and copy it into the towers as `load_clip_weights` does.

    Args:
        name: open_clip model name, such as ``ViT-B-16-quickgelu``.
        tag: open_clip weights tag, such as ``openai``.
        image: Towers to fill; None to leave out.
        text: Tower to fill; None to leave out.
        cache_dir: Where downloads are kept; None for the hub's default.

    Raises:
        ValueError: If open_clip has no such weights, or they do not fit.
        ConnectionError: If the hub cannot be reached and the cache has not got them.
    """
    known = open_clip.get_pretrained_cfg(name, tag)
    if not known:
        tags = open_clip.list_pretrained_tags_by_model(name)
        raise ValueError(f"open_clip has no weights for {name!r}: {unknown('tag', tag, tags)}")
    repo, _, file = known.get("hf_hub", "").rpartition("/")
    source = tag
    if repo:  # by our own hands, which ask once and read no pickle
        source = str(fetch_file(repo, file or "open_clip_model.safetensors", cache_dir))
    elif not hub_answers():
        raise ConnectionError(
            f"the weights of CLIP {name}, {tag} are not fetched: there is no network, or none allowed"
        )
    try:
        clip = open_clip.create_model(name, pretrained=source, cache_dir=cache_dir)
    except Exception as error:  # what downloads, files and layers raise
        raise ValueError(f"open_clip did not load CLIP {name}, {tag}: {error}") from error
    load_clip_weights(clip.state_dict(), image, text)


def _naming(names: Iterable[str]) -> str:
    found = set(names)
    if "visual.class_embedding" in found:
        return "OpenAI"
    if any(name.startswith("visual.trunk.") for name in found):
        return "open_clip with a timm tower"
    if "patch_embed.proj.weight" in found:
        return "timm"
    raise ValueError(
        "these are no weights of a CLIP vision transformer: neither visual.class_embedding (OpenAI, open_clip), "
        "visual.trunk.* (open_clip with a timm tower) nor patch_embed.proj.weight (timm) is among "
        f"{grouped_names(found) or 'no tensors at all'}; other networks of timm: convert_timm, --from timm"
    )


def _split_names(state: Mapping[str, Tensor], naming: str) -> tuple[dict[str, str], dict[str, str], list[str]]:
    """Our names of the image tower's and the text tower's tensors with their sources, and what belongs to neither."""
    image_names, text_names, beside, unknown = {}, {}, [], []
    for key in state:
        root = key.removeprefix("text.")
        if naming == "timm":
            if key == "head.bias" and not state[key].any():
                beside.append(key)  # CLIP's projection has none; timm's layer carries zeros
            else:
                image_names[_image_name(f"trunk.{key}", naming)] = key
        elif key.startswith("visual."):
            image_names[_image_name(key.removeprefix("visual."), naming)] = key
        elif root.startswith(_TEXT) and f"transformer.{root}" not in text_names:
            text_names[f"transformer.{root}"] = key
        elif root in _BESIDE:
            beside.append(key)
        else:
            unknown.append(key)
    if unknown:
        raise ValueError(
            f"beside a CLIP in {naming} names there are {len(unknown)} unknown: {grouped_names(unknown)}; "
            "take them out of the file, or name the model that they belong to"
        )
    return image_names, text_names, beside


def _image_name(name: str, naming: str) -> str:
    if name == "proj" or (name in ("head.proj.weight", "trunk.head.weight") and naming != "OpenAI"):
        return "proj.weight"
    if name == "trunk.head.bias":
        return "proj.bias"
    if naming != "OpenAI":
        return name
    for old, new in _TIMM_NAMES:
        name = name.replace(old, new)
    return f"trunk.{name}"


def _as_timm(name: str, tensor: Tensor) -> Tensor:
    """A tensor as timm lays it out: OpenAI multiplies by the projection from the right, its tables have no batch."""
    if name == "proj.weight" and tensor.dim() == 2:
        return tensor.T
    return tensor.view(1, -1, tensor.shape[-1]) if name in (_POSITIONS, "trunk.cls_token") and tensor.dim() else tensor


def resample_positions(state: dict[str, Tensor], tower: ImageTower) -> tuple[Size, Size] | None:
    """Bring the position table of `state` to the tower's grid, in place; return both grids where they differ."""
    table, expected = state.get(_POSITIONS), tower.state_dict().get(_POSITIONS)
    if table is None or expected is None or table.dim() != 3 or table.shape[-1] != expected.shape[-1]:
        return None  # rejected by its name or its size
    places = table.shape[1] - tower.num_prefix_tokens
    side = math.isqrt(max(places, 0))
    if side * side != places or not side:
        raise ValueError(
            f"the position table has {places} places besides the class token's, which is no square: CLIP's images "
            "are square, and the file does not say which grid of another shape this is; take CLIP's original weights"
        )
    if tower.grid_size == (side, side):
        return None
    state[_POSITIONS] = resample_abs_pos_embed(
        table.float(), list(tower.grid_size), [side, side], num_prefix_tokens=tower.num_prefix_tokens
    )
    return (side, side), tower.grid_size


def _problems(module: nn.Module, state: Mapping[str, Tensor], sources: Mapping[str, str], where: str) -> list[str]:
    """What keeps `state` from filling a module, in the source's names as far as it has some."""
    expected = {key: value for key, value in module.state_dict().items() if key != "camera"}
    missing = sorted(expected.keys() - state.keys())
    unexpected = sorted(sources[key] for key in state.keys() - expected.keys())
    shapes = [
        f"{sources[key]} is {tuple(state[key].shape)}, the tower has {tuple(expected[key].shape)}"
        for key in sorted(expected.keys() & state.keys())
        if state[key].shape != expected[key].shape
    ]
    more = f" and {len(shapes) - 4} more" if len(shapes) > 4 else ""
    found = {
        f"{len(missing)} missing for the {where}: {grouped_names(missing)}": missing,
        f"{len(unexpected)} that the {where} has no place for: {grouped_names(unexpected)}": unexpected,
        f"shapes of {len(shapes)} differ: {', '.join(shapes[:4])}{more}": shapes,
    }
    return [text for text, keys in found.items() if keys]


def grouped_names(names: Iterable[str]) -> str:
    """Names by what they begin with: one alone as it is, several as ``transformer.blocks.2.* (12)``."""
    groups: dict[str, list[str]] = {}
    for name in sorted(names):
        numbered = re.match(r".*?\.\d+\.", name)
        groups.setdefault(numbered[0] if numbered else name.partition(".")[0] + ".", []).append(name)
    shown = [found[0] if len(found) == 1 else f"{start}* ({len(found)})" for start, found in groups.items()]
    return ", ".join(shown[:8]) + (f" and {len(shown) - 8} more groups" if len(shown) > 8 else "")
