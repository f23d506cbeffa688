"""Towers: pixels and captions to tokens."""

from .clip_weights import load_clip_weights, load_pretrained_clip
from .image import ImageTower, ImageTowers
from .packing import pack_sentences
from .text import CONTEXT, TextTower

__all__ = [
    "CONTEXT",
    "ImageTower",
    "ImageTowers",
    "TextTower",
    "load_clip_weights",
    "load_pretrained_clip",
    "pack_sentences",
]
