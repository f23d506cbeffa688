"""Answers of servers of every shape: read through one schema into bounded, typed values, or one named error."""

import asyncio
import gzip
import http.server
import json
import threading
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nextreid.captioning.client import Client, Key, Server
from nextreid.captioning.completion import MAX_BODY, Completion, read_completion, read_models, unpack
from nextreid.captioning.throttle import CallFailed, retry_after

repeatable = settings(derandomize=True, deadline=None)
SECRET = "sk-odd+key/4711"
ODD = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.just(10**400)
    | st.floats()
    | st.text(max_size=8)
    | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def body(message=None, **more):
    return {
        "choices": [{"message": {"content": "hi"} if message is None else message, "finish_reason": "stop"}],
        **more,
    }


def read(value):
    return read_completion(json.dumps(value).encode())


def check(found: Completion):
    texts = [found.text or "", found.finish or "", found.refusal or "", found.reported_model]
    assert all(isinstance(text, str) and text.encode() is not None for text in texts)
    assert len(texts[0]) <= 100_000 and max(map(len, texts[1:])) <= 200
    for count in (found.prompt_tokens, found.completion_tokens):
        assert type(count) is int and 0 <= count <= 10**6


@repeatable
@given(st.sampled_from(["content", "reasoning_content", "reasoning", "refusal"]), ODD, ODD, ODD, ODD)
def test_any_value_in_any_place_is_read_or_one_named_error(place, value, finish, usage, model):
    answer = {"choices": [{"message": {place: value}, "finish_reason": finish}], "usage": usage, "model": model}
    check(read(answer))
    check(read(body(usage={"prompt_tokens": value, "completion_tokens": usage})))
    for broken in ({"choices": value}, {"choices": [value]}, {"choices": [{"message": finish}]}, value):
        try:
            check(read(broken))
        except ValueError as error:
            assert len(str(error)) < 400


@repeatable
@given(st.binary(max_size=60) | st.sampled_from([b"[" * 200_000, b'{"choices":' * 50_000, b"1" * 5000, b"", b"\xff"]))
def test_any_bytes_are_one_named_error_and_no_models(data):
    with pytest.raises(ValueError):
        read_completion(data)
    assert read_models(data) == []


@repeatable
@given(ODD)
def test_a_list_of_models_is_names(value):
    for answer in ({"data": value}, {"data": [{"id": value}]}, value):
        assert all(isinstance(name, str) and name for name in read_models(json.dumps(answer).encode()))
    assert read_models(b'{"data": [{"id": "a"}, 5, {"id": 7}, {"id": "b"}]}') == ["a", "b"]


@pytest.mark.parametrize(
    ("message", "text", "reasoned"),
    [
        ({"content": [{"type": "text", "text": "a"}, {"type": "thinking", "thinking": "b"}, "c"]}, "ac", False),
        ({"content": {"type": "output_text", "text": "a"}}, "a", False),
        ({"content": None, "reasoning_content": "a"}, "a", True),
        ({"content": " ", "reasoning": "a"}, "a", True),
        ({"content": "a", "reasoning": "b"}, "a", False),
        ({"content": []}, "", False),
        ({"content": None}, None, False),
        ({}, None, False),
    ],
)
def test_where_the_text_stands(message, text, reasoned):
    found = read(body(message))
    assert (found.text, found.reasoned) == (text, reasoned)


def test_refusals_and_reasons():
    assert read(body({"content": [{"type": "refusal", "refusal": "No."}]})).refusal == "No."
    assert read(body({"content": "x", "refusal": {"why": 1}})).refusal
    assert read(body({"content": "x", "refusal": False})).refusal is None
    for said, meant in {"MAX_TOKENS": "length", "SAFETY": "content_filter", "Stop": "stop", "": None}.items():
        assert read({"choices": [{"message": {"content": "x"}, "finish_reason": said}]}).finish == meant


@repeatable
@given(st.binary(max_size=200), st.text(max_size=12))
def test_unpacking_ends_in_bytes_or_one_error(data, encoding):
    assert unpack(gzip.compress(data), "gzip") == unpack(zlib.compress(data), " Deflate ") == unpack(data, "") == data
    try:
        unpack(data, encoding)
    except ValueError as error:
        assert len(str(error)) < 200


