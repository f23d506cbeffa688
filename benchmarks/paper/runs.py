"""Rows of the paper's tables, trained and measured: on the published data, or on synthetic persons in their place."""

import hashlib
import json
import logging
import multiprocessing
import os
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from nextreid._files import write_json
from nextreid.data import ReIDDataset, load_dataset
from nextreid.data.loader import make_loader
from nextreid.data.transforms import EvalTransform
from nextreid.engine import Condition, EmbedOptions, evaluate, evaluate_conditions
from nextreid.engine.ablations import has_captions
from nextreid.engine.checkpoint import cpu_name
from nextreid.engine.recipe import AUTHORS, Recipe, get_recipe
from nextreid.engine.trainer import train
from nextreid.models import ReIDModel, create_model
from nextreid.synthetic import PROFILES, synthetic_persons
from nextreid.towers import TextTower
from nextreid.version import __version__

from .oracle import Oracle, with_part_maps
from .pretraining import PretrainConfig, load_towers, pretrain, take_towers, tower_arguments
from .rows import BenchRow, load_rows

_logger = logging.getLogger(__name__)

RUNS, RESULT, START = "runs", "result.json", "start"
RANKINGS = ("ranking.safetensors", "ranking_without_text.safetensors")
ORACLE = "oracle"
_TEXT_TOWERS: dict[str, TextTower] = {}
SYNTHETIC = "synthetic-"
PERSONS = ("rgbnt201",)
_WIDEN_CLASSES = 100  # classifiers count among the parameters; this many identities has the small profile

# On the synthetic persons every row is trained alike: chosen on the baseline (Table 3, row A) by training identities
# that were held out, before any other row was run; docs/benchmark.md has the search.
SYNTHETIC_RECIPE: dict[str, Any] = {"name": "bench-small", "epochs": 6, "lr_tower": 3e-4, "pad": 4}
PRETRAIN: dict[str, PretrainConfig] = {
    "tiny": PretrainConfig(profile="tiny", patch=8, num_ids=48, epochs=2, batch_ids=8),
    "small": PretrainConfig(),
    "full": PretrainConfig(profile="full"),
}
# IDEA's captions have no twin here; these are ours without what NEXT added: no merge, no floor of confidence.
_CAPTIONS: dict[str, dict[str, Any]] = {
    "next": {},
    "idea": {"caption_merge": False, "caption_floor": 0.0},
    "shuffled": {"caption_source": "shuffled"},
}


@dataclass(frozen=True, kw_only=True)
class BenchSettings:
    """Where and how rows are run.

    Attributes:
        out: Folder of the runs, which later calls continue.
        data: ``"paper"`` reads each row's own dataset; ``"synthetic-tiny"``, ``"synthetic-small"`` or
            ``"synthetic-full"`` puts a profile of the synthetic persons, a tiny model and its recipe in the place.
        root: Folder that holds the datasets' folders.
        captions: Folder that holds ``NEXT/RGBNT201`` and so on.
        recipe: ``"clean"``, each row's own; or ``"authors"``, what authors of the family do on each dataset.
        overrides: Fields of the recipe to change in every row.
        start: Folder of pretrained towers for synthetic data; None makes them in ``out/start``.
        device: Where to compute; None takes the CPU for synthetic data and CUDA, where there is one, for the paper's.
    """

    out: Path
    data: str = "paper"
    root: Path | None = None
    captions: Path | None = None
    recipe: str = "clean"
    overrides: Mapping[str, Any] = field(default_factory=dict)
    start: Path | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        allowed = ["paper", *(SYNTHETIC + name for name in PROFILES)]
        if self.data not in allowed:
            raise ValueError(f"data is {self.data!r}; allowed: {', '.join(allowed)}")
        if self.recipe not in ("clean", "authors"):
            raise ValueError(f"recipe is {self.recipe!r}; allowed: clean, authors")
        if self.data == "paper" and self.root is None:
            raise ValueError("the paper's datasets are read from root=, --root; or take --data synthetic-small")
        if self.data != "paper" and self.recipe == "authors":
            raise ValueError("the authors' recipes are for the paper's datasets and models: leave them out here")

    @property
    def profile(self) -> str:
        """Profile of the synthetic persons; empty for the paper's data."""
        return self.data.removeprefix(SYNTHETIC) if self.data != "paper" else ""


