"""What a model looks at, and what captions change of it: whatever its features and its towers have to show."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from nextreid._names import unknown
from nextreid.data import ReIDDataset, Sample, SampleDataset, collate
from nextreid.layers import DeformableAggregation
from nextreid.layers.decoupling import subsets
from nextreid.models import ReIDModel, as_reid_model
from nextreid.models._adapter import evaluating
from nextreid.models._base import Features
from nextreid.towers import ImageTowers, run_blocks_with_maps
from nextreid.viz import Column, Panel, expert_image

from ..ablations import Condition, has_captions
from ..embedding import check_visible, eval_transform, known_cameras

_BATCH = 4  # attention maps of all blocks of a large tower take much room
_MOST = 100  # samples of one image
_ROLLOUT = "tower's attention"
Shown = list[Column] | Panel | None


class View(NamedTuple):
    """One thing that models may have to show.

    Attributes:
        says: What it is.
        find: Given a model and its features makes columns or a panel; None where the model does not have it.
    """

    says: str
    find: Callable[[ReIDModel, Features], Shown]


def expert_masks(
    model: nn.Module,
    dataset: ReIDDataset,
    samples: Sequence[Sample],
    *,
    views: Sequence[str] = (),
    text: bool = True,
    compare_text: bool = False,
    image_size: int = 160,
) -> Image.Image:
    """Draw what a model looks at in some samples, and the captions it read (NEXT, Fig. 5, 11 and 12).

    What there is to show follows from the parts that ``forward_features`` gives and from the towers, whatever the
    method is called; see `VIEWS`.

    Args:
        model: The model.
        dataset: What the samples are of.
        samples: Those to draw.
        views: Names of `VIEWS`; empty for all that the model has, ``gamma`` left out, and ``rollout`` only where there
            is nothing else.
        text: Whether captions are read.
        compare_text: Draw what captions change twice, with captions and without.
        image_size: Longer side of one drawn image, in pixels.

    Returns:
        An RGB image.

    Raises:
        ValueError: If the model does not have a view, or none at all; or `compare_text` is asked of a model or of
            samples without captions.
    """
    model = as_reid_model(model)
    if wrong := [name for name in views if name not in VIEWS]:
        raise ValueError(unknown("view", wrong, VIEWS))
    if len(samples) > _MOST:
        raise ValueError(f"{len(samples)} samples are too many for one image, {_MOST} are the most: draw fewer")
    name = type(model).__name__
    reads = text and model.uses_text and has_captions(samples)
    if compare_text and not reads:
        why = f"{name} reads none" if not model.uses_text else "these samples have none" if text else "text is False"
        raise ValueError(f"captions change nothing that could be compared: {why}")
    check_visible(samples, model.modalities, Condition(reads))
    conditions = [True, False] if compare_text else [reads]
    features = _features(model, samples, conditions)
    found = {view: [VIEWS[view].find(model, each) for each in features] for view in VIEWS}
    there = [view for view, shown in found.items() if shown[0] is not None]
    if missing := [view for view in views if view not in there]:
        raise ValueError(
            f"{name} has no {' and no '.join(missing)}: its forward_features gives {_parts(features[0])}; "
            f"it can show {', '.join(there) or 'nothing'}"
        )
    if not there:
        raise ValueError(
            f"{name} has no experts and nothing else to show: its forward_features gives {_parts(features[0])}, and it "
            f"does not run a plain vision transformer as it is. There are the views {', '.join(VIEWS)}"
        )
    default = [view for view in there if view not in ("gamma", "rollout")] or there
    columns: list[Column] = []
    panels: list[Panel] = []
    for view in views or default:
        for shown in _told_apart(found[view]):
            if isinstance(shown, Panel):
                panels.append(shown)
            else:
                columns += shown or []
    drawn = samples if reads else [replace(sample, captions=()) for sample in samples]
    return expert_image(
        drawn, columns, model.modalities, panels=panels, label_names=dataset.label_names, image_size=image_size
    )


def _parts(features: Features) -> str:
    return ", ".join(name for name in features if not name.startswith(_ROLLOUT))


def _features(model: ReIDModel, samples: Sequence[Sample], conditions: Sequence[bool]) -> list[Features]:
    """The model's parts under each condition, with captions or without, on the CPU; the towers run once."""
    source = SampleDataset(samples, eval_transform(model), model.modalities)
    device = next(model.parameters()).device
    found: list[list[Features]] = [[] for _ in conditions]
    with torch.no_grad(), evaluating(model):
        for start in range(0, len(samples), _BATCH):
            batch = collate([source[i] for i in range(start, min(start + _BATCH, len(samples)))]).to(device)
            camid = known_cameras(model, batch.camid)
            encoded = model.encode_images(batch.images, batch.present, camid)
            rollout = _rollout(model, batch.images, batch.present, camid, encoded)
            for reads, parts in zip(conditions, found, strict=True):
                text = model.prepare_text(batch.captions) if reads else None
                parts.append({**model.forward_tokens(encoded, text, batch.present), **rollout})
    joined = []
    for parts in found:
        shared = [name for name in parts[0] if all(isinstance(each.get(name), Tensor) for each in parts)]
        joined.append({name: torch.cat([each[name] for each in parts]).float().cpu() for name in shared})
    return joined


