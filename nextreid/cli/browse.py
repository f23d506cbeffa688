"""``nextreid browse``."""

import argparse
from pathlib import Path
from typing import Any

from .arguments import (
    dataset_of,
    embed_options,
    list_argument,
    pick_device,
    policy_arguments,
    run_arguments,
    short_names,
    source_arguments,
    windows,
)

_EXAMPLES = """\
A run is a folder of 'nextreid train', and a folder that holds runs and galleries names all of them. Rank lists need a
model and a dataset. The page answers this machine alone; from another one, forward its port with ssh -L.

examples:
  nextreid browse runs synthetic-persons
  nextreid browse runs/next runs/baseline rgbnt201 --root data --captions captions/RGBNT201
  nextreid browse people --images photos          a gallery, and the folder of its images
  nextreid browse my/images --pattern '{split}/{modality}/{pid}_c{camid}_{*}.jpg'"""


def add(command: Any) -> None:
    """Add the command to the parser."""
    browse = command("browse", run, "Show runs, rank lists, galleries and datasets in a browser.", epilog=_EXAMPLES)
    browse.add_argument(
        "sources",
        nargs="*",
        metavar="RUN|MODEL|GALLERY|DATASET",
        help="folders, files or names (default: the runs and galleries in this folder)",
    )
    browse.add_argument("--port", type=int, default=8321, help="(default: %(default)s)")
    browse.add_argument("--root", type=Path, help="folder of the named datasets, or the folder that holds them")
    source_arguments(browse)
    list_argument(browse, "--dataset-arg", "NAME=VALUE", "further arguments of the datasets")
    list_argument(browse, "--images", "FOLDER", "further folders whose images may be shown, such as those of a gallery")
    browse.add_argument("--cache", type=Path, metavar="FOLDER", help="of thumbnails (default: in the user's caches)")
    browse.add_argument("--no-cache", action="store_true", help="keep no thumbnails on the disk")
    policy_arguments(browse)
    run_arguments(browse)


def run(args: argparse.Namespace) -> None:
    """Run the command."""
    try:
        from nextreid.app.browse import Library, RankOptions, browse, sort_sources
        from nextreid.app.browse.images import default_cache
    except ImportError as error:
        raise ImportError(f"browsing needs {error.name}: pip install 'nextreid[browse]'") from error
    from nextreid._files import user_path

    if not 1 <= args.port <= 65535:
        raise ValueError(f"--port takes a number of 1 to 65535, got {args.port}")
    found = sort_sources(args.sources or ["."], pattern=args.pattern is not None)
    if not args.sources and found.datasets:
        raise FileNotFoundError(
            "there is no run and no gallery in this folder: name some, or a dataset, such as "
            "'nextreid browse next_tiny synthetic-persons'"
        )
    folders = [user_path(folder) for folder in args.images]
    if missing := [folder for folder in folders if not folder.is_dir()]:
        raise FileNotFoundError(f"--images: there is no folder {missing[0]}")
    datasets = {}
    for name in found.datasets:
        dataset, path = _dataset(args, name), user_path(name)
        datasets[name if not path.exists() else path.name] = dataset
        folders += [path if path.is_dir() else path.parent] if path.exists() else [args.root] if args.root else []
    library = Library(
        dict(zip(_short(list(map(str, found.runs))), found.runs, strict=True)),
        dict(zip(_short(found.models), found.models, strict=True)),
        dict(zip(_short(found.galleries), found.galleries, strict=True)),
        datasets,
        folders,
    )
    options = RankOptions(embed_options(args, pick_device(args.device)), args.on_error, args.allow_leak)
    cache = None if args.no_cache else args.cache or default_cache()
    counts = (
        (len(found.runs), "run", "runs"),
        (len(found.models), "model", "models"),
        (len(found.galleries), "gallery", "galleries"),
        (len(datasets), "dataset", "datasets"),
    )
    shown = ", ".join(f"{count} {one if count == 1 else several}" for count, one, several in counts if count)

    def started(address: str) -> None:
        print(f"{shown}: {address}", flush=True)

    more = {"cache": cache, "options": options, "windows": windows(args.window)}
    browse(library, port=args.port, started=started, **more)


def _short(names: list[str]) -> list[str]:
    return short_names(names) if names else []


def _dataset(args: argparse.Namespace, name: str) -> Any:
    """Load one dataset, with those of the options that concern it."""
    path = Path(name).expanduser()
    own = path.exists()
    given = {
        **vars(args),
        "dataset": name,
        "root": None if own else args.root,
        "pattern": args.pattern if path.is_dir() else None,
    }
    return dataset_of(argparse.Namespace(**given))
