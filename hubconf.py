"""Entry points of torch.hub, one for each model: ``torch.hub.load("<checkout>", "next_clip_b16", source="local")``."""

from collections.abc import Callable as _Callable
from typing import Any as _Any

import nextreid as _nextreid

dependencies = ["torch", "timm", "open_clip", "huggingface_hub", "safetensors", "einops", "numpy", "PIL", "tqdm"]

_ARGUMENTS = """

    Args:
        pretrained: Load the weights that the name stands for, or those of ``tag``.
        tag: Name of certain weights, see ``nextreid.list_pretrained()``.
        **kwargs: Arguments of ``nextreid.create_model``, such as ``num_classes``, ``img_size``, ``modalities``,
            ``checkpoint_path`` or ``cache_dir``.

    Returns:
        The model, in training mode.
"""


def _entrypoint(name: str) -> _Callable[..., _Any]:
    def load(pretrained: bool = False, tag: str | None = None, **kwargs: _Any) -> _Any:
        return _nextreid.create_model(name, pretrained=pretrained, pretrained_cfg=tag, **kwargs)

    load.__name__ = load.__qualname__ = name
    load.__doc__ = (_nextreid.model_entrypoint(name).__doc__ or "").rstrip() + _ARGUMENTS
    return load


# A model that is registered is here too.
globals().update({_name: _entrypoint(_name) for _name in _nextreid.list_models()})
