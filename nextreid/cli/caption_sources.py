"""The models, servers and classifiers that ``nextreid captions run`` asks, from its options."""

import argparse
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit


def add_sources(run: argparse.ArgumentParser) -> None:
    """Add the options to the parser."""
    option = run.add_argument_group("models and servers").add_argument
    option("--server", default="http://127.0.0.1:8000", metavar="URL", help="(default: %(default)s)")
    option(
        "--model",
        action="append",
        default=[],
        metavar="NAME[@URL]",
        help="repeatable (default: the server's only one; none with --classifier)",
    )
    option(
        "--api",
        choices=("chat", "decisions", "systemone"),
        default="chat",
        help="ask models for a text, or by typed questions that they answer with a probability for every value: POST "
        "/v1/decisions (OpenAI) or /v1/systemone (llama.cpp, SGLang) (default: %(default)s)",
    )
    option(
        "--classifier",
        action="append",
        default=[],
        type=Path,
        metavar="FILE.json",
        help="local network with probabilities, described by a file; repeatable",
    )
    option("--compose-model", metavar="NAME[@URL]", help="language model that writes captions")
    option("--key-env", action="append", default=[], metavar="[HOST=]NAME", help="environment variable with the key")
    option("--send-images-to-host", action="store_true", help="let images leave this machine for the servers named")
    option("--structured", choices=("json_schema", "structured_outputs", "none"), default="json_schema")
    option("--samples", type=int, default=1, help="answers of each model to an image (default: %(default)s)")
    option("--temperature", type=float, default=0.0, help="(default: %(default)s)")
    option("--max-tokens", type=int, default=1500, help="of one answer (default: %(default)s)")
    option("--no-probe", action="store_true", help="do not check first whether the model can see")


def sources_of(args: argparse.Namespace, schema: Any) -> list[Any]:
    """Return the servers and classifiers to be asked.

    Raises:
        ValueError: If two have one name, or the server has several models and none is named.
    """
    from nextreid.captioning.classifier import read_classifier

    classifiers = [read_classifier(path, schema) for path in args.classifier]
    models = args.model or ([] if classifiers else [_only_model(args)])
    servers = [server_of(args, name, args.api) for name in models]
    names = [classifier.model for classifier in classifiers]
    if double := sorted(name for name in names if names.count(name) > 1 or name in {s.model for s in servers}):
        raise ValueError(f"two sources are named {double[0]!r}: change the name in the classifier's file")
    return [*servers, *classifiers]


def default_rule(sources: Sequence[Any]) -> str:
    """Return how answers are merged unless the user says it."""
    return "confidence" if any(source.api == "chat" for source in sources) else "probability"


def server_of(args: argparse.Namespace, name: str, api: Any) -> Any:
    """Return one model on its server, with its key and price."""
    from nextreid.captioning.client import DEFAULT_KEY, Server, is_loopback, read_key

    model, url = _split_model(name, args.server)
    host = urlsplit(url).hostname
    keys, prices = _assignments(args.key_env, "--key-env"), _assignments(args.price, "--price")
    others = {urlsplit(_split_model(one, url)[1]).hostname for one in args.model}
    if "" in keys and others - {host}:
        raise ValueError("several servers: name the key's host, --key-env HOST=NAME, so that no other one gets it")
    # a key goes to the host it is meant for: OPENAI_API_KEY by default to no other one
    variable = keys.get(host or "") or keys.get("") or (DEFAULT_KEY if host == "api.openai.com" else None)
    price = prices.get(model, prices.get(""))
    return Server(
        url=url,
        model=model,
        key=read_key(variable) if variable else None,
        structured=args.structured,
        price=_price(price) if price is not None else None,
        send_images=args.send_images_to_host and not is_loopback(url),
        api=api,
    )


def _split_model(name: str, default: str) -> tuple[str, str]:
    """Split NAME[@URL]."""
    model, _, url = name.partition("@http")
    return model, f"http{url}" if url else default


def _assignments(entries: Sequence[str], option: str) -> dict[str, str]:
    """Return the values of [NAME=]VALUE by name, ``""`` for the one without."""
    table: dict[str, str] = {}
    for name, sign, value in (entry.rpartition("=") for entry in entries):
        if not value or (sign and not name):
            raise ValueError(f"{option} takes [NAME=]VALUE, and one of them has no {'value' if name else 'name'}")
        if name in table:
            raise ValueError(f"{option} is given twice {f'for {name!r}' if name else 'without a name'}")
        table[name] = value
    return table


def check_names(args: argparse.Namespace, sources: Sequence[Any]) -> None:
    """ValueError if a price or a key is given for something that is not asked."""
    servers = [source for source in sources if source.api != "classifier"]
    hosts = {urlsplit(server.url).hostname for server in servers}
    for option, entries, known in (
        ("--price", args.price, {server.model for server in servers}),
        ("--key-env", args.key_env, hosts),
    ):
        for name in set(_assignments(entries, option)) - {"", *known}:
            raise ValueError(
                f"{option} names {name[:100]!r}, which is not asked; there is {', '.join(sorted(known)) or 'none'}"
            )


def _price(text: str) -> tuple[float, float]:
    with suppress(ValueError):
        into, out = map(float, text.split(","))
        if 0 <= into < 1e9 and 0 <= out < 1e9:
            return into, out
    raise ValueError(f"--price takes IN,OUT for a million tokens, both at least 0, such as 0.15,0.60, got {text!r}")


def _only_model(args: argparse.Namespace) -> str:
    import asyncio

    from nextreid.captioning.client import Client

    async def ask() -> list[str]:
        async with Client(server_of(args, "any", "chat")) as client:
            return await client.list_models()

    models = asyncio.run(ask())
    if len(models) != 1:
        there = f"it has {', '.join(models)}" if models else "it does not list its models, or is not there"
        raise ValueError(f"which model of {args.server}? add --model NAME; {there}")
    return models[0]