@dataclass(frozen=True)
class Unit:
    """One run: everything that its numbers depend on. Rows of different tables that agree in it share the run.

    Attributes:
        data: Keywords of the dataset.
        model: Name of the zoo.
        arguments: Of ``create_model``.
        recipe: Fields of the recipe, the seed among them.
        start: Settings of the pretrained towers; empty for the zoo's own weights.
    """

    data: dict[str, Any]
    model: str
    arguments: dict[str, Any]
    recipe: dict[str, Any]
    start: dict[str, Any]

    @property
    def digest(self) -> str:
        """Sixteen hex digits that name the run's folder."""
        fields = asdict(self)
        fields["recipe"].pop("workers", None)
        fields["data"] = {key: value for key, value in fields["data"].items() if key not in ("root", "captions")}
        return hashlib.blake2b(json.dumps(fields, sort_keys=True).encode(), digest_size=8).hexdigest()


def unit_of(row: BenchRow, seed: int, settings: BenchSettings, rows: Mapping[str, BenchRow] | None = None) -> Unit:
    """Resolve a row to one run.

    Args:
        row: The row.
        seed: Of the weights and the training; on synthetic data of the persons too.
        settings: Where and how.
        rows: Where `BenchRow.widen_to` is looked up; None reads all.

    Raises:
        ValueError: The row does not fit the data: it is of vehicles and the data are persons, or it reads captions and
            there are none.
    """
    _check_data(row, settings)
    model = row.tiny if settings.profile else row.model
    size: dict[str, Any] = {}
    if settings.profile:
        start = PRETRAIN[settings.profile]
        size = tower_arguments(start)
        data = {"name": settings.data, "seed": seed, **_CAPTIONS[row.captions]}
        recipe = get_recipe("tiny", **{**SYNTHETIC_RECIPE, "eval_every": 0, "seed": seed, **row.overrides})
    else:
        start = None
        data = {"name": row.dataset, "root": str(settings.root)}
        if settings.captions is not None:
            data |= {"source": row.captions, "captions": str(_captions_folder(settings.captions, row))}
        name = row.recipe if settings.recipe == "clean" else AUTHORS[row.dataset]
        recipe = get_recipe(name, **{"eval_every": 0, "seed": seed, **row.overrides})
    arguments = {**size, **row.arguments}
    if row.widen_to:
        other = (rows or load_rows())[row.widen_to]
        ratio = _widened(model, arguments, {**size, **other.arguments})
        arguments["head"] = {**arguments.get("head", {}), "ffn_ratio": ratio}
    quality = {"caption_quality": row.caption_quality, "caption_unit": row.caption_unit}
    fields = {**recipe.to_dict(), **quality, **settings.overrides}
    recipe = Recipe.from_dict(fields)
    return Unit(data, model, arguments, recipe.to_dict(), asdict(start) if start else {})


def _check_data(row: BenchRow, settings: BenchSettings) -> None:
    if settings.profile:
        if row.dataset not in PERSONS:
            raise ValueError(
                f"row {row.name!r} is of vehicles ({row.dataset}), and synthetic runs are of persons: run it on "
                "--data paper, or choose the tables of RGBNT201"
            )
        return
    if row.captions == "shuffled":
        raise ValueError(f"row {row.name!r} exchanges captions, which is there for synthetic data only")
    unread = settings.overrides.get("text") is False
    if row.needs_captions if unread else settings.captions is None and (row.needs_captions or row.reads_text):
        raise ValueError(
            f"row {row.name!r} ({row.title}) reads captions and there would be none: give --captions FOLDER"
            + ("" if row.needs_captions else ", or --set text=false for a run without text")
        )


def _captions_folder(captions: Path, row: BenchRow) -> Path:
    folder = captions / row.captions.upper() / row.dataset.upper()
    if not folder.is_dir():
        raise FileNotFoundError(
            f"row {row.name!r} reads the captions of {row.captions.upper()}, and there is no {folder}"
        )
    return folder


def _widened(model: str, arguments: Mapping[str, Any], like: Mapping[str, Any]) -> float:
    """Find the ``ffn_ratio`` of the head at which a model has as many trainable parameters as another one."""

    def count(options: Mapping[str, Any]) -> int:
        with torch.device("meta"):
            return _trainable(create_model(model, num_classes=_WIDEN_CLASSES, **options))

    def at(ratio: float) -> int:
        return count({**arguments, "head": {**arguments.get("head", {}), "ffn_ratio": ratio}})

    goal, at_one, at_two = count(like), at(1.0), at(2.0)
    return round(1.0 + (goal - at_one) / (at_two - at_one), 2)


