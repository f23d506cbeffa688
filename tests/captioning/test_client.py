"""The client and the probe against a local server: fallbacks, failures, and what never leaves this machine."""

import asyncio
import base64
import copy
import io
import json
import logging
import pickle
import traceback

import numpy as np
import pytest
from PIL import Image

from benchmarks.speed.caption_server import Behaviour, CaptionServer
from nextreid.captioning.client import Client, Key, Server, is_loopback, read_key
from nextreid.captioning.image import data_url, image_digest, prepare
from nextreid.captioning.pipeline import CaptionRequest
from nextreid.captioning.probe import probe
from nextreid.captioning.throttle import CallFailed, Timing

SECRET = "sk-do-not-show-4711"
SCHEMA = {"type": "object", "properties": {}}
PROMPT = "- age: how old (one of: adult, child)"


@pytest.fixture
def server():
    with CaptionServer(Behaviour()).running() as running:
        yield running


def talk(server, calls=1, **settings):
    async def run():
        async with Client(Server(server.url, "m", **settings)) as client:
            return [await client.ask(PROMPT, "data:image/jpeg;base64,AAAA", json_schema=SCHEMA) for _ in range(calls)]

    return asyncio.run(run())


async def no_sleep(seconds):
    pass


def see(url, **settings):
    async def run():
        async with Client(Server(url, "m", **settings)) as client:
            await probe(client, timing=Timing(sleep=no_sleep))

    asyncio.run(run())


def test_an_answer_with_all_that_is_kept(server):
    reply, again = talk(server, 2)
    assert json.loads(reply.text)["age"]["value"] in ("adult", "child")
    assert (reply.reported_model, reply.finish, reply.prompt_tokens) == (
        "m-0613",
        "stop",
        900,
    ) and reply.completion_tokens > 0
    assert reply.request != again.request and reply.text == again.text and reply.date.endswith("+00:00")
    assert server.headers[0]["x-request-id"] == reply.request
    body = server.bodies[0]
    assert body["response_format"]["json_schema"]["schema"] == SCHEMA and body["temperature"] == 0


def test_how_structured_output_is_requested(server):
    talk(server, structured="structured_outputs")
    talk(server, structured="none")
    first, second = server.bodies
    assert first["structured_outputs"] == {"json": SCHEMA} and "response_format" not in first
    assert not {"structured_outputs", "response_format"} & set(second)


def test_a_rejected_option_is_left_out_once_and_for_all(server):
    server.behaviour.no_format = True
    replies = talk(server, 3)
    assert ["response_format" in body for body in server.bodies] == [True, False, False, False]
    assert all(reply.left_out == ("structured",) for reply in replies)


@pytest.mark.parametrize(
    ("complaint", "before", "after"),
    [
        ("Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.", "max_tokens",
         "max_completion_tokens"),
        ("temperature does not support 0", "temperature", None),
        ("something is wrong", "response_format", None),
    ],
)  # fmt: skip
def test_complaints_about_options(server, monkeypatch, complaint, before, after):
    import benchmarks.speed.caption_server as module

    respond = CaptionServer._respond

    async def strict(self, path, headers, body, writer):
        if before in json.loads(body):
            self.bodies.append({})
            return module._send(writer, 400, {"error": {"message": complaint}})
        return await respond(self, path, headers, body, writer)

    monkeypatch.setattr(CaptionServer, "_respond", strict)
    talk(server, 2)
    assert server.bodies[0] == {} and len(server.bodies) == 3
    assert all(before not in body and (after is None or after in body) for body in server.bodies[1:])


@pytest.mark.parametrize(
    ("fault", "retry", "status"),
    [("429", True, 429), ("500", True, 500), ("reset", True, None), ("cut", True, None), ("html", True, 502)],
)
def test_failures_tell_whether_to_retry(server, fault, retry, status):
    server.behaviour.script, server.behaviour.wait = [fault], 7
    with pytest.raises(CallFailed) as caught:
        talk(server)
    assert (caught.value.retry, caught.value.status) == (retry, status)
    assert caught.value.retry_after == (7 if fault == "429" else None)
    assert len(server.bodies) == 1  # the SDK does not try by itself


def test_a_filtered_image_is_a_refusal(server):
    server.behaviour.script = ["filtered"]
    assert talk(server)[0].finish == "content_filter"


def test_the_key_shows_nowhere(server, caplog):
    caplog.set_level(logging.DEBUG)
    key = read_key("MY_KEY", {"MY_KEY": SECRET})
    server.behaviour.key = SECRET
    talk(server, key=key)
    server.behaviour.key = "another"  # this server repeats the key it was given
    texts = [repr(key), str(Server(server.url, "m", key)), f"{key}"]
    for call in (lambda: talk(server, key=key), lambda: see(server.url, key=key)):
        with pytest.raises((CallFailed, PermissionError)) as caught:
            call()
        texts += ["".join(traceback.format_exception(caught.value)), repr(caught.value)]
    assert "[MY_KEY]" in texts[3] and "the key in MY_KEY is not accepted" in texts[-1]
    assert SECRET not in "".join(texts) + caplog.text
    for write in (pickle.dumps, copy.deepcopy, lambda k: json.dumps(vars(k))):
        with pytest.raises(TypeError):
            write(key)
    with pytest.raises(PermissionError, match="set the environment variable MY_KEY"):
        read_key("MY_KEY", {"MY_KEY": " "})
    assert Key("x", "y").reveal() == "x"


