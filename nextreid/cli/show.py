"""``nextreid show``: figures of trained models on a dataset, of training runs, and of captions."""

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
    source_arguments,
)

_WORST = ("worst", "typical", "best")
_STYLES = ("light", "print")


def add(command: Any) -> None:
    """Add the group to the parser."""
    show = command.group("show", "Draw figures: rank lists, experts, embeddings, scores, training, captions.")
    ranks = show(
        "ranks",
        run_ranks,
        "Draw queries with their nearest gallery entries, those of several models under each other.",
        epilog="example:\n  nextreid show ranks next_tiny baseline_tiny --dataset synthetic-persons \\\n"
        "      --queries differ --out ranks.png",
    )
    _add_models(ranks, "+")
    _add_ranking(ranks)
    list_argument(
        ranks,
        "--queries",
        "WHICH",
        "worst, typical, best, differ (where models differ most), random, or keys (default: worst, typical and best)",
    )
    ranks.add_argument("--count", type=int, default=2, help="queries of each kind (default: %(default)s)")
    ranks.add_argument("--top", type=int, default=10, help="gallery entries a query (default: %(default)s)")
    ranks.add_argument("--ignored", action="store_true", help="also draw the entries that the protocol ignores")
    _add_picture(ranks, 144)
    _add_out(ranks)

    experts = show(
        "experts",
        run_experts,
        "Draw what a model looks at: sampled patches, structure experts, selections, offsets, gates, attention.",
        epilog="Which of these there are follows from the model; --view names some.\n\nexample:\n"
        "  nextreid show experts next_tiny --dataset synthetic-persons --count 4 --compare-text --out experts.png",
    )
    _add_models(experts, None)
    dataset_arguments(experts)
    experts.add_argument("--no-text", action="store_true", help="without captions")
    list_argument(experts, "--queries", "KEY", "queries to draw (default: the first of each identity)")
    experts.add_argument("--count", type=int, default=4, help="queries without --queries (default: %(default)s)")
    list_argument(
        experts,
        "--view",
        "NAME",
        "sampled, gamma, structure, selection, offsets, gates, rollout (default: what the method has, or rollout)",
    )
    experts.add_argument("--compare-text", action="store_true", help="with captions and without, side by side")
    _add_picture(experts, 160)
    policy_arguments(experts)
    run_arguments(experts)
    _add_out(experts)

    space = show(
        "space",
        run_space,
        "Draw embeddings of some identities on a plane by t-SNE, several models side by side.",
        epilog="example:\n  nextreid show space baseline_tiny next_tiny --dataset synthetic-persons --out space.pdf",
    )
    _add_models(space, "+")
    _add_ranking(space)
    list_argument(space, "--identities", "ID", "those to draw, as the files call them (default: some at random)")
    space.add_argument("--count", type=int, default=12, help="identities at random (default: %(default)s)")
    space.add_argument("--limit", type=int, default=1200, help="samples to draw at most (default: %(default)s)")
    _add_plot(space)

    scores = show(
        "scores",
        run_scores,
        "Draw histograms of scores, thresholds, DET and reliability curves.",
        epilog="Thresholds and reliability come from the calibration.json of a checkpoint folder, which 'nextreid\n"
        "calibrate' writes.\n\nexample:\n"
        "  nextreid show scores baseline_tiny next_tiny --dataset synthetic-persons --out scores.pdf",
    )
    _add_models(scores, "+")
    _add_ranking(scores)
    scores.add_argument("--queries", type=int, default=2000, help="queries at most (default: %(default)s)")
    scores.add_argument(
        "--calibration",
        type=Path,
        metavar="FOLDER",
        help="with one CHECKPOINT: where its calibration.json lies (default: CHECKPOINT)",
    )
    scores.add_argument("--no-calibration", action="store_true", help="without thresholds and reliability")
    _add_plot(scores)

    training = show(
        "training",
        run_training,
        "Draw losses, learning rates and metrics of training runs over each other.",
        epilog="example:\n  nextreid show training runs/next runs/baseline --out training.pdf --style print",
    )
    training.add_argument("folder", nargs="+", metavar="RUN", help="run folders")
    _add_plot(training)

    captions = show(
        "captions",
        run_captions,
        "Draw unknown rate, length and agreement of captions by modality, several sets beside each other.",
        epilog="example:\n  nextreid show captions captions/NEXT/RGBNT201 captions/IDEA/RGBNT201 --out captions.pdf",
    )
    captions.add_argument(
        "folder", nargs="*", metavar="FOLDER", help="caption sets: folders of {train,test}_{RGB,NI,TI}.json"
    )
    captions.add_argument("--dataset", help="also the captions of a dataset")
    captions.add_argument("--root", type=Path, help="folder of a named dataset, or the folder that holds it")
    source_arguments(captions)
    list_argument(captions, "--dataset-arg", "NAME=VALUE", "further arguments of it")
    _add_plot(captions)


def _add_models(parser: argparse.ArgumentParser, several: str | None) -> None:
    parser.add_argument(
        "checkpoint", nargs=several, metavar="CHECKPOINT", help="checkpoint folder, such as runs/x/last, or a model"
    )


