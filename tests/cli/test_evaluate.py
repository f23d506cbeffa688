"""``nextreid eval``: sides, matrices, intervals, queries, leaks."""

import json
import re
import shutil

import pytest
from PIL import Image

import nextreid
from nextreid import create_model, save_model
from nextreid.cli import main
from nextreid.data import load_dataset
from nextreid.retrieval import load_result

DATA = ("--dataset", "synthetic-persons", "--dataset-arg", "num_train=4", "num_test=6", "frames_per_visit=3")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one epoch, made once; do not write into it."""
    out = tmp_path_factory.mktemp("eval") / "run"
    fields = ("num_ids=4", "num_instances=2", "epochs=1", "eval_every=0")
    line = ("train", "--model", "next_tiny", *DATA, "--set", *fields, "--out", out, "--no-progress", "--device", "cpu")
    assert main([str(word) for word in line]) == 0
    return out


@pytest.fixture
def run(trained, capsys):
    def run(*more, checkpoint=trained / "last"):
        capsys.readouterr()
        line = ("eval", checkpoint, *DATA, "--device", "cpu", *more)
        status = main([str(word) for word in line])
        return status, *capsys.readouterr()

    return run


def test_sides_of_a_protocol(run, tmp_path):
    file = tmp_path / "results.json"
    status, out, _ = run("--protocol", "camera:tir>rgb", "--json", file, "--no-text")
    told = json.loads(file.read_text())
    (row,) = told["results"]
    assert status == 0 and "[protocol camera:tir>rgb, no captions at test" in out
    assert row["protocol_details"]["query_modalities"] == ["tir"]
    assert row["protocol_details"]["gallery_modalities"] == ["rgb"]
    assert row["averaged"] and "modality parts averaged" in out
    assert told["trained_on"]["dataset"] == "synthetic-persons" == row["trained_on"]["dataset"]
    assert re.fullmatch("[0-9a-f]{16}", row["digest"]) and told["trained_on"]["digest"] == row["digest"]


def test_all_subsets(run, tmp_path):
    file = tmp_path / "results.json"
    status, out, _ = run("--missing", "all", "--json", file)
    lines = out.splitlines()
    assert status == 0 and len(lines) == 2 * 9
    assert lines[0] == "protocol synthetic-persons, with captions at test"
    assert lines[9] == "protocol synthetic-persons, no captions at test"
    assert lines[1].split() == ["shown", "mAP", "rank-1", "rank-5", "rank-10", "mINP", "queries"]
    assert [line.split()[0] for line in lines[2:9]] == [
        "rgb", "nir", "tir", "rgb+nir", "rgb+tir", "nir+tir", "rgb+nir+tir",
    ]  # fmt: skip
    rows = json.loads(file.read_text())["results"]
    assert len(rows) == 14 and [row["text"] for row in rows] == [True] * 7 + [False] * 7
    for line, row in zip(lines[2:9] + lines[11:], rows, strict=True):
        assert line.split()[1] == f"{100 * row['mAP']:.1f}" and line.endswith(f"of {row['queries']}")


def test_every_subset_against_every_one(run, tmp_path):
    file = tmp_path / "results.json"
    status, out, _ = run("--cross", "--no-text", "--json", file)
    title, *lines = out.splitlines()
    rows = {row["protocol"]: row for row in json.loads(file.read_text())["results"]}
    assert (
        status == 0
        and len(rows) == 49
        and len(lines) == 17
        and "parts of the embeddings are averaged" in lines.pop()
        and title.endswith("no captions at test")
    )
    columns = lines[0].split()[3:]
    assert lines[0].startswith("mAP, query down") and lines[8].startswith("rank-1, query down") and len(columns) == 7
    for table, measure in ((lines[1:8], "mAP"), (lines[9:], "rank-1")):
        for line in table:
            query, *numbers = line.split()
            for number, gallery in zip(numbers, columns, strict=True):
                cell = rows[f"synthetic-persons:{query}>{gallery}"]
                assert cell.get("averaged", False) == (query != gallery)
                assert number == f"{100 * cell[measure]:.1f}"


def test_interval_queries_and_reranking(run, tmp_path):
    files = ("--save-queries", tmp_path / "q", "--json", tmp_path / "r.json")
    status, out, _ = run("--bootstrap", "50", "--rerank", *files)
    assert status == 0 and out.count("re-ranked") == 2
    rows = json.loads((tmp_path / "r.json").read_text())["results"]
    intervals = re.findall(r"(\S+) between (\S+) and (\S+) in 95 % of 50 draws of identities", out)
    assert [name for name, *_ in intervals] == ["mAP", "rank-1", "mINP"] * 2
    for row, (_, low, high) in zip(rows, intervals[::3], strict=True):
        told = row["bootstrap"]["mAP"]
        assert (low, high) == (f"{100 * told['low']:.1f}", f"{100 * told['high']:.1f}")
        assert told["low"] <= row["mAP"] <= told["high"] and row["rerank"]["k1"] == 20
        queries = load_result(row["queries_file"])
        assert queries.mAP == row["mAP"] and len(queries.keys) == row["queries"]
    assert sorted(p.name for p in (tmp_path / "q").iterdir()) == [
        "synthetic-persons_no-text.safetensors",
        "synthetic-persons_text.safetensors",
    ]


def test_weights_that_know_the_test_set_are_refused(run, trained, tmp_path):
    for leaf in ("last",):
        shutil.copytree(trained / leaf, tmp_path / leaf)
    file = tmp_path / "last" / "config.json"
    config = json.loads(file.read_text())
    config["pretrained_cfg"]["trained_on"] = {"dataset": "own", "start": {"dataset": "elsewhere"}}
    file.write_text(json.dumps(config))
    asked = []

    def refuse(names, test, allow=False):
        asked.append((list(names), test, allow))
        if not allow:
            raise ValueError("these weights know the test set")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("nextreid.engine.evaluation.reject_leak", refuse)
        status, _, err = run(checkpoint=tmp_path / "last")
        assert status == 2 and "these weights know the test set" in err
        assert run("--allow-leak", "--missing", "all", "--no-text", checkpoint=tmp_path / "last")[0] == 0
    assert asked == [(["own", "elsewhere"], "synthetic-persons", allow) for allow in (False, True)]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--missing", "all", "rgb"), "'all'"),
        (("--cross", "--missing", "rgb"), "with --cross"),
        (("--bootstrap", "-3"), "got -3"),
        (("--cross", "--protocol", "camera:rgb>tir"), "fixes the modalities"),
        (("--protocol", "camera:rgb"), "cannot parse"),
        (("--missing", "uv"), "'uv'"),
    ],
)
def test_mistakes(run, more, message):
    status, out, err = run(*more)
    assert (status, out) == (2, "") and message in err and "Traceback" not in err


def test_a_misspelled_model_gets_a_proposal(capsys):
    assert main(["eval", "next_tinny", "--dataset", "synthetic-persons"]) == 2
    assert "did you mean next_tiny" in capsys.readouterr().err


def test_custom_images_by_their_path(capsys, tmp_path):
    """A folder with a pattern, and a manifest, stand where a dataset's name does."""
    dataset = load_dataset("synthetic-persons", num_train=0, num_test=2, frames_per_visit=2)
    rows = ["RGB,PID,CamID,split"]
    for sample in dataset.query:
        name = f"rgb/{sample.pid}_c{sample.camid}_{sample.key[-6:-4]}.png"
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.fromarray(sample.images[0]).save(tmp_path / name)
        rows.append(f"{name},person{sample.pid},{sample.camid},test")
    (tmp_path / "list.csv").write_text("\n".join(rows) + "\n")
    save_model(create_model("baseline_tiny", modalities=["rgb"]), tmp_path / "rgb-model")
    pattern = ("--pattern", "{modality}/{pid}_c{camid}_{*}.png", "--dataset-arg", "train=0")
    lines = []
    for own in ((tmp_path / "list.csv",), (tmp_path, *pattern)):
        capsys.readouterr()
        words = ["eval", tmp_path / "rgb-model", "--device", "cpu", "--dataset", *own]
        assert main([str(word) for word in words]) == 0
        lines.append(capsys.readouterr().out)
    assert lines[0] == lines[1] and f"{len(dataset.query)} of {len(dataset.query)} queries valid" in lines[0]


