"""Where a configuration meets a class: build it, then fill it with weights."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from timm.layers import resample_abs_pos_embed
from torch import Tensor

from ..towers import load_pretrained_clip
from ._adapter import as_reid_model
from ._base import ReIDModel
from ._hub import CONFIG, download, load_config, load_strictly, read_weights
from ._pretrained import OF_WEIGHTS, PretrainedCfg
from ._registry import get_pretrained_cfg

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
        The model, with ``pretrained_cfg`` and ``model_args`` attached.

    Raises:
        ValueError: If ``pretrained`` is asked for and there are no weights.
    """
    tag = f".{pretrained_cfg}" if isinstance(pretrained_cfg, str) else ""
    cfg = pretrained_cfg if isinstance(pretrained_cfg, PretrainedCfg) else get_pretrained_cfg(variant + tag)
    changes = pretrained_cfg if isinstance(pretrained_cfg, dict) else {}
    cfg = cfg.replace(**{**changes, **(pretrained_cfg_overlay or {})})
    model = model_class(**kwargs)
    model.model_args = dict(kwargs)
    model.pretrained_cfg = cfg.replace(
        architecture=variant,
        tag=cfg.tag if pretrained else "",
        input_size=(3, *model.img_size),
        modalities=tuple(model.modalities),
    )
    if pretrained:
        load_pretrained(model, cfg, cache_dir)
    return model


def load_pretrained(model: ReIDModel, cfg: PretrainedCfg, cache_dir: str | None = None) -> None:
    """Fill a model from its configuration: a file, a hub repository, or the towers alone from CLIP or from timm."""
    if cfg.file or cfg.hf_hub_id:
        source = cfg.file or download(str(cfg.hf_hub_id), cache_dir)
        load_checkpoint(model, str(source))
    elif cfg.clip:
        load_pretrained_clip(*cfg.clip, model.image_tower.towers(), model.text_tower, cache_dir)
        model.pretrained_cfg = model.pretrained_cfg.replace(base_weights=f"CLIP {cfg.clip[0]}, {cfg.clip[1]}")
        _logger.info("the towers of %s start from CLIP (%s, %s); the rest is untrained", cfg.architecture, *cfg.clip)
    elif cfg.timm:
        if model.text_tower is not None:
            raise ValueError(
                "timm's weights fill the image tower alone, and an untrained text tower makes noise of captions: build "
                "the model with text_tower=None, or take one whose towers are a CLIP, such as next_clip_b16"
            )
        name = model.image_tower.load_timm(cache_dir)
        model.pretrained_cfg = model.pretrained_cfg.replace(base_weights=f"timm {name}")
        _logger.info("the image tower of %s starts from timm's %s; the rest is untrained", cfg.architecture, name)
    else:
        raise ValueError(
            f"there are no pretrained weights for {cfg.architecture!r}; build it with pretrained=False, or name a "
            "checkpoint: checkpoint_path=, 'local-dir:FOLDER' or 'hf-hub:OWNER/NAME'"
        )


def _adapt(model: ReIDModel, config: dict[str, Any], state: dict[str, Tensor], path: str) -> None:
    """Check that a checkpoint fits the model in what shapes do not tell, and bring its position tables to its size."""
    saved, theirs, ours = config["pretrained_cfg"], config["model_args"], getattr(model, "model_args", {})
    # Routers belong to a modality, activations to a tower's name.
    facts = {"modalities": (list(saved.get("modalities", model.modalities)), list(model.modalities))}
    facts |= {k: (theirs[k], ours[k]) for k in ("image_tower", "text_tower") if k in theirs and k in ours}
    facts["num_cameras"] = theirs.get("num_cameras", 0), ours.get("num_cameras", 0)
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


def load_checkpoint(model: ReIDModel, path: str | Path) -> None:
    """Load a checkpoint folder, or the ``.safetensors`` file of one, strictly but for two things that it names.

    Identities differ from one dataset to the next: where the checkpoint's classifier has another number of them than
    the model, the model keeps its new one. Where the image sizes differ, the position tables are resampled from
    the checkpoint's grid. Both are logged; all else must fit.
    """
    model, path = as_reid_model(model), str(path)
    state = read_weights(path)
    folder = Path(path) if Path(path).is_dir() else Path(path).parent
    if (folder / CONFIG).is_file():
        config = load_config(folder)
        _adapt(model, config, state, path)
        cfg = config["pretrained_cfg"]
        recorded = {name: cfg.get(name) for name in OF_WEIGHTS}
        if tuple(cfg.get("input_size", ())[1:]) != model.img_size:
            recorded |= {"metrics": None, "protocol": None}  # measured at the other size
        model.pretrained_cfg = model.pretrained_cfg.replace(**recorded)
    else:
        _logger.warning("%s: no %s beside it says for which images and modalities it was trained", path, CONFIG)
    saved, wanted = ({k: v for k, v in s.items() if k.startswith("necks.")} for s in (state, model.state_dict()))
    if {k: v.shape for k, v in saved.items()} != {k: v.shape for k, v in wanted.items()}:
        if wanted:
            message = "%s: its identity classifier does not fit %d classes; a new one is started"
            _logger.warning(message, path, model.num_classes)
        state = {k: v for k, v in state.items() if k not in saved} | wanted
    load_strictly(model, state, path)
