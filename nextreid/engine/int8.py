"""A model in 8-bit integers, given out only where it finds on a check set what the model in float32 finds."""

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nextreid.data import Sample
from nextreid.layers.int8 import Int8Layer, PiecewiseMlp, int8_layer
from nextreid.models import ReIDModel, as_reid_model
from nextreid.retrieval import rank

from .embedding import EmbedOptions, embed_samples
from .evaluation import identities

MAX_LOSS = 0.002  # of mAP, and of rank agreement
_APART = 0.01  # two cosines nearer to each other than this have no order that a user sees
_LEAST_RANK = 0.9  # of the effective rank in float32
_COLLAPSED = 0.999  # mean cosine of two samples above which embeddings say nothing
_MOST = 2000  # samples of a check
_BLOCK = 64  # of samples whose triples are compared at once


@dataclass(frozen=True)
class Int8Report:
    """What a model in 8 bits loses on a check set.

    Attributes:
        samples: Of the check set.
        protocol: Every sample is a query against all others, less those of its identity and camera (``"camera"``), or
            against all others (``"none"``) where no identity was seen by two cameras.
        mAP: In float32 and in 8 bits.
        rank_agreement: Of all triples of a sample and two others whose cosines differ by more than 0.01, the share
            that 8 bits put in the order of float32.
        mean_cosine: Of two samples, in float32 and in 8 bits.
        effective_rank: Number of dimensions that the embeddings fill (the exponential of the entropy of their
            covariance's eigenvalues; Roy and Vetterli, EUSIPCO 2007), in float32 and in 8 bits.
    """

    samples: int
    protocol: str
    mAP: tuple[float, float]
    rank_agreement: float
    mean_cosine: tuple[float, float]
    effective_rank: tuple[float, float]

    def __str__(self) -> str:
        pairs = [("mAP", self.mAP), ("mean cosine", self.mean_cosine), ("effective rank", self.effective_rank)]
        found = ", ".join(f"{name} {before:.4g} to {after:.4g}" for name, (before, after) in pairs)
        return f"{self.samples} samples, {found}, rank agreement {self.rank_agreement:.4f}"

    def check(self) -> "Int8Report":
        """Return itself; ValueError if 8 bits lose more than 0.2 points, or the embeddings collapse."""
        reasons = []
        if not self.mAP[1] >= self.mAP[0] - MAX_LOSS:  # NaN fails too
            reasons.append(f"mAP falls by more than {100 * MAX_LOSS:g} points")
        if not self.rank_agreement >= 1 - MAX_LOSS:
            reasons.append(f"rank agreement is below {1 - MAX_LOSS}")
        if not (
            self.effective_rank[1] >= _LEAST_RANK * self.effective_rank[0]
            and self.mean_cosine[1] <= self.mean_cosine[0] + 0.01
        ):
            reasons.append("the embeddings collapse")
        if not self.mean_cosine[0] < _COLLAPSED:
            reasons.append("the embeddings are nearly all the same in float32 already")
        if reasons:
            raise ValueError(
                f"int8 is rejected: {'; '.join(reasons)} ({self}); take bfloat16 or float32, or check on more samples "
                "of the kind that the model was trained for"
            )
        return self


def to_int8(
    model: nn.Module, check: Sequence[Sample], options: EmbedOptions = EmbedOptions()
) -> tuple[ReIDModel, Int8Report]:
    """Copy a model with its large linear layers and convolutions in 8 bits, if the copy passes a check.

    Weights are rounded by row, inputs by token, or by image in a convolution; all else stays float32, and so do text
    towers, whose features are kept. The copy computes on a CPU and cannot be trained or exported; see `export` for
    a file in 8 bits.

    Args:
        model: A model of the zoo, or a module that `nextreid.adapt` takes, of float32 weights; it is left as it is.
        check: Samples of known identities, not those of training, of which at least two have two samples; 200 or more
            tell a loss of 0.2 points.
        options: How they are embedded.

    Returns:
        The copy, in evaluation mode, and what it loses.

    Raises:
        ValueError: If mAP or rank agreement lose more than 0.2 points, the embeddings collapse, the check set has no
            two samples of an identity, or nothing of the model can be rounded.
    """
    model = as_reid_model(model)
    check_int8(model)
    samples = check_set(check)
    small = rounded(model)
    ours, theirs = (embed_samples(each, samples, options=options) for each in (model, small))
    return small, compare(ours, theirs, samples).check()


