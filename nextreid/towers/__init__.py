"""Towers: pixels and captions to tokens."""

from .adapters import SideAdapter, freeze_but, run_block
from .attention_maps import run_blocks_with_maps
from .clip_weights import load_clip_weights, load_pretrained_clip
from .image import ImageTower, ImageTowers
from .known import KNOWN_TOWERS, KnownTower
from .packing import pack_sentences
from .prompts import TransferPrompts
from .text import CONTEXT, TextTower
from .timm_weights import load_timm_weights
from .trunk import timm_normalisation

__all__ = [
    "CONTEXT",
    "KNOWN_TOWERS",
    "ImageTower",
    "ImageTowers",
    "KnownTower",
    "SideAdapter",
    "TextTower",
    "TransferPrompts",
    "freeze_but",
    "load_clip_weights",
    "load_pretrained_clip",
    "load_timm_weights",
    "pack_sentences",
    "run_block",
    "run_blocks_with_maps",
    "timm_normalisation",
]
