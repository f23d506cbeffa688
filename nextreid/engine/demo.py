"""The demo: NEXT and its baseline on synthetic persons, trained or with the bundled weights, evaluated and shown."""

import logging
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from nextreid._files import user_path, write_folder, write_json
from nextreid.data import ReIDDataset, collate
from nextreid.data.loader import SampleDataset
from nextreid.models import ReIDModel, create_model
from nextreid.retrieval import get_protocol, top_k
from nextreid.synthetic import synthetic_persons
from nextreid.version import __version__
from nextreid.viz import Table, mask_image, rank_list_image, save_image, write_report

from .ablations import hide_modalities
from .embedding import embed_samples, eval_transform
from .evaluation import EvaluationReport, evaluate, evaluate_conditions, identities
from .recipe import get_recipe
from .trainer import train

_logger = logging.getLogger(__name__)

METRICS, REPORT, RANKS, MASKS = "metrics.json", "report.html", "rank_list.png", "masks.png"
MODELS = ("baseline_tiny", "next_tiny")
_RANDOM_TEXT = "The text tower is random, since no CLIP weights fit towers this small."
_RANKS_TITLE = (
    "Rank lists of next_tiny with captions, from the query with the lowest average precision to the highest. A tick in "
    "a solid frame is the same identity, a cross in a dashed frame another one."
)
_MASKS_TITLE = "Which patches each semantic expert samples in each modality, and the modulated score (gamma) behind it."
SHOWN_QUERIES, SHOWN_MASKS, TOP = 6, 4, 10


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
    pretrained: bool = False,
    write_line: Callable[[str], object] = _logger.info,
) -> dict[str, Any]:
    """Build the synthetic set, train ``baseline_tiny`` and ``next_tiny`` alike, evaluate both on unseen identities.

    Both start from the same random image tower and get the same recipe, batches and epochs. No CLIP weights fit these
    tiny towers, so NEXT's text tower stays random here: the rows with captions exercise the path and show what random
    text is worth. With ``pretrained`` nothing is trained: the bundled weights are evaluated, whose training did not see
    the demo's persons. Everything but the seconds is a function of the seed on one machine.

    Args:
        out: Folder to write: ``metrics.json``, ``report.html``, ``rank_list.png``, ``masks.png``, and the folders of
            the runs, if there were any. A demo's folder there is replaced as a whole; any other is left alone.
        seed: Of the data, the weights and the training.
        smoke: The smallest form, which only shows that every step runs.
        pretrained: Take the bundled weights instead of training.
        write_line: Called with each line of progress and results.

    Returns:
        What ``metrics.json`` holds.

    Raises:
        FileExistsError: ``out`` is a folder or file that no demo wrote.
    """
    target = user_path(out)
    if target.exists() and not (target / METRICS).is_file():
        raise FileExistsError(f"{target} exists and no demo wrote it; name another folder")
    size = replace(SMOKE if smoke else DemoSize(), **({"num_train": 0, "epochs": 0} if pretrained else {}))
    with write_folder(target) as fresh:
        metrics = _build(fresh, seed, size, write_line)
    write_line(f"\n{target / REPORT} shows the images; {target / METRICS} holds the metrics.")
    return metrics


def _build(folder: Path, seed: int, size: DemoSize, write_line: Callable[[str], object]) -> dict[str, Any]:
    start = clock = time.perf_counter()
    seconds: dict[str, float] = {}

    def lap(name: str, line: str) -> None:
        nonlocal clock
        seconds[name] = round(time.perf_counter() - clock, 1)
        clock = time.perf_counter()
        write_line(f"[{clock - start:5.0f} s] {line}")

    counts = {k: v for k, v in asdict(size).items() if k.startswith(("num_", "frames"))}
    persons = synthetic_persons("tiny", seed=seed, **counts)
    dataset = persons.dataset
    lap("render", f"made {len(dataset.train)} training and {len(dataset.query)} test samples of unseen identities")
    models, recipe = _models(seed, pretrained=not size.epochs), None
    rows = []
    if size.epochs:
        for name, model in models.items():
            rows.append(_row(name, "untrained", evaluate(model, dataset, text=False)))
        recipe = get_recipe("tiny", seed=seed, epochs=size.epochs, eval_every=0, warmup_epochs=min(2, size.epochs - 1))
        for name, model in models.items():
            done = train(model, dataset, recipe, folder / "runs" / name, progress=False)
            last = done.last or {}
            lap(f"train {name}", f"trained {name}: {size.epochs} epochs, loss {last['loss']['total']:.2f}")
    for name, model in models.items():  # with every modality and with each one missing, with captions and without
        texts, missing = (True, False)[not model.uses_text :], ((), *((modality,) for modality in dataset.modalities))
        conditions = [hide_modalities(dataset.modalities, names, text) for text in texts for names in missing]
        rows += [_row(name, "trained", report) for report in evaluate_conditions(model, dataset, conditions)]
    lap("evaluate", "evaluated both with every modality, with each one missing, with and without captions")
    note = (
        f"{size.num_test} identities that training never saw; protocol {dataset.protocol}: a query ignores its own "
        "identity's images from its own camera. One seed. The metrics hold for this generator only and compare with no "
        f"benchmark. {'The weights are the bundled ones.' if recipe is None else _RANDOM_TEXT}"
    )
    results = _table(rows, dataset.modalities, note)
    write_line(f"\n{replace(results, note='').text()}\n")
    ranks = _rank_list(models["next_tiny"], dataset)
    masks, captions = _masks(models["next_tiny"], dataset)
    save_image(ranks, folder / RANKS)
    save_image(masks, folder / MASKS)
    lap("images", "drew the rank lists and the experts' masks")
    metrics = {
        "seed": seed,
        "size": asdict(size),
        "generator": persons.config.to_dict(),
        "recipe": recipe.to_dict() if recipe else None,
        "weights": {name: model.pretrained_cfg.trained_on for name, model in models.items()},
        "protocol": dataset.protocol,
        "results": rows,
        "versions": {"nextreid": __version__, "torch": torch.__version__, "python": platform.python_version()},
        "threads": torch.get_num_threads(),
        "seconds": {**seconds, "total": round(time.perf_counter() - start, 1)},
    }
    write_json(folder / METRICS, metrics)
    _report(folder / REPORT, metrics, results, captions, ranks, masks)
    return metrics


