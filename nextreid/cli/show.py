"""``nextreid show``: figures of trained models on a dataset."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .arguments import (
    dataset_arguments,
    dataset_of,
    embed_options,
    list_argument,
    load_model,
    open_text_cache,
    pick_device,
    policy_arguments,
    run_arguments,
    short_names,
)

_WORST = ("worst", "typical", "best")


def add(command: Any) -> None:
    """Add the group to the parser."""
    show = command.group("show", "Draw figures: rank lists of several models, what experts sample.")
    ranks = show(
        "ranks",
        run_ranks,
        "Draw queries with their nearest gallery entries, those of several models under each other.",
        epilog="example:\n  nextreid show ranks next_tiny baseline_tiny --dataset synthetic-persons \\\n"
        "      --queries differ --out ranks.png",
    )
    _add_models(ranks, "+")
    dataset_arguments(ranks)
    ranks.add_argument("--protocol", help="such as camera or camera:tir>rgb (default: the dataset's own)")
    list_argument(
        ranks,
        "--queries",
        "WHICH",
        "worst, typical, best, differ (where models differ most), random, or keys (default: worst, typical and best)",
    )
    ranks.add_argument("--count", type=int, default=2, help="queries of each kind (default: %(default)s)")
    ranks.add_argument("--top", type=int, default=10, help="gallery entries a query (default: %(default)s)")
    ranks.add_argument("--ignored", action="store_true", help="also draw the entries that the protocol ignores")
    list_argument(ranks, "--missing", "MODALITY", "modalities to hide")
    ranks.add_argument("--seed", type=int, default=0, help="of the random queries (default: %(default)s)")
    _add_picture(ranks, 144)
    experts = show(
        "experts",
        run_experts,
        "Draw what each semantic expert samples, with the captions that modulated it.",
        epilog="example:\n  nextreid show experts next_tiny --dataset synthetic-persons --count 4 --out experts.png",
    )
    _add_models(experts, None)
    dataset_arguments(experts)
    list_argument(experts, "--queries", "KEY", "queries to draw (default: the first of each identity)")
    experts.add_argument("--count", type=int, default=4, help="queries without --queries (default: %(default)s)")
    _add_picture(experts, 160)


def _add_models(parser: argparse.ArgumentParser, several: str | None) -> None:
    parser.add_argument(
        "checkpoint", nargs=several, metavar="CHECKPOINT", help="checkpoint folder, such as runs/x/last, or a model"
    )


def _add_picture(parser: argparse.ArgumentParser, size: int) -> None:
    parser.add_argument("--no-text", action="store_true", help="without captions")
    parser.add_argument("--image-size", type=int, default=size, help="pixels of an image (default: %(default)s)")
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=".png, .jpg, .pdf or .svg")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")
    policy_arguments(parser)
    run_arguments(parser)


def run_ranks(args: argparse.Namespace) -> None:
    """Run ``nextreid show ranks``."""
    from nextreid.engine.figures import rank_lists
    from nextreid.viz import save_image

    out = _out(args)
    options = embed_options(args, pick_device(args.device))
    dataset = dataset_of(args)
    image = rank_lists(
        dict(zip(short_names(args.checkpoint), _models(args, args.checkpoint), strict=True)),
        dataset,
        queries=args.queries or _WORST,
        count=args.count,
        top=args.top,
        protocol=args.protocol,
        text=not args.no_text,
        missing=args.missing,
        ignored=args.ignored,
        seed=args.seed,
        on_error=args.on_error,
        allow_leak=args.allow_leak,
        image_size=_size(args),
        options=options,
    )
    print(save_image(image, out))


def run_experts(args: argparse.Namespace) -> None:
    """Run ``nextreid show experts``."""
    from nextreid._names import unknown
    from nextreid.engine.evaluation import checked
    from nextreid.engine.figures import expert_masks
    from nextreid.viz import save_image

    out = _out(args)
    if args.count < 1:
        raise ValueError(f"--count takes a number of queries, got {args.count}")
    (model,) = _models(args, [args.checkpoint])
    dataset = checked(model, dataset_of(args), args.on_error, args.allow_leak)
    by_key = {sample.key: sample for sample in dataset.query}
    if wrong := [key for key in args.queries if key not in by_key]:
        raise ValueError(unknown("query", wrong, list(by_key)[:20]))
    firsts = {sample.pid: sample for sample in reversed(dataset.query)}
    samples = [by_key[key] for key in args.queries] or [firsts[pid] for pid in sorted(firsts)][: args.count]
    image = expert_masks(
        model.to(pick_device(args.device)), dataset, samples, text=not args.no_text, image_size=_size(args)
    )
    print(save_image(image, out))


def _models(args: argparse.Namespace, names: Sequence[str]) -> list[Any]:
    models = [load_model(name) for name in names]
    for model in models:
        if args.text_cache and model.text_tower is not None:
            open_text_cache(model, args.text_cache)
    return models


def _out(args: argparse.Namespace) -> Path:
    from nextreid._files import check_out_file
    from nextreid.viz import check_image_path

    out = check_image_path(args.out)
    check_out_file(out)
    if out.exists() and not args.overwrite:
        raise FileExistsError(f"{out} exists; take another name, or replace it with --overwrite")
    return out


def _size(args: argparse.Namespace) -> int:
    if not 16 <= args.image_size <= 2048:
        raise ValueError(f"--image-size takes 16 to 2048 pixels, got {args.image_size}")
    return args.image_size
