"""Figures of models on a dataset, and of training runs: each function computes what `nextreid.viz` draws."""

from .embedding_space import space
from .experts import expert_masks
from .ranks import rank_lists
from .runs import training
from .score_counts import scores

__all__ = ["expert_masks", "rank_lists", "scores", "space", "training"]
