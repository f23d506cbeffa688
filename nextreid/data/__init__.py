"""Files to batches: samples, readers, captions, transforms, samplers, loaders."""

from .captions import draw_captions, draw_sentences, keep_quality, read_captions, split_sentences
from .datasets import list_datasets, load_dataset, register_dataset
from .keyed import keyed_rng
from .loader import SampleDataset, collate, make_loader
from .manifest import read_folder, read_manifest
from .sample import MODALITIES, Batch, Image, ReIDDataset, Sample
from .sampler import PKSampler
from .synthetic import PersonsConfig, SyntheticPersons, synthetic_persons
from .transforms import EvalTransform, TrainTransform

__all__ = [
    "MODALITIES",
    "Batch",
    "EvalTransform",
    "Image",
    "PKSampler",
    "PersonsConfig",
    "ReIDDataset",
    "Sample",
    "SampleDataset",
    "SyntheticPersons",
    "TrainTransform",
    "collate",
    "draw_captions",
    "draw_sentences",
    "keep_quality",
    "keyed_rng",
    "list_datasets",
    "load_dataset",
    "make_loader",
    "read_captions",
    "read_folder",
    "read_manifest",
    "register_dataset",
    "split_sentences",
    "synthetic_persons",
]
