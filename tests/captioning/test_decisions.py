"""Typed questions: the two forms on the wire, answers within bounds, the probe, and a run over all of it."""

import asyncio
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import benchmarks.speed.caption_server as module
from benchmarks.speed.caption_server import Behaviour, CaptionServer
from nextreid.captioning import Schema, get_schema
from nextreid.captioning.answers import parse_distributions
from nextreid.captioning.client import Client, Key, Server
from nextreid.captioning.decisions import Question, questions_of, read_decisions, request_body, statement_of
from nextreid.captioning.pipeline import CaptionRequest, Sampling, collect, index_images, run_captions
from nextreid.captioning.probe import probe
from nextreid.captioning.runner import Source
from nextreid.captioning.store import Store
from nextreid.captioning.throttle import CallFailed, RateLimits, Timing

PERSON = get_schema("person")
ASKED = (
    Question("gender", "Gender", ("male", "female", "unknown")),
    Question("bag", "A bag", ("yes", "no", "unknown")),
)
APIS = ("decisions", "systemone")
IMAGE = "data:image/jpeg;base64,AAAA"
# as OpenAI and llama.cpp document them
OPENAI = {
    "model": "luna",
    "answers": [
        {"type": "choice", "name": "gender", "choice": "male", "confidence": 0.4, "probabilities": [
            {"value": "male", "probability": 0.6}, {"value": "female", "probability": 0.3},
            {"value": "unknown", "probability": 0.1}]},
        {"type": "refusal", "name": None},
    ],
    "usage": {"input_tokens": 55, "output_tokens": 2, "total_tokens": 57},
}  # fmt: skip
LLAMA = {
    "model": "openjev",
    "answers": {
        "bag": {
            "type": "choice", "choice": "no", "confidence": 0, "probabilities": {"yes": 0.3, "no": 0.4, "unknown": 0.3}
        },
        "gender": {
            "type": "choice", "choice": "male", "confidence": 1, "probabilities": {"male": 1, "female": 0, "unknown": 0}
        },
    },
    "usage": {"input_tokens": 31, "output_tokens": 0},
}  # fmt: skip


@pytest.fixture
def server():
    with CaptionServer(Behaviour()).running() as running:
        yield running


def read(answer, asked=ASKED):
    return read_decisions(json.dumps(answer).encode(), asked)


def test_every_closed_field_is_asked_with_a_way_out():
    asked = {q.name: q.options for q in questions_of(PERSON, "tir")}
    assert asked.keys() == {f.name for f in PERSON.for_modality("tir")}
    assert asked["gender"] == (*PERSON["gender"].values, "unknown")
    assert "neither colours" in statement_of(PERSON, "tir")
    free = Schema.from_dict(
        {"name": "x", "version": "1", "fields": [{"name": "words"}, {"name": "on", "values": ["y"]}]}
    )
    assert [q.name for q in questions_of(free, "rgb")] == ["on"]


def test_the_body_is_what_the_sdk_sends():
    types = pytest.importorskip("openai.types.decision_create_params")
    pydantic = pytest.importorskip("pydantic")
    body = request_body("decisions", "luna", "about", questions_of(PERSON, "rgb"), IMAGE)
    pydantic.TypeAdapter(types.DecisionCreateParams).validate_python(body)
    assert [q["name"] for q in body["questions"]] == [q.name for q in questions_of(PERSON, "rgb")]
    other = request_body("systemone", "luna", "about", ASKED, IMAGE)
    assert other["images"] == [IMAGE] and other["state"] == "about"
    assert other["questions"]["bag"] == {
        "type": "choice", "instructions": "A bag", "criteria": {"yes": None, "no": None, "unknown": None}
    }  # fmt: skip


def test_answers_in_either_form():
    found = read(OPENAI)
    assert json.loads(found.text) == {"gender": {"male": 0.6, "female": 0.3}}
    assert (found.prompt_tokens, found.completion_tokens, found.reported_model) == (55, 2, "luna")
    found = read(LLAMA)
    assert json.loads(found.text) == {"gender": {"male": 1.0, "female": 0.0}, "bag": {"yes": 0.3, "no": 0.4}}
    assert found.prompt_tokens == 31 and found.refusal is None
    refused = {"answers": {name: {"type": "refusal"} for name in ("gender", "bag")}}
    assert read(refused).refusal and parse_distributions("{}", PERSON, "rgb", refusal="refused").status == "refused"


