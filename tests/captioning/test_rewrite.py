"""Captions that a language model writes: what it is asked, and what of it is used."""

import json

import pytest

from benchmarks.speed.caption_server import Behaviour, CaptionServer
from nextreid.captioning import Answer, Schema, get_schema
from nextreid.captioning.client import Server
from nextreid.captioning.pipeline import run_jobs
from nextreid.captioning.rewrite import read_rewrite, rewrite_job
from nextreid.captioning.schema import published_text
from nextreid.captioning.store import Store

PERSON = get_schema("person")
ANSWERS = {
    "age": Answer("adult", 0.9),
    "gender": Answer("male", None),
    "upper_clothing": Answer("jacket", 0.4),
    "lower_clothing": Answer("jeans", 0.0),
    "backpack": Answer("yes", 0.7),
    "glasses": Answer(None, 0.0),
    "upper_clothing_color": Answer("red", 0.8),
}
DRAFT = ("An adult male seen from the side.", "He is wearing a black jacket.")
LOCAL = Server("http://127.0.0.1:1", "writer")


def data_of(job):
    """The JSON data at the end of the prompt."""
    return json.loads(job.prompt[job.prompt.index("\n{") :])


def test_the_prompt_is_the_published_one_with_the_confidences():
    job = rewrite_job(PERSON, "rgb", ANSWERS, DRAFT, LOCAL)
    assert job.prompt.startswith(published_text("person_caption.txt") + "\n\n{")
    assert data_of(job) == {
        "age": {"value": "adult", "confidence": 0.9},
        "gender": {"value": "male", "confidence": 0.5},
        "upper_clothing": {"value": "jacket", "confidence": 0.4},
        "backpack": {"value": "carrying backpack", "confidence": 0.7},
        "upper_clothing_color": {"value": "red", "confidence": 0.8},
    }
    assert list(data_of(rewrite_job(PERSON, "tir", ANSWERS, DRAFT, LOCAL, min_confidence=0.5))) == [
        "age", "gender", "backpack",
    ]  # fmt: skip
    vehicle = rewrite_job(get_schema("vehicle"), "rgb", {"color": Answer("red", 0.5)}, (), LOCAL)
    assert vehicle.prompt.startswith(published_text("vehicle_caption.txt"))
    dog = Schema.from_dict({"name": "dog", "version": "1", "fields": [{"name": "breed"}]})
    plain = rewrite_job(dog, "rgb", {"breed": Answer("pug", 0.3)}, ("The breed is pug.",), LOCAL).prompt
    assert "Describe a dog" in plain and "Draft: The breed is pug." in plain and '"confidence": 0.3' in plain


def test_another_confidence_is_another_call():
    def key(**answers):
        return rewrite_job(PERSON, "rgb", ANSWERS | answers, DRAFT, LOCAL).row_head()["key"]

    assert key() == key(glasses=Answer("yes", 0.0)) != key(age=Answer("adult", 0.8))


def test_an_obedient_model_is_believed(tmp_path):
    with CaptionServer(Behaviour()).running() as server, Store(tmp_path / "c", write=True) as store:
        job = rewrite_job(PERSON, "rgb", ANSWERS, DRAFT, Server(server.url, "writer"))
        assert read_rewrite(job, PERSON, DRAFT, store) == (DRAFT, "missing")
        run_jobs([job], store)
        draft = ("An adult male.", "He is wearing a red jacket.", "He is carrying a backpack.")
        assert read_rewrite(job, PERSON, draft, store) == (draft, "")
        assert "image_url" not in str(server.bodies)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "empty"), ("I\u2019m sorry, I can\u2019t help with that.", "refused"), ("A male [age]", "cut off"),
        ("A [age] male.", "debris"), ("An adult male of unknown view.", "debris"), ("A man. " * 40, "too long"),
        ("He is wearing a red jacket, an adult.", "invented"), ("An adult male in a black jacket.", ""),
        ("Lo siento, pero no puedo ayudar con esa solicitud.", "unrelated"),
    ],
)  # fmt: skip
def test_what_is_not_usable_leaves_the_draft(tmp_path, text, why):
    job = rewrite_job(PERSON, "rgb", ANSWERS, DRAFT, LOCAL)
    with Store(tmp_path / "c", write=True) as store:
        store.append({**job.row_head(), "text": text, "finish": "stop", "refusal": None})
        caption, reason = read_rewrite(job, PERSON, DRAFT, store)
        assert reason == why and (caption == DRAFT) == bool(why)
        good = "An adult male in a black jacket."
        for field, value, expected in (
            ("refusal", "No.", "refused"), ("finish", "content_filter", "refused"), ("finish", "length", "cut off"),
            ("reasoned", True, "thinking"),
        ):  # fmt: skip
            store.append({**job.row_head(), "text": good, field: value})
            assert read_rewrite(job, PERSON, DRAFT, store) == (DRAFT, expected)
