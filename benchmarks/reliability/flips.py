"""Files of which one bit is flipped: whoever reads them must notice, or get what was written."""

import logging
import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

import nextreid
from nextreid.captioning.store import Store
from nextreid.data import EvalTransform, ImageCache, load_dataset
from nextreid.engine import extract, get_recipe, load_embeddings, train
from nextreid.models import ReIDModel, verify_checkpoint
from nextreid.models._hub import read_sums

from .parsers import NAMED


def flips(folder: Path, number: int) -> Iterator[dict[str, Any]]:
    """Flip `number` bits of each file that nextreid writes, one at a time; one row for each file."""
    rng = random.Random(0)
    for name, file, read in _files(folder):
        counts, faults = _flip(file, read, number, rng)
        yield {
            "attack": "flipped bit", "target": name, "tries": number, "unharmed": counts["unharmed"],
            "rejected": counts["rejected"], "wrong": counts["wrong"], "note": "; ".join(faults[:3]),
        }  # fmt: skip


def _flip(file: Path, read: Callable[[], None], number: int, rng: random.Random) -> tuple[Counter[str], list[str]]:
    counts: Counter[str] = Counter()
    faults: dict[str, None] = {}
    whole = file.read_bytes()
    read()
    for turn in range(number):
        data = bytearray(whole)
        place = min(len(data) - 1, int((turn + rng.random()) / number * len(data)))  # from the first byte to the last
        data[place] ^= 1 << rng.randrange(8)
        file.write_bytes(data)
        try:
            read()
            counts["unharmed"] += 1
        except NAMED:
            counts["rejected"] += 1
        except Exception as error:  # AssertionError: damage that was not noticed
            counts["wrong"] += 1
            faults[f"{type(error).__name__}: {error}"[:160]] = None
    file.write_bytes(whole)
    return counts, list(faults)


def _files(folder: Path) -> Iterator[tuple[str, Path, Callable[[], None]]]:
    """Name, place and checked reading of each kind of file."""
    dataset = load_dataset("synthetic-persons", num_train=4, num_test=3, frames_per_visit=2)
    recipe = get_recipe("tiny", epochs=1, num_ids=4, num_instances=2, warmup_epochs=0)
    run, out = folder / "run", folder / "embeddings"

    def model() -> ReIDModel:
        torch.manual_seed(0)
        return nextreid.create_model("next_tiny")

    weights: dict[str, torch.Tensor] = {}

    def resume() -> None:
        trained = model()
        report = train(trained, dataset, recipe, run, resume=True, progress=False)
        found = trained.state_dict()
        assert all(torch.equal(found[key], value) for key, value in weights.items()), "damage was not noticed"
        assert [row["loss"] for row in report.history] == losses, "damage was not noticed"

    def load() -> None:
        with _warnings() as said:
            loaded = nextreid.create_model(f"local-dir:{run / 'last'}")
        if said:
            raise ValueError("a warning: people edit config.json")
        found = loaded.state_dict()
        described.append((loaded.pretrained_cfg, loaded.model_args))
        assert described[-1] == described[0] and all(
            torch.equal(found[key], value) for key, value in weights.items()
        ), "damage was not noticed"

    def verify() -> None:
        if not all(finding.ok for finding in verify_checkpoint(saved)):
            raise ValueError("a finding, which is how verify reports")
        # a digest in capital letters is the same digest
        same = {path.name for path in saved.iterdir() if path.read_bytes() == published[path.name]}
        assert same >= published.keys() - {"SHA256SUMS"} and read_sums(saved) == sums, "damage was not noticed"

    def embeddings() -> None:
        found, rows, _ = load_embeddings(out)
        assert torch.equal(found, expected) and rows == index, "damage was not noticed"

    trained = model()
    losses = [row["loss"] for row in train(trained, dataset, recipe, run, progress=False).history]
    described: list[tuple[Any, Any]] = []
    weights = {key: value.clone() for key, value in trained.state_dict().items()}
    for name in ("state.safetensors", "text_tower.safetensors", "recipe.json", "metrics.jsonl"):
        yield f"run: {name}", run / name, resume
    for name in ("model.safetensors", "config.json"):
        yield f"run: last/{name}", run / "last" / name, load
    saved = nextreid.save_pretrained(trained.eval(), folder / "saved")
    sums = read_sums(saved)
    published = {path.name: path.read_bytes() for path in saved.iterdir()}
    for path in sorted(saved.glob("[!R]*")):  # README.md is for people, who may edit it
        yield f"published: {path.name.replace('SHA256SUMS', 'list of sums')}", path, verify
    extract(trained, dataset.query, out)
    expected, index, _ = load_embeddings(out)
    for name in ("embeddings.safetensors", "index.csv"):
        yield f"extract: {name}", out / name, embeddings
    transform, cache = EvalTransform((16, 8)), folder / "images.store"
    pixels = ImageCache.build(dataset.query, dataset.modalities, transform).pixels

    def images() -> None:
        built = ImageCache.build(dataset.query, dataset.modalities, transform, file=cache)
        assert (built.pixels == pixels).all(), "damage was not noticed"

    images()
    yield "image cache", cache, images
    store = folder / "answers.jsonl"
    with Store(store, write=True) as answers:
        for number in range(3):
            answers.append({"key": f"{number:032x}", "schema": "s", "cost": 0.1, "text": "{}"})

    def rows() -> None:
        with Store(store) as answers:
            kept = list(answers.rows())
            assert all(row["text"] == "{}" and row["cost"] == 0.1 for row in kept), "damage was not noticed"
            if len(kept) < 3 and answers.damaged:
                raise ValueError("damaged lines are counted, not raised")
            assert len(kept) == 3, "an answer is gone without a word"

    yield "store of answers", store, rows


@contextmanager
def _warnings() -> Iterator[list[str]]:
    """Collect what the library warns of, which this benchmark silences otherwise."""
    said: list[str] = []
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    level, logger = logging.root.manager.disable, logging.getLogger("nextreid")
    logging.disable(logging.NOTSET)
    logger.addHandler(handler)
    try:
        yield said
    finally:
        logger.removeHandler(handler)
        logging.disable(level)
