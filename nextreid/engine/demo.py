"""The demo: NEXT and its baseline on synthetic persons, trained or with the bundled weights, evaluated and shown."""

import json
import logging
import shutil
import textwrap
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from nextreid._files import check_out_folder, user_path, write_json
from nextreid.data import ReIDDataset, Sample, open_image
from nextreid.models import ReIDModel, create_model
from nextreid.retrieval import Comparison, compare
from nextreid.synthetic import synthetic_persons
from nextreid.viz import Table, save_image, write_report

from .ablations import hide_modalities
from .demo_report import MASKS, METRICS, MODELS, RANKS, REPORT, chance_map, result_row, results_table, versions
from .embedding import EmbedOptions
from .evaluation import evaluate, evaluate_conditions
from .figures import expert_masks, rank_lists
from .recipe import get_recipe
from .trainer import train as train_model

_logger = logging.getLogger(__name__)

IMAGES = "images"
RUNS, SETTINGS = "runs", "demo.json"
_RANKS_TITLE = (
    "Rank lists of next_tiny with captions: the worst queries, queries near the mean, and the best, each of another "
    "person. A tick in a solid frame is the same identity, a cross in a dashed frame another one. Below each sample: "
    "file name, identity, camera, and the cosine of its embedding and the query's."
)
_MASKS_TITLE = (
    "Which patches each semantic expert samples in each modality, the modulated score (gamma) behind it, and the "
    "caption that it read, from simulated captioners that misread and guess as published captions do."
)
_EXPLAINED = (
    "A query is a person seen in three spectra; the gallery is ranked by how near its embeddings are. mAP (mean "
    "average precision) is 100 % where all images of the same person come first; a random order, chance, gives "
    "{chance:.1f} % here. rank-1 is the share of queries whose nearest image is right. The baseline is the same towers "
    "without NEXT's experts, so that the difference is what they add. The protocol says which gallery images a query "
    "ignores: those of its own person from its own camera, which its background would give away. Masks are the patches "
    "that each semantic expert of NEXT keeps. {weights}"
)
_NOT_FOR = (
    "The bundled weights were trained on drawn persons like these: they are for trying the library, not for images of "
    "real persons, and no number here compares with a benchmark."
)
_JUST_TRAINED = (
    "These weights were trained for minutes on drawn persons, NEXT's text tower is random, since no CLIP weights fit "
    "towers this small, and no number here compares with a benchmark."
)
SHOWN_EACH, SHOWN_MASKS, TOP = 2, 4, 10


@dataclass(frozen=True)
class DemoSize:
    """How large a demo is; training and test identities never meet."""

    num_train: int = 96
    num_test: int = 32
    frames_per_visit: int = 6
    epochs: int = 12


SMOKE = DemoSize(num_train=8, num_test=4, frames_per_visit=2, epochs=1)


def run_demo(
    out: str | Path,
    *,
    seed: int = 0,
    smoke: bool = False,
    train: bool = False,
    progress: bool = False,
    write_line: Callable[[str], object] = _logger.info,
) -> dict[str, Any]:
    """Show what ``baseline_tiny`` and ``next_tiny`` retrieve on synthetic persons that their training did not see.

    The bundled weights are evaluated. With ``train`` both are trained first: from the same random image tower, with the
    same recipe, batches and epochs. No CLIP weights fit these tiny towers, so NEXT's text tower stays random then: the
    rows with captions exercise the path and show what random text is worth. Everything but the seconds is a function
    of the seed on one machine.

    Args:
        out: Folder to write: ``metrics.json``, ``report.html``, ``rank_list.png``, ``masks.png``, in ``images`` some
            of the persons as files to try other commands on, and with `train` the folders of the runs, which a later
            call with the same settings continues. A demo's files there are replaced; a folder that holds something
            else is left alone.
        seed: Of the data, the weights and the training.
        smoke: The smallest form, which only shows that every step runs.
        train: Train instead of taking the bundled weights.
        progress: Whether to show progress of training and evaluation on stderr.
        write_line: Called with each line of results.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        OSError: ``out`` cannot be written, or holds what no demo wrote.
    """
    folder = user_path(out)
    check_out_folder(folder, (METRICS, f"{RUNS}/{SETTINGS}"))
    size = SMOKE if smoke else DemoSize()
    size = size if train else replace(size, num_train=0, epochs=0)
    start = clock = time.perf_counter()
    seconds: dict[str, float] = {}

    def lap(name: str, line: str) -> None:
        nonlocal clock
        seconds[name] = round(time.perf_counter() - clock, 1)
        clock = time.perf_counter()
        write_line(f"[{clock - start:3.0f} s] {line}")

    counts = {k: v for k, v in asdict(size).items() if k.startswith(("num_", "frames"))}
    persons = synthetic_persons("tiny", seed=seed, **counts)
    dataset, options = persons.dataset, EmbedOptions(progress=progress)
    train_count = f"{len(dataset.train)} training and " if train else ""
    lap("render", f"drew {train_count}{len(dataset.query)} test samples of synthetic persons")
    models, recipe = _models(seed, pretrained=not train), None
    rows = []
    if train:
        rows = [
            result_row(name, "untrained", evaluate(m, dataset, text=False, options=options))
            for name, m in models.items()
        ]
        recipe = get_recipe("tiny", seed=seed, epochs=size.epochs, eval_every=0, warmup_epochs=min(2, size.epochs - 1))
        runs = _open_runs(folder, {"seed": seed, "size": asdict(size), "recipe": recipe.to_dict(), **versions()})
        for name, model in models.items():
            write_line(f"training {name}, {size.epochs} epochs; if it is stopped, the same command continues")
            done = train_model(model, dataset, recipe, runs / name, resume=True, progress=progress)
            last = done.last or {}
            lap(f"train {name}", f"trained {name}: {size.epochs} epochs, loss {last['loss']['total']:.2f}")
    full = {}  # with every modality, and with captions where a model reads them
    for name, model in models.items():
        texts, missing = (True, False)[not model.uses_text :], ((), *((modality,) for modality in dataset.modalities))
        conditions = [hide_modalities(dataset.modalities, names, text) for text in texts for names in missing]
        reports = evaluate_conditions(model, dataset, conditions, options=options)
        full[name] = reports[0].result
        rows += [result_row(name, "trained", report) for report in reports]
    lap("evaluate", "evaluated both with every modality, with each one missing, with and without captions")
    chance = chance_map(dataset, seed)
    won = compare(full["baseline_tiny"], full["next_tiny"])
    explained = _EXPLAINED.format(chance=100 * chance, weights=_JUST_TRAINED if train else _NOT_FOR)
    verdict = _verdict(won, size.num_test)
    results = results_table(rows, dataset.modalities)
    write_line(f"\n{results.text()}\n\n{verdict}\n\n{textwrap.fill(explained, 110)}\n")
    ranks = rank_lists({"next_tiny": models["next_tiny"]}, dataset)
    shown = _first_of_each(dataset)[:SHOWN_MASKS]
    masks = expert_masks(models["next_tiny"], dataset, shown, views=("sampled", "gamma"))
    lap("images", "drew the rank lists and the experts' masks")
    metrics = {
        "seed": seed,
        "size": asdict(size),
        "generator": persons.config.to_dict(),
        "recipe": recipe.to_dict() if recipe else None,
        "weights": {name: model.pretrained_cfg.trained_on for name, model in models.items()},
        "protocol": dataset.protocol,
        "results": rows,
        "chance": chance,
        "comparison": asdict(won),
        "versions": versions(),
        "threads": torch.get_num_threads(),
        "seconds": {**seconds, "total": round(time.perf_counter() - start, 1)},
    }
    save_image(ranks, folder / RANKS)
    save_image(masks, folder / MASKS)
    _write_images(shown, dataset.modalities, folder / IMAGES)
    _report(folder / REPORT, metrics, f"{explained}\n\n{verdict}", results, ranks, masks)
    write_json(folder / METRICS, metrics)
    write_line(f"\nopen {folder / REPORT}; images to try other commands on are in {folder / IMAGES}")
    return metrics


