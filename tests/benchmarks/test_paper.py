"""The paper's tables as data, and the harness that runs their rows."""

import csv
import dataclasses
import json
import shutil
import sys

import pytest
import torch

from benchmarks.paper import runs as bench
from benchmarks.paper.page import load_methods, write_page
from benchmarks.paper.pretraining import PretrainConfig
from benchmarks.paper.rows import TRACKS, BenchRow, load_published, load_rows, recipes_folder, select_rows
from benchmarks.paper.runs import BenchSettings, finished, held_out, kept_share, run_bench, run_unit, unit_of
from benchmarks.paper.tables import markdown, mean_interval, result_rows, write_tables
from nextreid.models import create_model, is_model, list_models
from nextreid.synthetic import synthetic_persons

ROWS = load_rows()
SMALL = BenchSettings(out=None, data="synthetic-small")  # type: ignore[arg-type]


@pytest.fixture
def settings(tmp_path, monkeypatch):
    """Seconds instead of minutes: eight identities, one epoch."""
    persons = {}

    def tiny(key):
        options = json.loads(key)
        persons.setdefault(
            key,
            synthetic_persons(
                "tiny",
                num_train=8,
                num_test=4,
                frames_per_visit=2,
                **{name: value for name, value in options.items() if name != "name"},
            ).dataset,
        )
        return persons[key]

    start = PretrainConfig(profile="tiny", patch=8, num_ids=4, epochs=1, batch_ids=2, batch_instances=2)
    monkeypatch.setattr(bench, "_dataset", tiny)
    monkeypatch.setitem(bench.PRETRAIN, "tiny", start)
    fields = {"epochs": 1, "num_ids": 4, "num_instances": 2, "warmup_epochs": 0}
    return BenchSettings(out=tmp_path / "bench", data="synthetic-tiny", overrides=fields)


@pytest.fixture(scope="module")
def paper(tmp_path_factory):
    """Settings of the published data, with folders in the places of the captions."""
    folder = tmp_path_factory.mktemp("captions")
    for source in ("NEXT", "IDEA"):
        for name in ("RGBNT201", "MSVR310", "RGBNT100", "WMVEID863"):
            (folder / source / name).mkdir(parents=True)
    return BenchSettings(out=folder, root=folder, captions=folder)


def count(model):
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def test_every_table_is_there():
    tables = {}
    for row in ROWS.values():
        tables.setdefault(row.table, []).append(row)
    methods = {row.tiny.removesuffix("_tiny") for row in tables.pop("table1")}
    assert methods == {name.removesuffix("_tiny") for name in list_models("*_tiny")}
    sizes = {table: len(rows) for table, rows in tables.items()}
    assert sizes == {
        "table2": 3,
        "table3": 4,
        "table4": 4,
        "table5": 5,
        "table7": 4,
        "table8": 4,
        "table9": 2,
        "fig4": 4,
        "controls": 6,
    }
    # The paper prints its full model in six tables: the figure is one, and so is the run.
    full = [ROWS[name] for name in ("table1-next", "table3-d", "table4-d", "table5-100", "table8-d", "table9-next")]
    assert {(row.paper["mAP"], row.paper["rank-1"]) for row in full} == {(82.4, 86.6)}
    assert ROWS["table1-unicat"].paper == {"mAP": 57.0, "rank-1": 55.7}  # of the published figures
    assert ROWS["table7-d"].paper["mAP"] == ROWS["table2-msvr310"].paper["mAP"] == 60.8
    for row in ROWS.values():
        values = [row.paper[m] for m in ("rank-1", "rank-5", "rank-10") if m in row.paper]
        assert values == sorted(values) and all(0 < value < 100 for value in row.paper.values())
        assert (not row.paper) == (row.table in ("fig4", "controls"))


