"""Readers of the published data sets, and of anybody's own, by name."""

from .market1501_mm import read_market1501_mm
from .msvr310 import read_msvr310
from .own import load_manifest, load_pattern
from .registry import list_datasets, load_dataset, register_dataset
from .rgbnt201 import read_rgbnt201
from .strips import read_rgbn300, read_rgbnt100
from .synthetic_persons import make_synthetic_persons
from .wmveid863 import read_wmveid863

__all__ = [
    "list_datasets",
    "load_dataset",
    "load_manifest",
    "load_pattern",
    "make_synthetic_persons",
    "read_market1501_mm",
    "read_msvr310",
    "read_rgbn300",
    "read_rgbnt100",
    "read_rgbnt201",
    "read_wmveid863",
    "register_dataset",
]
