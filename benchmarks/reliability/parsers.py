"""Everything that reads what others wrote, each with inputs that are almost right."""

import contextlib
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from hypothesis import strategies as st
from PIL import Image

import nextreid
from nextreid._files import parse_json, read_tensors, write_tensors
from nextreid.captioning import get_schema
from nextreid.captioning.answers import parse_reply
from nextreid.captioning.store import Store
from nextreid.cli.arguments import pairs
from nextreid.data import list_datasets, load_dataset, open_image, read_captions, read_manifest, read_pattern
from nextreid.engine import Recipe, get_recipe
from nextreid.models import save_model
from nextreid.retrieval import get_protocol, list_protocols

from .inputs import ODD, bytes_near, json_near, text_near

NAMED = (ValueError, KeyError, OSError, ImportError)
"""What a reader may raise: errors whose message names the thing and says what to do."""


class Reader(NamedTuple):
    """Something that reads input from outside.

    Attributes:
        inputs: Strategy of inputs.
        read: Reads one; raises one of `NAMED` or returns.
    """

    inputs: st.SearchStrategy[Any]
    read: Callable[[Any], object]


class Parser(NamedTuple):
    """One kind of input from outside.

    Attributes:
        make: Builds the reader, whose files lie in the given empty folder.
        cost: How many times as long as a cheap one an input takes: the number of inputs is divided by it.
    """

    make: Callable[[Path], Reader]
    cost: int


PARSERS: dict[str, Parser] = {}


def _parser(name: str, cost: int = 1) -> Callable[[Callable[[Path], Reader]], None]:
    def register(make: Callable[[Path], Reader]) -> None:
        PARSERS[name] = Parser(make, cost)

    return register


@_parser("config.json", cost=10)
def _config(folder: Path) -> Reader:
    home = save_model(nextreid.create_model("baseline_tiny", num_classes=3), folder / "model")
    config = home / "config.json"

    def read(text: str) -> None:
        _write(config, text)
        nextreid.create_model(f"local-dir:{home}")

    return Reader(json_near(json.loads(config.read_text())), read)


@_parser("model.safetensors", cost=10)
def _weights(folder: Path) -> Reader:
    home = save_model(nextreid.create_model("baseline_tiny", num_classes=3), folder / "model")
    whole = (home / "model.safetensors").read_bytes()

    def read(data: bytes) -> None:
        (home / "model.safetensors").write_bytes(data)
        nextreid.create_model(f"local-dir:{home}")
        assert data == whole, "damage was not noticed"

    return Reader(bytes_near(whole), read)


@_parser("tensor file")
def _tensors(folder: Path) -> Reader:
    path, given = folder / "state.safetensors", {"a": torch.arange(6.0), "b": torch.ones(2, 3)}
    write_tensors(path, given, {"epoch": 3})

    def read(data: bytes) -> None:
        path.write_bytes(data)
        found, metadata = read_tensors(path)
        same = metadata == {"epoch": 3} and found.keys() == given.keys()
        assert same and all(torch.equal(found[name], given[name]) for name in given), "damage was not noticed"

    return Reader(bytes_near(path.read_bytes()), read)


@_parser("model name", cost=5)
def _model_name(folder: Path) -> Reader:
    def read(name: str) -> None:
        if not name.startswith(("hf-hub:", "hf_hub:")):  # no server is asked here
            nextreid.create_model(name)

    return Reader(
        _names(nextreid.list_models("*_tiny"), ("hf-hub:a/b@main", "local-dir:x", "next_tiny.synthetic_persons")), read
    )


@_parser("recipe")
def _recipe(folder: Path) -> Reader:
    return Reader(
        json_near(get_recipe("tiny").to_dict()), lambda text: Recipe.from_dict(parse_json(text, "the recipe"))
    )


@_parser("manifest")
def _manifest(folder: Path) -> Reader:
    names, path = _images(folder), folder / "manifest.csv"
    rows = ["key,pid,camid,split,rgb,nir,tir,caption_rgb"]
    rows += [f"{n},{n[0]},0,test,rgb/{n}.png,nir/{n}.png,tir/{n}.png,A person." for n in names]

    def read(data: bytes) -> None:
        path.write_bytes(data)
        read_manifest(path)

    return Reader(bytes_near("\n".join([*rows, ""]).encode()), read)