def test_published_figures_are_facts_of_two_tables():
    published = load_published()
    assert {figure["table"] for figure in published} == {"table1", "table2"}
    found = {(f["method"], f["dataset"]): (f["mAP"], f["rank-1"]) for f in published}
    assert len(found) == len(published)
    assert found["IDEA", "rgbnt201"] == (80.2, 82.1) and found["ICPL-ReID", "msvr310"] == (56.9, 77.7)
    assert ("IDEA", "wmveid863") not in found


@pytest.mark.parametrize("name", sorted(ROWS))
def test_every_row_builds_at_both_sizes(name, paper):
    """On meta tensors: the arguments are ones that the models take."""
    row = ROWS[name]
    units = [unit_of(row, 0, SMALL, ROWS)] if row.dataset == "rgbnt201" else []
    if row.captions != "shuffled":
        units.append(unit_of(row, 0, paper, ROWS))
    for unit in units:
        with torch.device("meta"):
            model = create_model(unit.model, num_classes=100, **unit.arguments)
        assert model.uses_text == row.reads_text
        assert model.text_tower is not None or not row.reads_text
        assert unit.recipe["caption_quality"] == row.caption_quality


def test_the_widened_row_has_as_many_parameters(paper):
    for settings in (SMALL, paper):
        sizes = []
        for name in ("table3-d", "controls-wide"):
            unit = unit_of(ROWS[name], 0, settings, ROWS)
            with torch.device("meta"):
                sizes.append(count(create_model(unit.model, num_classes=100, **unit.arguments)))
        assert sizes[1] == pytest.approx(sizes[0], rel=0.02)


def test_rows_that_agree_share_a_run_and_others_do_not(paper):
    full = ["table1-next", "table3-d", "table4-d", "table5-100", "table8-d", "table9-next", "fig4-3", "controls-full"]
    digests = {name: unit_of(row, 0, SMALL, ROWS).digest for name, row in ROWS.items() if row.dataset == "rgbnt201"}
    assert len({digests[name] for name in full}) == 1
    others = [digest for name, digest in digests.items() if name not in full]
    assert len(set(others)) == len(others) and digests["table3-d"] not in others
    assert unit_of(ROWS["table3-d"], 1, SMALL, ROWS).digest != digests["table3-d"]
    changed = dataclasses.replace(SMALL, overrides={"epochs": 3})
    assert unit_of(ROWS["table3-d"], 0, changed, ROWS).digest != digests["table3-d"]
    moved = [dataclasses.replace(paper, root=root) for root in ("a", "b")]
    assert len({unit_of(ROWS["table3-d"], 0, settings, ROWS).digest for settings in moved}) == 1
    busy = dataclasses.replace(SMALL, overrides={"workers": 2})
    assert unit_of(ROWS["table3-d"], 0, busy, ROWS).digest == digests["table3-d"]


def test_data_network_and_training_follow_the_seed_and_authors_their_recipe(paper):
    unit = unit_of(ROWS["controls-shuffled"], 7, SMALL, ROWS)
    assert unit.data == {"name": "synthetic-small", "seed": 7, "caption_source": "shuffled"}
    assert unit.recipe["seed"] == 7 and unit.start["data_seed"] != 7
    assert unit_of(ROWS["table1-next"], 0, paper, ROWS).recipe["name"] == "next"
    # batch and images of an identity, as the authors of IDEA have them (WMVEID863: as others do who use it)
    sizes = {
        "table1-next": (64, 8),
        "table2-msvr310": (64, 8),
        "table2-rgbnt100": (128, 16),
        "table2-wmveid863": (64, 4),
    }
    for name, (batch, instances) in sizes.items():
        recipe = unit_of(ROWS[name], 0, dataclasses.replace(paper, recipe="authors"), ROWS).recipe
        assert (recipe["num_ids"] * recipe["num_instances"], recipe["num_instances"]) == (batch, instances)
        assert recipe["lr_tower"] == recipe["lr_new"] == 3.5e-6 and recipe["lr_noise"] == 0.67
        assert recipe["eval_interpolation"] == "bilinear" and recipe["geometry"] == "independent"


