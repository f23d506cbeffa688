"""Classifiers: how pixels become probabilities, what a description may say, and a run with a real network file."""

import asyncio
import json
import math
import os
import re
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from benchmarks.speed.caption_network import SETTINGS, SIZE, WEIGHTS, write_classifier
from nextreid.captioning import get_schema
from nextreid.captioning.classifier import Output, read_classifier
from nextreid.captioning.pipeline import CaptionRequest, collect, index_images, run_captions, source_of
from nextreid.captioning.store import Store

PERSON = get_schema("person")
RNG = np.random.default_rng(0)


def pictures(count=3, modalities=("rgb", "tir")):
    return [
        CaptionRequest(f"{n}", m, RNG.integers(0, 255, (*SIZE, 3), dtype=np.uint8))
        for n in range(count)
        for m in modalities
    ]


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
@pytest.mark.parametrize("channels", ["rgb", "bgr"])
def test_pixels_are_ordered_and_scaled_as_described(tmp_path, layout, channels):
    entry = {"height": 8, "width": 4, "layout": layout, "channels": channels, "scale": 0.5}
    entry |= {"mean": [1, 2, 3], "std": [2, 4, 8]}
    classifier = read_classifier(write_classifier(tmp_path, input=entry), PERSON)
    pixels = RNG.integers(0, 255, (*SIZE, 3), dtype=np.uint8)
    given = classifier.prepared(Image.fromarray(pixels))
    assert given.dtype == np.float32 and given.shape == ((1, 3, 8, 4) if layout == "nchw" else (1, 8, 4, 3))
    for y, x, c in ((0, 0, 0), (7, 3, 2), (3, 1, 1)):
        value = pixels[y, x, c if channels == "rgb" else 2 - c]
        got = given[0, c, y, x] if layout == "nchw" else given[0, y, x, c]
        assert got == pytest.approx((0.5 * value - (1, 2, 3)[c]) / (2, 4, 8)[c])
    assert classifier.prepared(Image.new("RGB", (50, 90))).shape == given.shape


LOGITS = st.lists(st.floats(-20, 20), min_size=2, max_size=5)


@settings(derandomize=True, deadline=None, max_examples=40)
@given(LOGITS, st.floats(0, 1))
def test_channels_become_probabilities(logits, threshold):
    raw, values = np.array(logits, dtype=np.float32).reshape(1, -1, 1, 1), tuple("abcde")[: len(logits)]
    shares = [math.exp(x - max(logits)) for x in logits]
    shares = [share / sum(shares) for share in shares]
    found = Output("f", "o", values, activation="softmax").read({"o": raw})
    assert found == pytest.approx(dict(zip(values, shares, strict=True)), abs=1e-5) and sum(found.values()) <= 1
    assert Output("f", "o", values).read({"o": np.array(shares)}) == pytest.approx(found, abs=2e-6)
    one = Output("f", "o", ("yes", "no"), (1,), "sigmoid").read({"o": raw})
    assert one["yes"] == pytest.approx(1 / (1 + math.exp(-logits[1])), abs=1e-5) and sum(one.values()) <= 1
    # several channels of one value, and one without a word for it
    shared = Output("f", "o", (None, *("x" for _ in logits[1:])), activation="softmax").read({"o": raw})
    assert shared == pytest.approx({"x": sum(shares[1:])}, abs=1e-5)
    least = Output("f", "o", values, activation="softmax", threshold=threshold).read({"o": raw})
    assert least == (found if max(found.values()) >= threshold else {})


@pytest.mark.parametrize(
    ("output", "raw", "message"),
    [
        (Output("f", "o", ("a", "b")), [3.0, -1.0], r"no probabilities for f .*add \"activation\": \"sigmoid\""),
        (Output("f", "o", ("a", "b")), [0.2, 0.2], "no probabilities for f"),
        (Output("f", "o", ("a", "b")), [math.nan, 1.0], "no probabilities for f"),
        (Output("f", "o", ("a", "b"), (0,)), [1.7], "no probabilities for f"),
        (Output("f", "o", ("a", "b"), (7,)), [0.5, 0.5], r"has 2 channels; f reads \(7,\)"),
        (Output("f", "o", ("a", "b", "c")), [0.5, 0.5], "3 values for 2 channels"),
    ],
)
def test_what_is_no_probability_is_named(output, raw, message):
    with pytest.raises(ValueError, match=message):
        output.read({"o": np.array(raw)})