def test_a_small_body_that_unpacks_to_a_large_one_is_not_unpacked():
    with pytest.raises(ValueError, match="unpacks to more than"):
        unpack(gzip.compress(bytes(MAX_BODY + 1)), "gzip")
    with pytest.raises(ValueError, match="cut off"):
        unpack(gzip.compress(b"x" * 1000)[:-9], "gzip")
    with pytest.raises(ValueError, match="compressed as 'br'"):
        unpack(b"x", "br")


@repeatable
@given(st.text(max_size=40) | st.from_regex(r"[A-Z][a-z]{2}, \d\d [A-Z][a-z]{2} \d{4} \d\d:\d\d:\d\d [-+]\d{4}"))
def test_any_retry_after_is_seconds_or_none(header):
    seconds = retry_after(header)
    assert seconds is None or 0 <= seconds < 1e8


class Scripted(http.server.BaseHTTPRequestHandler):
    """Answers with what the test put into `answer`: status, headers, and chunks of the body."""

    answer: tuple[int, dict[str, str], list[bytes]] = (200, {}, [])

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        status, headers, chunks = self.answer
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        try:
            for chunk in chunks:
                self.wfile.write(chunk)
        except ConnectionError:
            pass  # the client had enough

    def log_message(self, *args):
        pass


@pytest.fixture(scope="module")
def url():
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Scripted)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()


def ask(url, status, headers, chunks):
    Scripted.answer = (status, headers, chunks)

    async def call():
        async with Client(Server(url, "m", Key(SECRET, "MY_KEY"))) as client:
            return await client.ask("?")

    return asyncio.run(call())


def test_a_compressed_answer_is_read_and_an_endless_one_is_not(url):
    good = json.dumps(body()).encode()
    assert ask(url, 200, {"Content-Encoding": "gzip"}, [gzip.compress(good)]).text == "hi"
    assert ask(url, 200, {"X-Region": "Z\u00fcrich"}, [good]).text == "hi"
    endless = (b" " * 2**20 for _ in range(1000))
    with pytest.raises(CallFailed, match="longer than") as caught:
        ask(url, 200, {}, endless)
    assert caught.value.retry and sum(1 for _ in endless) > 900
    bomb = gzip.compress(bytes(2**26))
    for status in (200, 400, 500):
        with pytest.raises(CallFailed, match="unpacks to more"):
            ask(url, status, {"Content-Encoding": "gzip"}, [bomb])


@pytest.mark.parametrize(
    ("status", "headers", "data"),
    [
        (429, {"retry-after-ms": "\u00b2"}, b"{}"), (429, {"retry-after": "\u00b2"}, b"[" * 100_000),
        (429, {"retry-after-ms": "9" * 400}, b"{}"), (503, {"retry-after": "nan"}, b"5"),
        (400, {}, b"[" * 100_000), (200, {}, b'{"choices": 5}'), (200, {"content-type": "text/html"}, b"<html>"),
        (200, {}, b'{"error": {"message": "overloaded"}}'),
        (400, {}, b'{"error": {"message": "\\ud800"}}'), (204, {}, b""), (302, {"location": "http://x"}, b""),
    ],
)  # fmt: skip
def test_odd_answers_cost_one_call(url, status, headers, data):
    with pytest.raises(CallFailed) as caught:
        ask(url, status, headers, [data])
    assert caught.value.retry_after is None and len(str(caught.value).encode()) < 700


@pytest.mark.parametrize("spelled", [SECRET, SECRET.replace("/", "%2F").replace("+", "%2B"), json.dumps(SECRET)])
def test_a_key_that_a_server_repeats_shows_nowhere(url, spelled):
    texts = []
    for status in (200, 400, 401, 500):
        with pytest.raises(CallFailed) as caught:
            ask(url, status, {}, [json.dumps({"error": {"message": f"bad key {spelled}"}}).encode()])
        texts.append(str(caught.value))
    message = {"content": f"key {spelled}", "refusal": spelled}
    answer = {"choices": [{"message": message, "finish_reason": spelled}], "model": spelled}
    texts.append(str(ask(url, 200, {}, [json.dumps(answer).encode()])))
    texts.append(
        str(ask(url, 400, {}, [json.dumps({"error": {"code": "content_filter", "message": spelled}}).encode()]))
    )
    assert all(SECRET not in text and "4711" not in text for text in texts) and "[MY_KEY]" in texts[0]
