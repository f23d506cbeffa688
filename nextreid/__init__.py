"""nextreid: a model zoo for multi-modal object re-identification."""

from typing import TYPE_CHECKING, Any

from .layers import create_layer, list_layers
from .models import (
    create_model,
    from_pretrained,
    get_pretrained_cfg,
    is_model,
    list_models,
    list_pretrained,
    model_entrypoint,
    push_to_hub,
    register_model,
    save_model,
    save_pretrained,
    verify_checkpoint,
)
from .version import __version__

if TYPE_CHECKING:
    from .engine import FeatureExtractor
else:

    def __getattr__(name: str) -> Any:
        if name == "FeatureExtractor":  # at its first use: it brings the rooms of data and training along
            from .engine import FeatureExtractor

            return FeatureExtractor
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


__all__ = [
    "FeatureExtractor",
    "__version__",
    "create_layer",
    "create_model",
    "from_pretrained",
    "get_pretrained_cfg",
    "is_model",
    "list_layers",
    "list_models",
    "list_pretrained",
    "model_entrypoint",
    "push_to_hub",
    "register_model",
    "save_model",
    "save_pretrained",
    "verify_checkpoint",
]
