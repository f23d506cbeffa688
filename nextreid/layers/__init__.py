"""The paper's blocks, each usable alone on plain tensors."""

from ._registry import create_layer, list_layers, register_layer
from .attention import CrossAttention
from .experts import Experts, ExpertTokens, TokenSets
from .mmfa import MMFA, Aggregator
from .neck import BNNeck
from .next_head import NEXTHead
from .reconstruction import ComplementaryReconstruction
from .router import Router
from .sampling import straight_through_mask, topk_threshold
from .semantic_experts import SampledTokens, SemanticSamplingExpert, SemanticSamplingExperts
from .structure_experts import StructureExpert, StructureExperts, StructureTokens
from .text_modulation import TextModulation
from .token_permutation import TokenPermutation

__all__ = [
    "MMFA",
    "NEXTHead",
    "Aggregator",
    "BNNeck",
    "ComplementaryReconstruction",
    "CrossAttention",
    "ExpertTokens",
    "Experts",
    "Router",
    "SampledTokens",
    "SemanticSamplingExpert",
    "SemanticSamplingExperts",
    "StructureExpert",
    "StructureExperts",
    "StructureTokens",
    "TextModulation",
    "TokenPermutation",
    "TokenSets",
    "create_layer",
    "list_layers",
    "register_layer",
    "straight_through_mask",
    "topk_threshold",
]
