"""The paper's blocks, each usable alone on plain tensors."""

from ._registry import create_layer, list_layers, register_layer
from .attention import CrossAttention
from .batch_norm import StackedBatchNorm
from .class_prompts import ClassPrompts
from .decoupling import HierarchicalDecoupling
from .deformable import AggregatedTokens, DeformableAggregation
from .experts import Experts, ExpertTokens, TokenSets
from .gated_experts import AttentionTriggeredExperts, GatedFeatures
from .mmfa import MMFA, Aggregator
from .modality_alignment import ModalityAlignment
from .neck import BNNeck
from .next_head import NEXTHead
from .reconstruction import ComplementaryReconstruction
from .router import Router
from .sampling import straight_through_mask, topk_threshold
from .selected_fusion import FusedTokens, SelectedFusion
from .selective_interaction import SelectiveInteraction
from .semantic_experts import SampledTokens, SemanticSamplingExpert, SemanticSamplingExperts
from .state_space import SS2D, MambaAggregation, SelectiveStateSpace
from .structure_experts import StructureExpert, StructureExperts, StructureTokens
from .text_modulation import TextModulation
from .token_permutation import TokenPermutation
from .token_reduction import TokenReduction
from .token_selection import SelectedTokens, TokenSelection

__all__ = [
    "ModalityAlignment",
    "SelectiveInteraction",
    "MMFA",
    "NEXTHead",
    "AggregatedTokens",
    "SS2D",
    "Aggregator",
    "AttentionTriggeredExperts",
    "BNNeck",
    "ComplementaryReconstruction",
    "ClassPrompts",
    "CrossAttention",
    "DeformableAggregation",
    "ExpertTokens",
    "Experts",
    "GatedFeatures",
    "FusedTokens",
    "HierarchicalDecoupling",
    "MambaAggregation",
    "Router",
    "SampledTokens",
    "SelectiveStateSpace",
    "SelectedFusion",
    "SelectedTokens",
    "SemanticSamplingExpert",
    "SemanticSamplingExperts",
    "StackedBatchNorm",
    "StructureExpert",
    "StructureExperts",
    "StructureTokens",
    "TextModulation",
    "TokenPermutation",
    "TokenReduction",
    "TokenSelection",
    "TokenSets",
    "create_layer",
    "list_layers",
    "register_layer",
    "straight_through_mask",
    "topk_threshold",
]
