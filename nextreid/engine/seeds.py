"""One run over several seeds: metrics with their spread."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import torch
from torch import nn

from nextreid._files import check_out_folder, user_path, write_json
from nextreid.data import ReIDDataset
from nextreid.retrieval import METRICS

from .checkpoint import RECIPE, TrainReport
from .distributed import on_main
from .recipe import Recipe
from .trainer import train


@dataclass(frozen=True)
class SeedsReport:
    """The results of several seeds.

    Attributes:
        folder: Folder of the runs, ``seed{n}`` each, and of ``summary.json``.
        runs: The report of each seed.
    """

    folder: Path
    runs: dict[int, TrainReport] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """Return mean, standard deviation and the values by seed, of the last and of the best epoch apart.

        ``last`` is the one to report; ``best`` is chosen by its own metrics. The deviation is that of
        a sample (n - 1), None for one seed. ``last_without_text`` is there where the runs read captions.
        """
        results = {str(seed): report.results() for seed, report in self.runs.items()}
        table: dict[str, Any] = {"seeds": list(self.runs)}
        for name, first in next(iter(results.values()), {}).items():
            if all(name in found for found in results.values()):
                table[name] = {"protocol": first["protocol"], "text": first["text"]}
                for metric in METRICS:
                    values = {seed: found[name][metric] for seed, found in results.items()}
                    measured = [value for value in values.values() if value is not None]
                    deviation = stdev(measured) if len(measured) > 1 else None
                    average = mean(measured) if measured else None
                    table[name][metric] = {"mean": average, "std": deviation, "values": values}
        return table


def train_seeds(
    make_model: Callable[[], nn.Module],
    dataset: ReIDDataset,
    recipe: Recipe,
    out: str | Path,
    seeds: int,
    *,
    resume: bool = False,
    **options: Any,
) -> SeedsReport:
    """Train with the seeds ``recipe.seed``, ``recipe.seed + 1``, ... and summarise.

    Args:
        make_model: Makes a fresh model; called under torch's generator set to the run's seed.
        dataset: See `train`.
        recipe: See `train`; its seed is the first one.
        out: Each run is in ``out/seed{n}``, the summary of those that are finished in ``out/summary.json``.
        seeds: How many.
        resume: Continue: finished runs are read, an interrupted one is taken up, the rest is started.
        **options: Further arguments of `train`.

    Returns:
        The reports of all runs.

    Raises:
        FileExistsError: A run is there already and `resume` is False, or something else is.
        ValueError: `seeds` is below 1, or as `train`.
    """
    if seeds < 1:
        raise ValueError(f"the number of seeds must be at least 1, got {seeds}")
    folder, numbers = user_path(out), range(recipe.seed, recipe.seed + seeds)
    on_main(lambda: check_out_folder(folder, ("seed*",)))
    present = [n for n in numbers if (folder / f"seed{n}" / RECIPE).exists()]
    if present and not resume:
        raise FileExistsError(
            f"{folder} has runs already (seed {', '.join(map(str, present))}); "
            "continue them (resume=True, --resume) or take another folder"
        )
    runs: dict[int, TrainReport] = {}
    for seed in numbers:
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            model = make_model()
        runs[seed] = train(model, dataset, replace(recipe, seed=seed), folder / f"seed{seed}", resume=resume, **options)
        on_main(lambda: write_json(folder / "summary.json", SeedsReport(folder, runs).to_dict()))
    return SeedsReport(folder, runs)
