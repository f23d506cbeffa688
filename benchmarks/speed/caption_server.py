"""An OpenAI-compatible server on the loopback that plays a captioning model, with faults on demand.

It answers a known image with the given attributes, any other by a draw that depends on the image alone.
``python -m benchmarks.speed.caption_server --port 8000`` runs it by itself.
"""

import argparse
import asyncio
import base64
import collections
import contextlib
import hashlib
import io
import json
import random
import re
import socket
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Annotation = Mapping[str, tuple[str, float]]
"""What a simulated annotator answers about an image: field to value and confidence."""

TRANSPORT = ("429", "429-date", "500", "503", "reset", "cut", "html", "slow")
"""Faults without an answer, which costs nothing."""
REPLIES = (
    "fenced", "prose", "thinking", "open-thinking", "percent", "percent-number", "word", "no-confidence",
    "out-of-range", "out-of-choices", "nulls", "lists", "bare", "trailing-comma", "python", "truncated", "list-root",
    "wrapped", "case", "empty", "garbage", "refusal", "refusal-text", "filtered",
)  # fmt: skip
"""Malformed answers, which cost as much as good ones."""
_FIELD = re.compile(r"^- (\w+): .*\((?:one of: )?(.*)\)$", re.MULTILINE)
_PAPER_FIELD = re.compile(r'^ *"(\w+)": {"value": "(?:e\.g\., )?(.*?)(?:, etc)?", "confidence": 0\.0}', re.MULTILINE)


@dataclass
class Behaviour:
    """How the server behaves.

    Attributes:
        answers: Its answer for each model and image (see `image_name`).
        delay: Seconds before an answer.
        hold: Answers wait until this is set, if it is given.
        script: Faults of the first requests, in turn; ``""`` for none.
        faults: Share of the requests that fail with a fault drawn from `kinds`, once `script` is used up.
        kinds: The faults drawn from.
        seed: Seed of that draw.
        key: The key it requires, None for none.
        models: Models it has, empty for any.
        blind: Its answer about every colour, if it cannot see.
        text_only: Whether it rejects images in the words of such servers.
        no_format: Whether it rejects ``response_format``.
        typed: The paths on which it answers typed questions.
        outputs: What its models give, as the list of models says; None: it does not say.
        most_options: Most options of a typed question.
        refused: Typed questions that it declines to answer.
        wait: Seconds that its Retry-After asks for.
    """

    answers: Mapping[tuple[str, str], Annotation] = field(default_factory=dict)
    delay: float = 0.0
    hold: threading.Event | None = None
    script: Sequence[str] = ()
    faults: float = 0.0
    kinds: Sequence[str] = (*TRANSPORT[:5], "garbage", "fenced")
    seed: int = 0
    key: str | None = None
    models: Sequence[str] = ()
    blind: str = ""
    text_only: bool = False
    no_format: bool = False
    typed: Sequence[str] = ("/v1/decisions", "/v1/systemone")
    outputs: Sequence[str] | None = None
    most_options: int = 255
    refused: Sequence[str] = ()
    wait: float = 0.0


def image_name(data_url: str) -> str:
    """Return the name by which the server knows an image: a digest of its data address."""
    return hashlib.sha256(data_url.encode()).hexdigest()[:16]


