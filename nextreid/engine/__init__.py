"""Loops that use every room: train, evaluate, extract."""

from .ablations import with_caption_quality
from .distributed import is_main, process_group
from .embedding import embed_samples
from .evaluation import EvaluationReport, evaluate
from .exporter import ExportReport, export
from .extraction import Extraction, extract
from .feature_extractor import FeatureExtractor
from .matrix import modality_matrix
from .recipe import RECIPES, Recipe, get_recipe
from .run_folder import TrainReport
from .seeds import SeedsReport, train_seeds
from .trainer import train

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
    "is_main",
    "modality_matrix",
    "process_group",
    "train",
    "train_seeds",
    "with_caption_quality",
]
