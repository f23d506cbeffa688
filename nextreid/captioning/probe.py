"""A check before anything is paid for: is the server up, does it have the model, can the model see."""

import asyncio
import re
from collections.abc import Awaitable, Callable

from PIL import Image

from .client import Client, Reply
from .image import data_url
from .throttle import CallFailed

_COLOURS = {"red": (220, 20, 20), "blue": (20, 40, 220)}
_QUESTION = "Which colour fills this image? Answer with one English word, the name of the colour."
_ATTEMPTS = 5
_NO_IMAGES = re.compile(r"image|vision|multi-?modal|picture|content.*(?:type|string)|unknown variant", re.IGNORECASE)


async def probe(
    client: Client, *, timeout: float = 120.0, sleep: Callable[[float], Awaitable[None]] = asyncio.sleep
) -> None:
    """Show the model two synthetic images of one colour each and ask for the colour.

    Two, because a model that sees nothing also names a colour, the same one both times.

    Args:
        client: A client of the server.
        timeout: Seconds for each attempt.
        sleep: Waits some seconds.

    Raises:
        ConnectionError: No server answers at the address.
        PermissionError: The server requires a key, or another one.
        ValueError: The server does not have the model, or the model cannot see; the message names it.
    """
    server = client.server
    for colour, value in _COLOURS.items():
        reply = await _ask(client, data_url(Image.new("RGB", (224, 224), value)), timeout, sleep)
        answer = re.sub(r"<think>.*?</think>", "", reply.text or reply.refusal or "", flags=re.DOTALL)
        named = re.findall(r"\b(red|blue)\b", answer, re.IGNORECASE)
        if not named or named[-1].lower() != colour:
            raise ValueError(
                f"model {server.model!r} on {server.host} cannot see: for a {colour} image it answered "
                f"{answer[:80]!r}; use a model that accepts images"
            )


async def _ask(client: Client, image: str, timeout: float, sleep: Callable[[float], Awaitable[None]]) -> Reply:
    """Ask, with few and short retries: somebody is waiting at the screen."""
    for number in range(_ATTEMPTS):
        try:
            async with asyncio.timeout(timeout):
                return await client.ask(_QUESTION, image, max_tokens=1000)
        except TimeoutError:
            failure = CallFailed(f"no answer within {timeout:g} s")
        except CallFailed as error:
            failure = error
        if not failure.retry:
            break
        if number + 1 < _ATTEMPTS:
            await sleep(min(30.0, failure.retry_after or 0.2 * 2**number))
    raise await _explained(client, failure)


async def _explained(client: Client, error: CallFailed) -> Exception:
    """Return the exception that tells the user what to change."""
    server = client.server
    if error.status is None or error.status >= 500 or error.status == 429:
        return ConnectionError(
            f"no server answers at {server.url} ({error}); start one, such as 'vllm serve MODEL', or correct --server"
        )
    if error.status in (401, 403):
        key = (
            f"the key in {server.key.origin} is not accepted" if server.key else "it requires a key: add --key-env NAME"
        )
        return PermissionError(f"{server.host} answered {error.status}: {key}")
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