def _add_ranking(parser: argparse.ArgumentParser) -> None:
    """Add the options of what embeds and ranks a dataset."""
    dataset_arguments(parser)
    parser.add_argument("--protocol", help="such as camera or camera:tir>rgb (default: the dataset's own)")
    list_argument(parser, "--missing", "MODALITY", "modalities to hide")
    parser.add_argument("--no-text", action="store_true", help="without captions")
    parser.add_argument("--seed", type=int, default=0, help="of what is random (default: %(default)s)")
    policy_arguments(parser)
    run_arguments(parser)


def _add_picture(parser: argparse.ArgumentParser, size: int) -> None:
    parser.add_argument("--image-size", type=int, default=size, help="pixels of an image (default: %(default)s)")


def _add_plot(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--style", choices=_STYLES, default="light", help="light for screens, print for papers (default: %(default)s)"
    )
    _add_out(parser)


def _add_out(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--out", type=Path, required=True, metavar="FILE", help=".png, .jpg, .pdf or .svg")
    parser.add_argument("--overwrite", action="store_true", help="replace a file that is there")


def run_ranks(args: argparse.Namespace) -> None:
    """Run ``nextreid show ranks``."""
    from nextreid.engine.figures import rank_lists
    from nextreid.viz import save_image

    out = _out(args)
    settings = _ranking(args)
    image = rank_lists(
        _by_name(args),
        dataset_of(args),
        queries=args.queries or _WORST,
        count=args.count,
        top=args.top,
        ignored=args.ignored,
        image_size=_size(args),
        **settings,
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
        model.to(pick_device(args.device)),
        dataset,
        samples,
        views=args.view,
        text=not args.no_text,
        compare_text=args.compare_text,
        image_size=_size(args),
    )
    print(save_image(image, out))


def run_space(args: argparse.Namespace) -> None:
    """Run ``nextreid show space``."""
    from nextreid.engine.figures import space

    out = _out(args)
    settings = _ranking(args)
    chosen = {"identities": args.identities, "count": args.count, "limit": args.limit, "style": args.style}
    _save(space(_by_name(args), dataset_of(args), **chosen, **settings), out)


def run_scores(args: argparse.Namespace) -> None:
    """Run ``nextreid show scores``."""
    from nextreid.engine.figures import scores
    from nextreid.retrieval import Calibration
    from nextreid.retrieval.calibration import CALIBRATION

    out = _out(args)
    if args.calibration and len(args.checkpoint) > 1:
        raise ValueError("--calibration goes with one CHECKPOINT: several have theirs in their folders")
    names = short_names(args.checkpoint)
    folders = {name: Path(each).expanduser() for name, each in zip(names, args.checkpoint, strict=True)}
    if args.calibration:
        folders = {names[0]: args.calibration}
    there = [name for name in folders if args.calibration or (folders[name] / CALIBRATION).is_file()]
    calibrations = {name: Calibration.read(folders[name]) for name in there if not args.no_calibration}
    settings = _ranking(args)
    chosen = {"calibrations": calibrations, "queries": args.queries, "style": args.style}
    _save(scores(_by_name(args), dataset_of(args), **chosen, **settings), out)


def run_training(args: argparse.Namespace) -> None:
    """Run ``nextreid show training``."""
    from nextreid.engine.figures import training

    out = _out(args)
    _save(training(dict(zip(short_names(args.folder), args.folder, strict=True)), style=args.style), out)


def run_captions(args: argparse.Namespace) -> None:
    """Run ``nextreid show captions``."""
    from nextreid.captioning import quality_of_dataset, quality_of_files
    from nextreid.viz import captions_plot

    out = _out(args)
    if not args.folder and not args.dataset:
        raise ValueError("name a FOLDER of captions, or a dataset that has some (--dataset)")
    names = short_names(args.folder) if args.folder else []
    sets = {name: quality_of_files(folder) for name, folder in zip(names, args.folder, strict=True)}
    if args.dataset:
        dataset = dataset_of(args)
        sets[dataset.name] = quality_of_dataset(dataset)
    counts = "; ".join(
        f"{name}: {', '.join(f'{found.captions:,} {modality.upper()}' for modality, found in of.items())}"
        for name, of in sets.items()
    )
    caption = (
        f"Captions of {counts}. Length: 5 to 95 %, the middle half and the median of CLIP's tokens. Agreement: mean "
        "cosine of the words of two captions of one identity, and of two."
    )
    _save(captions_plot(sets, caption, style=args.style), out)


def _ranking(args: argparse.Namespace) -> dict[str, Any]:
    """The options of `_add_ranking` as keywords of a figure."""
    return {
        "protocol": args.protocol,
        "text": not args.no_text,
        "missing": args.missing,
        "seed": args.seed,
        "on_error": args.on_error,
        "allow_leak": args.allow_leak,
        "options": embed_options(args, pick_device(args.device)),
    }


def _by_name(args: argparse.Namespace) -> dict[str, Any]:
    return dict(zip(short_names(args.checkpoint), _models(args, args.checkpoint), strict=True))


def _models(args: argparse.Namespace, names: Sequence[str]) -> list[Any]:
    models = [load_model(name) for name in names]
    for model in models:
        if args.text_cache and model.text_tower is not None:
            open_text_cache(model, args.text_cache)
    return models


def _save(plot: Any, out: Path) -> None:
    """Write a plot; print where it is, and what has to be said of it."""
    from nextreid.viz import save_image

    print(save_image(plot, out))
    print(plot.caption)


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
