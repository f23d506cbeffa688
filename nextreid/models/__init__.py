"""The zoo: names in, modules out."""

from . import baseline, demo, editor, htt, icpl, idea, mambapro, next, proxyttt, signal, topreid, unicat  # noqa: F401
from ._adapter import AdaptedModel, adapt, as_reid_model
from ._authors import (
    Authors,
    AuthorsConversion,
    Rule,
    build_from_authors,
    clip_tower_rules,
    convert_authors,
    list_authors,
    neck_rules,
    register_authors,
    vit_tower_rules,
)
from ._base import Head, ReIDModel, ReIDOutput
from ._builder import build_model_with_cfg, load_checkpoint
from ._convert import Conversion, convert_clip, convert_timm
from ._factory import create_model, from_pretrained
from ._golden import Finding, verify_checkpoint
from ._hub import load_config, load_strictly, save_model
from ._pretrained import PretrainedCfg, generate_default_cfgs
from ._publish import push_to_hub, save_pretrained
from ._registry import (
    get_pretrained_cfg,
    is_model,
    list_models,
    list_pretrained,
    model_entrypoint,
    register_model,
)
from .baseline import Baseline
from .demo import DeMo
from .editor import EDITOR
from .htt import HTT
from .icpl import ICPL
from .idea import IDEA
from .mambapro import MambaPro
from .next import NEXT
from .proxyttt import ProxyTTT
from .signal import Signal
from .topreid import TOPReID
from .unicat import UniCat

__all__ = [
    "Signal",
    "IDEA",
    "HTT",
    "ICPL",
    "EDITOR",
    "NEXT",
    "AdaptedModel",
    "Authors",
    "AuthorsConversion",
    "Baseline",
    "Conversion",
    "DeMo",
    "Finding",
    "Head",
    "MambaPro",
    "PretrainedCfg",
    "ProxyTTT",
    "ReIDModel",
    "ReIDOutput",
    "Rule",
    "TOPReID",
    "UniCat",
    "adapt",
    "as_reid_model",
    "build_from_authors",
    "build_model_with_cfg",
    "clip_tower_rules",
    "convert_authors",
    "convert_clip",
    "convert_timm",
    "create_model",
    "from_pretrained",
    "generate_default_cfgs",
    "get_pretrained_cfg",
    "is_model",
    "list_authors",
    "list_models",
    "list_pretrained",
    "load_checkpoint",
    "load_config",
    "load_strictly",
    "model_entrypoint",
    "neck_rules",
    "push_to_hub",
    "register_authors",
    "register_model",
    "save_model",
    "save_pretrained",
    "verify_checkpoint",
    "vit_tower_rules",
]