def test_rows_refuse_data_on_which_they_would_be_other_rows(tmp_path):
    bare = BenchSettings(out=tmp_path, root=tmp_path)
    silent = dataclasses.replace(bare, overrides={"text": False})
    for name in ("table9-next", "table9-idea", "table5-035", "table5-100"):
        for settings in (bare, silent):
            with pytest.raises(ValueError, match=rf"{name}.*--captions"):
                unit_of(ROWS[name], 0, settings, ROWS)
    with pytest.raises(ValueError, match=r"table3-d.*text=false"):
        unit_of(ROWS["table3-d"], 0, bare, ROWS)
    assert unit_of(ROWS["table3-d"], 0, silent, ROWS).recipe["text"] is False
    assert unit_of(ROWS["table3-b"], 0, bare, ROWS).data == {"name": "rgbnt201", "root": str(tmp_path)}
    for name in ("table7-a", "table2-rgbnt100"):
        with pytest.raises(ValueError, match=rf"{name}.*synthetic runs are of persons"):
            unit_of(ROWS[name], 0, SMALL, ROWS)


def test_select():
    assert [row.name for row in select_rows(["table8", "table3-a", "table8-b"], ROWS)] == [
        "table8-a",
        "table8-b",
        "table8-c",
        "table8-d",
        "table3-a",
    ]
    assert len(select_rows(["all"], ROWS)) == len(ROWS)
    with pytest.raises(KeyError, match="table3"):
        select_rows(["table6"], ROWS)


def test_files_that_are_no_rows(tmp_path):
    shutil.copytree(recipes_folder(), tmp_path / "r")
    assert load_rows(tmp_path / "r") == ROWS
    (tmp_path / "r" / "odd.json").write_text('{"table": "x", "wheel": 4}')
    with pytest.raises(ValueError, match=r"odd\.json.*wheel"):
        load_rows(tmp_path / "r")
    text = json.dumps({"table": "x", "row": "1", "title": "t", "dataset": "d", "reference": "nobody"})
    (tmp_path / "r" / "odd.json").write_text(text)
    with pytest.raises(ValueError, match="nobody"):
        load_rows(tmp_path / "r")
    with pytest.raises(ValueError, match="captions"):
        BenchRow(name="x", table="x", row="", title="", dataset="", captions="mine")


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"data": "imagenet"}, "synthetic-small"),
        ({"data": "paper"}, "root"),
        ({"data": "synthetic-small", "recipe": "authors"}, "authors"),
        ({"data": "synthetic-small", "recipe": "fast"}, "clean, authors"),
    ],
)
def test_settings_that_do_not_fit(fields, words):
    with pytest.raises(ValueError, match=words):
        BenchSettings(out=None, **fields)


def test_captions_are_found_below_their_authors(tmp_path):
    paper = BenchSettings(out=tmp_path, root=tmp_path, captions=tmp_path)
    with pytest.raises(FileNotFoundError, match="RGBNT201"):
        unit_of(ROWS["table1-next"], 0, paper, ROWS)
    (tmp_path / "IDEA" / "RGBNT201").mkdir(parents=True)
    unit = unit_of(ROWS["table9-idea"], 0, paper, ROWS)
    assert unit.data["captions"] == str(tmp_path / "IDEA" / "RGBNT201")
    with pytest.raises(ValueError, match="synthetic"):
        unit_of(ROWS["controls-shuffled"], 0, paper, ROWS)