def _rollout(model: ReIDModel, images: Tensor, present: Tensor, camid: Tensor, encoded: Features) -> dict[str, Tensor]:
    """Attention roll-out of the towers ``(B, M, N)``, if the method runs them as they are; else nothing.

    Every block's map, averaged over its heads, is averaged with the identity of the residual, and the products of
    these are the class token's attention to each patch (Abnar and Zuidema, arXiv 2005.00928).
    """
    towers = getattr(model, "image_tower", None)
    if not isinstance(towers, ImageTowers) or not all(tower.is_plain for tower in towers.towers()):
        return {}
    try:
        tokens, maps = run_blocks_with_maps(towers, towers.stem(images, present, camid))
    except ValueError:  # blocks of another make
        return {}
    # A method that has prompts, adapters or captions in its tower computes something else than these maps say.
    prefix, ours, cls = towers.num_prefix_tokens, towers.project(towers.norm(tokens)), encoded.get("cls")
    if not prefix or cls is None or cls.shape != ours[:, :, 0].shape:
        return {}
    same = (ours[:, :, 0] - cls)[present].abs().max() <= 1e-3 * cls[present].abs().max()
    if not same:
        return {}
    row = torch.zeros_like(maps[-1][:, :, 0, 0])  # (B, M, T)
    row[..., 0] = 1
    for found in reversed(maps):
        row = (row + (row[..., None, :] @ found.mean(2)).squeeze(-2)) / 2
    return {_ROLLOUT: row[..., prefix:]}


def _told_apart(shown: Sequence[Shown]) -> list[Shown]:
    """With captions and without, as groups of their own; once where captions change nothing."""
    first, *rest = shown
    if not rest or first is None or _same(first, rest[0]):
        return [first]
    return [_named(each, word) for each, word in zip(shown, ("with", "without"), strict=True)]


def _same(one: Shown, other: Shown) -> bool:
    pairs = [(one, other)] if isinstance(one, Panel) else zip(one or [], other or [], strict=True)  # type: ignore[arg-type]
    return all(np.array_equal(a.values, b.values) for a, b in pairs)  # type: ignore[union-attr]


def _named(shown: Shown, word: str) -> Shown:
    if isinstance(shown, Panel):
        return replace(shown, title=f"{shown.title}, {word} captions")
    columns = shown or []
    if len(columns) == 1:  # under one heading
        return [replace(columns[0], title=word)]
    return [replace(column, group=f"{column.group}, {word} captions") for column in columns]


def _grid(model: ReIDModel, part: Tensor) -> np.ndarray:
    """``(..., N)`` to ``(..., h, w)``."""
    return part.unflatten(-1, model.image_tower.grid_size).numpy()


