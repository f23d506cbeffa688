"""Models by name, with timm's verbs and semantics."""

import re
import sys
from collections.abc import Callable, Sequence
from fnmatch import fnmatchcase
from typing import TypeVar

from nextreid._names import unknown

from ._base import ReIDModel
from ._pretrained import PretrainedCfg

Entrypoint = TypeVar("Entrypoint", bound=Callable[..., ReIDModel])

_ENTRYPOINTS: dict[str, Callable[..., ReIDModel]] = {}
_CFGS: dict[str, dict[str, PretrainedCfg]] = {}


def split_model_name_tag(name: str) -> tuple[str, str]:
    """Split ``"arch.tag"`` at the first dot into ``("arch", "tag")``; the tag may be empty."""
    arch, _, tag = name.partition(".")
    return arch, tag


def register_model(entrypoint: Entrypoint) -> Entrypoint:
    """Register a function ``name(pretrained=False, **kwargs) -> model`` under its name; used as a decorator.

    Weights come from a module-level ``default_cfgs`` table (see `generate_default_cfgs`) defined above the function.

    Raises:
        ValueError: If the name has a dot, or another module registered it.
    """
    name, module = entrypoint.__name__, entrypoint.__module__
    if "." in name or "<" in name:
        raise ValueError(f"a model is registered under its function's name, and {name!r} is none")
    registered = _ENTRYPOINTS.setdefault(name, entrypoint).__module__
    if registered != module:
        raise ValueError(f"a model named {name!r} is registered already, by {registered}")
    _ENTRYPOINTS[name] = entrypoint
    cfgs = getattr(sys.modules.get(module), "default_cfgs", {})
    _CFGS[name] = dict(cfgs.get(name) or {"": PretrainedCfg(architecture=name)})
    return entrypoint


def is_model(name: str) -> bool:
    """Whether an architecture of that name exists; a tag in the name is ignored."""
    return split_model_name_tag(name)[0] in _ENTRYPOINTS


def model_entrypoint(name: str) -> Callable[..., ReIDModel]:
    """The function that builds a model; a tag in the name is ignored.

    Raises:
        ValueError: If there is no such model; the message proposes near names and says how to list all.
    """
    arch, _ = split_model_name_tag(name)
    if arch not in _ENTRYPOINTS:
        raise ValueError(unknown("model", arch, list_models()))
    return _ENTRYPOINTS[arch]


def get_pretrained_cfg(name: str) -> PretrainedCfg:
    """The weights' description of ``"arch.tag"``, or of the architecture's default without a tag.

    Raises:
        ValueError: If the model or the tag does not exist.
    """
    model_entrypoint(name)
    arch, tag = split_model_name_tag(name)
    cfgs = _CFGS[arch]
    if not tag:
        return next(iter(cfgs.values()))
    if tag not in cfgs:
        raise ValueError(f"{arch!r} has no weights tagged {tag!r}; tags: {', '.join(filter(None, cfgs)) or 'none'}")
    return cfgs[tag]


def _filters(value: str | Sequence[str]) -> list[str]:
    return list(filter(None, [value] if isinstance(value, str) else value))


def list_models(
    filter: str | Sequence[str] = "",
    pretrained: bool = False,
    exclude_filters: str | Sequence[str] = "",
    include_tags: bool | None = None,
) -> list[str]:
    """Names of registered models, naturally sorted.

    Args:
        filter: Shell-style wildcard or several of them; one that matches is enough. ``""`` for all.
        pretrained: Only those with weights, and with their tags unless ``include_tags`` says otherwise.
        exclude_filters: Wildcards of names to leave out.
        include_tags: List ``arch.tag`` for every tag instead of architectures.
    """
    tags = pretrained if include_tags is None else include_tags
    wanted, unwanted = _filters(filter) or ["*"], _filters(exclude_filters)

    def matches(arch: str, name: str, patterns: list[str]) -> bool:
        # As in timm, a filter without a tag matches the architecture with any tag.
        return any(fnmatchcase(name, p) or ("." not in p and fnmatchcase(arch, p)) for p in patterns)

    names = set()
    for arch, cfgs in _CFGS.items():
        for tag, cfg in cfgs.items():
            full = f"{arch}.{tag}" if tag else arch
            if (
                (cfg.has_weights or not pretrained)
                and matches(arch, full, wanted)
                and not matches(arch, full, unwanted)
            ):
                names.add(full if tags else arch)
    return sorted(names, key=lambda name: [int(p) if p.isdigit() else p for p in re.split(r"(\d+)", name)])


def list_pretrained(filter: str | Sequence[str] = "", exclude_filters: str | Sequence[str] = "") -> list[str]:
    """Names of weights, tags included: ``list_models(filter, pretrained=True)``."""
    return list_models(filter, pretrained=True, exclude_filters=exclude_filters)
