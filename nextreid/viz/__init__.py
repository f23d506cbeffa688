"""Images, plots and reports for people: rank lists, what experts see, embeddings, scores, training, HTML."""

from .captions import captions_plot
from .experts import Column, Panel, expert_image
from .hits import hits_image
from .plot import STYLES, Plot
from .rank_list import rank_list_image
from .report import write_report
from .saving import check_image_path, save_image
from .scores import ScoreCounts, scores_plot
from .space import space_plot
from .table import Table
from .training import training_plot

__all__ = [
    "STYLES",
    "Column",
    "Panel",
    "Plot",
    "ScoreCounts",
    "Table",
    "captions_plot",
    "check_image_path",
    "expert_image",
    "hits_image",
    "rank_list_image",
    "save_image",
    "scores_plot",
    "space_plot",
    "training_plot",
    "write_report",
]
