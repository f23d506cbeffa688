"""The demo on a user's own folder of images: what a model retrieves among them, as a page with pictures."""

import logging
import textwrap
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL.Image import Image

from nextreid._files import check_out_folder, user_path, write_json
from nextreid.data import ReIDDataset, load_dataset
from nextreid.data.image import Window
from nextreid.models import ReIDModel
from nextreid.viz import Table, save_image, write_report

from .ablations import hide_modalities
from .demo_report import MASKS, METRICS, RANKS, REPORT, chance_map, result_row, results_table, versions
from .embedding import EmbedOptions, is_visible
from .evaluation import evaluate_conditions
from .figures import expert_masks, rank_lists
from .provenance import trained_sets

_logger = logging.getLogger(__name__)

_SHOWN, _SHOWN_MASKS, _TOP, _MOST, _DRAWN = 4, 3, 8, 20_000, 500
_RANKS_TITLE = (
    "Each query and the images whose embeddings are nearest, with the cosine below. {marks}The query itself is not "
    "among them."
)
_MARKS = (
    "A tick in a solid frame is the same identity, a cross in a dashed frame another one; queries are the worst, some "
    "near the mean, and the best of each model. "
)
_MASKS_TITLE = (
    "Which patches each semantic expert of {} samples in each modality, and the score behind it, without captions"
)
_WITH = (
    "Every image is a query, and the others are ranked by how near their embeddings are. mAP (mean average precision) "
    "is 100 % where all images of the same identity come first; a random order gives {chance:.1f} % here. Identities "
    "are the first folders below {root}. The protocol ignores nothing but the query itself: images of one moment and "
    "one camera make it easy, so that these numbers do not compare with a benchmark."
)
_WITHOUT = (
    "No identity is known to have two images (subfolders would be identities), so that nothing can be measured: the "
    "pictures show what stands nearest."
)