def _models(seed: int, pretrained: bool) -> dict[str, ReIDModel]:
    with torch.random.fork_rng(devices=[]):
        models = {}
        for name in MODELS:
            torch.manual_seed(seed)
            models[name] = create_model(name, pretrained=pretrained)
    if not pretrained:
        models["baseline_tiny"].image_tower.load_state_dict(models["next_tiny"].image_tower.state_dict())
    return models


def _row(name: str, stage: str, report: EvaluationReport) -> dict[str, Any]:
    values = {key: value for key, value in report.to_dict().items() if key != "seconds"}
    return {"model": name, "stage": stage, **values}


def _table(rows: Sequence[dict[str, Any]], modalities: Sequence[str], note: str) -> Table:
    """One line for each model and text setting, one column for each condition: mAP / rank-1 in percent."""
    columns = ["model", "captions at test", "all modalities", *(f"without {m}" for m in modalities)]
    lines: dict[tuple[str, str, bool], dict[tuple[str, ...], str]] = {}
    for row in rows:
        cell = f"{100 * row['mAP']:.1f} / {100 * row['rank-1']:.1f}"
        lines.setdefault((row["model"], row["stage"], row["text"]), {})[tuple(row["missing"])] = cell
    table = []
    for (model, stage, text), cells in lines.items():
        title = model if stage == "trained" else f"{model}, {stage}"
        table.append([title, "yes" if text else "no", *(cells.get(c, "") for c in ((), *((m,) for m in modalities)))])
    return Table("Results, mAP / rank-1 in percent", columns, table, note)


def _rank_list(model: ReIDModel, dataset: ReIDDataset) -> Image:
    """Queries from the worst average precision to the best, evenly spread, so that failures show."""
    protocol = get_protocol(dataset.protocol)
    embeddings, keys = embed_samples(model, dataset.query), [sample.key for sample in dataset.query]
    ap = evaluate(model, dataset).result.ap
    order = [int(i) for i in ap.argsort(kind="stable") if ap[i] == ap[i]]
    count = min(SHOWN_QUERIES, len(order))
    chosen = [order[round(i * (len(order) - 1) / max(1, count - 1))] for i in range(count)]
    queries = [dataset.query[i] for i in chosen]
    ids, chosen_keys = (identities(queries), identities(dataset.query)), [keys[i] for i in chosen]
    indices, matches = top_k(
        embeddings[chosen], embeddings, *ids, protocol, TOP, query_keys=chosen_keys, gallery_keys=keys
    )
    return rank_list_image(queries, list(dataset.gallery), indices, matches, dataset.modalities)


def _masks(model: ReIDModel, dataset: ReIDDataset) -> tuple[Image, list[list[str]]]:
    """What each semantic expert samples, for the first sample of some identities, and the captions it read."""
    firsts = {sample.pid: sample for sample in reversed(dataset.query)}
    samples = [firsts[pid] for pid in dict.fromkeys(sample.pid for sample in dataset.query)][:SHOWN_MASKS]
    source = SampleDataset(samples, eval_transform(model), model.modalities)
    batch = collate([source[i] for i in range(len(samples))])
    model.eval()
    with torch.no_grad():
        features = model.forward_features(batch.images, batch.captions, batch.present)
    mask, gamma = (features[name].unflatten(-1, model.image_tower.grid_size).numpy() for name in ("mask", "gamma"))
    captions = [[sample.key, *map(" ".join, sample.captions)] for sample in samples if sample.captions]
    return mask_image(samples, mask, model.modalities, gamma), captions


def _report(
    path: Path, metrics: dict[str, Any], results: Table, captions: list[list[str]], ranks: Image, masks: Image
) -> None:
    size, generator, recipe = metrics["size"], metrics["generator"], metrics["recipe"]
    height, width = generator["img_size"]
    captioners = "From simulated captioners that misread and guess as published captions do."
    shown = Table("Captions of the samples below", ["sample", "RGB", "NIR", "TIR"], captions, captioners)
    facts = {
        "seed": metrics["seed"],
        "generator": f"synthetic-persons, version {generator['version']}, {height}x{width} pixels",
        "identities": f"{size['num_train']} training, {size['num_test']} test",
        "recipe": f"{recipe['name']}, {recipe['epochs']} epochs for each model" if recipe else "none: bundled weights",
        **metrics["versions"],
        "seconds": metrics["seconds"]["total"],
    }
    write_report(
        path,
        title="nextreid demo",
        intro=f"NEXT and its baseline, {'trained alike' if recipe else 'with bundled weights,'} on procedural persons "
        "seen in three spectra.",
        tables=[results, shown],
        images=[(_RANKS_TITLE, ranks), (_MASKS_TITLE, masks)],
        facts=facts,
    )