def spoilt(**changes):
    return {"answers": {**LLAMA["answers"], "bag": {**LLAMA["answers"]["bag"], **changes}}}


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (spoilt(probabilities={"yes": 0.3, "no": 0.4}), r"bag.probabilities must sum to 1; they sum to 0.7"),
        (spoilt(probabilities={"yes": 1.2, "no": -0.2}), r"bag.probabilities\.yes must be a number of"),
        (spoilt(probabilities={"yes": math.nan, "no": 1}), r"bag.probabilities\.yes must be a number of"),
        (spoilt(probabilities={"yes": math.inf, "no": 0}), r"bag.probabilities\.yes must be a number of"),
        (spoilt(probabilities={"yes": "1", "no": 0}), r"bag.probabilities\.yes must be a number of"),
        (spoilt(probabilities={"yes": 0.5, "maybe": 0.5}), r"bag.probabilities has 'maybe', which was not offered"),
        (spoilt(probabilities=None), r"bag.probabilities must be a mapping"),
        (spoilt(type="noul"), r"bag.type must be one of choice, refusal"),
        ({"answers": {"gender": LLAMA["answers"]["gender"]}}, r"bag.type must be one of"),
        ({"answers": OPENAI["answers"][:1]}, "1 answers to 2 questions"),
        ({"answers": OPENAI["answers"][::-1]}, "in another order than the questions: 'gender'"),
        ({"answers": [{**OPENAI["answers"][0], "probabilities": [{"value": "male", "probability": 0.5}] * 2},
                      {"type": "refusal"}]}, "must name every option once"),
        ({"answers": [{**OPENAI["answers"][0], "probabilities": [{"value": True, "probability": 1}]},
                      {"type": "refusal"}]}, "must"),
        ({"choices": []}, "it holds no answers"),
        ([1], "it holds no answers"),
    ],
)  # fmt: skip
def test_answers_out_of_bounds_are_named(answer, message):
    with pytest.raises(ValueError, match=message):
        read(answer)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)
SHARES = st.dictionaries(st.sampled_from([*ASKED[1].options, "other"]), st.floats(-0.1, 1.1) | JSON, max_size=4)


@settings(derandomize=True, deadline=None, max_examples=150)
@given(st.one_of(JSON, SHARES.map(lambda p: spoilt(probabilities=p)), JSON.map(lambda a: spoilt(probabilities=a))))
def test_whatever_a_server_sends_is_a_distribution_or_one_error(answer):
    try:
        found = json.loads(read(answer).text)
    except ValueError:
        return
    for name, shares in found.items():
        options = next(q.options for q in ASKED if q.name == name)
        assert set(shares) <= set(options) - {"unknown"}
        assert all(0 <= p <= 1 for p in shares.values()) and sum(shares.values()) <= 1


def decide(server, asked=ASKED, **settings):
    async def run():
        async with Client(Server(server.url, "m", **settings)) as client:
            return await client.decide("about", asked, IMAGE)

    return asyncio.run(run())


@pytest.mark.parametrize("api", APIS)
def test_a_call_asks_everything_at_once(server, api):
    server.behaviour.key = "k"
    reply = decide(server, api=api, key=Key("k", "K"))
    found = json.loads(reply.text)
    assert found.keys() == {"gender", "bag"} and reply.prompt_tokens == 700
    assert server.bodies[0]["path"] == f"/v1/{api}" and len(server.bodies) == 1
    if api == "decisions":
        sdk = pytest.importorskip("openai.types.decision")
        answered = module._decided(
            {"model": "m", "questions": request_body(api, "m", "", ASKED, IMAGE)["questions"]}, IMAGE, Behaviour()
        )
        for answer in sdk.Decision.model_construct(**answered).answers:
            sdk.AnswerAnswerResourceChoice.model_validate(answer)


@pytest.mark.parametrize("api", APIS)
def test_questions_with_too_many_options_are_left_out(server, api):
    server.behaviour.most_options = 4
    wide = Question("colour", "Colour", tuple("abcdef"))

    async def run():
        async with Client(Server(server.url, "m", api=api)) as client:
            return [await client.decide("about", (*ASKED, wide), IMAGE) for _ in range(2)]

    first, second = asyncio.run(run())
    assert json.loads(first.text).keys() == {"gender", "bag"}
    assert first.left_out == second.left_out == ("questions of more than 4 options",)
    assert len(server.bodies) == 3, "the server is told once"
    server.behaviour.most_options = 2
    with pytest.raises(CallFailed, match="at most 2"):
        decide(server, api=api)


