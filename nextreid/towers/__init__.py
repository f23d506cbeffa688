"""Towers: pixels and captions to tokens."""

from .clip_weights import load_clip_weights, load_pretrained_clip
from .image import ImageTower, ImageTowers
from .known import KNOWN_TOWERS, KnownTower
from .packing import pack_sentences
from .text import CONTEXT, TextTower
from .timm_weights import load_timm_weights
from .trunk import timm_normalisation

__all__ = [
    "CONTEXT",
    "ImageTower",
    "ImageTowers",
    "KNOWN_TOWERS",
    "KnownTower",
    "TextTower",
    "load_clip_weights",
    "load_pretrained_clip",
    "load_timm_weights",
    "pack_sentences",
    "timm_normalisation",
]
