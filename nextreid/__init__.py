"""nextreid: a model zoo for multi-modal object re-identification."""

from .layers import create_layer, list_layers
from .models import (
    create_model,
    get_pretrained_cfg,
    is_model,
    list_models,
    list_pretrained,
    model_entrypoint,
    register_model,
    save_model,
)
from .version import __version__

__all__ = [
    "__version__",
    "create_layer",
    "create_model",
    "get_pretrained_cfg",
    "is_model",
    "list_layers",
    "list_models",
    "list_pretrained",
    "model_entrypoint",
    "register_model",
    "save_model",
]