def changed(**entry):
    return {"outputs": [{**SETTINGS["outputs"][0], **entry}]}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"network": "none.onnx"}, "there is no network"),
        ({"input": {"height": 8}}, r"input has no entry width"),
        ({"input": {"height": 0, "width": 4}}, r"input\.height must be a whole number of 1 to 4096"),
        ({"input": {"height": 8, "width": 4, "std": [0, 1, 1]}}, r"input\.std must be three positive numbers"),
        ({"input": {"height": 8, "width": 4, "order": "bgr"}}, r"unknown entry 'order'"),
        (changed(field="wings"), "has no field 'wings'"),
        (changed(values=["male", "horse"]), r"gender has no value 'horse'; it has male, .*null for none"),
        (changed(values=["male"]), "gender has 1 values for 1 channels"),
        (changed(channels=[0, 1], values=["male", "female"], activation="sigmoid"), '"sigmoid" is for one channel'),
        (changed(activation="tanh"), "activation must be one of none, sigmoid, softmax"),
        (changed(threshold=2), "threshold must be a number of 0 to 1"),
        ({"outputs": SETTINGS["outputs"][:1] * 2}, "every field once"),
        ({"outputs": []}, "outputs must be a list of at most 200 outputs"),
    ],
)
def test_a_wrong_description_is_named(tmp_path, changes, message):
    path = write_classifier(tmp_path, **changes)
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        read_classifier(path, PERSON)
    assert "tiny.json" in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"input": {"height": 9, "width": 4}}, r"takes \[1, 3, 8, 4\], the description says \(1, 3, 9, 4\)"),
        (changed(output="453"), "no output '453'; it has logits, chances, colours"),
        (changed(output="logits"), "no probabilities for gender"),
        ({"network": "tiny.json"}, "cannot be loaded"),
    ],
)
def test_a_network_that_does_not_fit_is_named(tmp_path, changes, message):
    classifier = read_classifier(write_classifier(tmp_path, **changes), PERSON)
    red = CaptionRequest("0", "rgb", np.full((*SIZE, 3), (255, 0, 0), dtype=np.uint8))  # a logit of -1
    with pytest.raises(ValueError, match=message):
        run_captions([red], PERSON, [classifier], tmp_path / "calls")


def expected(image):
    """The probabilities of the tiny network, in float64."""
    mean = np.asarray(image, dtype=np.float64)[..., ::-1].mean((0, 1)) / 255
    logits, soft = np.array(WEIGHTS) @ mean, np.exp(mean) / np.exp(mean).sum()
    chance = 1 / (1 + np.exp(-logits))
    return {
        "gender": {"male": chance[0], "female": 1 - chance[0]},
        "upper_clothing": {"jacket": chance[1]},
        "upper_clothing_color": dict(zip(("blue", "green", "red"), soft, strict=True)),
        "backpack": {"yes": chance[1], "no": 1 - chance[1]},
    }


def test_answers_are_the_networks_probabilities(tmp_path):
    classifier = read_classifier(write_classifier(tmp_path), PERSON)
    images = index_images(pictures())
    done = run_captions(images, PERSON, [classifier], tmp_path / "calls", max_calls=2)
    assert (done.done, done.stopped) == (2, "max-calls")
    done = run_captions(images, PERSON, [classifier], tmp_path / "calls")
    assert (done.jobs, done.done, done.cost) == (4, 4, 0.0)
    with Store(tmp_path / "calls") as store:
        found = collect(images, PERSON, [source_of(classifier)], store)
    for one in images:
        answers = found.answers["all", one.key][one.modality]["tiny"]
        for field, shares in expected(one.image).items():
            if field == "upper_clothing_color" and one.modality == "tir":
                assert field not in answers, "a thermal image shows no colour"
                continue
            assert answers[field].probabilities == pytest.approx(shares, abs=1e-5)
            assert answers[field].confidence == pytest.approx(max(shares.values()), abs=1e-5)
            assert answers[field].source == "probability"
    other = read_classifier(write_classifier(tmp_path, **changed(values=["female", "male"])), PERSON)
    assert other.digest != classifier.digest, "what a changed description answers is another answer"
    assert run_captions(images, PERSON, [other], tmp_path / "calls").calls == 6


def test_a_classifier_is_asked_about_its_modalities_alone(tmp_path):
    classifier = read_classifier(write_classifier(tmp_path, modalities=["rgb"]), PERSON)
    assert run_captions(pictures(2), PERSON, [classifier], tmp_path / "calls").calls == 2


def test_openvino_gives_the_same(tmp_path):
    openvino = pytest.importorskip("openvino", reason="the package openvino is not installed")
    path = write_classifier(tmp_path)
    openvino.save_model(openvino.convert_model(tmp_path / "tiny.onnx"), tmp_path / "tiny.xml", compress_to_fp16=False)
    image = Image.fromarray(RNG.integers(0, 255, (*SIZE, 3), dtype=np.uint8))

    async def classify(classifier):
        async with classifier.client() as client:
            return client.classify(image)

    first = asyncio.run(classify(read_classifier(path, PERSON)))
    path.write_text(path.read_text().replace("tiny.onnx", "tiny.xml"))
    second = asyncio.run(classify(read_classifier(path, PERSON)))
    assert {f: pytest.approx(s, abs=1e-5) for f, s in first.items()} == second
    os.remove(tmp_path / "tiny.bin")
    with pytest.raises(FileNotFoundError, match=r"no network .*tiny\.bin"):
        read_classifier(path, PERSON)


def test_the_description_in_the_docs_is_one(tmp_path):
    page = (Path(__file__).parents[2] / "docs" / "captions.md").read_text(encoding="utf-8")
    example = next(text for text in re.findall(r"```json\n(.*?)```", page, re.DOTALL) if '"network"' in text)
    (tmp_path / "example.json").write_text(example)
    (tmp_path / json.loads(example)["network"]).write_bytes(b"")
    found = read_classifier(tmp_path / "example.json", PERSON)
    assert (found.height, found.width, found.channels, found.modalities) == (160, 80, "bgr", ("rgb",))
    assert found.outputs[2].values == ("jacket", None) and found.outputs[1].threshold == 0.6
