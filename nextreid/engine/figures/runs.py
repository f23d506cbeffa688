"""What run folders say of their epochs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nextreid._files import parse_json, user_path
from nextreid._names import show
from nextreid._schema import mapping, number
from nextreid.viz import Plot, training_plot
from nextreid.viz.plot import get_style
from nextreid.viz.training import METRICS_SHOWN

from ..checkpoint import METRICS

_NUMBERS = mapping(number(-1e30, 1e30))


def training(runs: Mapping[str, str | Path], *, style: str = "light") -> Plot:
    """Draw training runs over each other: losses, learning rates, and the metrics of the epochs that were evaluated.

    Args:
        runs: Run folders by the names to write beside them.
        style: One of `nextreid.viz.STYLES`.

    Returns:
        The plot, whose caption says how far each run has come.

    Raises:
        FileNotFoundError: A folder holds no run with a whole epoch.
        ValueError: What it holds is damaged.
        ImportError: matplotlib is not installed.

    Example:
        >>> training({"next": "runs/next", "baseline": "runs/baseline"})  # doctest: +SKIP
    """
    get_style(style)
    histories = {name: read_history(folder) for name, folder in runs.items()}
    length = "; ".join(
        f"{name}: {len(history)} epoch(s), {sum('evaluation' in row for row in history)} evaluated"
        for name, history in histories.items()
    )
    return training_plot(histories, f"Mean losses and learning rates by epoch. {length}.", style=style)


def read_history(folder: str | Path) -> list[dict[str, Any]]:
    """The rows of a run's whole epochs, in order: what `train` writes into ``metrics.jsonl``.

    Args:
        folder: The run folder; one of its checkpoints, such as ``runs/x/last``, stands for it.

    Raises:
        FileNotFoundError: There is none.
        ValueError: A line is no row of an epoch.
    """
    folder = user_path(folder)
    file = next((place / METRICS for place in (folder, folder.parent) if (place / METRICS).is_file()), None)
    if file is None:
        raise FileNotFoundError(f"{folder} is no run folder, or its first epoch is not whole: there is no {METRICS}")
    rows = []
    for at, line in enumerate(file.read_text(encoding="utf-8").splitlines(), start=1):
        row = parse_json(line, f"{file}, line {at}")
        if not (isinstance(row, dict) and type(row.get("epoch")) is int and type(row.get("evaluation", {})) is dict):
            raise ValueError(f"{file}, line {at} is no row of an epoch: {show(row)}")
        for field in ("loss", "lr"):
            _NUMBERS(f"{file}, line {at}: {field}", row.get(field, {}))
        measured = row.get("evaluation", {})
        _NUMBERS(
            f"{file}, line {at}: evaluation", {n: measured[n] for n in METRICS_SHOWN if measured.get(n) is not None}
        )
        rows.append(row)
    if not rows:
        raise FileNotFoundError(f"{file} is empty: the run has no whole epoch yet")
    return rows
