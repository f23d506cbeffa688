"""Files to batches: samples, readers, captions, transforms, samplers, loaders."""

from .augment import augment_batch
from .captions import draw_captions, draw_sentences, keep_quality, read_captions, split_sentences
from .card import DataCard, data_card, list_cards, list_overlaps, refuse_leak
from .check import Finding, Report, check_dataset
from .datasets import list_datasets, load_dataset, register_dataset
from .keyed import keyed_rng
from .loader import SampleDataset, collate, make_loader
from .manifest import read_manifest
from .pattern import read_folder, read_pattern
from .pictures import Image, PictureFile, open_picture, picture_path, screen_pictures
from .sample import MODALITIES, Batch, ReIDDataset, Sample
from .sampler import PKSampler
from .split import split_identities
from .store import PictureStore
from .synthetic import PersonsConfig, SyntheticPersons, synthetic_persons
from .transforms import EvalTransform, TrainTransform

__all__ = [
    "MODALITIES",
    "Batch",
    "DataCard",
    "EvalTransform",
    "Finding",
    "Image",
    "PKSampler",
    "PersonsConfig",
    "PictureFile",
    "PictureStore",
    "ReIDDataset",
    "Report",
    "Sample",
    "SampleDataset",
    "SyntheticPersons",
    "TrainTransform",
    "augment_batch",
    "check_dataset",
    "collate",
    "data_card",
    "draw_captions",
    "draw_sentences",
    "keep_quality",
    "keyed_rng",
    "list_cards",
    "list_datasets",
    "list_overlaps",
    "load_dataset",
    "make_loader",
    "open_picture",
    "picture_path",
    "read_captions",
    "read_folder",
    "read_manifest",
    "read_pattern",
    "refuse_leak",
    "register_dataset",
    "screen_pictures",
    "split_identities",
    "split_sentences",
    "synthetic_persons",
]
