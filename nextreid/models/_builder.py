"""Where a configuration meets a class: build it, then fill it with weights."""

import inspect
import logging
import math
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from timm.layers import resample_abs_pos_embed
from torch import Tensor, nn

from .._files import find_folder, user_path
from ..towers import KNOWN_TOWERS, load_pretrained_clip, timm_normalisation
from ._adapter import as_reid_model
from ._base import ReIDModel
from ._config import check_arguments, check_fields, resolve_arguments
from ._hub import CONFIG, activations, download, load_config, load_strictly, read_weights, weight_shapes
from ._pretrained import OF_WEIGHTS, PretrainedCfg
from ._registry import get_pretrained_cfg, is_model, model_entrypoint

_logger = logging.getLogger(__name__)
Model = TypeVar("Model", bound=ReIDModel)


def build_model_with_cfg(
    model_class: Callable[..., Model],
    variant: str,
    pretrained: bool = False,
    pretrained_cfg: PretrainedCfg | str | dict[str, Any] | None = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    cache_dir: str | None = None,
    **kwargs: Any,
) -> Model:
    """Build a model, attach its configuration and load its weights.

    Args:
        model_class: The class to build.
        variant: Name of the entrypoint.
        pretrained: Load the weights that the configuration names.
        pretrained_cfg: A tag, a configuration or a mapping of its fields; None for the architecture's default.
        pretrained_cfg_overlay: Fields to change in the configuration.
        cache_dir: Where downloads are kept.
        **kwargs: Arguments of the class.

    Returns:
        The model, with ``pretrained_cfg`` and ``model_args``, all of the class's arguments, attached.

    Raises:
        ValueError: If an argument is unknown or not what it must be, or ``pretrained`` is asked for and there are no
            weights.
    """
    tag = f".{pretrained_cfg}" if isinstance(pretrained_cfg, str) else ""
    kwargs, of_tower = _know_tower(model_class, kwargs)
    arguments = resolve_arguments(model_class, variant, kwargs)
    if isinstance(pretrained_cfg, PretrainedCfg):
        cfg = pretrained_cfg
    else:
        cfg = get_pretrained_cfg(variant + tag).replace(**of_tower)
        if not pretrained:  # what is known of weights that are not loaded is not known of this model
            cfg = cfg.replace(**dict.fromkeys(OF_WEIGHTS))
        elif cfg.timm and not cfg.has_weights:
            cfg = cfg.replace(**timm_normalisation(arguments["image_tower"]))
    changes = pretrained_cfg if isinstance(pretrained_cfg, dict) else {}
    cfg = cfg.replace(**check_fields({**changes, **(pretrained_cfg_overlay or {})}))
    if pretrained and cfg.file:
        _reject_giant(model_class, arguments, cfg.file)
    model = model_class(**arguments)
    model.model_args = arguments
    model.pretrained_cfg = cfg.replace(
        architecture=variant,
        tag=cfg.tag if pretrained else "",
        input_size=(3, *model.img_size),
        modalities=tuple(model.modalities),
        first_conv=f"image_tower.0.{model.image_tower.towers()[0].first_conv}",
    )
    if pretrained:
        load_pretrained(model, cfg, cache_dir)
    return model


# Arguments of a model that are its towers'.
_OF_TOWERS = (
    "image_tower", "img_size", "embed_dim", "share_image_tower", "num_cameras", "drop_path", "image_tower_args",
)  # fmt: skip


