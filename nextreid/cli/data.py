"""``nextreid data``: check a dataset, show its card, list what can be loaded."""

import argparse
import contextlib
import json
import logging
import os
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import nextreid
from nextreid._names import unknown

from .arguments import pairs

_STATUS = """\
exit status: 0 usable (there may be warnings and notes), 1 errors were found, 2 it could not be read at all

examples:
  nextreid data check rgbnt201 --root data --captions captions/RGBNT201
  nextreid data check my/list.csv --protocol none
  nextreid data check my/list.csv --dataset-arg train=0.5          a list without a column split
  nextreid data check my/images --pattern '{split}/{modality}/{pid}_c{camid}_{*}.jpg'
  nextreid data check my/images          folders rgb, nir, tir of images without labels"""


def add(command: Any) -> None:
    """Add the group to the parser."""
    data = command.group("data", "Check datasets, and see what is known about the published ones.")
    check = data("check", run_check, "Report what is wrong with a dataset and what to do about it.", epilog=_STATUS)
    check.add_argument(
        "target", metavar="DATASET", help="a name of 'nextreid data list', a CSV or parquet file, a folder"
    )
    check.add_argument("--root", type=Path, default=None, help="folder of a named dataset, or the one that holds it")
    check.add_argument("--captions", type=Path, default=None, help="folder with {train,test}_{RGB,NI,TI}.json")
    check.add_argument("--pattern", default=None, help="how the files of a folder are named")
    check.add_argument("--protocol", default=None, help="the evaluation to come (default: the dataset's protocol)")
    check.add_argument("--num-ids", type=int, default=8, help="identities of a training batch (default: %(default)s)")
    check.add_argument("--quick", action="store_true", help="do not open the images")
    check.add_argument("--json", type=Path, default=None, metavar="FILE", help="also write the report here")
    check.add_argument(
        "--workers", type=int, default=os.cpu_count() or 1, help="threads that open images (default: one a processor)"
    )
    check.add_argument(
        "--dataset-arg", nargs="+", action="extend", default=[], metavar="NAME=VALUE", help="further arguments of it"
    )
    card = data("card", run_card, "Show what is known about a dataset: where to get it, its terms, its defects.")
    card.add_argument("name", metavar="DATASET", help="a name of 'nextreid data list'")
    data("list", run_list, "List the datasets that can be loaded by name.")


def run_check(args: argparse.Namespace) -> int:
    """Run ``nextreid data check``."""
    from nextreid._files import write_json
    from nextreid._progress import progress_counter
    from nextreid.captioning.text import clip_token_counter
    from nextreid.data import check_dataset
    from nextreid.retrieval import get_protocol

    given = args.protocol and get_protocol(args.protocol)  # a wrong name should not wait for the images
    with _quiet("nextreid.data", args.verbose):
        dataset = _load(args)
    protocol = given or get_protocol(dataset.protocol)
    with progress_counter("check", "sample", shown=True) as count:
        report = check_dataset(
            dataset,
            protocol.exclude,
            protocol=protocol.name,
            images=not args.quick,
            count_tokens=clip_token_counter(),
            num_ids=args.num_ids,
            workers=args.workers,
            progress=count,
        )
    print(report)
    if args.quick:
        print("the images were not opened (--quick)")
    if args.json:
        write_json(args.json, report.to_dict())
    return 0 if report.ok else 1


def run_card(args: argparse.Namespace) -> None:
    """Run ``nextreid data card``."""
    from nextreid.data import data_card

    print(data_card(args.name))


def run_list(args: argparse.Namespace) -> None:
    """Run ``nextreid data list``."""
    # Read from the files themselves: the package loads torch, which takes longer than all else.
    cards = Path(nextreid.__file__).parent.joinpath("data", "cards").glob("*.json")
    what = dict.fromkeys((plugin.name for plugin in entry_points(group="nextreid.datasets")), "") | {
        "folder": "your own images, from folders named by modality or identity, or neither",
        "manifest": "your own images, from a CSV or parquet file with one row per sample",
        "pattern": "your own images, from folders with labels in the names",
        **{card.stem: json.loads(card.read_bytes())["what"] for card in cards},
    }
    width = max(map(len, what))
    for name in sorted(what):
        print(f"{name:{width}}  {what[name]}".rstrip())


@contextlib.contextmanager
def _quiet(name: str, verbose: int) -> Iterator[None]:
    """Keep readers from logging what the report lists anyway."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(level if verbose else logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _load(args: argparse.Namespace) -> Any:
    """Load what `target` names: a dataset, a manifest, or a folder."""
    from nextreid.data import list_datasets, load_dataset

    options = pairs(args.dataset_arg, "--dataset-arg", reserved=("name", "root", "captions", "pattern"))
    path, names = Path(args.target).expanduser(), list_datasets()
    if args.pattern is not None:
        options["pattern"] = args.pattern
    if args.target in names:
        return load_dataset(args.target, args.root, captions=args.captions, **options)
    if args.root is not None:
        raise ValueError(f"--root goes with the name of a dataset, one of {', '.join(names)}; got {args.target!r}")
    if path.is_dir() and args.pattern is None:
        return _unlabelled(path, args, options)
    if not path.exists():
        raise FileNotFoundError(f"no such file or folder, and {unknown('dataset', args.target, names)}")
    return load_dataset("pattern" if path.is_dir() else "manifest", path, captions=args.captions, **options)


def _unlabelled(folder: Path, args: argparse.Namespace, options: dict[str, Any]) -> Any:
    from nextreid.data import MODALITIES, ReIDDataset, list_cards, read_folder
    from nextreid.data.sample import as_modalities

    modalities = as_modalities(options.pop("modalities", MODALITIES))
    if options or args.captions:
        raise ValueError(f"{folder} is read as unlabelled images, which take no captions and no {sorted(options)}")
    try:
        samples = tuple(read_folder(folder, modalities))
    except FileNotFoundError as error:
        published = f"a published dataset (nextreid data check NAME --root {folder}; one of {', '.join(list_cards())})"
        raise FileNotFoundError(
            f"{error}. Name what the folder is: {published}, or custom images with their file names "
            "(--pattern '{modality}/{pid}_c{camid}_{*}.jpg')"
        ) from error
    return ReIDDataset(folder.name, modalities, "object", args.protocol or "none", (), (), samples)
