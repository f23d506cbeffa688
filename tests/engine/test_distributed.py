"""Two processes against one: batches, steps, weights, evaluation, extraction, and what goes wrong."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nextreid.engine import distributed, process_group

HERE = Path(__file__).parent
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


def load(name):
    spec = importlib.util.spec_from_file_location(name, HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def torchrun(*words, timeout=900):
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*TORCHRUN, *map(str, words)],
        cwd=HERE.parents[1],
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


class Pair:
    """The runs of two processes and of one."""

    def __init__(self, out):
        ranks, data = load("ranks"), load("conftest")
        self.out = out
        self.report, self.steps, self.model = ranks.run_training(data, out / "single")
        stop = self._interrupt(ranks)
        with pytest.raises(KeyboardInterrupt):
            ranks.run_training(data, out / "one")
        stop()
        self.measured = json.loads(json.dumps(ranks.measurements(data, out / "by one")))
        _, self.heads, _ = ranks.run_several_heads(data, out / "one heads")
        done = torchrun(HERE / "ranks.py", HERE / "conftest.py", out)
        assert done.returncode == 0, done.stderr[-3000:]
        self.told = [json.loads((out / f"rank{rank}.json").read_text()) for rank in range(2)]

    def _interrupt(self, ranks):
        loop = sys.modules[ranks.train.__module__]._Epoch
        run = loop.run

        def interrupted(self, epoch, done):
            if epoch == 2:
                raise KeyboardInterrupt
            return run(self, epoch, done)

        loop.run = interrupted
        return lambda: setattr(loop, "run", run)


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    return Pair(tmp_path_factory.mktemp("pair"))


def test_two_processes_share_the_batches_of_one(pair):
    assert len(pair.steps) == 6 and all(len(told["steps"]) == 6 for told in pair.told)
    for single, *shares in zip(pair.steps, *(told["steps"] for told in pair.told), strict=True):
        whole = json.loads(json.dumps(single["samples"]))
        assert [len(share["samples"]) for share in shares] == [len(whole) // 2] * 2
        assert shares[0]["samples"] + shares[1]["samples"] == whole


def test_two_processes_take_the_steps_of_one(pair):
    for single, *shares in zip(pair.steps, *(told["steps"] for told in pair.told), strict=True):
        assert shares[0]["losses"] == shares[1]["losses"]
        assert shares[0]["losses"] == pytest.approx(single["losses"], rel=1e-4)
    assert pair.told[0]["weights"] == pair.told[1]["weights"]
    ours, theirs = (load_file(pair.out / name / "last" / "model.safetensors") for name in ("run", "single"))
    start = load("ranks").build(0, head={"drop": 0.0}, num_classes=6).state_dict()
    learned = [name for name in theirs if not torch.equal(theirs[name], start[name])]
    apart = torch.cat([(ours[name] - theirs[name]).flatten() for name in learned]).norm()
    moved = torch.cat([(theirs[name] - start[name]).flatten() for name in learned]).norm()
    assert len(learned) > 50 and apart < 0.01 * moved


def test_several_heads_absent_modalities_and_own_losses_are_shared_too(pair):
    first, second = (told["heads"] for told in pair.told)
    assert first == second and first["losses"][0].keys() == {
        "total",
        "identity",
        "triplet",
        "contrast",
        "size",
        "whole",
    }
    for shared, single in zip(first["losses"], pair.heads, strict=True):
        assert shared == pytest.approx(single["losses"], rel=1e-4)


def test_the_second_process_drops_other_features(pair):
    alone, first, second = (
        [step["seed"] for step in steps] for steps in (pair.steps, *(t["steps"] for t in pair.told))
    )
    assert first == alone and not set(first) & set(second)


def test_the_first_process_writes_and_both_report(pair):
    first, second = (told["history"] for told in pair.told)
    assert first == second and len(first) == 3
    rows = [json.loads(line) for line in (pair.out / "run" / "metrics.jsonl").read_text().splitlines()]
    assert rows == first
    logged, alone = (
        [json.loads(line) for line in (pair.out / name / "log.jsonl").read_text().splitlines()]
        for name in ("run", "single")
    )
    assert [row["step"] for row in logged] == [row["step"] for row in alone] == [2, 2, 4, 4, 6, 6]
    norms = [[row["gradient_norm"] for row in rows if "gradient_norm" in row] for rows in (logged, alone)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-3)
    described = json.loads((pair.out / "run" / "recipe.json").read_text())
    assert described["hardware"]["processes"] == 2
    assert not list((pair.out / "run").glob(".*"))


def test_a_run_of_one_process_is_continued_by_two(pair):
    for told in pair.told:
        assert told["resumed"]["epochs"] == 3 and len(told["resumed"]["steps"]) == 4
    for single, other in zip(pair.steps[2:], pair.told[0]["resumed"]["steps"], strict=True):
        assert other["losses"] == pytest.approx(single["losses"], rel=1e-4)


def test_shared_evaluation_is_that_of_one_process_to_the_bit(pair):
    for told in pair.told:
        assert told["measurements"] == pair.measured
    assert len(pair.measured["matrix"]) == 7
    ours, theirs = (load_file(pair.out / name / "embeddings.safetensors") for name in ("vectors", "by one/vectors"))
    assert torch.equal(ours["embedding"], theirs["embedding"])
    assert (pair.out / "vectors/index.csv").read_text() == (pair.out / "by one/vectors/index.csv").read_text()


def test_the_exchanges(pair):
    first, second = (told["exchanges"] for told in pair.told)
    assert (first["world"], first["lists"], first["first"]) == (2, [0, 1, 1], "from 0")
    assert first["rows"] == second["rows"] == [[0.0] * 3] * 2 + [[1.0] * 3] * 2
    assert first["own gradient"] == [[1, 2, 3], [4, 5, 6]] and second["own gradient"] == [[7, 8, 9], [10, 11, 12]]
    assert first["grads"] == second["grads"] == [[2.0, 1.0], None, [5.0, 5.0], [4.0, 6.0]]


def test_what_fails_in_one_process_ends_both_with_one_message(pair):
    first, second = (told["failures"] for told in pair.told)
    assert first.pop("odd").endswith("odd one") and second.pop("odd").endswith("odd one")
    assert first == second
    assert first["exists"].startswith("FileExistsError: ") and "has a run already" in first["exists"]
    assert first["uneven"].startswith("ValueError: num_ids=3") and "2 processes" in first["uneven"]
    assert first["nan"].startswith("FloatingPointError: the loss") and "embeddings of 4 of its samples" in first["nan"]
    assert len(re.findall(r"'\d{3}_\d'", first["nan"])) == 4
    assert "the gradient is not finite in epoch 1, step 1" in first["gradient"]
    assert first["disk"] == "OSError: [Errno 28] No space left on device"
    assert not (pair.out / "uneven").exists()


def test_in_one_process_nothing_is_exchanged():
    rows = torch.zeros(2, 2, requires_grad=True)
    assert distributed.all_gather(rows) is rows and distributed.all_gather_objects([1]) == [1]
    assert (distributed.world_size(), distributed.rank(), distributed.is_main()) == (1, 0, True)
    with process_group("cpu"):
        assert not torch.distributed.is_initialized()
    with pytest.raises(ValueError, match="as it is"):
        distributed.on_main(lambda: (_ for _ in ()).throw(ValueError("as it is")))