def check_int8(model: ReIDModel) -> None:
    """Raise ValueError unless a model can be rounded here."""
    weight = next(model.parameters())
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        raise ValueError(f"int8 computes on a CPU from float32 weights, the model is {weight.dtype} on {weight.device}")
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.onednn, "qlinear_pointwise"):
        raise ValueError("int8 needs a torch that was built with oneDNN; take float32 or bfloat16")


def check_set(check: Sequence[Sample]) -> list[Sample]:
    """The samples of known identity, 2,000 at most; ValueError unless two identities have two."""
    samples = [sample for sample in check if sample.pid >= 0][:_MOST]
    _, counts = np.unique([sample.pid for sample in samples], return_counts=True)
    if (counts > 1).sum() < 2:
        raise ValueError(
            "int8 needs a check set: samples of known identities, of which at least two have two samples "
            f"(check=); got {len(check)} samples, {len(samples)} of known identity"
        )
    return samples


def compare(ours: Tensor, theirs: Tensor, samples: Sequence[Sample]) -> Int8Report:
    """What embeddings ``(n, F)`` lose against others of the same samples."""
    ids, keys = identities(samples), [sample.key for sample in samples]
    cameras: dict[int, set[int]] = {}
    for sample in samples:
        cameras.setdefault(sample.pid, set()).add(sample.camid)
    protocol = "camera" if any(len(seen) > 1 for seen in cameras.values()) else "none"
    maps, cosines, ranks = [], [], []
    for rows in (ours, theirs):
        result = rank(rows, rows, ids, ids, protocol, query_keys=keys, gallery_keys=keys)
        maps.append(math.nan if result.mAP is None else float(result.mAP))
        unit = F.normalize(rows.double(), dim=1)
        n = len(unit)
        cosines.append(((unit.sum(0).square().sum() - n) / (n * (n - 1))).item())
        ranks.append(_effective_rank(unit))
    pairs = [(first, second) for first, second in (maps, cosines, ranks)]
    return Int8Report(len(samples), protocol, pairs[0], rank_agreement(ours, theirs, _APART), pairs[1], pairs[2])


def rank_agreement(ours: Tensor, theirs: Tensor, apart: float) -> float:
    """Share of triples (sample, two others) that ``ours`` tells apart and ``theirs`` orders alike; NaN without any."""
    first, second = (F.normalize(x, dim=1) @ F.normalize(x, dim=1).T for x in (ours, theirs))
    first = first.masked_fill(torch.eye(len(first), dtype=torch.bool), math.nan)  # no order with oneself
    alike = clearly = 0
    for start in range(0, len(first), _BLOCK):
        for a, b in zip(first[start : start + _BLOCK], second[start : start + _BLOCK], strict=True):
            clear = a[:, None] - a > apart
            clearly += int(clear.sum())
            alike += int(((b[:, None] > b) & clear).sum())
    return alike / clearly if clearly else math.nan


def _effective_rank(unit: Tensor) -> float:
    energy = torch.linalg.svdvals(unit - unit.mean(0)).square()
    share = energy / energy.sum()
    return torch.special.entr(share).sum().exp().item()


def rounded(model: ReIDModel) -> ReIDModel:
    """Copy a model with its large layers in 8 bits, without a check; the text tower is shared with it."""
    kept = {"text_tower", *model.of_identities}
    bare = copy.copy(model)
    bare._modules = {name: None if name in kept else module for name, module in model._modules.items()}
    small = copy.deepcopy(bare)
    small._modules = {name: model._modules[name] if name in kept else part for name, part in small._modules.items()}
    made: dict[nn.Module, Int8Layer | None] = {}
    for top in [part for name, part in small._modules.items() if part is not None and name not in kept]:
        for parent in list(top.modules()):
            for name, child in list(parent.named_children()):
                if child not in made:
                    made[child] = int8_layer(child)
                if (layer := made[child]) is not None:
                    setattr(parent, name, layer)
            if PiecewiseMlp.fits(parent):
                parent.__class__ = PiecewiseMlp
    if not any(made.values()):
        raise ValueError(f"{model.pretrained_cfg.architecture} has no linear layer or convolution to put into int8")
    return small.eval()