def test_no_query_with_a_match_is_a_report(tmp_path, capsys):
    """Images of one identity each: counts, rule and hint, metrics None, and status 1."""
    for number in range(3):
        Image.new("RGB", (8, 16), (40 * number,) * 3).save(tmp_path / f"{number}.png")
    rows = "".join(f"{pid},{number},{number}.png,test\n" for number, pid in enumerate((-1, -1, 5)))
    (tmp_path / "m.csv").write_text(f"pid,camid,rgb,split\n{rows}")
    model = nextreid.create_model("baseline_tiny", modalities=("rgb",))
    nextreid.save_model(model, tmp_path / "model")
    manifest = [str(tmp_path / "model"), "--dataset", "manifest", "--root", str(tmp_path / "m.csv")]
    words = ["--json", str(tmp_path / "out.json"), "--bootstrap", "10", "--device", "cpu"]
    assert main(["eval", *manifest, "--dataset-arg", 'modalities=["rgb"]', *words]) == 1
    (row,) = json.loads((tmp_path / "out.json").read_text())["results"]
    assert row["mAP"] is None and (row["queries"], row["valid_queries"]) == (3, 0)
    shown = capsys.readouterr().out
    assert "no metrics" in shown and row["hint"] in shown and "0 of 3 queries valid" in shown