def _open_runs(folder: Path, settings: dict[str, Any]) -> Path:
    """Return the folder of the runs; those of a demo with other settings are removed."""
    runs = folder / RUNS
    file = runs / SETTINGS
    if file.is_file() and json.loads(file.read_text(encoding="utf-8")) != json.loads(json.dumps(settings)):
        shutil.rmtree(runs)
    write_json(file, settings)
    return runs


def _verdict(won: Comparison, identities: int) -> str:
    """Say which model is ahead, and whether other persons of the same kind could turn it round."""
    d = won.difference
    ahead, behind = ("next_tiny", "baseline_tiny") if d.value > 0 else ("baseline_tiny", "next_tiny")
    facts = (
        f"{100 * abs(d.value):.1f} points of mAP (NEXT less baseline: {100 * d.low:+.1f} to {100 * d.high:+.1f} in 95 %"
    )
    facts += f" of draws of the {identities} identities, p = {won.p_value:.3f})"
    if won.p_value > 0.05:
        return f"No winner: {ahead} is ahead of {behind} by {facts}; other persons could reverse that."
    return f"{ahead} wins over {behind} by {facts}; another training, if only on more threads, may say otherwise."


def _models(seed: int, pretrained: bool) -> dict[str, ReIDModel]:
    with torch.random.fork_rng(devices=[]):
        models = {}
        for name in MODELS:
            torch.manual_seed(seed)
            models[name] = create_model(name, pretrained=pretrained)
    if not pretrained:
        models["baseline_tiny"].image_tower.load_state_dict(models["next_tiny"].image_tower.state_dict())
    return models


def _first_of_each(dataset: ReIDDataset) -> list[Sample]:
    """Return the first query of each identity."""
    firsts: dict[int, Sample] = {}
    for sample in dataset.query:
        firsts.setdefault(sample.pid, sample)
    return list(firsts.values())


def _write_images(samples: Sequence[Sample], modalities: Sequence[str], folder: Path) -> None:
    """Write samples as ``{modality}/{number}.png``, counted from 1."""
    for number, sample in enumerate(samples, start=1):
        for modality, image in zip(modalities, sample.images, strict=True):
            if image is not None:
                save_image(open_image(image), folder / modality / f"{number}.png")


def _report(path: Path, metrics: dict[str, Any], intro: str, results: Table, ranks: Image, masks: Image) -> None:
    size, generator, recipe = metrics["size"], metrics["generator"], metrics["recipe"]
    height, width = generator["img_size"]
    facts = {
        "seed": metrics["seed"],
        "generator": f"synthetic-persons, version {generator['version']}, {height}x{width} pixels",
        "identities": f"{size['num_train']} training, {size['num_test']} test",
        "weights": f"{recipe['epochs']} epochs of the recipe {recipe['name']} for each model" if recipe else "bundled",
        "protocol": metrics["protocol"],
        **metrics["versions"],
        "seconds": metrics["seconds"]["total"],
    }
    write_report(
        path,
        title="nextreid demo",
        intro=intro,
        tables=[results],
        images=[(_RANKS_TITLE, ranks), (_MASKS_TITLE, masks)],
        facts=facts,
    )