def _trainable(model: ReIDModel) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def run_bench(
    rows: Sequence[BenchRow],
    seeds: Sequence[int],
    settings: BenchSettings,
    *,
    jobs: int = 1,
    done: Callable[[dict[str, Any], int, int], object] | None = None,
) -> list[dict[str, Any]]:
    """Run rows for every seed; what is finished is not run again, what was interrupted continues.

    Args:
        rows: Of `select_rows`.
        seeds: One run each.
        settings: Where and how.
        jobs: Processes that run at the same time. The numbers do not depend on it.
        done: Called with each result, how many runs are finished and how many there are.

    Returns:
        One entry for each row and seed, with the row's fields under ``"row"`` beside those of its `run_unit`.

    Raises:
        ValueError: A setting does not fit a row.
    """
    known = load_rows()
    wanted = [(row, seed, unit_of(row, seed, settings, known)) for seed in seeds for row in rows]
    units = {unit.digest: unit for _, _, unit in wanted}
    start = prepare_start(settings)
    results: dict[str, dict[str, Any]] = {}
    for digest, result in _results(units, settings, start, jobs):
        results[digest] = result
        if done is not None:
            done(result, len(results), len(units))
    return [{"row": row.to_dict(), "seed": seed, **results[unit.digest]} for row, seed, unit in wanted]


def finished(rows: Sequence[BenchRow], seeds: Sequence[int], settings: BenchSettings) -> list[dict[str, Any]]:
    """Return what `run_bench` would, as far as it is there, without running anything."""
    known = load_rows()
    out = []
    for seed in seeds:
        for row in rows:
            path = settings.out / RUNS / unit_of(row, seed, settings, known).digest / RESULT
            if path.is_file():
                out.append({"row": row.to_dict(), "seed": seed, **json.loads(path.read_text(encoding="utf-8"))})
    return out


def prepare_start(settings: BenchSettings) -> Path | None:
    """Make the pretrained towers that synthetic runs start from, if they are not there yet; return their folder."""
    if not settings.profile:
        return None
    folder = settings.start or settings.out / START
    pretrain(folder, PRETRAIN[settings.profile])
    return folder


def _results(
    units: Mapping[str, Unit], settings: BenchSettings, start: Path | None, jobs: int
) -> Iterator[tuple[str, dict[str, Any]]]:
    device = settings.device or ("cpu" if settings.profile or not torch.cuda.is_available() else "cuda")
    if jobs <= 1:
        for digest, unit in units.items():
            yield digest, run_unit(unit, settings.out, start, device)
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=_share_cores, initargs=(jobs,)) as pool:
        tasks = {pool.submit(run_unit, unit, settings.out, start, device): digest for digest, unit in units.items()}
        for task in as_completed(tasks):
            yield tasks[task], task.result()


def _share_cores(jobs: int) -> None:
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // jobs))


def run_unit(unit: Unit, out: Path, start: Path | str | None = None, device: str = "cpu") -> dict[str, Any]:
    """Train and measure one run, or read its result if it is there.

    Args:
        unit: What to run.
        out: Folder of all runs; this one's is ``out/runs/DIGEST``.
        start: Folder of pretrained towers, or the name of a model of the zoo that has some.
        device: Where to compute.

    Returns:
        What ``result.json`` holds: the unit, ``evaluations`` with and without captions at test, the trainable
        parameters, the share of tokens that the masks keep, seconds and machine; or ``error`` if training diverged.
    """
    folder = Path(out) / RUNS / unit.digest
    if (folder / RESULT).is_file():
        return json.loads((folder / RESULT).read_text(encoding="utf-8"))
    begin = time.perf_counter()
    dataset = _dataset(json.dumps(unit.data, sort_keys=True))
    recipe = Recipe.from_dict(unit.recipe)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        if unit.model == ORACLE:
            model: ReIDModel = Oracle(unit.data.get("evidence", "all"), **unit.arguments)
        else:
            model = create_model(unit.model, pretrained=start is None, **unit.arguments)
    if start is not None:
        take_towers(model, start) if isinstance(start, str) else load_towers(model, start)
        if type(model.text_tower) is TextTower:  # frozen: what one run has encoded, the next one need not
            model.text_tower = _TEXT_TOWERS.setdefault(str(start), model.text_tower)
    if model.uses_text and recipe.text and not has_captions(dataset.train):
        raise ValueError(f"{unit.model} reads captions and {dataset.name} has none: give them, or set text=false")
    result: dict[str, Any] = {"unit": asdict(unit), "digest": unit.digest, "data": _describe(dataset)}
    try:
        report = train(model, dataset, recipe, folder, resume=True, device=device, progress=False)
        kept, classes = _measured(model, dataset, recipe, folder), model.num_classes
        last = report.last or {}
        result |= {"epochs": len(report.history), "loss": last.get("loss"), "classes": classes, **kept}
    except FloatingPointError as error:
        result["error"] = str(error)
    result |= {"trainable": _trainable(model), "seconds": round(time.perf_counter() - begin, 1), "machine": machine()}
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / RESULT, result)
    return result


