"""The bundled weights: both towers pretrained, NEXT and its baseline trained on them, measured, saved (40 min)."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

import nextreid
from benchmarks.paper.pointing import naming, pointing
from benchmarks.paper.pretraining import PretrainConfig, load_towers, pretrain
from benchmarks.paper.runs import kept_share
from nextreid.data import ReIDDataset
from nextreid.engine import evaluate, get_recipe, train
from nextreid.engine.provenance import record_metrics, record_training
from nextreid.models import ReIDModel
from nextreid.models._hub import CARD
from nextreid.models._pretrained import BUNDLED
from nextreid.synthetic import synthetic_persons

WORK = Path("build/weights")
TAG = "synthetic_persons"
MODELS = ("next_tiny", "baseline_tiny")
# One world of persons, cameras and places, with a pool for each step; the demo and the tables have others.
WORLD, TRAIN_IDS, TEST_IDS = 1000, 480, 100
ELSEWHERE = (0, 1, 2)
START = PretrainConfig(profile="tiny", patch=8, num_ids=960, epochs=10, data_seed=WORLD)
RECIPE: dict[str, Any] = {
    "name": "tiny-weights",
    "epochs": 10,
    "num_ids": 16,
    "lr_tower": 3e-4,
    "warmup_epochs": 1,
    "eval_every": 0,
}
# Of the new layers: the better one for each model by mAP on 144 held-out training identities after 5 epochs
# (python -m benchmarks weights_lr). NEXT: 75.6 at 1e-3, 79.0 at 3e-4, 78.1 at 1e-4; the baseline: 78.8 at 1e-3, 78.1
# at 3e-4.
LEARNING_RATES = {"next_tiny": 3e-4, "baseline_tiny": 1e-3}
NOTES = (
    "Trained on procedural persons alone, at 64x32 pixels: for trying things out without a download, of no use for "
    "real images. Stored as float16."
)
WORDS = " Pieces of words that the pretraining never met say nothing: their rows of the text tower are zero."


def run() -> Iterator[dict[str, Any]]:
    """Make the weights, continuing what lies in ``build/weights``; give every number that was measured."""
    world = world_of(WORLD, train=True)
    others = [world_of(seed) for seed in ELSEWHERE]
    for name in MODELS:
        rows = list(_make(name, fine_tune(name, world), world, others))
        yield from rows


def fine_tune(name: str, world: ReIDDataset) -> ReIDModel:
    """Train a model from the pretrained towers; a finished training is read, a broken one goes on."""
    folder = WORK / "runs" / name
    pretrain(WORK / "start", START)
    torch.manual_seed(0)
    model = nextreid.create_model(name)
    load_towers(model, WORK / "start")
    recorded = {"dataset": "synthetic-persons, pretrain pool", "recipe": "contrastive, with part maps and identities"}
    record_training(model, {**recorded, "seed": START.seed, "epoch": START.epochs, "epochs": START.epochs}, None)
    train(model, world, get_recipe("tiny", **RECIPE, lr_new=LEARNING_RATES[name]), folder, resume=True, progress=False)
    return nextreid.from_pretrained(folder / "last", num_classes=0)


def world_of(seed: int, train: bool = False) -> ReIDDataset:
    """Procedural persons of a seed: those to test, and on request those to train."""
    wanted = ("train", "test") if train else ("test",)
    return synthetic_persons("tiny", seed=seed, num_train=TRAIN_IDS, num_test=TEST_IDS, splits=wanted).dataset


def _make(name: str, model: ReIDModel, world: ReIDDataset, others: Sequence[ReIDDataset]) -> Iterator[dict[str, Any]]:
    exact = evaluate(model, world).to_dict()
    model = model.half().float()  # so that the numbers are those of what is stored
    results = [(text, missing, _measured(model, [world], text, missing)) for text, missing in _conditions(model)]
    elsewhere = [(text, _measured(model, others, text, ())) for text in _texts(model)]
    points = pointing(model, world.query) if model.text_tower is not None else []
    names = naming(model, world.query) if model.text_tower is not None else []
    kept = kept_share(model, world)
    record_metrics(model, evaluate(model, world).to_dict(), "last, of a number fixed beforehand")
    model.pretrained_cfg = model.pretrained_cfg.replace(
        tag=TAG,
        notes=NOTES + (WORDS if model.uses_text else ""),
        base_weights="none: random ones",
        license="Apache-2.0",
        data_license="Apache-2.0, as the code that draws them",
    )
    folder = nextreid.save_pretrained(model.half(), BUNDLED / f"{name}.{TAG}")
    card = folder / CARD
    card.write_text(
        card.read_text(encoding="utf-8") + _figures(name, results, elsewhere, points, names), encoding="utf-8"
    )
    size = sum(path.stat().st_size for path in folder.iterdir())
    yield _row(name, "folder", "bytes", size)
    yield _row(name, "float32, before rounding", "mAP", round(exact["mAP"], 4))
    for text, missing, measures in results:
        on = f"captions {_yes(text)}, without {missing[0] if missing else 'nothing'}"
        yield from (_row(name, on, measure, value) for measure, value in measures.items())
    for text, measures in elsewhere:
        on = f"captions {_yes(text)}, other worlds"
        yield from (_row(name, on, measure, value) for measure, value in measures.items())
    for row in points:
        yield _row(name, f"{row['modality']} {row['part']}", "points at it", row["accuracy"], row["chance"])
    for expert, shares in enumerate(kept, 1):
        for modality, share in zip(model.modalities, shares, strict=True):
            yield _row(name, f"{modality} expert {expert}", "tokens kept", share)
    for row in names:
        yield _row(name, f"{row['modality']} {row['attribute']}", "names it", row["balanced_accuracy"], row["chance"])


def _texts(model: ReIDModel) -> tuple[bool, ...]:
    return (True, False) if model.uses_text else (False,)


def _conditions(model: ReIDModel) -> list[tuple[bool, tuple[str, ...]]]:
    hidden: list[tuple[str, ...]] = [(), *((modality,) for modality in model.modalities)]
    return [(text, missing) for text in _texts(model) for missing in hidden]


def _measured(
    model: ReIDModel, worlds: Sequence[ReIDDataset], text: bool, missing: tuple[str, ...]
) -> dict[str, float]:
    rows = [evaluate(model, world, text=text, missing=missing).to_dict() for world in worlds]
    return {m: round(sum(row[m] for row in rows) / len(rows), 4) for m in ("mAP", "rank-1", "mINP")}


def _row(name: str, on: str, measure: str, value: float, chance: float | str = "") -> dict[str, Any]:
    return {"model": f"{name}.{TAG}", "on": on, "measure": measure, "value": value, "chance": chance}


def _figures(
    name: str,
    results: Sequence[tuple[bool, tuple[str, ...], Mapping[str, float]]],
    elsewhere: Sequence[tuple[bool, Mapping[str, float]]],
    points: Sequence[Mapping[str, Any]],
    names: Sequence[Mapping[str, Any]],
) -> str:
    lines = [
        "",
        "## More figures",
        "",
        f"It ships with nextreid: `nextreid.create_model({name!r}, pretrained=True)`, made by `python -m benchmarks "
        "weights`.",
        "",
        f"One training, one seed: {TEST_IDS} test identities of the world that it was trained in (its cameras and "
        f"places, other persons), and the mean over {len(ELSEWHERE)} other worlds of as many persons. mAP / rank-1 in "
        "percent.",
        "",
        "| Captions at test | all modalities | without RGB | without NIR | without TIR | other worlds |",
        "|---|---|---|---|---|---|",
    ]
    for text, measures in elsewhere:
        cells = [f"{100 * m['mAP']:.1f} / {100 * m['rank-1']:.1f}" for reads, _, m in results if reads == text]
        cells.append(f"{100 * measures['mAP']:.1f} / {100 * measures['rank-1']:.1f}")
        lines.append(f"| {_yes(text)} | " + " | ".join(cells) + " |")
    if points:
        lines += [
            "",
            "### Where sentences point",
            "",
            "For a true sentence about one part: share of images in which the most similar patch shows that part (a "
            "tenth of the patch at least), in percent. The pretraining read part maps, which CLIP's never did. "
            "Sentences about footwear alone point elsewhere: in training captions they stand behind the garments (with "
            "blue jeans, paired with casual sneakers), and what begins with the word wearing points at the upper "
            "garment.",
            "",
            *_pivot(points, "part", "accuracy"),
            "",
            "### What class tokens name",
            "",
            "Balanced accuracy of naming an attribute's value by its sentence, in percent.",
            "",
            *_pivot(names, "attribute", "balanced_accuracy"),
        ]
    return "\n".join(lines) + "\n"


def _pivot(rows: Sequence[Mapping[str, Any]], key: str, value: str) -> list[str]:
    lines = [f"| {key.capitalize()} | Chance | RGB | NIR | TIR | Images |", "|---|---|---|---|---|---|"]
    for name in dict.fromkeys(row[key] for row in rows):
        found = {row["modality"]: row for row in rows if row[key] == name}
        first = next(iter(found.values()))
        cells = [f"{100 * found[m][value]:.0f}" if m in found else "" for m in ("rgb", "nir", "tir")]
        lines.append(f"| {name} | {100 * first['chance']:.0f} | {' | '.join(cells)} | {first['images']} |")
    return lines


def _yes(text: bool) -> str:
    return "yes" if text else "no"
