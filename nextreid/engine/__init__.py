"""Train, evaluate, extract, export."""

from .ablations import Condition, with_caption_quality
from .adaptation import ADAPTATIONS, Adaptation, adapt_at_test, get_adaptation
from .calibrating import calibrate
from .checkpoint import TrainReport
from .distributed import is_main, process_group
from .embedding import EmbedOptions, embed_conditions, embed_samples
from .evaluation import EvaluationReport, evaluate, evaluate_conditions, modality_matrix
from .exporter import ExportReport, export
from .extraction import Extraction, extract, load_embeddings
from .feature_extractor import FeatureExtractor
from .gallery import Added, GalleryEncoder, add_extraction, add_samples, create_gallery, load_gallery, open_gallery
from .int8 import Int8Report, to_int8
from .recipe import RECIPES, Recipe, get_recipe
from .seeds import SeedsReport, train_seeds
from .text_query import TextQueryReport, evaluate_text_query
from .trainer import train

__all__ = [
    "ADAPTATIONS",
    "RECIPES",
    "Adaptation",
    "Added",
    "Condition",
    "EmbedOptions",
    "EvaluationReport",
    "ExportReport",
    "Extraction",
    "FeatureExtractor",
    "GalleryEncoder",
    "Int8Report",
    "Recipe",
    "SeedsReport",
    "TextQueryReport",
    "TrainReport",
    "adapt_at_test",
    "calibrate",
    "add_extraction",
    "add_samples",
    "create_gallery",
    "embed_conditions",
    "embed_samples",
    "evaluate",
    "evaluate_conditions",
    "evaluate_text_query",
    "export",
    "extract",
    "get_adaptation",
    "get_recipe",
    "is_main",
    "load_embeddings",
    "load_gallery",
    "modality_matrix",
    "open_gallery",
    "process_group",
    "to_int8",
    "train",
    "train_seeds",
    "with_caption_quality",
]
