"""Masked operations of NEXT, each in the form of the equations, an exact cheaper form and a Triton kernel."""

from ._backend import BACKENDS, autocast_dtype, get_backend, resolve, set_backend, use_backend
from .gated_attention import gated_attention, gated_attention_reference, gated_attention_torch
from .routing import Routes, route, route_reference, route_torch, straight_through_mask

__all__ = [
    "BACKENDS",
    "Routes",
    "autocast_dtype",
    "gated_attention",
    "gated_attention_reference",
    "gated_attention_torch",
    "get_backend",
    "resolve",
    "route",
    "route_reference",
    "route_torch",
    "set_backend",
    "straight_through_mask",
    "use_backend",
]
