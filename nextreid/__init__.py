"""nextreid: a model zoo for multi-modal object re-identification.

Names and packages load when they are first used: ``import nextreid`` alone loads neither torch nor anything else.
"""

import importlib
from typing import Any

from .version import __version__

_NAMES = {
    "FeatureExtractor": "engine",
    "Gallery": "retrieval",
    "adapt": "models",
    "create_layer": "layers",
    "create_model": "models",
    "evaluate": "engine",
    "export": "engine",
    "extract": "engine",
    "from_pretrained": "models",
    "get_pretrained_cfg": "models",
    "get_recipe": "engine",
    "is_model": "models",
    "list_datasets": "data",
    "list_layers": "layers",
    "list_models": "models",
    "list_pretrained": "models",
    "load_dataset": "data",
    "model_entrypoint": "models",
    "open_gallery": "engine",
    "push_to_hub": "models",
    "register_model": "models",
    "save_model": "models",
    "save_pretrained": "models",
    "train": "engine",
    "verify_checkpoint": "models",
}
_PACKAGES = (
    "captioning",
    "data",
    "engine",
    "layers",
    "losses",
    "models",
    "ops",
    "retrieval",
    "synthetic",
    "towers",
    "viz",
)

__all__ = ["__version__", *_NAMES]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        value = getattr(importlib.import_module(f".{_NAMES[name]}", __name__), name)
    elif name in _PACKAGES:
        value = importlib.import_module(f".{name}", __name__)
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*__all__, *_PACKAGES])
