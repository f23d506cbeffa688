"""What several commands share: arguments, values from text, datasets, models and devices by name."""

import argparse
import ast
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from nextreid._names import show

_LONGEST_PAIR = 10_000  # characters of NAME=VALUE


def dataset_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that choose a dataset."""
    parser.add_argument(
        "--dataset",
        required=True,
        help="a name of 'nextreid data list', such as rgbnt201, or your own: a CSV or parquet file, or a folder (whose "
        "subfolders are modalities and identities, or as --pattern says)",
    )
    parser.add_argument("--root", type=Path, help="folder of a named dataset, or the folder that holds it")
    source_arguments(parser)
    list_argument(parser, "--dataset-arg", "NAME=VALUE", "further arguments of it")


def source_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how images are read."""
    parser.add_argument("--captions", type=Path, help="folder of captions: {train,test}_{RGB,NI,TI}.json, or of a run")
    parser.add_argument("--pattern", help="how the files of a folder are named: '{modality}/{pid}_c{camid}_{*}.jpg'")
    list_argument(
        parser,
        "--window",
        "MODALITY=LOW,HIGH",
        "for images of 16 bits the raw values that become black and white, such as tir=7000,9000, or tir=minmax",
    )


def list_argument(parser: argparse.ArgumentParser, option: str, metavar: str, help: str) -> None:
    """Add an option that takes several values, and may be repeated."""
    parser.add_argument(option, nargs="+", action="extend", default=[], metavar=metavar, help=help)


def run_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of embedding: batch size, workers, device."""
    parser.add_argument("--batch-size", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes that load images (default: %(default)s)")
    text_cache_argument(parser)
    device_arguments(parser)


def device_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where to compute and whether to show progress."""
    parser.add_argument("--device", help="such as cpu or cuda (default: cuda where there is one)")
    parser.add_argument("--no-progress", action="store_true", help="show no progress on stderr")


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
            raise ValueError(f"{option} takes NAME=VALUE pairs, got {show(item)}")
        if len(item) > _LONGEST_PAIR:
            raise ValueError(f"{option}: the value of {name[:80]!r} is longer than {_LONGEST_PAIR} characters")
        if name in reserved:
            raise ValueError(f"{show(name)} is an option of its own and cannot be set by {option}")
        table[name] = _value(value)
    return table


def _value(text: str) -> Any:
    for parse in (json.loads, ast.literal_eval):
        with suppress(ValueError, SyntaxError, TypeError, RecursionError, MemoryError):  # brackets without end
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
        torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"{name!r} is no device; devices are cpu, cuda, cuda:1 and the like") from error
    try:
        torch.empty(1, device=name).item()
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        why = str(error).splitlines()[0].partition(". ")[0]
        raise ValueError(f"device {name!r} cannot be used here, take --device cpu: {why}") from error
    return name


def dataset_of(args: argparse.Namespace) -> Any:
    """Load the dataset that the options of `dataset_arguments` name."""
    from nextreid.data import list_datasets, load_dataset

    options = pairs(args.dataset_arg, "--dataset-arg", reserved=("name", "root", "captions"))
    options |= {"pattern": args.pattern} if args.pattern is not None else {}
    options |= {"window": windows(args.window)} if args.window else {}
    name, root, own = args.dataset, args.root, Path(args.dataset).expanduser()
    if name not in list_datasets() and (own.exists() or own.suffix or "/" in name):
        if not own.exists():
            raise FileNotFoundError(
                f"no file and no folder {own}; 'nextreid data list' lists datasets that have a name"
            )
        if root is not None:
            raise ValueError(f"--root goes with the name of a dataset, and {own} is one of your own: leave it out")
        name, root = _reader_of(own, args.pattern), own
    return load_dataset(name, root, captions=args.captions, **options)


def _reader_of(own: Path, pattern: str | None) -> str:
    """The reader of a user's own file or folder: a folder is read as it lies, unless it has splits or a pattern."""
    if not own.is_dir():
        return "manifest"
    from nextreid.data.datasets.folder import SPLITS

    return "pattern" if pattern is not None or any(path.name.lower() in SPLITS for path in own.iterdir()) else "folder"


def windows(items: Sequence[str]) -> dict[str, Any]:
    """``["tir=7000,9000", "nir=minmax"]`` to windows by modality."""
    from nextreid.data.image import check_window

    return {name: check_window(value) for name, value in pairs(items, "--window").items()}


def load_model(name: str) -> Any:
    """Load a checkpoint folder, a hub name or a registered model with its weights."""
    import nextreid
    from nextreid._names import closest

    if not (nextreid.is_model(name) or ":" in name or Path(name).expanduser().exists()):
        near = closest(name, [*nextreid.list_models(), *nextreid.list_pretrained()])
        hint = f"did you mean {' or '.join(near)}?" if near else "'nextreid models --pretrained' lists models"
        raise FileNotFoundError(f"{name!r} is no checkpoint folder and no model; {hint}")
    return nextreid.create_model(name, pretrained=True)


def short_names(checkpoints: Sequence[str]) -> list[str]:
    """Return what to write beside each model: the shortest ends of their paths that tell them apart."""
    parts = [Path(name).parts[::-1] for name in checkpoints]
    if len(set(checkpoints)) < len(checkpoints):
        raise ValueError(f"the same checkpoint is named twice: {', '.join(checkpoints)}")
    for length in range(1, max(map(len, parts)) + 1):
        names = ["/".join(part[:length][::-1]) for part in parts]
        if len(set(names)) == len(names) and not {"last", "best"} & set(names):  # these say too little
            return names
    return list(checkpoints)


def embed_options(args: argparse.Namespace, device: str) -> Any:
    """Return the options of `run_arguments` as one value."""
    from nextreid.engine import EmbedOptions

    return EmbedOptions(args.batch_size, args.workers, device, progress=not args.no_progress)


def metrics_line(row: dict[str, Any]) -> str:
    """Return one line with the metrics of a result and the conditions they hold under."""
    from nextreid.retrieval import METRICS

    metrics = "  ".join(f"{name} {percent(row[name])}" for name in METRICS)
    if "hint" in row:
        metrics = f"no metrics, because no query has a valid match: {row['hint']}"
    missing = f", without {', '.join(row['missing'])}" if row.get("missing") else ""
    more = ", re-ranked" if row.get("rerank") else ""
    more += ", modality parts averaged" if row.get("averaged") else ""
    valid = f"{row['valid_queries']} of {row['queries']} queries valid"
    return f"{metrics}  [{condition_text(row)}{missing}{more}, {valid}]"


def percent(value: float | None) -> str:
    """Return a metric in percent; a dash where there was nothing to measure."""
    return "–" if value is None else f"{100 * value:.1f}"


def condition_text(row: dict[str, Any]) -> str:
    """Return the protocol of a result and whether captions were read."""
    return f"protocol {row['protocol']}, {'with' if row['text'] else 'no'} captions at test"