def _measured(model: ReIDModel, dataset: ReIDDataset, recipe: Recipe, folder: Path) -> dict[str, Any]:
    from nextreid.engine import with_caption_quality

    shown = with_caption_quality(dataset, recipe.caption_quality, recipe.seed, recipe.caption_unit)
    conditions = [Condition(text) for text in ((True, False) if model.uses_text else (False,))]
    reports = evaluate_conditions(model, shown, conditions, options=EmbedOptions(recipe.eval_batch_size))
    for name, report in zip(RANKINGS, reports, strict=False):
        report.result.save(folder / name)
    return {"evaluations": [report.to_dict() for report in reports], "kept": kept_share(model, shown)}


def kept_share(model: ReIDModel, dataset: ReIDDataset) -> list[list[float]]:
    """Share of the tokens that the masks keep for the queries, ``[experts][modalities]``; empty without masks."""
    config = model.pretrained_cfg
    transform = EvalTransform(model.img_size, config.mean, config.std, config.interpolation)
    device = next(model.parameters()).device
    total, count = torch.zeros(()), 0
    model.eval()
    with torch.no_grad():
        for batch in make_loader(dataset.query, transform, model.modalities, batch_size=64):
            batch = batch.to(device)
            text = batch.captions if model.uses_text else None
            features = model.forward_features(batch.images, text, batch.present, batch.camid)
            if "mask" not in features or features["mask"].dim() != 4:  # (B, experts, M, N)
                return []
            total, count = total + features["mask"].mean(-1).sum(0).cpu(), count + len(batch)
    return [[round(share, 4) for share in row] for row in (total / count).tolist()]


@lru_cache(maxsize=2)
def _dataset(key: str) -> ReIDDataset:
    """Load or render a dataset; a process keeps the last two, since rows of one seed share theirs."""
    options = json.loads(key)
    if options.pop("part_maps", False):
        return with_part_maps(_dataset(json.dumps(options, sort_keys=True)), options.get("evidence", "all"))
    name = options.pop("name")
    if name.startswith(SYNTHETIC):
        return synthetic_persons(name.removeprefix(SYNTHETIC), **options).dataset
    options.pop("source", None)
    return load_dataset(name, options.pop("root"), **options)


def _describe(dataset: ReIDDataset) -> dict[str, Any]:
    return {
        "name": dataset.name,
        "protocol": dataset.protocol,
        "train": len(dataset.train),
        "train_ids": len({sample.pid for sample in dataset.train}),
        "query": len(dataset.query),
        "gallery": len(dataset.gallery),
        "test_ids": len({sample.pid for sample in dataset.query}),
        "notes": list(dataset.notes),
    }


def machine() -> dict[str, Any]:
    """Hardware and versions of this process."""
    return {
        "nextreid": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "",
    }


def held_out(dataset: ReIDDataset, share: float = 0.3) -> ReIDDataset:
    """Split the training identities in two: the first ones to train, the last ones as query and gallery.

    For choices that must not see the test identities.

    Args:
        dataset: Its ``train`` split is divided, its test splits are dropped.
        share: Share of the identities to hold out.
    """
    pids = sorted({sample.pid for sample in dataset.train})
    away = set(pids[len(pids) - max(2, round(share * len(pids))) :])
    test = tuple(sample for sample in dataset.train if sample.pid in away)
    train_part = tuple(sample for sample in dataset.train if sample.pid not in away)
    return replace(dataset, train=train_part, query=test, gallery=test)


def check_start(folder: Path) -> dict[str, Any]:
    """Measure pretrained towers on the training pool of synthetic persons of seed 0, which no pretraining saw.

    Args:
        folder: Of `pretrain`.

    Returns:
        ``retrieval``, the metrics of the baseline with these towers and no training; ``pointing`` and ``naming``, see
        `bench_pointing`.
    """
    from .pointing import naming, pointing
    from .pretraining import towers_config

    config = towers_config(folder)
    people = held_out(synthetic_persons(config.profile, seed=0, splits=("train",)).dataset)
    models = {}
    for name in ("baseline_tiny", "next_tiny"):
        models[name] = create_model(name, **tower_arguments(config))
        load_towers(models[name], folder)
    return {
        "retrieval": evaluate(models["baseline_tiny"], people).to_dict(),
        "pointing": pointing(models["next_tiny"], people.query),
        "naming": naming(models["next_tiny"], people.query),
    }
