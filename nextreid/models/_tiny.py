"""Towers small enough for a CPU, shared by the ``*_tiny`` models."""

from typing import Any

TINY_IMAGE: dict[str, Any] = {
    "image_tower": "vit_tiny_patch16_224",
    "image_tower_args": {"patch_size": 8, "embed_dim": 96, "depth": 4, "num_heads": 3},
    "img_size": (64, 32),
    "embed_dim": 64,
}
# Half of CLIP's vocabulary: its whole table would be five sixths of the model.
TINY_TEXT: dict[str, Any] = {"width": 64, "heads": 2, "layers": 2, "vocab_size": 24_576}
