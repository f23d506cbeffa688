"""Operations of the blocks: NEXT's masked ones as PyTorch operators and as a Triton kernel, and the selective scan."""

from ._backend import BACKENDS, autocast_dtype, get_backend, resolve, set_backend, use_backend
from .gated_attention import gated_attention, gated_attention_torch
from .routing import Mix, Routes, cosine, modulation_shift, route, route_torch, straight_through_mask
from .selective_scan import selective_scan

__all__ = [
    "BACKENDS",
    "Mix",
    "Routes",
    "autocast_dtype",
    "cosine",
    "gated_attention",
    "gated_attention_torch",
    "get_backend",
    "modulation_shift",
    "resolve",
    "route",
    "route_torch",
    "selective_scan",
    "set_backend",
    "straight_through_mask",
    "use_backend",
]