def _know_tower(model_class: Callable[..., ReIDModel], given: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Complete the arguments of a model whose image tower has a name of `KNOWN_TOWERS`, or is a model's of the zoo.

    Returns:
        The arguments: what a user gave stays, the text tower, the width, the size and so on are those of the tower. And
        the fields of a configuration that follow: how images are normalised, and what fills the towers.
    """
    name = given.get("image_tower", "")
    arguments: dict[str, Any]
    if row := KNOWN_TOWERS.get(name):
        arguments = {"image_tower": row.image, "img_size": row.img_size, "text_tower": row.text}
        if row.text:
            arguments["embed_dim"] = row.embed_dim
        mean, std = row.normalisation
        fields = {"mean": mean, "std": std, "clip": row.text and (row.text, row.tag), "timm": not row.text}
    elif is_model(name):
        with torch.device("meta"):
            other = model_entrypoint(name)()
        tower, cfg = other.image_tower.towers()[0], get_pretrained_cfg(name)
        arguments = {key: other.model_args[key] for key in _OF_TOWERS if key in other.model_args}
        arguments |= {"camera_scope": tower.camera_scope, "camera_scale": tower.camera_scale}
        arguments["text_tower"] = cfg.clip and cfg.clip[0]
        fields = {key: getattr(cfg, key) for key in ("mean", "std", "clip", "timm")}
    else:
        return given, {}
    known = inspect.signature(model_class).parameters
    arguments = {key: value for key, value in arguments.items() if key in known}
    return {**arguments, **given, "image_tower": arguments["image_tower"]}, {**fields, "notes": None}


def _reject_giant(model_class: Callable[..., ReIDModel], arguments: Mapping[str, Any], path: str) -> None:
    """Raise ValueError if a model is far larger than its weights, before any memory is taken for it."""
    try:
        with torch.device("meta"):
            wanted = sum(p.numel() for p in model_class(**arguments).parameters())
    except (RuntimeError, NotImplementedError):  # a class that looks at its own numbers; it will tell by itself
        return
    stored = sum(math.prod(shape) for shape in weight_shapes(path).values())
    if wanted > 4 * stored + 50_000_000:  # a classifier and a position table of another size may come on top
        raise ValueError(
            f"{path} holds {stored} numbers, and the model of its arguments has {wanted}: its {CONFIG} is of another "
            "model"
        )


def load_pretrained(model: ReIDModel, cfg: PretrainedCfg, cache_dir: str | None = None) -> None:
    """Fill a model from its configuration: a file, a hub repository, or the towers alone from CLIP or from timm."""
    if cfg.file or cfg.hf_hub_id:
        source = cfg.file or download(str(cfg.hf_hub_id), cache_dir)
        load_checkpoint(model, str(source))
    elif cfg.clip:
        load_pretrained_clip(*cfg.clip, model.image_tower.towers(), model.text_tower, cache_dir)
        model.loaded_weights = f"CLIP {cfg.clip[0]}, {cfg.clip[1]}"
        model.pretrained_cfg = model.pretrained_cfg.replace(base_weights=model.loaded_weights)
        _logger.info("the towers of %s start from CLIP (%s, %s); the rest is untrained", cfg.architecture, *cfg.clip)
    elif cfg.timm:
        if model.text_tower is not None:
            raise ValueError(
                "timm's weights fill the image tower alone, and an untrained text tower makes noise of captions: build "
                "the model with text_tower=None, or take one whose towers are a CLIP, such as next_clip_b16"
            )
        name = model.image_tower.load_timm(cache_dir)
        model.loaded_weights = f"timm {name}"
        model.pretrained_cfg = model.pretrained_cfg.replace(base_weights=model.loaded_weights)
        _logger.info("the image tower of %s starts from timm's %s; the rest is untrained", cfg.architecture, name)
    else:
        raise ValueError(
            f"there are no pretrained weights for {cfg.architecture!r}; build it with pretrained=False, or name a "
            "checkpoint: checkpoint_path=, 'local-dir:FOLDER' or 'hf-hub:OWNER/NAME'"
        )


# What a model may have otherwise than its checkpoint: what is made to fit, and what counts in training alone.
_FREE = re.compile(r"num_classes|classifier|img_size|drop_path|head\.drop|.*drop_rate")


def _adapt(model: ReIDModel, config: dict[str, Any], state: dict[str, Tensor], path: str) -> None:
    """Check that a checkpoint fits the model in what shapes do not tell, and bring its position tables to its size."""
    saved = config["pretrained_cfg"]
    theirs, ours = _flatten(check_arguments(config["model_args"])), _flatten(getattr(model, "model_args", {}))
    facts = {k: (theirs[k], ours[k]) for k in sorted(theirs.keys() & ours.keys()) if not _FREE.fullmatch(k)}
    facts["modalities"] = tuple(saved.get("modalities", model.modalities)), model.modalities
    parts = activations(model)
    facts |= {f"activations of {k}": (v, parts[k]) for k, v in config.get("activations", {}).items() if k in parts}
    for name, (trained, built) in facts.items():
        if trained != built:
            raise ValueError(f"the weights of {path} were trained with {name}={trained}, the model has {name}={built}")
    size = tuple(saved.get("input_size", (3, *model.img_size))[1:])
    if size == model.img_size or not hasattr(model, "image_tower"):
        return
    patch, grid = model.image_tower.patch_size, model.image_tower.grid_size
    old = [size[0] // patch[0], size[1] // patch[1]]
    _logger.warning("%s: position tables resampled from %dx%d images to %dx%d", path, *size, *model.img_size)
    for key in (k for k in model.state_dict() if k.endswith("trunk.pos_embed") and k in state):
        prefix = state[key].shape[1] - old[0] * old[1]
        state[key] = resample_abs_pos_embed(state[key], list(grid), old, num_prefix_tokens=prefix)


def _flatten(arguments: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in arguments.items():
        flat |= (
            _flatten(value, f"{prefix}{name}.")
            if isinstance(value, Mapping)
            else {prefix + name: tuple(value) if isinstance(value, list) else value}
        )
    return flat


def load_checkpoint(model: nn.Module, path: str | Path) -> None:
    """Load a checkpoint folder, or the ``.safetensors`` file of one, strictly but for two things that it names.

    Identities differ from one dataset to the next: where the checkpoint's classifier has another number of them than
    the model, the model keeps its new one. Where the image sizes differ, the position tables are resampled from
    the checkpoint's grid. Both are logged; all else must fit: every argument but those that count in training alone,
    and the activations.

    Raises:
        FileNotFoundError: If there is no such folder or file.
        ValueError: If the checkpoint is damaged or of another model; the message names what differs.
    """
    model, path = as_reid_model(model), str(find_folder(user_path(path)))
    state, size = read_weights(path), None
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    if (folder / CONFIG).is_file():
        config = load_config(folder)
        _adapt(model, config, state, path)
        cfg = config["pretrained_cfg"]
        recorded = {name: cfg.get(name) for name in OF_WEIGHTS}
        size = tuple(cfg.get("input_size", (3, *model.img_size))[1:])
        if size != model.img_size:
            recorded |= {"metrics": None, "protocol": None}  # measured at the other size
        model.pretrained_cfg = model.pretrained_cfg.replace(**recorded)
    else:
        _logger.warning("%s: no %s beside it says for which images and modalities it was trained", path, CONFIG)
    prefixes = tuple(f"{name}." for name in model.of_identities)
    saved, wanted = ({k: v for k, v in s.items() if k.startswith(prefixes)} for s in (state, model.state_dict()))
    if {k: v.shape for k, v in saved.items()} != {k: v.shape for k, v in wanted.items()}:
        if wanted:
            message = "%s: its identity classifier does not fit %d classes; a new one is started"
            _logger.warning(message, path, model.num_classes)
        state = {k: v for k, v in state.items() if k not in saved} | wanted
    try:
        load_strictly(model, state, path)
        model.loaded_weights = path
    except ValueError as error:
        if size is None or size == model.img_size:
            raise
        raise ValueError(
            f"{error}. The weights are of img_size={size}, the model has img_size={model.img_size}: what is "
            "learned for each position (sampling='random', modulation_scope='map') has one size; build it with "
            f"img_size={size}"
        ) from error