def run_demo_on_images(
    images: str | Path,
    out: str | Path,
    models: Mapping[str, ReIDModel],
    *,
    seed: int = 0,
    window: Mapping[str, Window] | None = None,
    options: EmbedOptions = EmbedOptions(),
    write_line: Callable[[str], object] = _logger.info,
) -> dict[str, Any]:
    """Show what models retrieve in a folder of images.

    Args:
        images: The folder, read by `load_dataset("folder", images)`: modalities and identities are subfolders, where
            there are any. Images that cannot be read are left out, and the page says so.
        out: Folder to write: ``metrics.json``, ``report.html``, ``rank_list.png``, and ``masks.png`` where a model has
            semantic experts. A demo's files there are replaced; a folder that holds something else is left alone.
        models: Models of the same modalities, by the names to write beside them.
        seed: Of the choice of queries and of the random orders.
        window: Windows for images of more than 8 bits, by modality.
        options: How samples are embedded.
        write_line: Called with each line of results.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        FileNotFoundError: If there is no such folder, or no image in it.
        ValueError: If the folder cannot be read as it lies, holds one image or more than 20,000, or models differ in
            their modalities.
        OSError: `out` cannot be written, or holds what no demo wrote.
    """
    start, folder = time.perf_counter(), user_path(out)
    check_out_folder(folder, (METRICS,))
    modalities = {name: tuple(model.modalities) for name, model in models.items()}
    if len(set(modalities.values())) != 1:
        several = "; ".join(f"{name}: {', '.join(read)}" for name, read in modalities.items())
        raise ValueError(f"the demo takes one model or more that read the same modalities, got {several or 'none'}")
    found = load_dataset("folder", images, modalities=next(iter(modalities.values())), window=window)
    try:
        dataset = found.drop_unreadable("raise")
    except ValueError as error:
        _logger.warning("left out: %s", str(error).partition("\n")[2])  # which and why, without how to call it
        dataset = found.drop_unreadable("skip")
    if not 2 <= len(dataset.query) <= _MOST:
        raise ValueError(
            f"{images}: {len(dataset.query)} images that can be read; the demo takes 2 to {_MOST:,}, and 'nextreid "
            "extract' any number"
        )
    write_line(f"{images}: {_counts(dataset)}")
    repeated = Counter(sample.pid for sample in dataset.query if sample.pid >= 0)
    known = any(count > 1 for count in repeated.values())
    rows = _measure(models, dataset, options) if known else []
    draws = range(max(1, _DRAWN // len(dataset.query)))  # one order of few images is far from what is to be expected
    chance = float(np.mean([chance_map(dataset, seed + draw) for draw in draws])) if known else None
    words = ("worst", "typical", "best") if known else ("random",)
    ranks = rank_lists(
        models,
        dataset,
        queries=words,
        count=1 if known else _SHOWN,
        top=min(_TOP, len(dataset.gallery) - 1),
        text=False,
        seed=seed,
        options=options,
    )
    masks = _masks(models, dataset)
    explained = _WITH.format(chance=100 * chance, root=images) if chance is not None else _WITHOUT
    origin = _origin(models)
    results = results_table(rows, _hidden(dataset)) if known else Table("", [], [])
    write_line("\n".join(["", *([results.text(), ""] if known else []), textwrap.fill(f"{explained} {origin}", 110)]))
    metrics = {
        "images": str(images),
        "samples": len(dataset.query),
        "seed": seed,
        "weights": {name: model.pretrained_cfg.trained_on for name, model in models.items()},
        "protocol": dataset.protocol,
        "results": rows,
        "chance": chance,
        "notes": list(dataset.notes),
        "versions": versions(),
        "seconds": round(time.perf_counter() - start, 1),
    }
    save_image(ranks, folder / RANKS)
    shown: list[tuple[str, Image]] = [(_RANKS_TITLE.format(marks=_MARKS if known else ""), ranks)]
    if masks:
        save_image(masks[1], folder / MASKS)
        shown.append((_MASKS_TITLE.format(masks[0]), masks[1]))
    write_report(
        folder / REPORT,
        title="nextreid demo on your images",
        intro="\n\n".join([explained, origin, *dataset.notes]),
        tables=[results] if known else [],
        images=shown,
        facts={"images": images, "samples": _counts(dataset), "protocol": dataset.protocol, **versions()},
    )
    write_json(folder / METRICS, metrics)
    write_line(f"\nopen {folder / REPORT}")
    return metrics


def _measure(models: Mapping[str, ReIDModel], dataset: ReIDDataset, options: EmbedOptions) -> list[dict[str, Any]]:
    """Rows of every model with all modalities, and without each that no sample needs."""
    conditions = [
        hide_modalities(dataset.modalities, hidden, False) for hidden in ((), *((m,) for m in _hidden(dataset)))
    ]
    return [
        result_row(name, "trained", report)
        for name, model in models.items()
        for report in evaluate_conditions(model, dataset, conditions, options=options)
    ]


def _hidden(dataset: ReIDDataset) -> list[str]:
    """The modalities that some sample shows and no sample needs."""
    shown = [m for i, m in enumerate(dataset.modalities) if any(s.images[i] is not None for s in dataset.query)]
    return [
        hidden
        for hidden in shown
        if all(is_visible(sample, [m != hidden for m in dataset.modalities]) for sample in dataset.query)
    ]


def _masks(models: Mapping[str, ReIDModel], dataset: ReIDDataset) -> tuple[str, Image] | None:
    """The first model that has semantic experts, and what they sample."""
    firsts = {sample.pid: sample for sample in reversed(dataset.query)}
    chosen: Sequence[Any] = [*(firsts.values() if len(firsts) > 1 else dataset.query)][:_SHOWN_MASKS]
    for name, model in models.items():
        try:
            return name, expert_masks(model, dataset, chosen, views=("sampled", "gamma"), text=False)
        except ValueError:  # it has none
            continue
    return None


def _counts(dataset: ReIDDataset) -> str:
    pids = {sample.pid for sample in dataset.query} - {-1}
    shown = (sum(sample.images[i] is not None for sample in dataset.query) for i in range(len(dataset.modalities)))
    images = ", ".join(f"{count} {m}" for m, count in zip(dataset.modalities, shown, strict=True) if count)
    return f"{len(dataset.query)} samples ({images}), {len(pids)} identities"


def _origin(models: Mapping[str, ReIDModel]) -> str:
    """What the weights were trained on, and what that means here."""
    names: dict[str, list[str]] = {}
    for name, model in models.items():
        names.setdefault(next(iter(trained_sets(model)), ""), []).append(name)
    return " ".join(f"Weights of {' and '.join(of)}: {_meaning(trained)}." for trained, of in names.items())


def _meaning(trained: str) -> str:
    if not trained:
        return "nothing is recorded about their training"
    if trained.startswith("synthetic-"):
        return f"trained on drawn images ({trained}), so that little can be expected of them on photographs"
    return f"trained on {trained}; on images of another kind or from other cameras they may do worse"
