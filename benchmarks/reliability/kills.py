"""Processes that are killed while they write: what is left must be whole, and a run that goes on must end the same."""

import hashlib
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

import nextreid
from nextreid._files import read_tensors, write_tensors
from nextreid.captioning.store import Store
from nextreid.data import load_dataset
from nextreid.engine import get_recipe, train
from nextreid.models import save_model

from .processes import fork, wait

Row = dict[str, Any]


def kills(folder: Path, number: int) -> Iterator[Row]:
    """Kill each writer `number` times at random moments; one row for each."""
    torch.set_num_threads(1)  # a forked process has no other threads
    rng = random.Random(0)
    yield _row("training run", number, *_run(folder, number, rng))
    models = [nextreid.create_model("baseline_tiny", num_classes=3).eval() for _ in range(2)]
    checkpoint, state, store = folder / "checkpoint", folder / "state.safetensors", folder / "answers.jsonl"

    def load_checkpoint() -> None:
        loaded = nextreid.create_model(f"local-dir:{checkpoint}").state_dict()
        states = [model.state_dict() for model in models]
        assert any(all(torch.equal(loaded[key], state[key]) for key in state) for state in states), "two models mixed"

    def load_state() -> None:
        tensors, metadata = read_tensors(state)
        assert (tensors["a"] == metadata["number"]).all(), "two states mixed"

    def answer(number: int) -> None:
        with Store(store, write=True) as answers:
            for row in range(100):
                answers.append({"key": f"{number:016x}{row:016x}", "schema": "s", "cost": 0.0, "text": "x" * 2000})

    def read_answers() -> None:
        with Store(store) as answers:
            assert not answers.damaged and all(len(row["text"]) == 2000 for row in answers.rows())

    yield _row("checkpoint folder", number, *_alternate(
        lambda turn: save_model(models[turn % 2], checkpoint), load_checkpoint, checkpoint, number, rng
    ))  # fmt: skip
    yield _row("tensor file", number, *_alternate(
        lambda turn: write_tensors(state, {"a": torch.full((300_000,), float(turn))}, {"number": turn}),
        load_state, state, number, rng,
    ))  # fmt: skip
    yield _row("store of answers", number, *_alternate(answer, read_answers, store, number, rng))


def _row(target: str, tries: int, right: int, note: str) -> Row:
    return {
        "attack": "SIGKILL", "target": target, "tries": tries, "unharmed": right, "rejected": 0, "wrong": tries - right,
        "note": note,
    }  # fmt: skip


def _run(folder: Path, number: int, rng: random.Random) -> tuple[int, str]:
    """Kill trainings, continue them, and compare each with one that nothing happened to."""
    dataset = load_dataset("synthetic-persons", num_train=4, num_test=3, frames_per_visit=2)
    recipe = get_recipe("tiny", epochs=3, num_ids=4, num_instances=2, eval_every=1)

    def attempt(out: Path) -> None:
        torch.manual_seed(0)
        train(nextreid.create_model("baseline_tiny"), dataset, recipe, out, resume=True, progress=False)

    start = time.perf_counter()
    assert wait(fork(attempt, folder / "whole")) == 0, "the undisturbed run failed"
    seconds = time.perf_counter() - start
    expected, right, kills, runs = _content(folder / "whole"), 0, 0, 0
    while kills < number:
        out, struck = folder / f"run{runs}", 0
        while True:
            child = fork(attempt, out)
            if struck < 5 and kills + struck < number:
                time.sleep(rng.uniform(0.02, 1.0) * seconds)
                os.kill(child, signal.SIGKILL)
            status = wait(child)
            if status == 0:
                break
            if status != -signal.SIGKILL:
                return right, f"a run could not go on: {out}"
            struck += 1
            for name in ("last", "best"):
                if (out / name).exists():
                    nextreid.create_model(f"local-dir:{out / name}")
        right, kills, runs = right + struck * (_content(out) == expected), kills + struck, runs + 1
    return right, f"{runs} runs, each continued to the bits of one that was left alone"


def _content(run: Path) -> tuple[str, list[Any]]:
    """Digest of the last weights, and the rows of the epochs without their times."""
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    weights = hashlib.sha256((run / "last" / "model.safetensors").read_bytes()).hexdigest()
    return weights, [(row["epoch"], row["loss"], row["evaluation"]["mAP"]) for row in rows]


def _alternate(
    write: Callable[[int], object], read: Callable[[], None], target: Path, number: int, rng: random.Random
) -> tuple[int, str]:
    """Write again and again in a process that is killed; after each kill what lies there is read."""
    write(0)
    right, faults = 0, set()
    for turn in range(number):
        child = fork(_forever, write, turn)
        time.sleep(rng.uniform(0.005, 0.15))
        os.kill(child, signal.SIGKILL)
        wait(child)
        try:
            read()
            right += 1
        except Exception as error:  # whatever it is, it is what a user would meet
            faults.add(f"{type(error).__name__}: {error}"[:200])
    write(0)
    left = sorted(path.name for path in target.parent.glob(f".{target.name}*"))
    return right, "; ".join(sorted(faults)) or (f"left lying: {left}" if left else "what lies there is always whole")


def _forever(write: Callable[[int], object], turn: int) -> None:
    while True:
        write(turn)
        turn += 1