@pytest.mark.slow
def test_a_bench_from_pretraining_to_tables(settings, monkeypatch):
    rows = select_rows(["table3-a", "table3-c", "controls-shuffled", "table3-d"], ROWS)
    rows.append(ROWS["table8-d"])  # the run of table3-d
    told = []
    results = run_bench(rows, [0], settings, done=lambda result, done, total: told.append((done, total)))
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)] and len(results) == 5
    assert results[3]["digest"] == results[4]["digest"] != results[2]["digest"]
    control, full = results[0], results[3]
    assert [report["text"] for report in control["evaluations"]] == [False] and control["kept"] == []
    assert [report["text"] for report in full["evaluations"]] == [True, False]
    assert len(full["kept"]) == 3 and all(0 <= share <= 1 for expert in full["kept"] for share in expert)
    assert full["epochs"] == 1 and full["data"]["test_ids"] == 4 and full["machine"]["torch"] == torch.__version__
    # A second call runs nothing; `finished` agrees with it.
    monkeypatch.setattr(bench, "train", None)
    again = run_bench(rows, [0], settings)
    assert again == json.loads(json.dumps(results)) == finished(rows, [0], settings)
    assert finished(rows, [0, 1], settings) == again  # seed 1 is open
    paths = write_tables(results, rows, settings.out, synthetic=True)
    assert [path.name for path in paths] == [
        "table3.csv",
        "table3.md",
        "controls.csv",
        "controls.md",
        "table8.csv",
        "table8.md",
    ]
    lines = list(csv.DictReader(paths[0].open()))
    assert [(line["name"], line["text_at_test"]) for line in lines] == [
        ("table3-a", "no"),
        ("table3-c", "yes"),
        ("table3-c", "no"),
        ("table3-d", "yes"),
        ("table3-d", "no"),
    ]
    assert float(lines[3]["mAP"]) == pytest.approx(full["evaluations"][0]["mAP"], abs=1e-5)
    assert lines[0]["dataset"] == "synthetic-persons" and "synthetic-persons: mAP" in paths[1].read_text()
    assert "generator version" in lines[0]["data_note"] and lines[0]["protocol"] == "synthetic-persons"
    shown = paths[1].read_text()
    assert f"{100 * full['evaluations'][0]['mAP']:.1f}" in shown and "+11.4" in shown  # 82.4 - 71.0, the paper's gap


@pytest.mark.slow
def test_an_interrupted_run_continues_to_the_same_numbers(settings, monkeypatch):
    unit = unit_of(ROWS["table3-a"], 0, dataclasses.replace(settings, overrides={**settings.overrides, "epochs": 2}))
    start = bench.prepare_start(settings)
    whole = run_unit(unit, settings.out / "whole", start)

    class Killed(Exception):
        pass

    def save_and_die(*args):
        save_state(*args)
        raise Killed

    loop = sys.modules["nextreid.engine.trainer"]
    save_state = loop.save_state
    monkeypatch.setattr(loop, "save_state", save_and_die)
    with pytest.raises(Killed):
        run_unit(unit, settings.out / "cut", start)
    metrics = settings.out / "cut" / bench.RUNS / unit.digest / "metrics.jsonl"
    assert len(metrics.read_text().splitlines()) == 1  # it died after the first of two epochs
    assert not (settings.out / "cut" / bench.RUNS / unit.digest / bench.RESULT).exists()
    monkeypatch.setattr(loop, "save_state", save_state)
    again = run_unit(unit, settings.out / "cut", start)
    assert again["evaluations"][0]["mAP"] == whole["evaluations"][0]["mAP"] and again["epochs"] == 2


def test_a_run_that_diverges_stays_in_the_tables(settings, monkeypatch):
    def diverges(*args, **kwargs):
        raise FloatingPointError("the loss is not finite in epoch 1")

    monkeypatch.setattr(bench, "train", diverges)
    rows = [ROWS["table3-a"]]
    (result,) = run_bench(rows, [0], settings)
    assert "not finite" in result["error"]
    (line,) = result_rows([result])
    assert line["mAP"] == "" and "not finite" in line["error"]
    assert "Failed: table3-a seed 0" in markdown([result], [rows[0].to_dict()], synthetic=True)


def test_kept_share_counts_tokens():
    people = synthetic_persons("tiny", num_test=4, frames_per_visit=2, splits=("test",)).dataset
    model = create_model("next_tiny", head={"sampling": "random", "sampling_keep_ratio": 0.25})
    assert kept_share(model, people) == [[0.25] * 3] * 3
    assert kept_share(create_model("baseline_tiny"), people) == []


