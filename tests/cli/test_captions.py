"""``nextreid captions`` end to end against a server on the loopback."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.speed.caption_network import write_classifier
from benchmarks.speed.caption_server import Behaviour, CaptionServer
from nextreid.cli import main
from nextreid.cli.caption_sources import _assignments, _price
from nextreid.data import read_captions


@pytest.fixture
def server():
    with CaptionServer(Behaviour()).running() as running:
        yield running


@pytest.fixture
def folder(tmp_path):
    rng = np.random.default_rng(0)
    for modality in ("rgb", "ni", "ti"):
        (tmp_path / "images" / modality).mkdir(parents=True)
        for n in range(3):
            pixels = rng.integers(0, 255, (16, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / modality / f"000{n}_cam1_0_00.png")
    (tmp_path / "images" / "ti" / "0002_cam1_0_00.png").unlink()  # a missing modality
    return tmp_path


def run(folder, server, *more):
    command = ["captions", "run", str(folder / "images"), "--server", server.url, "--out", str(folder / "out")]
    return main([*command, "--schema", "person", *more])


def test_from_a_folder_to_captions_that_train(folder, server, capsys):
    out = folder / "out"
    assert run(folder, server, "--dry-run") == 0
    output = capsys.readouterr().out
    assert "8 images, 0 calls are stored, 8 are missing" in output and "assumed" in output and not server.paid
    assert not out.exists()
    assert run(folder, server, "--max-calls", "3", "--price", "0.15,0.60") == 1
    assert "5 calls are left: --max-calls is reached; run again" in capsys.readouterr().out
    assert run(folder, server, "--dry-run", "--price", "0.15,0.60", "--budget", "0.0001") == 0
    assert "measured on 3 calls" in (output := capsys.readouterr().out) and "is not enough" in output
    assert run(folder, server) == 0
    assert "5 calls in" in capsys.readouterr().out and set(server.paid.values()) == {1}
    names = sorted(f.name for f in out.iterdir())
    files = ["all_NI.json", "all_RGB.json", "all_TI.json", "attributes.parquet", "calls.jsonl", "run.json"]
    assert names == files
    captions = {code: read_captions(out / f"all_{code}.json") for code in ("RGB", "NI", "TI")}
    assert {code: len(table) for code, table in captions.items()} == {"RGB": 3, "NI": 3, "TI": 2}
    assert main(["captions", "export", str(out), "--to", str(folder / "again")]) == 0
    for code in captions:
        assert (folder / "again" / f"all_{code}.json").read_bytes() == (out / f"all_{code}.json").read_bytes()
    assert main(["captions", "export", str(out), "--to", str(folder / "apart"), "--complement"]) == 0
    assert (
        main(["captions", "compose", str(out / "attributes.parquet"), "--out", str(folder / "short"), "--compact"]) == 0
    )
    short = read_captions(folder / "short" / "all_RGB.json")
    assert short.keys() == captions["RGB"].keys() and all(len(short[k]) <= len(captions["RGB"][k]) for k in short)
    capsys.readouterr()
    assert main(["captions", "audit", str(out), "--out", str(folder / "audit")]) == 0
    assert capsys.readouterr().out and list((folder / "audit").glob("*.html"))


def test_several_models_and_a_writer(folder, server, capsys):
    models = ["--model", "a", "--model", f"b@{server.url}", "--compose-model", "writer"]
    assert run(folder, server, *models, "--compact") == 0
    assert len(server.paid) == 8 * 2 + 8
    assert {body["model"] for body in server.bodies} == {"a", "b", "writer"}
    assert run(folder, server, *models, "--compact") == 0
    assert set(server.paid.values()) == {1}


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--server", "https://models.example.com", "--model", "m"], "sent to models.example.com"),
        (["--key-env", "NO_SUCH_VARIABLE"], "set the environment variable NO_SUCH_VARIABLE"),
        (["--server", "http://127.0.0.1:9", "--model", "m"], "no server answers at http://127.0.0.1:9/v1"),
        (["--server", "http://127.0.0.1:9"], "add --model NAME"),
        (["--budget", "3", "--model", "m"], "add --price IN,OUT"),
        (["--price", "3", "--model", "m"], "--price takes IN,OUT"),
        (["--schema", "tree", "--model", "m"], "unknown schema 'tree'"),
        (["--in-flight", "0", "--model", "m"], "concurrency"),
        (["--price", "n=1,2", "--model", "m"], "--price names 'n', which is not asked; there is m"),
        (["--key-env", "x=HOME", "--model", "m"], "--key-env names 'x', which is not asked; there is 127.0.0.1"),
        (["--price", "1,2", "--price", "3,4", "--model", "m"], "--price is given twice without a name"),
        (["--price", "m=", "--model", "m"], "no value"),
        (["--budget", "nan", "--price", "1,2", "--model", "m"], "budget must be a number from 0 on"),
        (["--max-calls", "-1", "--model", "m"], "max_calls must be a number from 0 on"),
        (["--prompt", "paper", "--schema", "{dog}", "--model", "m"], "of the template 'plain'"),
    ],
)
def test_errors_are_explained(folder, server, capsys, monkeypatch, more, message):
    from nextreid.captioning import probe

    monkeypatch.setattr(probe, "_ATTEMPTS", 1)
    (folder / "dog.json").write_text('{"name": "dog", "version": "1", "fields": [{"name": "breed"}]}')
    assert run(folder, server, *(text.format(dog=folder / "dog.json") for text in more)) == 2
    assert not server.paid
    assert message in capsys.readouterr().err


def test_a_key_goes_to_its_own_host_only(folder, server, capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-of-another-program")
    monkeypatch.setenv("MINE", "sk-mine")
    assert run(folder, server, "--model", "m") == 0
    assert "sk-of-another-program" not in json.dumps(server.headers)
    server.behaviour.key = "sk-mine"
    assert run(folder, server, "--model", "n", "--key-env", "127.0.0.1=MINE") == 0
    remote = ["--model", "m", "--model", "n@https://models.example.com", "--send-images-to-host", "--key-env", "MINE"]
    assert run(folder, server, *remote) == 2
    assert "name the key's host" in capsys.readouterr().err
    kept = b"".join(f.read_bytes() for f in (folder / "out").iterdir())
    assert b"sk-" not in kept


def test_custom_schema_and_unreadable_images(folder, server, capsys):
    schema = {"name": "dog", "version": "1", "fields": [{"name": "breed", "values": ["pug", "poodle"]}]}
    (folder / "dog.json").write_text(json.dumps(schema))
    (folder / "images" / "rgb" / "0001_cam1_0_00.png").write_bytes(b"nothing")
    custom = ["--schema", str(folder / "dog.json"), "--model", "m"]
    assert run(folder, server, *custom) == 2
    assert "1 images cannot be read" in capsys.readouterr().err and not server.paid
    assert run(folder, server, *custom, "--on-error", "skip") == 0
    captions = read_captions(folder / "out" / "all_RGB.json")
    assert len(captions) == 2 and all("breed is" in text for text in captions.values())


@pytest.mark.parametrize("mistaken", ["sk-live-4711", "gsk_live4711", "127.0.0.1=sk-live-4711"])
def test_a_key_given_where_its_name_belongs_is_not_shown(folder, server, capsys, mistaken):
    assert run(folder, server, "--model", "m", "--key-env", mistaken) == 2
    assert "4711" not in (error := capsys.readouterr().err) and "variable" in error


@settings(derandomize=True, deadline=None)
@given(st.lists(st.text(max_size=12) | st.from_regex(r"[a-z=]{0,5}=?-?[0-9.e]{0,8},[0-9.e]{0,8}"), max_size=3))
def test_any_price_and_key_name_is_typed_or_one_named_error(entries):
    for option, typed in (("--price", _price), ("--key-env", str)):
        try:
            values = [typed(value) for value in _assignments(entries, option).values()]
        except ValueError as error:
            assert option in str(error)
        else:
            assert all(value and (typed is str or (len(value) == 2 and 0 <= min(value))) for value in values)


def test_floor_prompt_and_absence_from_the_command_line(folder, server):
    out = folder / "out"
    assert run(folder, server, "--model", "m", "--prompt", "paper", "--min-confidence", "0.6") == 0
    assert all("visual analysis assistant" in body["messages"][0] for body in server.bodies[2:])
    some = read_captions(out / "all_RGB.json")
    sizes = {}
    for floor in ("0", "1"):
        assert main(["captions", "export", str(out), "--to", str(folder / floor), "--min-confidence", floor]) == 0
        sizes[floor] = sum(map(len, read_captions(folder / floor / "all_RGB.json").values()))
    assert sizes["1"] < sum(map(len, some.values())) < sizes["0"]
    again = ["captions", "compose", str(out / "attributes.parquet"), "--min-confidence", "0.6", "--out"]
    assert main([*again, str(folder / "again")]) == 0 and read_captions(folder / "again" / "all_RGB.json") == some
    assert main(["captions", "export", str(out), "--to", str(folder / "counts"), "--absence", "counts"]) == 0
    assert read_captions(folder / "counts" / "all_RGB.json") != read_captions(folder / "0" / "all_RGB.json")


def attributes(folder, modality="rgb"):
    from nextreid.captioning.export import read_table

    rows, _ = read_table(folder / "attributes.parquet")
    return {row.key: row.answers for row in rows if row.modality == modality}


def test_a_classifier_fills_the_same_table(folder, server, capsys):
    classifier = ["--classifier", str(write_classifier(folder, modalities=["rgb"]))]
    assert run(folder, server, *classifier, "--dry-run") == 0
    assert "3 are missing" in capsys.readouterr().out
    assert run(folder, server, *classifier) == 0 and not server.bodies
    answers = attributes(folder / "out")
    assert {a.source for fields in answers.values() for a in fields.values()} == {"probability"}
    captions = read_captions(folder / "out" / "all_RGB.json")
    assert all(fields["gender"].value in captions[key] for key, fields in answers.items())
    (folder / "tiny.onnx").unlink()
    assert main(["captions", "export", str(folder / "out"), "--to", str(folder / "again")]) == 0
    assert attributes(folder / "again") == answers
    assert run(folder, server, *classifier) == 2 and "there is no network" in capsys.readouterr().err


def test_models_and_classifiers_are_merged_by_one_rule(folder, server, capsys):
    sources = ["--classifier", str(write_classifier(folder)), "--model", "m", "--api", "systemone"]
    assert run(folder, server, *sources, "--complement", "backpack") == 0
    assert {body["path"] for body in server.bodies} == {"/v1/systemone"}
    answer = attributes(folder / "out")["0000_cam1_0_00.png"]["backpack"]
    assert answer.source == "probability" and answer.confidence == max(answer.probabilities.values())
    assert answer == attributes(folder / "out", "nir")["0000_cam1_0_00.png"]["backpack"]
    assert main(["captions", "export", str(folder / "out"), "--rule", "agreement", "--to", str(folder / "b")]) == 0
    assert attributes(folder / "b")["0000_cam1_0_00.png"]["backpack"].source == "agreement"
    assert run(folder, server, *sources[:2], "--model", "tiny") == 2
    assert "two sources are named 'tiny'" in capsys.readouterr().err
    assert run(folder, server, "--model", "m", "--api", "decisions", "--prompt", "paper") == 2
    assert "typed questions" in capsys.readouterr().err