def test_keys_of_other_programs_stay_here(server, monkeypatch):
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, SECRET)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:1")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    talk(server)
    assert SECRET not in json.dumps(server.headers)


def test_images_stay_on_this_machine_without_permission():
    with pytest.raises(ValueError, match=r"sent to api\.example\.com:8443, another machine.*--send-images-to-host"):
        Server("https://api.example.com:8443/v1", "m")
    assert Server("https://api.example.com", "m", send_images=True).url == "https://api.example.com/v1"
    assert Server("http://127.0.0.1:8000/", "m").url == "http://127.0.0.1:8000/v1"
    assert Server("http://localhost:8000/other/v2", "m").url == "http://localhost:8000/other/v2"
    for url, local in {
        "http://127.0.0.1:1": True, "http://[::1]:1": True, "http://localhost": True, "http://10.0.0.1": False,
        "http://127.0.0.1.example.com": False, "http://localhost@example.com": False, "http://0.0.0.0:1": False,
    }.items():  # fmt: skip
        assert is_loopback(url) is local
    for url in ("127.0.0.1:8000", "ftp://127.0.0.1", "http://user:pw@127.0.0.1", "http://127.0.0.1/?key=1"):
        with pytest.raises(ValueError, match="a server's address"):
            Server(url, "m")


def test_no_redirection_takes_an_image_elsewhere(server, monkeypatch):
    import benchmarks.speed.caption_server as module

    with CaptionServer().running() as other:

        async def redirect(self, path, headers, body, writer):
            if self is server:
                return module._send(writer, 307, {}, {"Location": f"{other.url}/v1/chat/completions"})
            other.bodies.append({})
            return module._send(writer, 500, {})

        monkeypatch.setattr(CaptionServer, "_respond", redirect)
        with pytest.raises(CallFailed):
            talk(server)
        assert not other.bodies


def test_probe_accepts_a_model_that_sees(server):
    server.behaviour.key = "k"
    see(server.url, key=Key("k", "K"))


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"blind": "Green."}, ValueError, "cannot see: for a red image it answered 'Green.'"),
        ({"blind": "It is red."}, ValueError, "cannot see: for a blue image it answered 'It is red.'"),
        ({"text_only": True}, ValueError, "cannot see, the server accepts no images"),
        ({"models": ["a", "b"]}, ValueError, "does not know the model 'm'; it has a, b"),
        ({"key": "k"}, PermissionError, "it requires a key: add --key-env"),
    ],
)
def test_probe_explains_what_is_wrong(server, settings, error, message):
    for name, value in settings.items():
        setattr(server.behaviour, name, value)
    with pytest.raises(error, match=message):
        see(server.url)


def test_probe_names_a_server_that_is_not_there():
    url = _closed_port()
    with pytest.raises(ConnectionError, match=f"no server answers at {url}/v1.*vllm serve"):
        see(url)


def _closed_port():
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


def test_images_are_small_upright_and_without_metadata(tmp_path):
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (300, 900, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "secret place"
    path = tmp_path / "identity_0042.jpg"
    image.save(path, exif=exif, comment=b"secret comment")
    request = CaptionRequest("k", "rgb", path)
    sent = request.prepared()
    assert sent.size == (171, 512) and sent.mode == "RGB"
    raw = base64.b64decode(data_url(sent).partition(",")[2])
    assert b"secret" not in raw and b"Exif" not in raw and not Image.open(io.BytesIO(raw)).getexif()
    assert data_url(request.prepared()) == data_url(sent)
    bare = tmp_path / "other.png"
    sent.save(bare)
    assert image_digest(CaptionRequest("k", "rgb", bare).prepared()) == image_digest(sent)
    assert image_digest(sent.transpose(Image.Transpose.ROTATE_90)) != image_digest(sent)
    assert prepare(Image.new("L", (40, 20), 7)).tobytes() == b"\x07" * 2400  # small ones stay as they are
    assert prepare(Image.new("RGBA", (1, 1), (0, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)
    Image.new("I;16", (4, 4)).save(tmp_path / "deep.png")
    with pytest.raises(ValueError, match="more than 8 bits"):
        CaptionRequest("k", "tir", tmp_path / "deep.png").prepared()
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=r"cannot read .*identity_0042\.jpg, the rgb image of sample 'k'"):
        request.prepared()
    with pytest.raises(ValueError, match=r"cannot read .*none\.jpg"):
        CaptionRequest("k", "rgb", tmp_path / "none.jpg").prepared()
