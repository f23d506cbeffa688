"""What several commands share: arguments, values from text, datasets, models and devices by name."""

import argparse
import ast
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any


def dataset_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a dataset."""
    parser.add_argument(
        "--dataset", required=True, help="a dataset, such as rgbnt201 or manifest: 'nextreid data list'"
    )
    parser.add_argument("--root", type=Path, help="its folder, or the folder that holds it")
    parser.add_argument("--captions", type=Path, help="folder with {train,test}_{RGB,NI,TI}.json")
    list_argument(parser, "--dataset-arg", "NAME=VALUE", "further arguments of it")


def list_argument(parser: argparse.ArgumentParser, option: str, metavar: str, help: str) -> None:
    """Add an option that takes several values, and may be repeated."""
    parser.add_argument(option, nargs="+", action="extend", default=[], metavar=metavar, help=help)


def run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of embedding: batch size, workers, device."""
    parser.add_argument("--batch-size", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes that load images (default: %(default)s)")
    text_cache_argument(parser)
    parser.add_argument("--device", help="such as cpu or cuda (default: cuda where there is one)")


def text_cache_argument(parser: argparse.ArgumentParser) -> None:
    """Add the option that keeps encoded captions in a file."""
    parser.add_argument("--text-cache", type=Path, metavar="FILE", help="keep encoded captions here for later runs")


def open_text_cache(model: Any, path: Path | None) -> None:
    """Open the file of `text_cache_argument` for a model; ValueError if the model reads no captions."""
    if path and model.text_tower is None:
        raise ValueError(f"--text-cache: {model.pretrained_cfg.architecture} has no text tower; leave the option out")
    if path:
        model.text_tower.open_cache(path)


def policy_arguments(parser: argparse.ArgumentParser, *, leak: bool = True) -> None:
    """Add the options that say what to do about bad images, and about weights that were trained on the test set."""
    parser.add_argument(
        "--on-error",
        choices=("raise", "skip", "mask"),
        default="raise",
        help="images that cannot be read: stop, leave their samples out, or make the modality missing",
    )
    if leak:
        parser.add_argument(
            "--allow-leak", action="store_true", help="go on although the weights have seen identities of this test set"
        )


def pairs(items: Sequence[str], option: str, reserved: Sequence[str] = ()) -> dict[str, Any]:
    """``["epochs=3", "name=x"]`` to a dict; values are JSON or Python literals, else text."""
    table: dict[str, Any] = {}
    for item in items:
        name, sign, value = item.partition("=")
        if not sign or not name:
            raise ValueError(f"{option} takes NAME=VALUE pairs, got {item!r}")
        if name in reserved:
            raise ValueError(f"{name!r} is an option of its own and cannot be set by {option}")
        table[name] = _value(value)
    return table


def _value(text: str) -> Any:
    for parse in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError):
            return parse(text)
    return text


def pick_device(name: str | None) -> str:
    """Return the device to use: the named one if it works here, else ValueError; None takes CUDA where there is one.

    Each process that ``torchrun`` started gets a GPU of its own.
    """
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        local, count = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
        if local >= count:
            raise ValueError(f"process {local} of this machine finds {count} GPUs: start one process for each GPU")
        name = f"cuda:{local}"
    if name == "cpu":
        return name
    try:
        torch.empty(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise ValueError(f"device {name!r} cannot be used here: {str(error).splitlines()[0]}") from error
    return name


def dataset_of(args: argparse.Namespace) -> Any:
    """Load the dataset that the options of `dataset_arguments` name."""
    from nextreid.data import load_dataset

    options = pairs(args.dataset_arg, "--dataset-arg", reserved=("name", "root", "captions"))
    return load_dataset(args.dataset, args.root, captions=args.captions, **options)


def load_model(name: str) -> Any:
    """Load a checkpoint folder, a hub name or a registered model with its weights."""
    import nextreid
    from nextreid._names import closest

    known = nextreid.is_model(name) and not Path(name).exists()
    remote = name.startswith(("local-dir:", "hf-hub:"))
    near = closest(name, [*nextreid.list_models(), *nextreid.list_pretrained()])
    if near and not known and not remote and not Path(name).exists():
        raise FileNotFoundError(f"{name!r} is no checkpoint folder and no model; did you mean {' or '.join(near)}?")
    return nextreid.create_model(name if known or remote else f"local-dir:{name}", pretrained=True)


def embed_options(args: argparse.Namespace, device: str) -> Any:
    """Return the options of `run_arguments` as one value."""
    from nextreid.engine import EmbedOptions

    return EmbedOptions(args.batch_size, args.workers, device)


def metrics_line(row: dict[str, Any]) -> str:
    """Return one line with the metrics of a result and the conditions they hold under."""
    from nextreid.retrieval import METRICS

    metrics = "  ".join(f"{name} {100 * row[name]:.1f}" for name in METRICS)
    missing = f", without {', '.join(row['missing'])}" if row.get("missing") else ""
    more = ", re-ranked" if row.get("rerank") else ""
    more += ", modality parts averaged" if row.get("averaged") else ""
    valid = f"{row['valid_queries']} of {row['queries']} queries valid"
    return f"{metrics}  [{condition_text(row)}{missing}{more}, {valid}]"


def condition_text(row: dict[str, Any]) -> str:
    """Return the protocol of a result and whether captions were read."""
    return f"protocol {row['protocol']}, {'with' if row['text'] else 'no'} captions at test"
