"""What a training logs: the rows, through stops and failures, and the third-party loggers."""

import contextlib
import json
import logging
import sqlite3
import struct
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from nextreid.engine import get_recipe, logs, train
from nextreid.models import create_model

TIMED = {"train_seconds", "images_per_second", "memory/process_gib"}
OTHERS = ("wandb", "trackio", "mlflow")


def start(seed=0):
    torch.manual_seed(seed)
    return create_model("baseline_tiny")


def rows_of(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def untimed(rows):
    return [{name: value for name, value in row.items() if name not in TIMED} for row in rows]


def recipe_of(**changes):
    return get_recipe(
        "tiny", **{"epochs": 3, "num_ids": 3, "warmup_epochs": 1, "eval_every": 2, "log_every": 1, **changes}
    )


def interrupt(model, step):
    """Stop a run in a training step, counted from 1."""
    steps = []

    def hook(module, args, output):
        steps.append(module.training)
        if sum(steps) == step:
            raise KeyboardInterrupt

    return model.register_forward_hook(hook)


@pytest.fixture(scope="module")
def whole(dataset, tmp_path_factory):
    """A run without third-party loggers that nothing interrupts."""
    model, folder = start(), tmp_path_factory.mktemp("whole") / "run"
    return train(model, dataset, recipe_of(), folder, progress=False), model


class Recorder:
    """wandb, trackio and mlflow as far as their documentation describes what is called here."""

    def __init__(self, monkeypatch):
        self.rows, self.opened, self.closed = {name: [] for name in OTHERS}, [], []
        self.fail = None
        for name in ("wandb", "trackio"):
            fake = SimpleNamespace(init=self._init(name), finish=lambda name=name: self.closed.append((name, None)))
            fake.Settings = dict
            monkeypatch.setitem(sys.modules, name, fake)
        client = SimpleNamespace(
            get_experiment_by_name=lambda name: None,
            create_experiment=lambda name: "7",
            create_run=lambda experiment, run_name: (
                self.opened.append(("mlflow", run_name)) or SimpleNamespace(info=SimpleNamespace(run_id="run 1"))
            ),
            update_run=lambda run, status: self.opened.append(("mlflow", run)),
            log_batch=self._log_batch,
            set_terminated=lambda run, status: self.closed.append(("mlflow", status)),
        )
        entities = SimpleNamespace(Metric=lambda *values: values, Param=lambda *values: values)
        monkeypatch.setitem(sys.modules, "mlflow", SimpleNamespace(MlflowClient=lambda: client, entities=entities))
        monkeypatch.setitem(sys.modules, "mlflow.entities", entities)

    def _init(self, name):
        def init(**settings):
            self.opened.append((name, settings.get("id", settings["name"])))
            return SimpleNamespace(
                log=lambda values, step: self._log(name, step, values),
                finish=lambda exit_code: self.closed.append((name, exit_code)),
            )

        return init

    def _log_batch(self, run, metrics=(), params=()):
        assert run == "run 1" and all(isinstance(value, str) for _, value in params)
        if metrics:
            self._log("mlflow", metrics[0][3], {name: value for name, value, _, _ in metrics})

    def _log(self, name, step, values):
        if (name, step) == self.fail:
            raise ConnectionError("the server is away")
        assert all(type(value) in (int, float) for value in values.values())
        self.rows[name].append({"step": step, **values})


@pytest.fixture
def others(monkeypatch):
    return Recorder(monkeypatch)


def test_rows_are_those_of_the_steps_and_epochs(whole, dataset):
    report, model = whole
    rows = rows_of(report.folder)
    steps, epochs = ([row for row in rows if ("epoch" in row) is of_epochs] for of_epochs in (False, True))
    assert [row["step"] for row in rows] == [1, 2, 2, 3, 4, 4, 5, 6, 6] and report.last["steps"] == 2
    for epoch, row in zip(epochs, report.history, strict=True):
        assert (epoch["epoch"], epoch["train_seconds"]) == (row["epoch"], row["train_seconds"])
        mine = [step for step in steps if 2 * row["epoch"] - 2 < step["step"] <= 2 * row["epoch"]]
        for name, mean in row["loss"].items():
            assert epoch[f"mean_loss/{name}"] == mean == sum(step[f"loss/{name}"] for step in mine) / 2
        assert {name: step for name, step in mine[0].items() if name.startswith("lr/")} == {
            f"lr/{name}": lr for name, lr in row["lr"].items()
        }
        assert epoch.get("eval/mAP") == row.get("evaluation", {}).get("mAP")
    assert [row["epoch"] for row in epochs if "eval/rank-1" in row] == [2, 3]
    norm = sum((p.grad.double() ** 2).sum() for p in model.parameters() if p.grad is not None).sqrt()
    assert steps[-1]["gradient_norm"] == pytest.approx(norm.item(), rel=1e-5)
    assert all(row["images_per_second"] > 0 and 0.01 < row["memory/process_gib"] < 1000 for row in steps)


def test_rows_come_every_few_steps_and_at_the_end_of_epochs(whole, dataset, tmp_path):
    train(start(), dataset, recipe_of(log_every=3), tmp_path, progress=False)
    assert [row["step"] for row in rows_of(tmp_path) if "epoch" not in row] == [2, 3, 4, 6]


def test_a_killed_run_leaves_the_log_of_an_undisturbed_one_and_no_logger_gets_a_row_twice(
    whole, dataset, tmp_path, others
):
    report, _ = whole
    recipe, folder = recipe_of(log=["wandb", "trackio", "mlflow"]), tmp_path / "run"
    for stop in (2, 4, 4):  # in the first epoch, in the third, and in the third again
        model = start()
        hook = interrupt(model, stop)
        with pytest.raises(KeyboardInterrupt):
            train(model, dataset, recipe, folder, resume=True, progress=False)
        hook.remove()
        with (folder / "log.jsonl").open("ab") as file:
            file.write(b'{"step": 7, "los')  # the process died in the middle of a row
    train(start(), dataset, recipe, folder, resume=True, progress=False)
    assert untimed(rows_of(folder)) == untimed(rows_of(report.folder))
    for name in OTHERS:
        assert untimed(others.rows[name]) == untimed(rows_of(report.folder)), name
        runs = [run for opened, run in others.opened if opened == name]
        assert len(runs) == 4 and len(set(runs)) == (2 if name == "mlflow" else 1)
    assert [status for name, status in others.closed if name == "wandb"] == [1, 1, 1, 0]
    assert [status for name, status in others.closed if name == "mlflow"] == ["FAILED"] * 3 + ["FINISHED"]


def test_a_logger_that_fails_is_left_out_and_changes_no_weight(whole, dataset, tmp_path, others, caplog):
    report, _ = whole
    others.fail = ("mlflow", 3)
    with caplog.at_level(logging.WARNING):
        train(start(), dataset, recipe_of(log=("wandb", "mlflow")), tmp_path / "run", progress=False)
    (warning,) = [record.message for record in caplog.records if record.name == logs.__name__]
    assert "'mlflow'" in warning and "the server is away" in warning
    assert [len(others.rows[name]) for name in ("wandb", "mlflow")] == [9, 3]
    assert untimed(rows_of(tmp_path / "run")) == untimed(rows_of(report.folder))
    ours, theirs = (load_file(run / "last" / "model.safetensors") for run in (tmp_path / "run", report.folder))
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_loggers_begin_again_where_their_runs_are_unknown(dataset, tmp_path, others, caplog):
    recipe = recipe_of(epochs=1, eval_every=0, log="wandb")
    train(start(), dataset, recipe, tmp_path, progress=False)
    for damaged in ("{", "[1]", '{"sent": 3}', '{"sent": ["a", "b"]}'):
        (tmp_path / "log_runs.json").write_text(damaged)
        train(start(), dataset, recipe, tmp_path, resume=True, progress=False)
        assert "log_runs.json is damaged" in caplog.text
        caplog.clear()
    assert len({run for _, run in others.opened}) == 5 and len(others.rows["wandb"]) == 3


def test_a_full_disk_ends_the_training(dataset, tmp_path, monkeypatch):
    real = Path.open

    def full(path, mode="r", *args, **kwargs):
        if mode == "ab":
            raise OSError(28, "No space left on device")
        return real(path, mode, *args, **kwargs)

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(OSError, match=r"cannot write .*log\.jsonl: No space left"):
        train(start(), dataset, recipe_of(), tmp_path / "run", progress=False)


@pytest.mark.parametrize("name", ["tensorboard", *OTHERS])
def test_a_missing_package_is_named_before_the_training(dataset, tmp_path, monkeypatch, name):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard" if name == "tensorboard" else name, None)
    with pytest.raises(ImportError, match=rf"log='{name}' .*nextreid\[{name}\]"):
        train(start(), dataset, recipe_of(log=name), tmp_path / "run", progress=False)
    assert not (tmp_path / "run").exists()


def scalars(folder):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    events = event_accumulator.EventAccumulator(str(folder / "tensorboard"), size_guidance={"scalars": 0})
    events.Reload()
    return {name: [(event.step, event.value) for event in events.Scalars(name)] for name in events.Tags()["scalars"]}


def test_tensorboard_shows_the_rows_once(whole, dataset, tmp_path):
    pytest.importorskip("tensorboard")
    report, _ = whole
    recipe, model = recipe_of(log="tensorboard"), start()
    hook = interrupt(model, 6)
    with pytest.raises(KeyboardInterrupt):
        train(model, dataset, recipe, tmp_path, progress=False)
    hook.remove()
    train(start(), dataset, recipe, tmp_path, resume=True, progress=False)
    shown = scalars(tmp_path)
    for name in ("loss/total", "gradient_norm", "mean_loss/triplet", "eval/mAP"):
        expected = [(row["step"], row[name]) for row in rows_of(report.folder) if name in row]
        assert [step for step, _ in shown[name]] == [step for step, _ in expected]
        assert [value for _, value in shown[name]] == pytest.approx([value for _, value in expected], rel=1e-6)


REAL = """
import importlib.util, sys
from pathlib import Path
spec = importlib.util.spec_from_file_location("test_logs", sys.argv[1])
test = importlib.util.module_from_spec(spec)
spec.loader.exec_module(test)
spec = importlib.util.spec_from_file_location("conftest", Path(sys.argv[1]).with_name("conftest.py"))
data = importlib.util.module_from_spec(spec)
spec.loader.exec_module(data)
model, name, stop = test.start(), sys.argv[2], int(sys.argv[4])
if stop:
    test.interrupt(model, stop)
try:
    test.train(model, data.make_dataset(), test.recipe_of(log=name), Path(sys.argv[3]), resume=True, progress=False)
except KeyboardInterrupt:
    pass
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", OTHERS)
def test_the_real_loggers_take_an_interrupted_run(whole, tmp_path, monkeypatch, name):
    """Without a network, each in a process of its own."""
    pytest.importorskip(name)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlflow").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    for stop in (6, 0):
        words = [sys.executable, "-c", REAL, __file__, name, str(tmp_path / "run"), str(stop)]
        done = subprocess.run(words, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0 and done.stdout == "", done.stderr
        assert "gets no more values" not in done.stderr, done.stderr
    expected = [row["step"] for row in rows_of(whole[0].folder) if "loss/total" in row]
    assert READERS[name](tmp_path) == expected


def wandb_steps(folder):
    """Steps of the history records in wandb's files, which are logs of LevelDB's format behind seven bytes."""
    from wandb.proto import wandb_internal_pb2

    steps = []
    for file in sorted((folder / "run" / "wandb").glob("offline-run-*/*.wandb")):
        data, at, whole = file.read_bytes(), 7, b""
        while at < len(data):
            if 2**15 - at % 2**15 < 7:  # the rest of a block, too short for a header
                at += 2**15 - at % 2**15
                continue
            size, kind = struct.unpack("<HB", data[at + 4 : at + 7])
            whole = (b"" if kind in (1, 2) else whole) + data[at + 7 : at + 7 + size]  # whole or first, middle, last
            at += 7 + size
            if kind in (1, 4):
                history = wandb_internal_pb2.Record.FromString(whole).history
                if "loss/total" in [item.key or "/".join(item.nested_key) for item in history.item]:
                    steps.append(history.step.num)
    return steps


def trackio_steps(folder):
    with contextlib.closing(sqlite3.connect(folder / "trackio" / "nextreid.db")) as database:
        rows = database.execute("SELECT step, metrics FROM metrics ORDER BY id").fetchall()
    return [step for step, metrics in rows if '"loss/total"' in bytes(metrics).decode()]


def mlflow_steps(folder):
    (metric,) = (folder / "mlflow").glob("*/*/metrics/loss/total")
    return [int(line.split()[2]) for line in metric.read_text().splitlines()]


READERS = {"wandb": wandb_steps, "trackio": trackio_steps, "mlflow": mlflow_steps}
