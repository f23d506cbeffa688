"""Readers of the published datasets, and of custom ones, by name."""

from . import custom, folder, published  # noqa: F401 (each registers its readers)
from .registry import list_datasets, load_dataset, register_dataset

__all__ = ["list_datasets", "load_dataset", "register_dataset"]
