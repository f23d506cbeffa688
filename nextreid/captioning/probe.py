"""Whether a model answers, in the form it is asked in, and sees: before anything is paid."""

import asyncio
import functools
import json
import re
from collections.abc import Awaitable, Callable

from PIL import Image

from .client import Client, Reply
from .decisions import PATHS, Question
from .image import data_url
from .throttle import REAL_TIME, CallFailed, RateLimits, Throttle, Timing

_COLOURS = {"red": (220, 20, 20), "blue": (20, 40, 220)}
_QUESTION = "Which colour fills this image? Answer with one English word, the name of the colour."
_CHOICE = Question("colour", "Which colour fills the image?", tuple(_COLOURS))
_ATTEMPTS = 5
_OTHER_FORM = re.compile(
    r"sent no decisions|field required|missing|extra (?:inputs|fields)|unknown field", re.IGNORECASE
)
_NO_IMAGES = re.compile(r"image|vision|multi-?modal|picture|content.*(?:type|string)|unknown variant", re.IGNORECASE)


async def probe(client: Client, *, timeout: float = 120.0, timing: Timing = REAL_TIME) -> None:
    """Show the model two synthetic images of one colour each and ask for the colour.

    Two, because a model that sees nothing also names a colour, the same one both times. `timeout` includes the retries,
    few and short, because somebody waits at the screen.

    Raises:
        ConnectionError: No server answers at the address.
        PermissionError: The server requires a key, or another one.
        ValueError: The server does not have the model, it is not asked in this form, or it cannot see; the message
            names it.
    """
    server = client.server
    limits = RateLimits(timeout=timeout, attempts=_ATTEMPTS, backoff=0.2, longest_wait=30.0)
    throttle = Throttle(limits, timing=timing)
    for colour, value in _COLOURS.items():
        image = data_url(Image.new("RGB", (224, 224), value))
        try:
            async with asyncio.timeout(timeout):
                reply = await throttle.call(_question(client, image))
        except (TimeoutError, CallFailed) as error:
            failure = error if isinstance(error, CallFailed) else CallFailed(f"no answer within {timeout:g} s")
            raise await _explained(client, failure) from None
        named, answer = _named(client, reply)
        if named != colour:
            raise ValueError(
                f"model {server.model!r} on {server.host} cannot see: for a {colour} image it answered "
                f"{answer[:80]!r}; use a model that accepts images"
            )


def _question(client: Client, image: str) -> Callable[[], Awaitable[Reply]]:
    if client.server.api == "chat":
        return functools.partial(client.ask, _QUESTION, image, max_tokens=1000)
    return functools.partial(client.decide, "The image has one colour.", [_CHOICE], image)


def _named(client: Client, reply: Reply) -> tuple[str, str]:
    """Return the colour that an answer names, in lower case, and the answer."""
    if client.server.api != "chat":
        shares = json.loads(reply.text or "{}").get(_CHOICE.name, {})
        return max(shares, key=lambda colour: shares[colour], default=""), str(shares or reply.refusal)
    answer = re.sub(r"<think>.*?(?:</think>|\Z)", "", reply.text or reply.refusal or "", flags=re.DOTALL)
    named = re.findall(r"\b(red|blue)\b", answer, re.IGNORECASE)
    return named[-1].lower() if named else "", answer


async def _explained(client: Client, error: CallFailed) -> Exception:
    """Return the exception that tells the user what to change."""
    server = client.server
    if server.api != "chat" and (error.status in (404, 405, 501) or _OTHER_FORM.search(str(error))):
        return await _no_decisions(client, error)
    if error.status is None or error.status >= 500 or error.status == 429:
        return ConnectionError(
            f"no server answers at {server.url} ({error}); start one, such as 'vllm serve MODEL', or correct --server"
        )
    if error.status in (401, 403):
        wrong = f"the key in {server.key.origin} is not accepted" if server.key else ""
        return PermissionError(
            f"{server.host} answered {error.status}: {wrong or 'it requires a key: add --key-env NAME'}"
        )
    if error.status in (400, 415, 422) and _NO_IMAGES.search(str(error)):
        return ValueError(
            f"model {server.model!r} on {server.host} cannot see, the server accepts no images for it ({error}); "
            "use a model that does"
        )
    models = await client.list_models() if error.status in (400, 404) else []
    if error.status == 404 or (models and server.model not in models):
        listed = f"it has {', '.join(models[:10])}" if models else "check the name and the address"
        return ValueError(f"{server.host} does not know the model {server.model!r}; {listed}")
    return error


async def _no_decisions(client: Client, error: CallFailed) -> Exception:
    """Return the exception for a server that does not answer typed questions, or in another form."""
    server, path = client.server, PATHS[client.server.api]
    models, outputs = await client.list_models(), await client.list_outputs()
    other = "systemone" if server.api == "decisions" else "decisions"
    if outputs is not None and "decisions" not in outputs:
        why = f"the model gives {', '.join(outputs)}, no decisions: use a decision model, or --api chat"
    elif models and server.model not in models:
        why = f"it does not know the model, it has {', '.join(models[:10])}"
    elif error.status in (404, 405, 501):
        why = f"try --api {other}, a decision model, or --api chat"
    else:
        why = f"it speaks another form: try --api {other} (SGLang reads images there), or --api chat"
    return ValueError(f"{server.host} answers no POST {path} for the model {server.model!r} ({error}); {why}")