class CaptionServer:
    """The server; `running` starts it in a thread.

    Attributes:
        behaviour: May be changed while it runs.
        paid: How often each question (model, prompt and image) was answered.
        bodies: The requests' JSON, without images.
        headers: The requests' headers.
        most_in_flight: Most requests that were open at once.
    """

    def __init__(self, behaviour: Behaviour | None = None) -> None:
        self.behaviour = behaviour or Behaviour()
        self.paid: collections.Counter[str] = collections.Counter()
        self.bodies: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.requests = 0
        self.in_flight = self.most_in_flight = 0
        self.url = ""
        self._rng = random.Random(self.behaviour.seed)

    @contextlib.contextmanager
    def running(self, port: int = 0) -> Iterator["CaptionServer"]:
        """Serve from a thread; `url` says where."""
        loop = asyncio.new_event_loop()
        ready = threading.Event()

        async def serve() -> None:
            self.url = f"http://127.0.0.1:{await self.start(port)}"
            ready.set()

        def run() -> None:
            asyncio.set_event_loop(loop)
            loop.run_until_complete(serve())
            loop.run_forever()

        thread = threading.Thread(target=run, daemon=True)
        thread.start()
        if not ready.wait(10):
            raise RuntimeError("the server did not start")
        try:
            yield self
        finally:
            loop.call_soon_threadsafe(loop.stop)
            thread.join(10)

    async def start(self, port: int = 0) -> int:
        """Listen on the loopback; return the port."""
        listening = await asyncio.start_server(self._connection, "127.0.0.1", port, limit=2**24, backlog=512)
        self._listening = listening
        return int(listening.sockets[0].getsockname()[1])

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
                lines = (line.split(":", 1) for line in head[1:] if ":" in line)
                headers = {name.strip().lower(): value.strip() for name, value in lines}
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
                try:
                    open_still = await self._respond(head[0].split(" ")[1], headers, body, writer)
                finally:
                    self.in_flight -= 1
                if not open_still:
                    break
        writer.close()

    async def _respond(self, path: str, headers: dict[str, str], body: bytes, writer: asyncio.StreamWriter) -> bool:
        how = self.behaviour
        if how.key is not None and headers.get("authorization") != f"Bearer {how.key}":
            # some servers repeat the key they were given
            key = headers.get("authorization", "")
            return _send(writer, 401, {"error": {"message": f"Incorrect API key provided: {key}"}})
        if path.endswith("/models"):
            return _send(
                writer,
                200,
                {"object": "list", "data": [_listed(m, how.outputs) for m in how.models or ("simulated",)]},
            )
        if path == "/paid":
            return _send(writer, 200, {"answers": sum(self.paid.values()), "questions": len(self.paid)})
        self.headers.append(headers)
        request = json.loads(body)
        model, typed = request["model"], path.endswith(("/decisions", "/systemone"))
        if typed and path not in how.typed:
            code = 501 if how.outputs else 404
            return _send(writer, code, {"error": {"message": "this model answers no typed questions"}})
        prompt, image = _typed_content(request) if typed else _content(request)
        self.bodies.append({**request, "path": path} if typed else {**request, "messages": [prompt]})
        if how.models and model not in how.models:
            return _send(writer, 404, {"error": {"message": f"The model `{model}` does not exist."}})
        if how.text_only and image:
            message = "messages[0]: unknown variant `image_url`, expected `text`"
            return _send(writer, 400, {"error": {"message": message}})
        if how.no_format and ("response_format" in request or "structured_outputs" in request):
            return _send(writer, 400, {"error": {"message": "response_format type is unavailable now"}})
        if typed and (most := max(map(len, _options(request).values()))) > how.most_options:
            message = f"too many options ({most}), this model supports at most {how.most_options}"
            return _send(writer, 422, {"error": {"message": message}})
        if how.delay:
            await asyncio.sleep(how.delay)
        while how.hold is not None and not how.hold.is_set():
            await asyncio.sleep(0.005)
        if image and "Which colour fills" in prompt:
            probed = _decided(request, image, how) if typed else _completion(model, how.blind or _colour(image))
            return _send(writer, 200, probed)
        fault = self._fault()
        if fault in TRANSPORT:
            return await self._fail(fault, writer)
        if fault == "filtered":
            return _send(writer, 400, {"error": {"code": "content_filter", "message": "content_policy_violation"}})
        self.paid[hashlib.sha256(f"{model}|{prompt}|{image}".encode()).hexdigest()] += 1
        if typed:
            return _send(writer, 200, _decided(request, image, how))
        answer = how.answers.get((model, image_name(image))) or _draw(model, prompt, image)
        return _send(writer, 200, spoiled(fault, model, answer, prompt))

    def _fault(self) -> str:
        self.requests += 1
        if self.requests <= len(self.behaviour.script):
            return self.behaviour.script[self.requests - 1]
        if self._rng.random() < self.behaviour.faults:
            return self._rng.choice(list(self.behaviour.kinds))
        return ""

    async def _fail(self, fault: str, writer: asyncio.StreamWriter) -> bool:
        if fault == "429":
            return _send(writer, 429, {"error": {"message": "slow down"}}, {"Retry-After": f"{self.behaviour.wait:g}"})
        if fault == "429-date":
            past = {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}
            return _send(writer, 429, {"error": {"message": "slow down"}}, past)
        if fault in ("500", "503"):
            return _send(writer, int(fault), {"error": {"message": "internal"}})
        if fault == "html":
            return _send(writer, 502, "<html>Bad Gateway</html>")
        if fault == "slow":
            await asyncio.sleep(3600)
        if fault == "cut":
            writer.write(
                b'HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 999\r\n\r\n{"choices": ['
            )
            await writer.drain()
        else:
            # a reset instead of an orderly end
            linger = struct.pack("ii", 1, 0)
            writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.transport.abort()
        return False