def test_held_out_identities_come_from_train_alone():
    people = synthetic_persons("tiny", num_train=10, num_test=4, frames_per_visit=2).dataset
    split = held_out(people, 0.3)
    kept, away = ({s.pid for s in part} for part in (split.train, split.query))
    assert len(kept) == 7 and len(away) == 3 and kept | away == {s.pid for s in people.train} and not kept & away
    assert max(kept) < min(away) and split.query == split.gallery


def test_mean_interval_is_students():
    mean, half = mean_interval([1.0, 2.0, 3.0])
    assert mean == 2.0 and half == pytest.approx(4.303 / 3**0.5)
    assert mean_interval([5.0]) == (5.0, None)
    assert mean_interval([1.0, 3.0])[1] == pytest.approx(12.706)
    assert mean_interval([0.0, 2.0] * 20)[1] == pytest.approx(1.96 * 1.01274 / 40**0.5, rel=1e-4)


def fake(name, seed, numbers, text=True):
    reports = [
        {"mAP": mAP, "rank-1": 0.5, "rank-5": 0.6, "rank-10": 0.7, "mINP": 0.1, "text": text and i == 0}
        for i, mAP in enumerate(numbers)
    ]
    return {"row": ROWS[name].to_dict(), "seed": seed, "digest": "d", "evaluations": reports}


def test_markdown_pairs_seeds():
    """Row C beats row A by 10 in both of their common seeds, whatever the seeds' own levels and the odd seed out."""
    results = [
        fake("table3-a", 0, [0.2], text=False),
        fake("table3-a", 1, [0.6], text=False),
        fake("table3-c", 0, [0.3, 0.25]),
        fake("table3-c", 1, [0.7, 0.65]),
        fake("table3-c", 2, [0.9, 0.9]),
    ]
    rows = [ROWS[name].to_dict() for name in ("table3-a", "table3-c", "table3-d")]
    lines = [line.split("|") for line in markdown(results, rows, synthetic=True).splitlines()]
    a, c, d = ([cell.strip() for cell in line] for line in lines[2:5])
    assert (a[1], a[4], a[5], a[7], a[8], a[9]) == ("A", "2", "40.0 ± 28.3", "–", "–", "–")
    assert (c[4], c[5], c[7]) == ("3", "63.3 ± 30.6", "60.0 ± 32.8")
    assert c[8] == "+10.0 [+10.0, +10.0]" and c[9] == "+7.9"
    assert (d[4], d[5], d[8]) == ("0", "–", "–")
    real = markdown(results, rows, synthetic=False).splitlines()
    assert "mAP − paper's" in real[0] and "-15.6" in real[3]  # 63.3 - 78.9


def test_every_method_is_in_the_zoo_or_is_not_for_a_reason():
    methods = {method.method: method for method in load_methods()}
    assert {figure["method"] for figure in load_published()} <= methods.keys()
    here = {method.here for method in methods.values() if method.here}
    families = {name.removesuffix("_tiny") for name in list_models("*_tiny")}
    assert {name for name in here if name in families or not is_model(name)} == families - {"baseline"}
    assert all(list_models(f"{name}*") for name in here)
    assert methods["DeMo"].figures["msvr310"] == [49.2, 59.8] and methods["DeMo"].venue == "AAAI25"
    assert all(method.track in TRACKS[1:] for method in methods.values())


def test_a_page_gets_its_tables_between_its_lines(tmp_path):
    page = tmp_path / "zoo.md"
    page.write_text(
        "# A\n<!-- begin: models -->\nold\n<!-- end: models -->\nb\n<!-- begin: methods --><!-- end: methods -->"
    )
    with pytest.raises(ValueError, match="begin: methods"):
        write_page(page)
    page.write_text(
        "# A\n<!-- begin: models -->\nold\n<!-- end: models -->\nb\n<!-- begin: methods -->\n<!-- end: methods -->"
    )
    write_page(page)
    once = page.read_text()
    assert "old" not in once and "| `next_tiny` | NEXT on a four-layer tower" in once and "\nb\n" in once
    write_page(page)
    assert page.read_text() == once
