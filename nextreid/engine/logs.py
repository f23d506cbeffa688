"""Where the values of a training go: ``log.jsonl`` always, and the loggers that the recipe names."""

import contextlib
import json
import logging
import os
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

import torch

from nextreid._disk import name_errors
from nextreid._files import read_json, write_json, write_whole
from nextreid.retrieval import METRICS

from .distributed import is_main, on_main

_logger = logging.getLogger(__name__)

LOG, LOG_RUNS = "log.jsonl", "log_runs.json"
_PROJECT = "nextreid"  # where a logger's own variable of the environment names no other

Log = Callable[[int, Mapping[str, float]], None]
"""Takes a step, counted from the start of the run, and values by name."""


class Logger(Protocol):
    """What a third-party logger is here. Addresses, projects and keys are read from the environment by its package."""

    run: str  # how the logger finds its run again

    def __init__(self, folder: Path, settings: Mapping[str, Any], run: str | None, step: int) -> None:
        """Open a run, or continue `run` behind `step`."""

    def log(self, step: int, values: Mapping[str, float]) -> None:
        """Keep or send values."""

    def close(self, failed: bool) -> None:
        """End the run."""


class _TensorBoard:
    """Event files in ``tensorboard/``; those of a killed process behind the checkpoint are hidden."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], run: str | None, step: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self.run = "tensorboard"
        self._writer = SummaryWriter(str(folder / self.run), purge_step=None if run is None else step + 1)

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        if "epoch" in values:
            self._writer.flush()

    def close(self, failed: bool) -> None:
        self._writer.close()


class _Wandb:
    """Weights & Biases: its files are in ``wandb/``; neither the console's output nor code is sent."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], run: str | None, step: int) -> None:
        import wandb

        self.run = run or uuid.uuid4().hex[:8]
        self._run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", _PROJECT),
            name=os.environ.get("WANDB_NAME", folder.name),
            id=self.run,
            resume="allow",
            dir=str(folder),
            config=dict(settings),
            settings=wandb.Settings(console="off", disable_code=True, disable_git=True),
        )

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class _Trackio:
    """Trackio, in its own database, or where ``TRACKIO_SPACE_ID`` or ``TRACKIO_SERVER_URL`` say."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], run: str | None, step: int) -> None:
        import trackio

        self.run = run or f"{folder.name}-{uuid.uuid4().hex[:8]}"  # its runs are found by name
        with contextlib.redirect_stdout(sys.stderr):  # it prints
            self._run = trackio.init(
                project=os.environ.get("TRACKIO_PROJECT", _PROJECT),
                name=self.run,
                resume="allow",
                config=dict(settings),
                embed=False,
            )
        self._end = trackio.finish

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step)

    def close(self, failed: bool) -> None:
        with contextlib.redirect_stdout(sys.stderr):
            self._end()


class _MLflow:
    """MLflow, at ``MLFLOW_TRACKING_URI``; its report of usage to its makers is off unless the environment says so."""

    def __init__(self, folder: Path, settings: Mapping[str, Any], run: str | None, step: int) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient
        from mlflow.entities import Metric, Param

        self._client, self._metric = MlflowClient(), Metric
        if run is not None:
            self.run = run
            self._client.update_run(run, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _PROJECT)
        found = self._client.get_experiment_by_name(name)
        experiment = self._client.create_experiment(name) if found is None else found.experiment_id
        self.run = self._client.create_run(experiment, run_name=folder.name).info.run_id
        self._client.log_batch(self.run, params=[Param(key, str(value)) for key, value in _flat(settings).items()])

    def log(self, step: int, values: Mapping[str, float]) -> None:
        now = int(1000 * time.time())
        self._client.log_batch(self.run, metrics=[self._metric(name, v, now, step) for name, v in values.items()])

    def close(self, failed: bool) -> None:
        self._client.set_terminated(self.run, "FAILED" if failed else "FINISHED")


# By the recipe's name: the module that must be importable, and the class. The extra has the name, too.
LOGGERS: dict[str, tuple[str, type[Logger]]] = {
    "tensorboard": ("torch.utils.tensorboard", _TensorBoard),
    "wandb": ("wandb", _Wandb),
    "trackio": ("trackio", _Trackio),
    "mlflow": ("mlflow", _MLflow),
}


def check_loggers(names: Sequence[str]) -> None:
    """Raise ImportError, in all processes, if the package of a logger is missing; it names the extra."""

    def check() -> None:
        for name in names:
            try:
                import_module(LOGGERS[name][0]) if name in LOGGERS else None
            except ImportError as error:
                raise ImportError(
                    f"log={name!r} needs the package {name}, which cannot be imported ({error}): "
                    f"pip install 'nextreid[{name}]', or leave it out of the recipe's log"
                ) from error

    on_main(check)


@contextmanager
def open_log(folder: Path, names: Sequence[str], settings: Mapping[str, Any], step: int) -> Iterator[Log]:
    """Give the function ``log(step, values)`` that writes a row of ``log.jsonl`` and tells the loggers, until the end.

    A run that continues behind `step` drops the rows behind it, which a killed process has left and which come again.
    Third parties get no row twice: what was sent to them is not sent again. TensorBoard hides its own. A third-party
    logger that fails, at whatever moment, is reported by one warning and left out until the process ends. Processes
    but the main one log nothing.

    Args:
        folder: The run folder.
        names: `LOGGERS`, and ``"jsonl"``, which is always there.
        settings: What the run is, for JSON; loggers show it beside the values.
        step: The last step that the run's checkpoint holds, 0 at its start.

    Raises:
        OSError: ``log.jsonl`` cannot be written.
    """
    if not is_main():
        yield lambda step, values: None
        return
    path, runs_path = folder / LOG, folder / LOG_RUNS
    runs, sent = _read_runs(runs_path)
    sent = max(sent, _drop_rows(path, step))
    again = {name for name in runs if name != "tensorboard"}  # what these have had they do not get again
    loggers: dict[str, Logger] = {}

    @contextmanager
    def guarded(name: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            loggers.pop(name, None)
            _logger.warning("the logger %r failed and gets no more values of this run: %r", name, error)

    for name in names:
        if name in LOGGERS:
            with guarded(name):
                loggers[name] = LOGGERS[name][1](folder, settings, runs.get(name), step)
                runs[name] = loggers[name].run
    if runs:
        write_json(runs_path, {"sent": sent, **runs})

    def log(step: int, values: Mapping[str, float]) -> None:
        row = {"step": step, **values}
        with name_errors(path), path.open("ab") as file:
            file.write(json.dumps(row).encode() + b"\n")
        for name, logger in list(loggers.items()):
            if name not in again or _place(row) > sent:
                with guarded(name):
                    logger.log(step, values)

    failed = True
    try:
        yield log
        failed = False
    finally:
        for name, logger in list(loggers.items()):
            with guarded(name):
                logger.close(failed)


def _read_runs(path: Path) -> tuple[dict[str, str], tuple[int, int]]:
    """Return the loggers' runs by name, and the place of the last row that they were sent."""
    try:
        runs = read_json(path) if path.exists() else {}
        step, of_epoch = map(int, runs.pop("sent", (0, 0)))
        return {name: str(run) for name, run in runs.items()}, (step, of_epoch)
    except (ValueError, TypeError, AttributeError) as error:
        _logger.warning("%s is damaged, so the loggers begin new runs: %s", path, error)
        return {}, (0, 0)