def spoiled(fault: str, model: str, annotation: Annotation, prompt: str = "") -> dict[str, Any]:
    """Return a completion whose content has one of the malformations `REPLIES`; ``""`` for none."""
    if prompt and not _asked(prompt):  # a text is asked for
        return _completion(model, _rewrite(prompt) if not fault else "")
    table: dict[str, Any] = {name: {"value": v, "confidence": round(c, 3)} for name, (v, c) in annotation.items()}
    first = next(iter(table.values()))
    finish, refusal = "stop", None
    confidences = {
        "percent": lambda c: f"{round(100 * c)}%",
        "percent-number": lambda c: round(100 * c) if c >= 0.02 else c,
        "word": lambda c: "high" if c > 0.5 else "low",
        "out-of-range": lambda c: -0.5,
    }
    if fault in confidences:
        for entry in table.values():
            entry["confidence"] = confidences[fault](entry["confidence"])
    elif fault == "no-confidence":
        for entry in table.values():
            del entry["confidence"]
    elif fault == "out-of-choices":
        first["value"] = "flamboyant"
    elif fault == "nulls":
        table = dict.fromkeys(table) | {name: table[name] for name in list(table)[1:]}
    elif fault == "lists":
        for entry in table.values():
            entry["value"] = [entry["value"]]
    elif fault == "bare":
        table = {name: entry["value"] for name, entry in table.items()}
    elif fault == "case":
        table = {name.replace("_", " ").title(): entry for name, entry in table.items()}
    text = json.dumps([table] if fault == "list-root" else {"attributes": table} if fault == "wrapped" else table)
    if fault == "fenced":
        text = f"```json\n{text}\n```"
    elif fault == "prose":
        text = f"Here is the {{JSON}} you asked for:\n{text}\nI hope this helps!"
    elif fault == "thinking":
        text = f'<think>Perhaps {{"age": {{"value": "child", "confidence": 1}}}}?</think>\n{text}'
    elif fault == "open-thinking":
        text = f"Let me look at the image. </think>{text}"
    elif fault == "trailing-comma":
        text = text[:-1] + ",}"
    elif fault == "python":
        text = str(table)
    elif fault == "truncated":
        text, finish = text[: int(len(text) * 0.8)], "length"
    elif fault == "empty":
        text = ""
    elif fault == "garbage":
        text = "The image shows a person in the street."
    elif fault == "refusal":
        text, refusal = "", "I can't help with that."
    elif fault == "refusal-text":
        text = "I'm sorry, but I can't identify people in images."
    return _completion(model, text, finish, refusal)


def _content(request: Mapping[str, Any]) -> tuple[str, str]:
    content = request["messages"][-1]["content"]
    if isinstance(content, str):
        return content, ""
    text = "".join(part["text"] for part in content if part["type"] == "text")
    return text, next((part["image_url"]["url"] for part in content if part["type"] == "image_url"), "")


def _listed(model: str, outputs: Sequence[str] | None) -> dict[str, Any]:
    entry: dict[str, Any] = {"id": model, "object": "model"}
    return entry if outputs is None else {**entry, "architecture": {"output_modalities": list(outputs)}}


def _typed_content(request: dict[str, Any]) -> tuple[str, str]:
    """Return the questions and the image of a call with typed questions, the image taken out of it."""
    if isinstance(request["questions"], dict):
        return json.dumps(request["questions"]), request.pop("images")[0]
    content = request["input"][0]["content"]
    return json.dumps(request["questions"]), content.pop(0)["image_url"]


def _options(request: Mapping[str, Any]) -> dict[str, list[str]]:
    """Return the options of each typed question, in either form."""
    asked = request["questions"]
    if isinstance(asked, dict):
        return {name: list(question["criteria"]) for name, question in asked.items()}
    return {question["name"]: [choice["value"] for choice in question["choices"]] for question in asked}


