"""Names in, modules out."""

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .._files import user_path
from ._base import ReIDModel
from ._builder import load_checkpoint
from ._config import check_arguments
from ._hub import download, load_config
from ._pretrained import OF_WEIGHTS, PretrainedCfg
from ._registry import is_model, model_entrypoint, split_model_name_tag

_SOURCES = ("hf-hub:", "hf_hub:", "local-dir:")
_NONE_IS_A_SETTING = ("text_tower", "embed_dim")


def create_model(
    model_name: str | os.PathLike[str],
    pretrained: bool = False,
    pretrained_cfg: PretrainedCfg | str | dict[str, Any] | None = None,
    pretrained_cfg_overlay: dict[str, Any] | None = None,
    checkpoint_path: str | Path | None = None,
    cache_dir: str | None = None,
    **kwargs: Any,
) -> ReIDModel:
    """Build a model by name, as ``timm.create_model`` does.

    Args:
        model_name: ``arch``, ``arch.tag``, the path of a checkpoint folder, such as ``runs/x/last`` (loaded strictly;
            ``local-dir:FOLDER`` where a model has that name too), or ``hf-hub:OWNER/NAME[@REVISION]``.
        pretrained: Load the weights that the name's configuration points to. Implied by a folder and by ``hf-hub:``.
        pretrained_cfg: A tag, a configuration or a mapping of its fields; goes before the tag in the name.
        pretrained_cfg_overlay: Fields to change in the configuration, such as ``{"file": "weights.safetensors"}``.
        checkpoint_path: Checkpoint folder or ``.safetensors`` file to load after building.
        cache_dir: Where downloads are kept.
        **kwargs: Arguments of the model, such as ``num_classes``: plain values, as JSON has them. Those that are None
            are left out, but for ``text_tower`` and ``embed_dim``, where None is a setting. On top of a checkpoint's
            own a mapping, such as ``head={...}``, changes what it names.

    Returns:
        The model, in training mode.

    Raises:
        ValueError: If the name, the tag, an argument or a weight does not fit.
        FileNotFoundError: If a local folder or file does not exist, or a hub repository, a revision or a file of it.
        ConnectionError: If the hub cannot be reached and the cache has not got the files.
    """
    if not isinstance(model_name, str | os.PathLike):
        raise ValueError(f"model_name must be a text such as 'next_clip_b16' or 'local-dir:FOLDER'; got {model_name!r}")
    given = {key: value for key, value in kwargs.items() if value is not None or key in _NONE_IS_A_SETTING}
    kwargs = check_arguments(given)
    model_name = _as_source(model_name)
    folder: Path | None = None
    if model_name.startswith(_SOURCES):
        source, _, place = model_name.partition(":")
        folder = user_path(place) if source == "local-dir" else download(place, cache_dir)
        config = load_config(folder)
        architecture = config["architecture"]
        if "built_by" in config:
            raise ValueError(
                f"{folder} holds a {architecture}, which was built by its user's code: build it, adapt it "
                "(nextreid.adapt) and load the weights by nextreid.models.load_checkpoint(model, folder)"
            )
        saved_args = config["model_args"]
        kwargs = {  # a setting of many, such as one of head={...}, leaves the others as they were saved
            **saved_args,
            **{k: {**saved_args[k], **v} if _are_mappings(saved_args.get(k), v) else v for k, v in kwargs.items()},
        }
        saved = {k: v for k, v in config["pretrained_cfg"].items() if k not in ("architecture", "tag")}
        pretrained_cfg, pretrained = {**saved, "file": str(folder)} if pretrained_cfg is None else pretrained_cfg, True
    elif ":" in model_name or "/" in model_name or "\\" in model_name:
        raise ValueError(
            f"{model_name!r} is no model name and no folder that exists; a checkpoint folder is 'local-dir:FOLDER', a "
            "hub repository is 'hf-hub:OWNER/NAME'"
        )
    else:
        architecture, tag = split_model_name_tag(model_name)
        pretrained_cfg = pretrained_cfg or tag or None
    entrypoint = model_entrypoint(architecture)
    try:
        model = entrypoint(
            pretrained=pretrained,
            pretrained_cfg=pretrained_cfg,
            pretrained_cfg_overlay=pretrained_cfg_overlay,
            cache_dir=cache_dir,
            **kwargs,
        )
    except TypeError as error:
        if f"{entrypoint.__name__}() got" in str(error):  # one that hands on no further arguments
            raise ValueError(f"{architecture}: {error}") from error
        raise
    if checkpoint_path is not None:  # what was known of the weights before it does not hold for those in it
        model.pretrained_cfg = model.pretrained_cfg.replace(tag="", **dict.fromkeys(OF_WEIGHTS))
        load_checkpoint(model, checkpoint_path)
    return model


def _are_mappings(*values: Any) -> bool:
    return all(isinstance(value, Mapping) for value in values)


def _as_source(name: str | os.PathLike[str]) -> str:
    """Name a folder that exists as the source that it is; the name of a model goes before a folder of that name."""
    name = os.fspath(name)
    if name.startswith(_SOURCES) or is_model(name):
        return name
    path = user_path(name)
    if path.is_file():
        raise ValueError(f"{name} is a file; a checkpoint is a folder of config.json and model.safetensors")
    return f"local-dir:{name}" if path.is_dir() else name


def from_pretrained(
    source: str | Path, *, revision: str | None = None, cache_dir: str | None = None, **kwargs: Any
) -> ReIDModel:
    """Load a checkpoint as ``transformers`` and ``diffusers`` do.

    Args:
        source: A checkpoint folder, or a hub repository ``OWNER/NAME`` where there is no such folder.
        revision: Branch, tag or commit of the repository.
        cache_dir: Where downloads are kept.
        **kwargs: Arguments of the model that differ from the checkpoint's, such as ``num_classes=0``.

    Returns:
        The model, in evaluation mode.

    Raises:
        ValueError: If a revision is given with a folder, or the checkpoint does not fit; see `create_model`.
        FileNotFoundError: If there is neither such a folder nor such a repository.
        ConnectionError: If the hub cannot be reached and the cache has not got the files.
    """
    if user_path(source).is_dir():
        if revision:
            raise ValueError(f"{source} is a folder, which has no revision {revision!r}; only hub repositories do")
        name = f"local-dir:{source}"
    elif isinstance(source, str) and re.fullmatch(r"[\w.-]+/[\w.-]+", source) and not source.startswith("."):
        name = f"hf-hub:{source}" + (f"@{revision}" if revision else "")
    else:
        raise FileNotFoundError(f"there is no checkpoint folder {source}, and a hub repository is OWNER/NAME")
    return create_model(name, cache_dir=cache_dir, **kwargs).eval()
