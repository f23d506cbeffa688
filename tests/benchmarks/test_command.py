"""``python -m benchmarks paper``: list, run and pretrain."""

import json

import pytest

from benchmarks.paper import runs as bench
from benchmarks.paper.command import main
from benchmarks.paper.pretraining import PretrainConfig


@pytest.fixture
def run(capsys, monkeypatch):
    start = PretrainConfig(profile="tiny", patch=8, num_ids=4, epochs=1, batch_ids=2, batch_instances=2)
    monkeypatch.setitem(bench.PRETRAIN, "tiny", start)

    def run(*words):
        capsys.readouterr()
        status = main([str(word) for word in words])
        return status, *capsys.readouterr()

    return run


def test_list_names_rows_and_figures(run):
    status, out, _ = run("list", "table3", "fig4-1")
    lines = out.splitlines()
    assert status == 0 and len(lines) == 6
    assert lines[0].startswith("table3-a") and "mAP 71.0" in lines[0]
    assert lines[4].startswith("fig4-1") and "no figure" in lines[4]
    *every, total = run("list")[1].splitlines()
    assert total.startswith(f"{len(every)} rows; 48 figures of 16 related methods") and set(lines[:-1]) < set(every)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "table6"), ["table6", "table3"]),
        (("run", "table3"), ["--root"]),
        (("run", "table3", "--data", "synthetic-small", "--seeds", "0"), ["--seeds"]),
        (("run", "table3", "--data", "synthetic-small", "--recipe", "authors"), ["authors"]),
        (("run", "table3", "--data", "synthetic-small", "--set", "seed=1"), ["seed"]),
        (("run", "table3", "--data", "synthetic-small", "--set", "wheels=4"), ["wheels", "epochs"]),
        (("run", "table3", "--data", "synthetic-small", "--collect"), ["no finished run"]),
        (("run", "table7", "--data", "synthetic-small"), ["table7-a", "synthetic runs are of persons"]),
        (("run", "table9", "--root", "data"), ["table9-idea", "--captions"]),
        (("pretrain", "--set", "wheels=4"), ["wheels", "epochs"]),
        (("mechanism", "crowds"), ["crowds", "Did you mean 'crowd'"]),
        (("mechanism", "crowd", "--rows", "oracel"), ["oracel", "Did you mean 'oracle'"]),
        (("mechanism", "--seeds", "0"), ["--seeds"]),
        (("mechanism", "--collect"), ["no finished run"]),
    ],
)
def test_mistakes(run, tmp_path, words, said):
    status, out, err = run(*words, "--out", tmp_path / "out")
    assert status == 2 and out == ""
    for word in said:
        assert word in err


@pytest.mark.slow
def test_pretrain_then_run_then_collect(run, tmp_path):
    status, out, _ = run("pretrain", "--profile", "tiny", "--out", tmp_path / "start")
    assert status == 0 and "chance" in out and str(tmp_path / "start") in out
    words = ("run", "table3-a", "--data", "synthetic-tiny", "--start", tmp_path / "start", "--out", tmp_path / "b")
    words += ("--set", "epochs=1", "warmup_epochs=0")
    status, out, err = run(*words)
    assert status == 0 and "[1/1]" in err
    (result,) = (tmp_path / "b" / "runs").glob("*/result.json")
    told = 100 * json.loads(result.read_text())["evaluations"][0]["mAP"]
    assert f"| {told:.1f} |" in out and (tmp_path / "b" / "table3.csv").is_file()
    before = result.stat().st_mtime_ns
    status, again, err = run(*words, "--collect")
    assert status == 0 and again == out and err == ""
    assert result.stat().st_mtime_ns == before