def _decided(request: Mapping[str, Any], image: str, how: Behaviour) -> dict[str, Any]:
    """Answer typed questions: the colour of the image if it is asked for, else with probabilities drawn from it."""
    answers: dict[str, dict[str, Any]] = {}
    for name, options in _options(request).items():
        rng = random.Random(f"{request['model']}|{image}|{name}")
        weights = [rng.random() ** 3 + 1e-3 for _ in options]
        if set(options) == {"red", "blue"} and not how.blind:
            weights = [9.0 if option in _colour(image).lower().split(">")[-1] else 1.0 for option in options]
        shares = {option: weight / sum(weights) for option, weight in zip(options, weights, strict=True)}
        best = max(shares, key=lambda option: shares[option])
        confidence = max(0.0, (shares[best] * len(shares) - 1) / (len(shares) - 1))
        answers[name] = {"type": "choice", "choice": best, "confidence": confidence, "probabilities": shares}
        if name in how.refused:
            answers[name] = {"type": "refusal"}
    usage = {"input_tokens": 700, "output_tokens": 0}
    if isinstance(request["questions"], dict):
        return {"model": f"{request['model']}-0613", "answers": answers, "usage": usage}
    for answer in answers.values():
        if shares := answer.pop("probabilities", None):
            answer["probabilities"] = [{"value": value, "probability": p} for value, p in shares.items()]
    named = [{**answer, "name": name} for name, answer in answers.items()]
    return {"model": f"{request['model']}-0613", "answers": named, "usage": usage}


def _draw(model: str, prompt: str, image: str) -> Annotation:
    rng = random.Random(f"{model}|{image}")
    return {name: (rng.choice(choices), rng.random()) for name, choices in _asked(prompt).items()}


def _asked(prompt: str) -> dict[str, list[str]]:
    """Return the fields that a prompt asks for, nextreid's or the paper's, with their choices."""
    return {
        name: re.split(r" \| |, ", choices)
        for name, choices in (_FIELD.findall(prompt) or _PAPER_FIELD.findall(prompt))
    }


def _rewrite(prompt: str) -> str:
    """Return the draft of the prompt, or what the grammar makes of its data, as an obedient language model would."""
    from nextreid.captioning import compose, get_schema

    head, _, data = prompt.partition("\n{")
    if draft := re.search(r"^Draft: (.*)", head, re.MULTILINE):
        return draft[1]
    schema = get_schema("vehicle" if "vehicle" in head else "person")
    answers = json.loads("{" + data) if data else {}
    return (
        " ".join(compose({n: schema.normalise(n, a["value"])[0] for n, a in answers.items()}, schema, "rgb"))
        or "A person."
    )


def _colour(image: str) -> str:
    from PIL import Image

    pixel = Image.open(io.BytesIO(base64.b64decode(image.partition(",")[2]))).resize((1, 1))
    red, _, blue = pixel.getpixel((0, 0))  # type: ignore[misc]
    return "<think>red or blue?</think>" + ("Red." if red > blue else "Blue.")


def _completion(model: str, text: str, finish: str = "stop", refusal: str | None = None) -> dict[str, Any]:
    message = {"role": "assistant", "content": text, "refusal": refusal}
    tokens = len(text) // 4
    return {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": 0,
        "model": f"{model}-0613",
        "choices": [{"index": 0, "message": message, "finish_reason": finish}],
        "usage": {"prompt_tokens": 900, "completion_tokens": tokens, "total_tokens": 900 + tokens},
    }


def _send(
    writer: asyncio.StreamWriter, status: int, body: Mapping[str, Any] | str, headers: Mapping[str, str] | None = None
) -> bool:
    payload = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    kind = "text/html" if isinstance(body, str) else "application/json"
    lines = [f"HTTP/1.1 {status} X", f"Content-Type: {kind}", f"Content-Length: {len(payload)}"]
    lines += [f"{name}: {value}" for name, value in (headers or {}).items()]
    writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + payload)
    return True


async def _forever(server: CaptionServer, port: int) -> None:
    print(f"http://127.0.0.1:{await server.start(port)}", flush=True)
    await asyncio.Event().wait()


def main() -> None:
    """Serve until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed.caption_server", description=__doc__)
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--delay", type=float, default=0.0, help="seconds before an answer")
    parser.add_argument("--faults", type=float, default=0.0, help="share of requests that fail")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    server = CaptionServer(Behaviour(delay=args.delay, faults=args.faults, seed=args.seed))
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_forever(server, args.port))


if __name__ == "__main__":
    main()
