"""Weights outside their domain say so, once."""

from dataclasses import replace

import pytest

from nextreid import FeatureExtractor, create_model
from nextreid.data import ReIDDataset
from nextreid.engine import provenance
from nextreid.engine.provenance import warn_domain


@pytest.fixture(autouse=True)
def forget():
    provenance._warn_once.cache_clear()


def model(trained_on):
    made = create_model("baseline_tiny")
    made.pretrained_cfg = replace(made.pretrained_cfg, trained_on=trained_on and {"dataset": trained_on})
    return made


def data(name, object_type):
    return ReIDDataset(name, ("rgb",), object_type, "camera", (), (), ())


@pytest.mark.parametrize(
    ("trained_on", "dataset", "said"),
    [
        ("synthetic-persons", None, "trained on synthetic-persons, drawn images"),
        ("synthetic-persons", data("rgbnt201", "person"), "drawn images"),
        ("synthetic-persons", data("mine", "object"), "drawn images"),
        ("synthetic-persons", data("synthetic-persons", "person"), ""),
        ("rgbnt201", data("msvr310", "vehicle"), "trained on rgbnt201, images of persons, and msvr310 shows vehicles"),
        ("rgbnt201", data("market1501-mm", "person"), ""),
        ("rgbnt201", data("mine", "object"), ""),
        ("rgbnt201", None, ""),
        ("my own set", None, ""),
        (None, None, ""),
    ],
)
def test_what_is_said_of_which_data(trained_on, dataset, said, caplog):
    for _ in range(2):
        warn_domain(model(trained_on), dataset)
    messages = [record.message for record in caplog.records]
    assert len(messages) == bool(said) and said in "".join(messages)


def test_an_extractor_with_bundled_weights_says_it(caplog):
    FeatureExtractor("baseline_tiny")
    assert "the weights of baseline_tiny were trained on synthetic-persons, drawn images" in caplog.text
