"""Loops that use every room: train, evaluate, extract."""

from .checkpoint import write_json
from .conditions import with_caption_quality
from .distributed import is_first, process_group
from .embed import embed_samples
from .evaluate import EvaluationReport, evaluate
from .export import ExportReport, export
from .extract import Extraction, extract
from .feature_extractor import FeatureExtractor
from .matrix import modality_matrix
from .recipe import RECIPES, Recipe, get_recipe
from .run_folder import TrainReport
from .seeds import SeedsReport, train_seeds
from .train import train

__all__ = [
    "RECIPES",
    "EvaluationReport",
    "ExportReport",
    "Extraction",
    "FeatureExtractor",
    "Recipe",
    "SeedsReport",
    "TrainReport",
    "embed_samples",
    "evaluate",
    "export",
    "extract",
    "get_recipe",
    "is_first",
    "modality_matrix",
    "process_group",
    "train",
    "train_seeds",
    "with_caption_quality",
    "write_json",
]