def _sampled(model: ReIDModel, features: Features) -> Shown:
    if "mask" not in features or features["mask"].dim() != 4:
        return None
    masks = _grid(model, features["mask"])  # (B, E, M, h, w)
    return [Column("sampled", f"{e + 1}", "kept", masks[:, e], "{:.0%} kept") for e in range(masks.shape[1])]


def _gamma(model: ReIDModel, features: Features) -> Shown:
    if "gamma" not in features or features["gamma"].dim() != 4:
        return None
    gamma = _grid(model, features["gamma"])
    return [Column("gamma", f"{e + 1}", "heat", gamma[:, e]) for e in range(gamma.shape[1])]


def _structure(model: ReIDModel, features: Features) -> Shown:
    count = len(model.modalities)
    weights = features.get("weights")
    if weights is None or weights.dim() != 3 or weights.shape[1] != count * model.image_tower.num_tokens:
        return None
    shares = _grid(model, weights.mT.unflatten(-1, (count, -1)))  # (B, E, M, h, w)
    return [
        Column("structure weights", f"{e + 1}", "heat", shares[:, e], "mean {:.2f}") for e in range(shares.shape[1])
    ]


def _selection(model: ReIDModel, features: Features) -> Shown:
    names = {"attention_mask": "attention", "bright_mask": "brightness", "mask": "either"}
    if not names.keys() <= features.keys() or features["mask"].dim() != 2:
        return None
    count, columns = len(model.modalities), []
    for name, title in names.items():
        part = features[name]
        part = part[:, None].expand(-1, count, -1) if part.dim() == 2 else part  # one mask for all modalities
        columns.append(Column("selected by", title, "kept", _grid(model, part), "{:.0%} kept"))
    return columns


def _offsets(model: ReIDModel, features: Features) -> Shown:
    layer = next((part for part in model.modules() if isinstance(part, DeformableAggregation)), None)
    if layer is None or "positions" not in features:
        return None
    ends = features["positions"].flatten(1, 2)  # (B, P, 2): x, y in [-1, 1] from the first to the last patch
    starts = layer.reference.cpu().flip(0).flatten(1).mT.expand_as(ends)
    size = torch.tensor(layer.grid_size).flip(0)
    arrows = [((part + 1) / 2 * (size - 1) + 0.5) / size for part in (starts, ends)]
    points = torch.cat(arrows, dim=-1)[:, None].expand(-1, len(model.modalities), -1, -1).numpy()
    return [Column("offsets", "sampled at", "points", points)]


def _gates(model: ReIDModel, features: Features) -> Shown:
    gates, of = features.get("gates"), subsets(len(model.modalities))
    if gates is None or gates.dim() != 3 or gates.shape[2] != len(of):
        return None
    columns = ["+".join(model.modalities[m] for m in subset) for subset in of]
    rows = [f"head {h + 1}" for h in range(gates.shape[1])]
    return Panel("gates of what modalities share", rows, columns, gates.numpy())


def _attention(model: ReIDModel, features: Features) -> Shown:
    if _ROLLOUT not in features:
        return None
    return [Column("attention", "roll-out", "heat", _grid(model, features[_ROLLOUT]))]


VIEWS = {
    "sampled": View("patches that each semantic expert samples (NEXT, Eq. 3)", _sampled),
    "gamma": View("the modulated scores behind it (NEXT, Eq. 6)", _gamma),
    "structure": View("routing weight of each structure expert (NEXT, Eq. 8)", _structure),
    "selection": View("patches that attention and brightness select (EDITOR)", _selection),
    "offsets": View("positions at which patches are sampled (IDEA)", _offsets),
    "gates": View("weights of what subsets of modalities share (DeMo)", _gates),
    "rollout": View("attention of the class token through all blocks of a plain vision transformer", _attention),
}
"""What models may have to show, by name: ``sampled``, ``gamma``, ``structure``, ``selection``, ``offsets``, ``gates``
and ``rollout``."""
