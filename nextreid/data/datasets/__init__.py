"""Readers of the published data sets, by name."""

from .msvr310 import read_msvr310
from .registry import list_datasets, load_dataset, register_dataset
from .rgbnt201 import read_rgbnt201
from .synthetic_persons import make_synthetic_persons

__all__ = [
    "list_datasets",
    "load_dataset",
    "make_synthetic_persons",
    "read_msvr310",
    "read_rgbnt201",
    "register_dataset",
]
