"""Loops that use every room: train, evaluate, extract."""

from .checkpoint import write_json
from .conditions import with_caption_quality
from .evaluate import EvaluationReport, embed_samples, evaluate
from .extract import Extraction, extract
from .recipe import RECIPES, Recipe, get_recipe
from .run_folder import TrainReport
from .train import train

__all__ = [
    "RECIPES",
    "EvaluationReport",
    "Extraction",
    "Recipe",
    "TrainReport",
    "embed_samples",
    "evaluate",
    "extract",
    "get_recipe",
    "train",
    "with_caption_quality",
    "write_json",
]
