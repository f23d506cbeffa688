"""Every command through `main`, a few through the interpreter, and what each mistake answers."""

import csv
import importlib
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import nextreid
from nextreid.cli import main

COMMANDS = ("demo", "train", "eval", "extract", "models", "data", "captions")
DATA = ("--dataset", "synthetic-persons", "--dataset-arg", "num_train=4", "num_test=4", "frames_per_visit=4")
FIELDS = ("epochs=1", "num_ids=4", "num_instances=2", "eval_every=1")
NUMBERS = re.compile(r"mAP \d+\.\d  rank-1 \d+\.\d  rank-5 \d+\.\d  rank-10 \d+\.\d  mINP \d+\.\d  \[protocol")


@pytest.fixture
def run(capsys):
    """Run a command; return (status, stdout, stderr)."""

    def run(*words):
        capsys.readouterr()
        status = main([str(word) for word in words])
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def mistake(run):
    """Run a command that must answer with status 2 and one line on stderr without traceback; return the line."""

    def mistake(command, *words):
        status, out, err = run(command, *words)
        lines = err.splitlines()
        assert status == 2 and out == "" and "Traceback" not in err
        assert lines[-1].startswith(f"nextreid {command}: ")
        return lines[-1]

    return mistake


def train_words(out, *more, fields=FIELDS, data=DATA, model="next_tiny"):
    return ("train", "--model", model, *data, "--set", *fields, "--out", out, "--no-progress", "--device", "cpu", *more)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of one epoch, made once; do not write into it."""
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main([str(word) for word in train_words(folder)]) == 0
    return folder


@pytest.fixture
def images(tmp_path):
    """Two samples, the second without a thermal image."""
    for number, modality in enumerate(("rgb", "nir", "tir")):
        folder = tmp_path / "images" / modality
        folder.mkdir(parents=True)
        for name in ("a", "b")[: 1 if modality == "tir" else 2]:
            pixels = np.random.default_rng(number + ord(name)).integers(0, 256, (20, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{name}.png")
    return tmp_path / "images"


# help and listing


@pytest.mark.parametrize("command", COMMANDS)
def test_help(command, capsys):
    with pytest.raises(SystemExit) as done:
        main([command, "--help"])
    shown = capsys.readouterr().out
    assert done.value.code == 0 and f"usage: nextreid {command}" in shown
    assert ("example:\n" in shown) == (command in ("train", "eval", "demo"))
    assert ("SOURCE is a CSV manifest" in shown) == (command == "extract")


def test_help_of_all_names_every_command(capsys):
    with pytest.raises(SystemExit) as done:
        main(["--help"])
    shown = capsys.readouterr().out
    assert done.value.code == 0
    assert all(re.search(rf"^    {command} ", shown, re.MULTILINE) for command in COMMANDS)


@pytest.mark.parametrize("words", [[], ["fly"], ["train"], ["eval", "x"], ["models", "--what"]])
def test_what_does_not_parse_is_refused_with_the_usage(words, capsys):
    with pytest.raises(SystemExit) as done:
        main(words)
    assert done.value.code == 2 and "usage: nextreid" in capsys.readouterr().err


def test_version_through_the_interpreter():
    done = subprocess.run([sys.executable, "-m", "nextreid", "--version"], capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout.strip()) == (0, f"nextreid {nextreid.__version__}")


def test_models_are_listed_with_what_they_are(run):
    status, out, err = run("models")
    assert (status, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == nextreid.list_models()
    assert all(len(line.split()) > 3 for line in out.splitlines())


def test_models_by_wildcard_and_by_weights(run):
    assert [line.split()[0] for line in run("models", "next_*")[1].splitlines()] == nextreid.list_models("next_*")
    assert [line.split()[0] for line in run("models", "baseline_[ct]*", "next_tiny")[1].splitlines()] == [
        "baseline_clip_b16",
        "baseline_tiny",
        "next_tiny",
    ]
    with_weights = [line.split()[0] for line in run("models", "--pretrained")[1].splitlines()]
    assert {"next_clip_b16", "next_tiny.synthetic_persons"} <= set(with_weights) and "next" not in with_weights


def test_no_model_matches(mistake):
    assert "no model matches 'resnet*'" in mistake("models", "resnet*")


# train and eval


def test_a_run_and_its_numbers(trained, tmp_path, run):
    shutil.copytree(trained, tmp_path / "run")
    status, out, err = run(*train_words(tmp_path / "run", "--resume"))
    assert status == 0 and "Traceback" not in err
    last, without, best, place = out.splitlines()
    assert last.startswith("last epoch 1: ") and best.startswith("best epoch (chosen by these very metrics) 1: ")
    assert NUMBERS.search(last) and "protocol synthetic-persons, with captions at test" in last
    assert without.startswith("last epoch 1: ") and "no captions at test" in without
    assert place == f"run folder: {tmp_path / 'run'}"
    assert (trained / "last" / "model.safetensors").is_file() and (trained / "best" / "config.json").is_file()
    described = json.loads((trained / "recipe.json").read_text())
    assert described["recipe"]["name"] == "tiny" and described["recipe"]["num_ids"] == 4
    assert described["dataset"]["name"] == "synthetic-persons" and described["model"]["architecture"] == "next_tiny"


def test_an_interrupted_run_resumes_to_the_same_weights(tmp_path, run, monkeypatch):
    def words(name):
        return train_words(tmp_path / name, fields=("epochs=2", *FIELDS[1:3], "eval_every=0"), model="baseline_tiny")

    torch.manual_seed(0)
    status, out, _ = run(*words("whole"))
    assert status == 0 and out == f"run folder: {tmp_path / 'whole'}\n"  # without evaluations there are no numbers

    loop = importlib.import_module("nextreid.engine.trainer")._Epoch
    whole_epoch = loop.run

    def interrupted(self, epoch, done):
        if epoch == 2:
            raise KeyboardInterrupt
        return whole_epoch(self, epoch, done)

    torch.manual_seed(0)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "run", interrupted)
        assert run(*words("cut"))[::2] == (130, "interrupted\n")
    assert run(*words("cut"), "--resume")[0] == 0
    whole, cut = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("whole", "cut"))
    assert whole.keys() == cut.keys() and all(torch.equal(whole[name], cut[name]) for name in whole)


def test_model_arguments_and_recipe_reach_the_run(tmp_path, run):
    words = train_words(tmp_path / "run", "--model-arg", 'head={"sampling": "topk", "num_semantic_experts": 2}')
    assert run(*words, "--recipe", "next-eq12", "--set", *FIELDS, "amp=off", "workers=0", "eval_every=0")[0] == 0
    described = json.loads((tmp_path / "run" / "recipe.json").read_text())
    head = described["model"]["head"]
    assert (head["sampling"], head["num_semantic_experts"]) == ("topk", 2)
    assert (described["recipe"]["name"], described["recipe"]["identity_weight"]) == ("next-eq12", 1.0)
    assert not (tmp_path / "run" / "best").exists()


def test_eval_prints_with_captions_and_without(trained, tmp_path, run):
    target = tmp_path / "results.json"
    status, out, _ = run("eval", trained / "last", *DATA, "--json", target)
    with_text, without = out.splitlines()
    assert status == 0 and NUMBERS.match(with_text) and NUMBERS.match(without)
    assert ", with captions at test," in with_text and ", no captions at test," in without
    written = json.loads(target.read_text())
    assert written["checkpoint"] == str(trained / "last") and written["dataset"] == "synthetic-persons"
    assert [row["text"] for row in written["results"]] == [True, False]
    for line, row in zip((with_text, without), written["results"], strict=True):
        assert line.startswith(f"mAP {100 * row['mAP']:.1f}  ")
    last = json.loads((trained / "metrics.jsonl").read_text())["evaluation"]
    assert written["results"][0]["mAP"] == pytest.approx(last["mAP"], abs=1e-6)


def test_eval_conditions(trained, run):
    status, out, _ = run("eval", trained / "best", *DATA, "--missing", "nir", "tir", "--no-text", "--protocol", "none")
    assert status == 0 and len(out.splitlines()) == 1
    assert "[protocol none, no captions at test, without nir, tir, " in out


def test_eval_without_captions_in_the_data_prints_one_line(trained, run):
    status, out, _ = run("eval", trained / "last", *DATA, "caption_source=empty")
    assert status == 0 and len(out.splitlines()) == 1 and "no captions at test" in out


def test_eval_through_the_interpreter(trained):
    words = [sys.executable, "-m", "nextreid", "eval", str(trained / "last"), *DATA, "--device", "cpu"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert [NUMBERS.match(line) is not None for line in done.stdout.splitlines()] == [True, True]


# extract


def test_extract_a_folder(trained, images, tmp_path, run, caplog):
    status, out, _ = run("extract", trained / "last", images, "--out", tmp_path / "out", "--device", "cpu")
    assert status == 0 and out.startswith("2 embeddings of 768 numbers: ") and "1 of 2 samples lack tir" in caplog.text
    vectors = load_file(tmp_path / "out" / "embeddings.safetensors")["embedding"]
    assert vectors.shape == (2, 768) and vectors.norm(dim=1).tolist() == pytest.approx([1, 1], abs=1e-5)
    with (tmp_path / "out" / "index.csv").open(newline="") as file:
        assert [(r["key"], r["present"]) for r in csv.DictReader(file)] == [
            ("a.png", "rgb+nir+tir"),
            ("b.png", "rgb+nir"),
        ]


def test_extract_a_manifest_with_captions_or_without(trained, images, tmp_path, run):
    manifest = images / "list.csv"
    manifest.write_text("rgb,nir,pid,caption_rgb\nrgb/a.png,nir/a.png,4,A man. He runs.\nrgb/b.png,,5,\n")
    assert run("extract", trained / "last", manifest, "--out", tmp_path / "text", "--raw")[0] == 0
    assert run("extract", trained / "last", manifest, "--out", tmp_path / "plain", "--raw", "--no-text")[0] == 0
    text, plain = (load_file(tmp_path / n / "embeddings.safetensors")["embedding"] for n in ("text", "plain"))
    assert text.shape == plain.shape == (2, 768)
    assert (plain.norm(dim=1) - 1).abs().min() > 1e-3  # raw
    assert (text[1] - plain[1]).abs().max() < 1e-5 < (text[0] - plain[0]).abs().max()  # only the first has a caption


def test_embeddings_are_replaced_only_when_asked(trained, images, tmp_path, run, mistake):
    words = ("extract", trained / "last", images, "--out", tmp_path / "out")
    assert run(*words)[0] == 0
    assert "embeddings.safetensors exists" in mistake(*words)
    assert run(*words, "--overwrite")[0] == 0


# a published tree


def write_rgbnt201(home):
    """Four identities to train, three to test, two cameras each, two moments a camera; captions beside."""
    splits = {"train_171": (9, 30, 40, 57), "test": (258, 260, 271)}
    for split, pids in splits.items():
        names = [f"{pid:06d}_cam{cam}_0_{moment:02d}.jpg" for pid in pids for cam in (1, 2) for moment in (0, 7)]
        for number, modality in enumerate(("RGB", "NI", "TI")):
            folder = home / "RGBNT201" / split / modality
            folder.mkdir(parents=True)
            for name in names:
                rng = np.random.default_rng([number, *name.encode()])
                base = np.random.default_rng(int(name[:6])).integers(0, 160, 3)
                Image.fromarray((base + rng.integers(0, 90, (64, 32, 3))).astype(np.uint8)).save(folder / name)
            entries = [
                {"item": n, "description": f"A person in {modality}. Number {int(n[:6])} is worn."} for n in names
            ]
            texts = home / "captions"
            texts.mkdir(exist_ok=True)
            (texts / f"{split.split('_')[0]}_{modality}.json").write_text(json.dumps(entries))
    return home


def test_train_and_eval_on_a_published_tree(tmp_path, run):
    home = write_rgbnt201(tmp_path)
    data = ("--dataset", "rgbnt201", "--root", home, "--captions", home / "captions")
    status, out, err = run(*train_words(home / "run", data=data))
    assert status == 0 and "Traceback" not in err
    assert "[protocol rgbnt201, with captions at test, 12 of 12 queries valid]" in out.splitlines()[0]
    described = json.loads((home / "run" / "recipe.json").read_text())
    dataset = described["dataset"]
    assert [dataset[split] for split in ("train", "query", "gallery")] == [16, 12, 12]
    assert (dataset["name"], dataset["protocol"]) == ("rgbnt201", "rgbnt201")
    assert len(dataset["digest"]) == 16 and str(home) in json.dumps(dataset["source"])
    status, out, _ = run("eval", home / "run" / "last", *data)
    assert status == 0 and len(out.splitlines()) == 2
    status, out, _ = run("eval", home / "run" / "last", "--dataset", "rgbnt201", "--root", home / "RGBNT201")
    assert status == 0 and len(out.splitlines()) == 1  # no captions given: one claim


# mistakes


def replaced(words, **changes):
    """The words with the value after an option exchanged."""
    words = list(words)
    for option, value in changes.items():
        words[words.index(f"--{option}") + 1] = value
    return words


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": "next_tinny"}, ["next_tinny", "next_tiny"]),
        ({"model": "runs/last"}, ["runs/last", "local-dir:"]),
        ({"model": "local-dir:nowhere"}, ["nowhere", "config.json"]),
        ({"dataset": "market"}, ["market", "rgbnt201", "synthetic-persons"]),
        ({"device": "cuda:97"}, ["cuda:97"]),
        ({"device": "gpu"}, ["gpu"]),
        ({"set": "epocs=1"}, ["epocs", "epochs"]),
        ({"set": "epochs"}, ["--set", "NAME=VALUE", "'epochs'"]),
        ({"set": "=3"}, ["--set", "NAME=VALUE", "'=3'"]),
        ({"set": "epochs=many"}, ["epochs", "many"]),
        ({"set": "epochs=0"}, ["epochs", "at least 1"]),
        ({"dataset-arg": "nights=1"}, ["nights", "night"]),
        ({"dataset-arg": "night=7"}, ["night", "7"]),
        ({"dataset-arg": "night"}, ["--dataset-arg", "NAME=VALUE", "'night'"]),
    ],
)
def test_mistakes_of_train_name_the_thing(change, named, mistake, tmp_path):
    message = mistake(*replaced(train_words(tmp_path / "run"), **change))
    assert all(name in message for name in named), message
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--recipe", "fast"], ["fast", "next", "tiny"]),
        (["--model-arg", 'head={"sampling": "none"}'], ["sampling", "none", "dynamic"]),
        (["--model-arg", "colour=red"], ["next_tiny", "colour"]),
        (["--model-arg", "colour"], ["--model-arg", "NAME=VALUE"]),
        (["--root", "data"], ["setting of synthetic persons 'root'"]),
        (["--pretrained", "--model", "next"], ["timm's weights", "text_tower=None", "next_clip_b16"]),
    ],
)
def test_more_mistakes_of_train(more, named, mistake, tmp_path):
    message = mistake(*train_words(tmp_path / "run"), *more)
    assert all(name in message for name in named), message
    assert not (tmp_path / "run").exists()


def test_missing_folders_and_captions_are_named(mistake, tmp_path):
    def answer(*data):
        return mistake(*train_words(tmp_path / "run", data=("--dataset", "rgbnt201", *data)))

    assert "root" in answer()
    assert str(tmp_path / "nowhere") in answer("--root", tmp_path / "nowhere")
    home = write_rgbnt201(tmp_path)
    assert "{train,test}_{RGB,NI,TI}.json" in answer("--root", home, "--captions", tmp_path / "no-captions")


def test_a_run_is_not_continued_unasked_nor_changed(trained, tmp_path, mistake):
    shutil.copytree(trained, tmp_path / "run")
    assert "has a run already" in mistake(*train_words(tmp_path / "run"))
    message = mistake(*train_words(tmp_path / "run", "--resume", fields=("epochs=1", "num_ids=3", *FIELDS[2:])))
    assert "recipe.num_ids: 4 -> 3" in message
    for file in ("recipe.json", "state.safetensors", "last/model.safetensors"):
        assert (tmp_path / "run" / file).read_bytes() == (trained / file).read_bytes()


@pytest.mark.parametrize(
    ("more", "named"),
    [
        (["--protocol", "market"], ["market", "camera", "rgbnt201"]),
        (["--missing", "depth"], ["depth", "rgb, nir, tir"]),
        (["--missing", "rgb", "nir", "tir"], ["at least one"]),
        (["--device", "cuda:97"], ["cuda:97"]),
        (["--batch-size", "0"], ["batch_size"]),
        (["--dataset", "market"], ["market"]),
    ],
)
def test_mistakes_of_eval_name_the_thing(more, named, trained, mistake):
    message = mistake("eval", trained / "last", *DATA, *more)
    assert all(name in message for name in named), message


def test_other_modalities_than_the_models(trained, tmp_path, mistake):
    words = ("--dataset", "rgbnt201", "--root", write_rgbnt201(tmp_path), "--dataset-arg", 'modalities=["rgb", "tir"]')
    message = mistake("eval", trained / "last", *words)
    assert "reads rgb, nir, tir" in message and "has rgb, tir" in message


def test_a_missing_or_broken_checkpoint_is_named(trained, tmp_path, images, mistake):
    for command, more in (("eval", DATA), ("extract", (images, "--out", tmp_path / "out"))):
        assert "nowhere" in mistake(command, tmp_path / "nowhere", *more)
    assert "text_tower=None" in mistake("eval", "next", *DATA)
    shutil.copytree(trained / "last", tmp_path / "broken")
    weights = tmp_path / "broken" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    assert "damaged or truncated" in mistake("eval", tmp_path / "broken", *DATA)
    weights.unlink()
    assert "no weights at" in mistake("eval", tmp_path / "broken", *DATA)


def test_a_image_that_cannot_be_read_is_named_and_nothing_written(trained, images, tmp_path, mistake):
    (images / "nir" / "b.png").write_bytes(b"no image")
    message = mistake("extract", trained / "last", images, "--out", tmp_path / "out", "--device", "cpu")
    assert str(images / "nir" / "b.png") in message and "nir" in message
    assert not (tmp_path / "out").exists()


def test_sources_that_are_none(trained, tmp_path, mistake):
    out = tmp_path / "out"
    assert "nowhere" in mistake("extract", trained / "last", tmp_path / "nowhere", "--out", out)
    (tmp_path / "empty").mkdir()
    assert "rgb,nir,tir" in mistake("extract", trained / "last", tmp_path / "empty", "--out", out)
    (tmp_path / "list.csv").write_text("rgb,color\na.png,red\n")
    assert "color" in mistake("extract", trained / "last", tmp_path / "list.csv", "--out", out)


def test_a_mistake_through_the_interpreter_is_status_2(tmp_path):
    words = [sys.executable, "-m", "nextreid", "models", "resnet*"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=600)
    assert (done.returncode, done.stdout) == (2, "") and "resnet*" in done.stderr and "Traceback" not in done.stderr


def test_twice_verbose_gives_the_traceback(tmp_path):
    with pytest.raises(ValueError, match="resnet"):
        main(["models", "resnet*", "-vv"])


# known defects: each test passes once its defect is gone, and then says so


def test_an_option_may_be_given_twice(tmp_path, run):
    words = train_words(tmp_path / "run", "--set", "amp=off", fields=(*FIELDS[:3], "eval_every=0"))
    assert run(*words)[0] == 0
    assert json.loads((tmp_path / "run" / "recipe.json").read_text())["recipe"]["epochs"] == 1


def test_one_seed_gives_one_run(tmp_path, run):
    for name in ("a", "b"):
        run(*train_words(tmp_path / name, fields=(*FIELDS[:3], "eval_every=0"), model="baseline_tiny"))
    a, b = (load_file(tmp_path / name / "last" / "model.safetensors") for name in ("a", "b"))
    assert all(torch.equal(a[name], b[name]) for name in a)


@pytest.mark.parametrize(
    "pair", [("--dataset-arg", "captions=x"), ("--model-arg", "pretrained=true"), ("--model-arg", "img_size=64")]
)
def test_pairs_that_clash_or_have_another_shape_are_named(pair, mistake, tmp_path):
    option, value = pair
    words = train_words(tmp_path / "run", data=DATA[:2])
    assert value.partition("=")[0] in mistake(*words, option, value)


def test_a_broken_image_in_a_worker_is_one_line(trained, images, tmp_path, run):
    (images / "rgb" / "b.png").write_bytes(b"no image")
    status, _, err = run("extract", trained / "last", images, "--out", tmp_path / "out", "--workers", "1")
    assert status == 2 and "Traceback" not in err and str(images / "rgb" / "b.png") in err


def test_results_go_into_a_new_folder(trained, tmp_path, run):
    assert run("eval", trained / "last", *DATA, "--json", tmp_path / "new" / "results.json")[0] == 0
