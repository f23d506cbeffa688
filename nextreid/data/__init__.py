"""Files to batches: samples, readers, captions, transforms, samplers, loaders."""

from .captions import caption_sampler, draw_sentences, keep_quality, read_captions, split_sentences
from .card import DataCard, data_card, list_cards, list_overlaps, reject_leak
from .checks import Finding, Report, check_dataset
from .datasets import list_datasets, load_dataset, register_dataset
from .image import Image, ImageError, ImageFile, image_path, open_image
from .image_cache import ImageCache
from .loader import SampleDataset, collate, make_loader
from .manifest import read_manifest
from .pattern import read_folder, read_pattern
from .rng import seeded_rng
from .sample import MODALITIES, Batch, ReIDDataset, Sample, drop_unreadable
from .sampler import PKSampler
from .split import split_identities
from .transforms import EvalTransform, TrainTransform, augment_batch

__all__ = [
    "MODALITIES",
    "Batch",
    "DataCard",
    "EvalTransform",
    "Finding",
    "Image",
    "ImageCache",
    "ImageError",
    "ImageFile",
    "PKSampler",
    "ReIDDataset",
    "Report",
    "Sample",
    "SampleDataset",
    "TrainTransform",
    "augment_batch",
    "check_dataset",
    "caption_sampler",
    "collate",
    "data_card",
    "draw_sentences",
    "keep_quality",
    "seeded_rng",
    "list_cards",
    "list_datasets",
    "list_overlaps",
    "load_dataset",
    "make_loader",
    "open_image",
    "image_path",
    "read_captions",
    "read_folder",
    "read_manifest",
    "read_pattern",
    "reject_leak",
    "register_dataset",
    "drop_unreadable",
    "split_identities",
    "split_sentences",
]
