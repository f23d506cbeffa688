"""Blocks by name, so that a recipe or a config file can ask for them."""

from fnmatch import fnmatchcase
from typing import TypeVar

from torch import nn

from nextreid._names import unknown

_LAYERS: dict[str, type[nn.Module]] = {}
Block = TypeVar("Block", bound=type[nn.Module])


def register_layer(block: Block) -> Block:
    """Register a block under its class name; usable as a decorator.

    Raises:
        ValueError: If another class has that name already.
    """
    known = _LAYERS.setdefault(block.__name__, block)
    if known is not block:
        raise ValueError(f"a layer named {block.__name__!r} is registered already: {known.__module__}")
    return block


def list_layers(filter: str = "*") -> list[str]:
    """Names of the registered blocks that match a shell-style wildcard, sorted."""
    return sorted(name for name in _LAYERS if fnmatchcase(name, filter))


def create_layer(name: str, **kwargs: object) -> nn.Module:
    """Build a registered block, for example ``create_layer("MMFA", dim=512)``.

    Args:
        name: A name that `list_layers` gives.
        **kwargs: Arguments of the block's constructor.

    Raises:
        KeyError: If no block has that name.
    """
    if name not in _LAYERS:
        raise KeyError(unknown("layer", name, list_layers()))
    return _LAYERS[name](**kwargs)