@pytest.mark.parametrize(("fault", "retry"), [("429", True), ("500", True), ("html", True), ("cut", True)])
def test_failures_are_those_of_every_call(server, fault, retry):
    server.behaviour.script = [fault]
    with pytest.raises(CallFailed) as caught:
        decide(server, api="systemone")
    assert caught.value.retry is retry


async def no_sleep(seconds):
    pass


def see(server, api):
    async def run():
        async with Client(Server(server.url, "m", api=api)) as client:
            await probe(client, timing=Timing(sleep=no_sleep))

    asyncio.run(run())


@pytest.mark.parametrize("api", APIS)
def test_the_probe_accepts_a_model_that_sees_and_decides(server, api):
    see(server, api)
    assert not server.paid


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"typed": (), "outputs": ["text"]},
            r"no POST /systemone .*the model gives text, no decisions: use a decision",
        ),
        (
            {"typed": ("/v1/decisions",), "models": ["m"]},
            r"no POST /systemone for the model 'm' .* try --api decisions",
        ),
        ({"typed": (), "models": ["a", "b"]}, "does not know the model, it has a, b"),
        ({"blind": "x"}, r"cannot see: for a (red|blue) image it answered"),
        ({"text_only": True}, "cannot see, the server accepts no images"),
    ],
)
def test_the_probe_explains_what_is_wrong(server, changes, message):
    for name, value in changes.items():
        setattr(server.behaviour, name, value)
    with pytest.raises(ValueError, match=message):
        see(server, "systemone")


def test_the_probe_knows_another_form_of_decisions(server, monkeypatch):
    async def strict(self, path, headers, body, writer):  # as SGLang's, which reads text alone
        if path.endswith("/models"):
            return module._send(writer, 200, {"data": [{"id": "m"}]})
        message = "questions.0.choice.id: Field required; questions.0.choice.options: Field required"
        return module._send(writer, 422, {"error": {"message": message}})

    monkeypatch.setattr(CaptionServer, "_respond", strict)
    with pytest.raises(ValueError, match="another form: try --api systemone"):
        see(server, "decisions")


def images(count=3):
    rng = np.random.default_rng(0)
    return [
        CaptionRequest(f"{n}", m, rng.integers(0, 255, (16, 8, 3), dtype=np.uint8))
        for n in range(count)
        for m in ("rgb", "tir")
    ]


@pytest.mark.parametrize("api", APIS)
def test_a_run_resumes_and_gives_distributions(server, tmp_path, api):
    path, typed, chat = tmp_path / "calls", Server(server.url, "m", api=api), Server(server.url, "m")
    server.behaviour.script = ["", "429", "reset"]
    server.behaviour.refused = ["age"]
    limits = RateLimits(2, backoff=0.001)
    first = run_captions(images(), "person", [typed], path, limits=limits, max_calls=2, probing=False)
    assert (first.done, first.stopped) == (2, "max-calls")
    run_captions(images(), "person", [typed, chat], path, sampling=Sampling(2, 0.5), limits=limits)
    assert set(server.paid.values()) == {1, 2}  # the two samples of the chat are two calls
    indexed = index_images(images())
    with Store(path) as store:
        assert len(store) == 6 + 12
        found = collect(indexed, "person", [Source("m", api)], store)
        talked = collect(indexed, "person", ["m"], store, Sampling(2, 0.5))
    assert found.counts["ok"] == 6 and talked.counts["ok"] == 12
    for modalities in found.answers.values():
        for modality, annotators in modalities.items():
            answers = annotators["m"]
            assert answers.keys() == {f.name for f in PERSON.for_modality(modality)} - {"age"}
            for name, answer in answers.items():
                assert answer.source == "probability" and set(answer.probabilities) <= set(PERSON[name].values)
                if answer.value is not None:
                    assert answer.confidence == max(answer.probabilities.values())
    with pytest.raises(ValueError, match="asked by the schema's typed questions"):
        run_captions(images(), get_schema("person", "paper"), [typed], path)


def test_a_stored_answer_of_another_kind_is_unusable():
    for text in (None, "", "[1]", '{"age": 3}', '{"age": {"adult": 2}}', '{"age": {"old": 0.5}}', '{"wings": {}}'):
        assert parse_distributions(text, PERSON, "rgb").status == "unusable"
    with pytest.raises(ValueError, match="api is one of chat, decisions, systemone"):
        Server("http://127.0.0.1:1", "m", api="classifier")