@_parser("folder pattern")
def _pattern(folder: Path) -> Reader:
    _images(folder)
    return Reader(text_near("{modality}/{pid}_c{camid}_{*}.png"), lambda text: read_pattern(folder, text))


@_parser("dataset name")
def _dataset_name(folder: Path) -> Reader:
    return Reader(_names(list_datasets(), ("manifest", "folder")), lambda name: load_dataset(name, folder))


@_parser("image")
def _image(folder: Path) -> Reader:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (16, 8, 3), np.uint8))
    written = []
    for ending in ("png", "jpeg", "bmp", "tiff", "webp", "ppm"):
        file = io.BytesIO()
        noise.save(file, ending)
        written.append(bytes_near(file.getvalue()))

    def read(data: bytes) -> None:
        (folder / "image").write_bytes(data)
        open_image(folder / "image")

    return Reader(st.one_of(written), read)


@_parser("caption file")
def _caption_file(folder: Path) -> Reader:
    path = folder / "train_RGB.json"
    entries = [{"item": f"{n}.jpg", "description": "An adult. He wears a red coat."} for n in range(3)]

    def read(text: str) -> None:
        _write(path, text)
        read_captions(path)

    return Reader(st.one_of(json_near(entries), text_near(json.dumps(entries))), read)


@_parser("answer of a captioner")
def _answer(folder: Path) -> Reader:
    schema = get_schema("person")
    reply = {field.name: {"value": "unknown", "confidence": 0.9} for field in schema.for_modality("rgb")}
    inputs = st.one_of(json_near(reply), text_near(json.dumps(reply)), st.text(max_size=200))
    return Reader(inputs, lambda text: parse_reply(text, schema, "rgb"))


@_parser("store of answers")
def _store(folder: Path) -> Reader:
    path = folder / "answers.jsonl"
    with Store(path, write=True) as answers:
        for number in range(3):
            answers.append({"key": f"{number:032x}", "schema": "s", "cost": 0.1, "text": "{}"})

    def read(data: bytes) -> None:
        path.write_bytes(data)
        with Store(path) as answers:
            assert all(row["text"] == "{}" for row in answers.rows()), "a damaged row was used"

    return Reader(bytes_near(path.read_bytes()), read)


@_parser("protocol")
def _protocol(folder: Path) -> Reader:
    return Reader(_names(list_protocols(), ("camera:rgb>tir", "scene:rgb+nir>tir")), get_protocol)


@_parser("NAME=VALUE")
def _name_value(folder: Path) -> Reader:
    return Reader(text_near("epochs=3"), lambda text: pairs([text], "--set"))


@_parser("command line")
def _command_line(folder: Path) -> Reader:
    from nextreid.cli import _parser as command_line

    words = (
        "train",
        "eval",
        "data",
        "check",
        "list",
        "models",
        "captions",
        "--model",
        "--out",
        "--set",
        "-v",
        "--x",
        "1",
    )
    word = st.one_of(st.sampled_from(words), st.sampled_from([str(value) for value in ODD]), st.text(max_size=6))

    def read(words: list[str]) -> None:
        shown = io.StringIO()
        try:
            with contextlib.redirect_stderr(shown), contextlib.redirect_stdout(shown):
                command_line().parse_args(words)
        except SystemExit as error:
            if error.code:
                raise ValueError(shown.getvalue()) from error

    return Reader(st.lists(word, max_size=4), read)


def _images(folder: Path) -> tuple[str, ...]:
    names = ("1_c0_a", "2_c1_b")
    for modality in ("rgb", "nir", "tir"):
        (folder / modality).mkdir()
        for name in names:
            Image.new("RGB", (8, 16), "grey").save(folder / modality / f"{name}.png")
    return names


def _names(known: list[str], more: tuple[str, ...]) -> st.SearchStrategy[str]:
    return st.sampled_from([*known, *more]).flatmap(lambda name: text_near(name, most=2))


def _write(path: Path, text: str) -> None:
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