def _drop_rows(path: Path, step: int) -> tuple[int, int]:
    """Leave the whole rows up to `step` in a log; return the place of its last row before."""
    lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
    rows = [(line, place) for line in lines if (place := _place_of_line(line))]
    write_whole(path, lambda file: file.write_bytes(b"".join(line for line, place in rows if place[0] <= step)))
    return max((place for _, place in rows), default=(0, 0))


def _place_of_line(line: bytes) -> tuple[int, int] | None:
    """Where a line belongs; None if it is not whole."""
    with contextlib.suppress(ValueError, TypeError, KeyError):
        return _place(json.loads(line)) if line.endswith(b"\n") else None
    return None


def _place(row: Mapping[str, Any]) -> tuple[int, int]:
    return int(row["step"]), int("epoch" in row)  # the row of an epoch comes behind that of its last step


def _flat(settings: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {f"{prefix}{name}": value}
    return flat


def epoch_values(row: Mapping[str, Any]) -> dict[str, float]:
    """Return the values of an epoch's row: its mean losses, its seconds, and the metrics of its evaluations."""
    values = {"epoch": row["epoch"], "train_seconds": row["train_seconds"]}
    values |= {f"mean_loss/{name}": value for name, value in row["loss"].items()}
    for field, name in (("evaluation", "eval"), ("evaluation_without_text", "eval_without_text")):
        found = row.get(field, {})
        values |= {f"{name}/{metric}": found[metric] for metric in METRICS if found.get(metric) is not None}
    return values


class Throughput:
    """Images a second since the last reading."""

    def __init__(self) -> None:
        self._start, self._images = time.perf_counter(), 0

    def add(self, images: int) -> None:
        """Count images."""
        self._images += images

    def read(self) -> float:
        """Return the images a second, and begin again."""
        now = time.perf_counter()
        rate = self._images / max(now - self._start, 1e-9)
        self._start, self._images = now, 0
        return round(rate, 1)


def memory_values(device: torch.device) -> dict[str, float]:
    """Return the highest memory so far in GiB: the process's (not on Windows), and that of tensors on a GPU."""
    values = {}
    with contextlib.suppress(ImportError):
        import resource

        unit = 2**30 if sys.platform == "darwin" else 2**20  # macOS gives bytes, Linux KiB
        values["memory/process_gib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 3)
    if device.type == "cuda":
        values["memory/cuda_gib"] = round(torch.cuda.max_memory_allocated(device) / 2**30, 3)
    return values
