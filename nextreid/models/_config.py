"""What a checkpoint's config.json may hold: plain values of known names, types and ranges; no path and no address."""

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from .._names import unknown
from .._schema import (
    Kind,
    choice,
    defaults_of,
    flag,
    kinds_of,
    listed,
    mapping,
    number,
    optional,
    plain_texts,
    plain_words,
    table,
    text,
    whole,
    word,
)
from ..towers.image import cameras_kind, img_size_kind, modalities_kind, tower_args_kind, width_kind
from ..towers.text import TEXT_DEFAULTS, text_tower_kind

# Of `create_model` itself: in a file they would be paths and sources.
_RESERVED = ("model_name", "pretrained", "pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir")
_classes = whole(0, 1_000_000)

ARGUMENTS: dict[str, Kind] = {
    "image_tower": word,
    "text_tower": optional(text_tower_kind),
    "img_size": img_size_kind,
    "modalities": modalities_kind,
    "embed_dim": optional(width_kind),
    "num_classes": _classes,
    "head": optional(mapping(plain_words)),
    "classifier": word,
    "pool": word,
    "share_image_tower": flag,
    "num_cameras": cameras_kind,
    "drop_path": number(0, 0.999),
    "image_tower_args": optional(tower_args_kind),
}
"""Arguments that mean the same in every model; a method's own are checked by the annotations of its class."""


def _record(name: str, value: Any) -> Any:
    """What training recorded of itself, and of the weights before, is a mapping that names its dataset."""
    record = mapping(plain_texts)(name, value)
    start, depth = record, 0
    while start:
        if not isinstance(start, Mapping) or not isinstance(start.get("dataset"), str):
            raise ValueError(f"{name} must name the dataset that the weights were trained on")
        start, depth = start.get("start"), depth + 1
    return record


training_record = Kind("a record of a training", _record)
_licence = optional(text())
PRETRAINED_CFG: dict[str, Kind] = {
    "architecture": text(128),
    "tag": text(128),
    "input_size": listed(whole(1, 4096), 3, 3, "(3, height, width) in pixels"),
    "mean": listed(number(-1e3, 1e3), 3, 3, "three numbers, one for each channel"),
    "std": listed(number(1e-6, 1e3), 3, 3, "three numbers above 0, one for each channel"),
    "interpolation": choice("nearest", "bilinear", "bicubic", "lanczos"),
    "crop_pct": number(0.01, 1),
    "crop_mode": word,
    "modalities": modalities_kind,
    "num_classes": _classes,
    "first_conv": text(256),
    "classifier": text(256),
    "protocol": optional(text()),
    "metrics": optional(mapping(optional(number(-1e9, 1e9)))),
    "trained_on": optional(training_record),
    **dict.fromkeys(("license", "data_license", "base_weights", "paper_ids", "notes"), _licence),
}
"""The fields of a `PretrainedCfg` but for its sources."""

_CONFIG: dict[str, Kind] = {
    "architecture": word,
    "built_by": text(256),
    "num_classes": _classes,
    "num_features": whole(1, 2**31),
    "activations": mapping(listed(word, 1, 64, "names of activations")),
    "model_args": mapping(plain_words),
    "pretrained_cfg": table(PRETRAINED_CFG, "field"),
    "licenses": mapping(_licence),
    "nextreid_version": text(64),
}


def check_config(value: Any, source: str) -> None:
    """Check what a config.json holds, before anything is built of it.

    Raises:
        ValueError: A name is unknown, or a value is not what it must be; the message begins with `source`.
    """
    if not isinstance(value, Mapping) or "architecture" not in value:
        raise ValueError(f"{source} names no architecture; it was not written by nextreid")
    args = table(_CONFIG, "key")(f"{source}: ", value).get("model_args", {})
    if wrong := [name for name in args if name in _RESERVED]:
        raise ValueError(f"{source}: model_args names {', '.join(wrong)}, which is no argument of a model")
    check_arguments(args, f"{source}: model_args.")


def check_fields(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Check fields of a `PretrainedCfg` that a user gives; its sources and names that it lacks stay as they are."""
    kinds = PRETRAINED_CFG
    return {name: kinds[name](f"pretrained_cfg.{name}", v) if name in kinds else v for name, v in fields.items()}


def check_arguments(given: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Check the arguments that mean the same in every model, and make them plain; the others stay as they are."""
    return {name: ARGUMENTS[name](prefix + name, v) if name in ARGUMENTS else v for name, v in given.items()}


def resolve_arguments(model_class: Callable[..., Any], architecture: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a model's class, plain, its defaults included: what is built, and what a checkpoint keeps.

    A class whose arguments have settings of their own completes them in a class method ``resolve(arguments)``.

    Raises:
        ValueError: An argument is unknown (the message proposes near ones), or not what it must be.
    """
    parameters = inspect.signature(model_class).parameters
    kinds = {**kinds_of(model_class), **{name: kind for name, kind in ARGUMENTS.items() if name in parameters}}
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        kinds |= dict.fromkeys(given.keys() - kinds.keys(), plain_words)
    if wrong := [name for name in given if name not in kinds]:
        raise ValueError(f"{architecture}: {unknown('argument', wrong, kinds)}")
    arguments = {**defaults_of(model_class), **{name: kinds[name](name, value) for name, value in given.items()}}
    if isinstance(arguments.get("text_tower"), dict):
        arguments["text_tower"] = {**TEXT_DEFAULTS, **arguments["text_tower"]}
    if "image_tower_args" in arguments:
        arguments["image_tower_args"] = arguments["image_tower_args"] or {}
    resolve = getattr(model_class, "resolve", None)
    return resolve(arguments) if resolve else arguments
