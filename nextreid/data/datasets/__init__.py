"""Readers of the published datasets, and of anybody's own, by name."""

from .custom import load_manifest, load_pattern
from .market1501_mm import read_market1501_mm
from .msvr310 import read_msvr310
from .registry import list_datasets, load_dataset, register_dataset
from .rgbnt100 import read_rgbn300, read_rgbnt100
from .rgbnt201 import read_rgbnt201
from .wmveid863 import read_wmveid863

__all__ = [
    "list_datasets",
    "load_dataset",
    "load_manifest",
    "load_pattern",
    "read_market1501_mm",
    "read_msvr310",
    "read_rgbn300",
    "read_rgbnt100",
    "read_rgbnt201",
    "read_wmveid863",
    "register_dataset",
]
